"""The vLLM engine in a process of its own: what every engine does, and what is vLLM's own."""

import pytest
from engine_conformance import CHECKS, Subject, make_model, reference

from evals.engines import load_engine

pytestmark = [pytest.mark.vllm, pytest.mark.slow]


@pytest.fixture(scope="session")
def subject(tiny, tmp_path_factory):
    model = make_model(tmp_path_factory.mktemp("conformance"), tiny)
    engine = load_engine("vllm", model)
    yield Subject(engine, reference(model))
    engine.close()


@pytest.mark.parametrize("check", CHECKS)
def test_conformance(check, subject):
    check(subject)
