"""Asserts taken apart, and values that cross a process boundary as data."""

import ast
import json

import pytest

from evals.benches.asserts import CannotConvert, Case, cases_of, constant, decode, encode, imports_of, make_code


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        0,
        -1.5,
        "ä\ud83d",
        [],
        (),
        [1, (2, [3]), {}],
        {1, 2, "a"},
        {(1, 2), frozenset({3})},
        {1: "a", (2, 3): [4], "x": None},
        1 + 2j,
        b"\x00\xff",
        2**10_000,
        -(7**5_000),
    ],
)
def test_a_value_comes_back_as_it_was(value):
    back = decode(json.loads(json.dumps(encode(value))))
    assert back == value
    assert type(back) is type(value)


def test_codes_are_equal_exactly_where_values_are():
    values = [0, 1, 1.0, True, "1", [1], (1,), [(1,)], {1}, {1.0}, {True}, {1: 2}, {1.0: 2.0}, {2, 1}, {1, 2}, None, 1j]
    for a in values:
        for b in values:
            assert (encode(a) == encode(b)) == (a == b), (a, b)


def test_an_object_has_no_code():
    thing = object()
    assert encode(thing) is thing
    with pytest.raises(ValueError, match="no code"):
        decode({"object": 1})


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("-2 ** 3 + 7 // 2", -5),
        ("set((4, 5)) ", {4, 5}),
        ("sorted([3, 1])", [1, 3]),
        ("{'a': (1, [2])}", {"a": (1, [2])}),
        ("float('inf')", float("inf")),
        ("[0] * 3", [0, 0, 0]),
        ("2.0 / 3.0", 2 / 3),
    ],
)
def test_constants(text, value):
    assert constant(ast.parse(text.strip(), mode="eval").body) == value


@pytest.mark.parametrize(
    "text",
    [
        "open('x')",
        "f(1)",
        "a.b",
        "9 ** 9 ** 9",
        "[0] * 10 ** 9",
        "range(10 ** 9)",
        "1 / 0",
        "[x for x in (1,)]",
        "{**{}}",
    ],
)
def test_no_constants(text):
    with pytest.raises(ValueError, match=r"no constant|too l"):
        constant(ast.parse(text, mode="eval").body)


def cases(text: str) -> list[Case]:
    return cases_of(ast.parse(text).body, {"candidate": "f", "f": "f"})


def test_what_each_kind_of_assert_becomes():
    assert cases("assert candidate([1], 'a') == (1, 2), 'message'") == [Case("f([1], 'a')", (1, 2))]
    assert cases("assert 3 == candidate(1)") == [Case("f(1)", 3)]
    assert cases("assert set(candidate(1)) == set((4, 5))") == [Case("set(f(1))", {4, 5})]
    assert cases("assert candidate(1)") == [Case("not not f(1)", True)]
    assert cases("assert not candidate(1)") == [Case("not not f(1)", False)]
    assert cases("assert True, 'nothing'") == []
    assert cases("assert tuple(candidate(1)) == tuple(f(2))") == [Case("tuple(f(1)) == tuple(f(2))", True)]
    assert cases("for x in range(2, 4):\n    assert candidate(x, x + 1) == str(x)") == [
        Case("f(2, 2 + 1)", "2"),
        Case("f(3, 3 + 1)", "3"),
    ]
    assert cases("n = [1, 2]\nassert candidate(n) == 3") == [Case("f([1, 2])", 3)]


def test_the_other_side_of_a_comparison_never_goes_to_the_program():
    """What is not a call on one side and a constant on the other is for the checker; no answer is in `call`."""
    (close,) = cases("assert abs(candidate(1.33) - 0.33) < 1e-06")
    assert close == Case("f(1.33)", check="abs(_ - 0.33) < 1e-06")
    (strict,) = cases("assert candidate(1) is True")
    assert strict == Case("f(1)", check="_ is True")
    (two,) = cases("assert candidate(1) + candidate(2) == 3")
    assert two == Case("(f(1), f(2))", check="_[0] + _[1] == 3")
    (size,) = cases("assert candidate(1) == sys.getsizeof(1)")
    assert size == Case("f(1)", check="_ == sys.getsizeof(1)")
    assert imports_of([close, size]) == "import sys\n"


@pytest.mark.parametrize(
    "text",
    [
        "assert False",
        "assert all(candidate(x) for x in (1, 2))",
        "assert (lambda x: candidate(x))(1)",
        "while True:\n    assert candidate(1) == 2",
        "x = candidate(1)\nassert x == 2",
        "for x in range(10 ** 9):\n    assert candidate(x) == 1",
        "x = 1\nassert candidate(1) == sum(x for x in (1, 2))",
    ],
)
def test_what_cannot_be_taken_apart_is_refused(text):
    with pytest.raises(CannotConvert, match="cannot split"):
        cases(text)


def test_expected_values_are_not_in_what_the_program_is_given():
    code = make_code([Case("f(1)", "needle-a"), Case("f(2)", check="_ == 'needle-b'")], setup="x = 1")
    given = code.prelude + code.after + code.completes + json.dumps([test.input for test in code.problem.tests])
    assert "needle" not in given
    assert "needle-a" in json.dumps([test.expected for test in code.problem.tests])
