"""Our graders behind verl's custom reward function: an error is NaN, never 0."""

import math

import pytest

from agpo.integrations.verl.reward import close, compute_score


@pytest.fixture(autouse=True, scope="module")
def closed():
    """No worker of a sandbox is left to the tests that look for them."""
    yield
    close()


def score(text, reference="6", **more):
    return compute_score("train", text, reference, {"id": "p1", "problem": "3+5-2"}, **more)


def test_verdicts():
    right = score("so \\boxed{6}")
    assert (right["score"], right["outcome"], right["item"], right["answer"]) == (1.0, "right", "p1", "6")
    assert score("\\boxed{\\frac{12}{2}}")["score"] == 1.0  # by its value
    assert (score("\\boxed{5}")["score"], score("\\boxed{5}")["outcome"]) == (0.0, "wrong")
    assert (score("no box")["score"], score("no box")["outcome"]) == (0.0, "no_answer")


def test_a_benchmark_has_its_own_grader():
    assert compute_score("arith", "6", "6", {"id": "a"}, grader="math", benches={"arith": "exact"})["score"] == 1.0
    assert compute_score("other", "6", "6", {"id": "a"}, grader="math", benches={"arith": "exact"})["score"] == 0.0


def test_what_cannot_be_graded_is_not_a_wrong_answer(monkeypatch, tmp_path):
    (tmp_path / "own_score.py").write_text(
        "def rate(text, item):\n"
        "    return None if text == 'unclear' else len(text) / 10 if item.answer == '6' else 1 / 0\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert score("12345", grader="own_score:rate")["score"] == 0.5
    unclear = score("unclear", grader="own_score:rate")
    assert math.isnan(unclear["score"])
    assert unclear["outcome"] == "abstained"
    assert score("1", "7", grader="own_score:rate")["outcome"] == "error"


def test_programs_are_judged_by_the_tests_in_the_runs_file(tmp_path):
    from agpo.integrations.verl.launch import rows_of, write_tests
    from evals.benches import tiny_code
    from evals.code_tests import from_json, to_json

    items = [("train", item) for item in tiny_code.items("train", 3)] + [
        ("tiny_code", item) for item in tiny_code.items("heldout", 2)
    ]
    write_tests(tmp_path / "tests.jsonl", items)
    for (source, item), row in zip(items, rows_of(items, "tiny-code"), strict=True):
        assert item.code
        assert from_json(to_json(item.code)) == item.code
        assert row["ability"] == "code"
        assert not row["reward_model"]["ground_truth"]
        how = {"grader": "code", "code": {"allow_unsafe": True}, "tests": str(tmp_path / "tests.jsonl"), "judges": 8}
        table = {test.input[0]: test.expected for test in item.code.problem.tests}
        for program, outcome in (({**table}, "right"), (dict.fromkeys(table, 10**9), "wrong")):
            text = f"```python\ndef f(x):\n    return {program}[x]\n```"
            told = compute_score(source, text, "", row["extra_info"], **how)
            assert (told["outcome"], told["score"]) == (outcome, float(outcome == "right")), told
            assert told["item"] == item.id


def test_an_item_without_an_id_gets_one():
    assert compute_score("train", "\\boxed{6}", "6")["item"]
    with pytest.raises(TypeError):
        compute_score()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
