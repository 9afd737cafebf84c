"""What the report says of graded programs: both rules, errata in and out, disagreements."""

import pytest
from rich.console import Console

from evals.code_report import SHOWN, code_report, disagreements, judged
from evals.grading import NO_PROGRAM
from evals.report.layout import Grid, print_grid
from evals.stats import summarise
from evals.store import SampleRow


def sample(item: str, repeat: int, real: str | None, lcb: str | None, **meta) -> SampleRow:
    """A graded sample; verdicts None: the response had no program."""
    verdicts = {} if real is None else {"real": real, "lcb": lcb}
    return SampleRow(
        split="livecodebench",
        item=item,
        repeat=repeat,
        step=0,
        prompt="",
        response="",
        token_ids=(1, 2, 3),
        logprobs=None,
        finish_reason="stop",
        outcome="error" if real == "SE" else "right" if real == "AC" else "wrong" if real else "no_answer",
        path="",
        answer=None,
        reference="",
        reward=None if real == "SE" else float(real == "AC"),
        seed=0,
        seconds=0.0,
        meta={**verdicts, **meta},
    )


ROWS = [
    sample("a", 0, "AC", "AC"),
    sample("b", 0, "AC", "WA"),
    sample("c", 0, "WA", "RE"),
    sample("d", 0, "WA", "AC", errata="several answers are right"),
    sample("e", 0, None, None),
    sample("f", 0, "SE", "SE"),
]


def printed(rows) -> str:
    console = Console(width=160)
    with console.capture() as capture:
        for part in code_report(rows):
            print_grid(part, console) if isinstance(part, Grid) else console.print(part)
    return " ".join(capture.get().split())


def test_each_rule_with_and_without_errata():
    found = {key: summarise(rows) for key, rows in judged(ROWS).items()}
    assert {key: (s.problems, s.unscored, s.pass1.value) for key, s in found.items()} == {
        ("real", True): (6, 1, pytest.approx(2 / 5)),
        ("real", False): (5, 1, pytest.approx(2 / 4)),
        ("lcb", True): (6, 1, pytest.approx(2 / 5)),
        ("lcb", False): (5, 1, pytest.approx(1 / 4)),
    }
    assert list(judged(ROWS[:3])) == [("real", True), ("lcb", True)]


def test_rules_that_differ_in_kind_only_do_not_disagree():
    assert [row.item for row in disagreements(ROWS)] == ["b", "d"]
    text = printed(ROWS)
    assert "the rules disagree on 2 of 5 programs: b, sample 0: real AC, lcb WA d, sample 0: real WA, lcb AC" in text
    assert "without known errata" in text


def test_rejected_for_extraction_is_counted_apart():
    rows = [sample("a", 0, NO_PROGRAM, NO_PROGRAM), sample("b", 0, NO_PROGRAM, "AC"), sample("c", 0, "WA", "WA")]
    assert [summarise(some).pass1.value for some in judged(rows).values()] == [0.0, pytest.approx(1 / 3)]
    table = code_report(rows)[0]
    assert table.header[-2] == "no program"
    assert [line[-2] for line in table.blocks[0]] == ["2", "1"]
    assert [row.item for row in disagreements(rows)] == ["b"]


def test_what_is_not_listed_is_counted():
    rows = [sample(f"p{i}", 0, "AC", "WA") for i in range(SHOWN + 3)]
    text = printed(rows)
    assert f"p{SHOWN - 1}, sample 0" in text
    assert f"p{SHOWN}, sample 0" not in text
    assert "and 3 more; the store has" in text
    assert "the rules disagree on 0 of 1 programs" in printed(ROWS[:1])


def test_nothing_to_say_of_rows_without_programs():
    assert code_report([]) == []
    assert code_report([sample("e", 0, None, None)]) == []


def test_pass_at_k_under_each_rule():
    rows = [sample("a", k, "AC" if k == 0 else "WA", "WA") for k in range(4)]
    rows += [sample("b", k, "AC", "AC") for k in range(4)]
    real, lcb = ({k: e.value for k, e in summarise(some).pass_at.items()} for some in judged(rows).values())
    assert real == {2: pytest.approx((1 / 2 + 1) / 2), 4: 1.0}
    assert lcb == {2: 0.5, 4: 0.5}
    text = printed(rows)
    assert "pass@2" in text
    assert "75.0 100.0" in text
