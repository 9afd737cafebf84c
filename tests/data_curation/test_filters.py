"""Problems that cannot be asked or can be guessed, each with its reason; and a list of ids."""

import pytest

from data_curation import filters
from data_curation.filters import FilterOptions
from data_curation.stage import Context, Row
from evals.errors import UserError
from evals.items import item_id

CASES = {
    "For the shaded region see https://example.org/a": "has a hyperlink",
    "Find the area.\n[img]https://example.org/a.png[/img]": "has an image",
    "Find $BC$. ![](cropped-3.jpg)": "has an image",
    "In the diagram, $BP$ trisects $ABC$. Find the ratio.": "its figure is missing",
    "Find the area of the region shaded in the picture.": "its figure is missing",
    "如图，求 $x$": "its figure is missing",
    "In the diagram, find $x$.\n[asy]draw((0,0)--(1,1)); dot(A); dot(B); dot(C);[/asy]": "",
    "The graph of $y = x^2$ meets the line. Where?": "",
    "Use the figure of 3.14 for pi.": "",
    "How many elements are in the image of $f$?": "",
    "Use the table above.\n| x | y |\n|---|---|\n| 1 | 2 |\nWhat is $y(1)$?": "",
    "What is $n$? $\\textbf{(A) }1\\qquad\\textbf{(B) }2\\qquad\\textbf{(C) }3$": "multiple choice",
    "Which are true?\nA. $a$ is even.\nB. $b$ is even.\nC. Both are.": "multiple choice",
    "Points (A) and (B) lie on a line. How long is it?": "",
}


@pytest.mark.parametrize(("problem", "reason"), CASES.items())
def test_reasons(problem, reason):
    assert filters.unfit(Row("a:0", "a", problem, "3"), FilterOptions())[0] == reason
    assert filters.unfit(Row("a:0", "a", problem, "3"), keep_all()) == ("", "")


def keep_all() -> FilterOptions:
    return FilterOptions(**{name: "keep" for name in FilterOptions.model_fields if name != "ids"})


@pytest.mark.parametrize(("answer", "dropped"), [("Yes", True), ("\\text{No}", True), ("no 3", False), ("正", False)])
def test_yes_and_no(answer, dropped):
    assert bool(filters.unfit(Row("a:0", "a", "Is it?", answer), FilterOptions())[0]) == dropped


def test_a_list_of_ids_from_a_file(tmp_path):
    rows = [Row(f"a:{n}", "a", f"How many are {n} and {n}?", "1") for n in range(4)]
    (tmp_path / "drop.txt").write_text(f"a:1\n\n{item_id(rows[2].problem)}\na:99\n")
    said = []
    options = FilterOptions(ids=str(tmp_path / "drop.txt"))  # type: ignore[arg-type]
    result = filters.run(rows, options, Context(said.append))
    assert [one.id for one in result.drops] == ["a:1", "a:2"]
    assert {one.reason for one in result.drops} == {"on the list of ids"}
    assert "1 of the 3 listed ids are of no row that is left: a:99" in said[0]
    with pytest.raises(UserError, match="no such file"):
        FilterOptions(ids="none.txt")  # type: ignore[arg-type]
