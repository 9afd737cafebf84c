"""Programming problems: set aside by what is known of them, and by what the sandbox makes of their programs."""

import pytest

from data_curation import code_checks
from data_curation.code_checks import CodeOptions
from data_curation.stage import CodeTests, Context, Row

INPUTS = [f"{i} {i + 1}\n" for i in range(5)]
OUTPUTS = [f"{2 * i + 1}\n" for i in range(5)]
RIGHT = "a, b = map(int, input().split())\nprint(a + b)\n"
WRONG = "a, b = map(int, input().split())\nprint(a - b)\n"


def row(number: int = 0, problem: str = "Add two numbers.", **changes) -> Row:
    tests = {"inputs": INPUTS, "outputs": OUTPUTS, "time_limit": 1.0, "date": "2023-05-01"}
    return Row(f"c:{number}", "c", problem, "", {}, CodeTests(**{**tests, **changes}))


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (row(), None),
        (row(inputs=INPUTS[:4], outputs=OUTPUTS[:4]), "fewer than 5 tests"),
        (row(inputs=INPUTS[:1] * 9, outputs=OUTPUTS[:1] * 9), "fewer than 5 tests"),
        (row(time_limit=None), "no time limit"),
        (row(interactive=True), "interactive"),
        (row(problem="This is an interactive problem."), "interactive"),
        (row(problem="Remember to flush the output."), "interactive"),
        (row(file_io=True), "reads or writes files"),
        (row(checker=True), "several right answers (needs a checker)"),
        (row(problem="If there are multiple answers, print any of them."), "several right answers (by its words)"),
        (row(problem="Print the numbers in any order."), "several right answers (by its words)"),
        (row(problem="Is there any number that fits?"), None),
        (row(date="2024-10-01"), "from 2024-10-01 or later"),
        (row(date="2024-09-30"), None),
        (row(date=""), None),
    ],
)
def test_what_the_record_says(made, reason):
    result = code_checks.run([made], CodeOptions(run=False), Context())
    assert [one.reason for one in result.drops] == ([reason] if reason else [])


def test_options_let_more_through():
    given = [row(time_limit=None), row(1, checker=True), row(2, date="2025-01-01")]
    loose = CodeOptions(run=False, time_limit="optional", several="keep", before="")
    assert len(code_checks.run(given, loose, Context()).rows) == 3
    assert code_checks.run([row(date="")], CodeOptions(run=False, undated="drop"), Context()).rows == []
    with pytest.raises(ValueError, match="Invalid isoformat"):
        CodeOptions(before="next year")


def test_right_and_wrong_programs_run_in_the_sandbox():
    given = [
        row(0, references=[RIGHT], wrong=[WRONG]),
        row(1, references=[WRONG]),  # the tests are broken, or the program is
        row(2, references=[WRONG, RIGHT]),  # one that passes is enough
        row(3, references=[RIGHT], wrong=[RIGHT]),  # the tests tell nothing apart
        row(4),  # nothing to try
        row(5, references=["while True: pass"], inputs=INPUTS, outputs=OUTPUTS),
    ]
    result = code_checks.run(given, CodeOptions(backend="embedded"), Context(workers=2))
    fates = {one.id: (one.reason, one.detail.get("verdict")) for one in result.drops}
    assert fates == {
        "c:1": ("no right program passes", "WA"),
        "c:3": ("every wrong program passes", None),
        "c:5": ("no right program passes", "TLE"),
    }
    assert [one.id for one in result.rows] == ["c:0", "c:2", "c:4"]
    assert result.facts["problems without programs"] == 1
    assert result.facts["programs"] == {"right: AC": 3, "right: TLE": 1, "right: WA": 2, "wrong: AC": 1, "wrong: WA": 1}


def test_functions_are_called():
    source = "class Solution:\n    def add(self, a, b):\n        return a + b\n"
    made = row(
        inputs=[f"{i}\n[1, {i}]" for i in range(5)], outputs=[f"{i + 1}" for i in range(5)], fn_name="Solution().f"
    )
    problem = code_checks.code_of(made).problem
    assert problem.tests[2].input == [2, [1, 2]]
    right = row(
        inputs=[f"{i}\n2" for i in range(5)],
        outputs=[f"{i + 2}" for i in range(5)],
        fn_name="Solution().add",
        references=[source],
    )
    assert code_checks.run([right], CodeOptions(backend="embedded"), Context()).rows == [right]


def test_mathematics_passes_through():
    made = Row("m:0", "m", "1+1?", "2")
    assert code_checks.run([made], CodeOptions(), Context()).rows == [made]
