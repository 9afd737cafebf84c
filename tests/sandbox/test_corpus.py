"""The adversarial corpus on every backend that is claimed secure, as root and as an ordinary user."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sandbox import Verdict

ROOT = Path(__file__).parent.parent.parent
CORPUS = Path(__file__).parent / "corpus.py"
NOBODY = 65534


def names() -> list[str]:
    return sorted(path.stem for path in (ROOT / "tests/adversarial").glob("*.py"))


def run(
    backend: str, *options: str, python: str = sys.executable, as_user: bool = False, package: Path = ROOT
) -> list[dict]:
    done = subprocess.run(
        [python, str(package / "tests/sandbox/corpus.py"), backend, *options],
        env={**os.environ, "PYTHONPATH": str(package), "PYTHONDONTWRITEBYTECODE": "1"},
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
        **({"user": NOBODY, "group": NOBODY, "extra_groups": []} if as_user else {}),
    )
    assert done.returncode in (0, 1), done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def check(results: list[dict], least: int) -> None:
    assert len(results) >= least, "the corpus was not run to its end"
    wrong = {result["name"]: result["wrong"] for result in results if result["wrong"]}
    assert not wrong, "\n".join(f"{name}: {why}" for name, why in wrong.items())


@pytest.fixture
def readable(tmp_path_factory) -> tuple[str, Path]:
    """An interpreter and a copy of the package that an ordinary user can read."""
    if os.getuid():
        return sys.executable, ROOT
    python = next((p for p in ("/usr/bin/python3", "/usr/local/bin/python3") if _usable(p)), None)
    if python is None:
        if os.environ.get("CI"):
            pytest.fail("no Python >= 3.11 that an ordinary user can read: the sandbox is not tested as one")
        pytest.skip("no Python >= 3.11 that an ordinary user can read")
    folder = Path("/var/tmp") / f"agpo-tests-{os.getpid()}"
    for part in ("sandbox", "tests/sandbox", "tests/adversarial"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    return python, folder


@pytest.fixture(scope="session", autouse=True)
def _remove_copy():
    yield
    shutil.rmtree(Path("/var/tmp") / f"agpo-tests-{os.getpid()}", ignore_errors=True)


def _usable(python: str) -> bool:
    if not os.path.exists(python):
        return False
    return (
        subprocess.run(
            [python, "-c", "import sys; sys.exit(sys.version_info < (3, 11))"], user=NOBODY, cwd="/", check=False
        ).returncode
        == 0
    )


def test_every_file_says_what_must_happen():
    spec = importlib.util.spec_from_file_location("corpus", CORPUS)
    assert spec
    assert spec.loader
    corpus = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(corpus)
    assert len(names()) > 200
    for path in (ROOT / "tests/adversarial").glob("*.py"):
        about = corpus.head(path.read_text())
        assert about.get("expect"), path.name
        verdicts = set(about["expect"].partition(" ")[0].split("|"))
        assert verdicts <= {str(v) for v in Verdict} - {"SE", "SKIPPED"}, path.name


def test_a_wrong_outcome_is_seen(tmp_path, embedded):
    """The runner of the corpus fails when a trick works: one that claims it must be refused what is allowed."""
    package = tmp_path / "copy"
    for part in ("sandbox", "tests/sandbox", "tests/adversarial"):
        shutil.copytree(ROOT / part, package / part, ignore=shutil.ignore_patterns("__pycache__"))
    planted = package / "tests/adversarial/getpid.py"
    planted.write_text(
        "# Reads its own process id.\n# expect: AC\n\nimport os\nprint('ESCAPED' if os.getpid() else 'held')\n"
    )
    results = run("embedded-full", "--only", "getpid", "exit_zero", package=package)
    assert [bool(r["wrong"]) for r in results[:2]] == [True, False]


@pytest.mark.slow
@pytest.mark.parametrize("isolation", ["program", "test"])
def test_embedded_full(embedded, isolation):
    check(run("embedded-full", "--isolation", isolation), len(names()))


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["embedded-full", "embedded-reduced"])
def test_embedded_as_an_ordinary_user(readable, backend):
    python, package = readable
    check(run(backend, python=python, as_user=os.getuid() == 0, package=package), len(names()) - 5)


@pytest.mark.slow
def test_embedded_reduced_as_root(readable):
    if os.getuid():
        pytest.skip("not root")
    python, _ = readable
    check(run("embedded-reduced", "--python", python), len(names()))


@pytest.mark.slow
@pytest.mark.docker
def test_docker(engine):
    check(run("docker"), len(names()))
