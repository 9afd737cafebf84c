"""Problems in words: their answers are right, and no held-out wording is trained on."""

import re

import pytest

from tools.word_problems import KINDS, PEOPLE, THINGS, main, problems

FORMULAS = {"add": "a+b", "take": "a-b", "times": "a*b", "share": "a/b"}


def question(row):
    return row["prompt"][-1]["content"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("held_out", [False, True])
def test_answers_are_those_of_the_numbers_in_the_text(kind, held_out):
    """Computed from the text alone: the numbers as they stand there, and the kind's formula."""
    for row in problems(held_out, 40, [kind]):
        numbers = map(int, re.findall(r"\d+", question(row)))
        value = eval(FORMULAS[kind], dict(zip("abc", numbers, strict=False)))
        assert int(row["answer"]) == value >= 0, question(row)


def test_held_out_templates_are_in_no_training_problem():
    """Names, things and numbers taken out, what is left of a problem is its wording."""

    def wordings(held_out):
        rows = problems(held_out, 400, list(KINDS))
        assert len({question(row) for row in rows}) == 400
        return {re.sub("|".join([r"\d+", *PEOPLE, *THINGS]), "_", question(row)) for row in rows}, {
            row["template"] for row in rows
        }

    (train, names), (held, held_names) = wordings(False), wordings(True)
    assert not train & held
    assert not names & held_names
    assert (len(names), len(held_names)) == (4 * len(KINDS), len(KINDS))


def test_the_same_problems_again_and_others_with_another_seed():
    assert problems(False, 20) == problems(False, 20) != problems(False, 20, seed=1)


def test_nearly_all_that_the_templates_make_is_given():
    assert len(problems(True, 955, ["add"])) == 955


def test_the_command_writes_both(tmp_path):
    assert not main(["--out", str(tmp_path)])
    lengths = {path.stem: len(path.read_text().splitlines()) for path in tmp_path.iterdir()}
    assert lengths == {"train": 2048, "held_out": 256}
