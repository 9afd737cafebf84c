"""`python -m agpo.deterministic`: what is exact, and that it can tell what is not."""

import pytest
import torch

from agpo.deterministic import main
from evals.engines import decoding

SMALL = ["--prompts", "6", "--n", "2", "--max-tokens", "24"]


def told(capsys) -> dict[str, str]:
    lines = capsys.readouterr().out.splitlines()
    return {name.strip(): said for name, _, said in (line.partition("  ") for line in lines)}


@pytest.fixture
def torch_as_it_was():
    threads = torch.get_num_threads()
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)


@pytest.mark.slow
@pytest.mark.usefixtures("torch_as_it_was")
def test_samples_of_engine_hf_do_not_depend_on_their_batch_and_it_would_say_so(monkeypatch, capsys):
    assert main(SMALL) in (0, 1)
    said = told(capsys)
    exact = ("same seeds, same samples", "engine: a sample alone, or in a batch", "engine: few prompts, or many")
    assert [said[name].strip() for name in exact] == ["exact"] * 3
    assert said["trainer: the same twice"].strip() == "exact"
    monkeypatch.setattr(decoding, "LANES", 1)  # prompts padded to the longest of the batch
    assert main(SMALL) == 1
    assert "off by up to" in told(capsys)["engine: a sample alone, or in a batch"]
