"""What counts as the right answer."""

import contextlib
import json
import tracemalloc

import pytest

from sandbox import compare


@pytest.mark.parametrize(
    ("output", "expected", "right"),
    [
        ("1 2\n", "1 2", True),
        ("1  2 \n\n", "1\n2", True),
        ("1 2 3", "1 2", False),
        ("1", "1 2", False),
        ("", "", True),
        ("", "1", False),
        ("YES", "yes", False),
        ("0.3333333", "0.3333333333", True),
        ("0.33", "0.3333333333", False),
        ("3", "3.0", True),
        ("1e5", "100000", False),  # Python prints no number so: hexadecimal digits
        ("100000", "1e5", False),
        ("100000.0", "1e+05", True),
        ("1e-07", "0.0000001", True),
        ("1000000001", "1000000000", False),  # integers are exact, whatever the tolerance
        ("1000000000.1", "1000000000.0", True),
        ("nan", "0.5", False),
        ("inf", "1e400", False),
        ("1_000", "1000", False),
        ("\u0661", "1", False),  # ARABIC-INDIC DIGIT ONE is not a digit of an answer
        ("+7", "7", False),
        ("+7", "+7", True),
        ("-0.0", "0.0", True),
        ("5.0", "5", True),
        ("5000000.5", "5000000", False),  # tolerance is for what has a fraction, on both sides
        ("1.2345678e8", "123456789", False),
        ("1.23456789e8", "123456789", True),
        ("0", "0.0000009", False),
        ("0.0", "0.0000009", True),
        ("2", "2.00000", True),
        ("1.1", "1.10", True),
        ("11", "0011", False),  # digits that are text
        ("0011", "11", False),
        ("00", "000", False),
        ("0011", "0011", True),
        ("00.5", "0.5", False),
        # line breaks between lines of text
        ("#. .#", "#.\n.#", False),
        ("#.\n\n  .# \n", "#.\n.#", True),
        ("3\n#. .#", "3\n#.\n.#", False),
        ("010 110", "010\n110", False),
        ("Yes No", "Yes\nNo", False),
        ("YES 1 2", "YES\n1 2", True),
        ("a\nb c", "a b c", True),
        ("1 2 3 4", "1 2\n3 4", True),
        ("9" * 10_000, "9" * 9_999 + "8", False),
    ],
)
def test_printed_answers(output, expected, right):
    assert (compare.difference(output, expected, 1e-6) is None) is right


def test_without_tolerance_numbers_are_exact():
    assert compare.difference("0.1000001", "0.1", 0.0)
    assert compare.difference("0.10", "0.1", 0.0) is None


def test_the_first_difference_is_named():
    assert compare.difference("1 2 4 5", "1 2 3 6", 0.0) == "token 3: '4' where '3' was expected"


@pytest.mark.parametrize(
    ("output", "expected", "right"),
    [
        ("1 2\n", "1 2", True),
        ("1  2", "1 2", True),  # equal as lists of Decimals
        ("a  b", "a b", False),
        ("1\n2", "1 2", False),
        ("1.0", "1", True),
        ("0.3333333", "0.33333333", False),
        (" x \n y", "x\ny", True),
        ("x\n\ny", "x\ny", False),
        ("NaN", "nan", False),
        ("sNaN", "snan", False),  # raises in the original
        ("Infinity", "inf", True),
        ("+7", "7", True),
        ("1.1", "1.10", True),
        ("11", "0011", False),  # equal in the original: its one hole that answers of honest problems fall through
        ("00", "000", False),
        ("100000", "1e5", False),
        ("0011  2", "0011 2.0", True),
    ],
)
def test_printed_answers_by_the_rule_of_livecodebench(output, expected, right):
    assert (compare.difference_lcb(output, expected) is None) is right


@pytest.mark.parametrize(
    ("value", "expected", "right"),
    [
        (7, 7, True),
        (7, 8, False),
        ([1, 2], (1, 2), True),
        (0.1 + 0.2, 0.3, True),
        (2, 2.0, True),
        ([[1.0, 2.0]], [[1.0, 2.0000001]], True),
        ({"a": [1]}, {"a": [1]}, True),
        ({"a": 1}, {"b": 1}, False),
        ("a", "b", False),
        (None, None, True),
        (None, 0, False),
        ([1], 1, False),
        (10**300, 1e300, True),
        (5000000.5, 5000000, False),
        (5000000.0, 5000000, True),
        (0, 0.0000009, False),
        (2, 2.0000001, False),
        (10**400, 1e300, False),
    ],
)
def test_returned_values(value, expected, right):
    assert (compare.value_difference(json.dumps(value).encode(), expected, 1e-6, "real") is None) is right


def test_returned_values_by_the_rule_of_livecodebench():
    assert compare.value_difference(b"0.30000000000000004", 0.3, 1e-6, "lcb")
    assert compare.value_difference(b"[1, 2]", [1, 2], 1e-6, "lcb") is None


@pytest.mark.parametrize("hostile", [b"", b"[" * 4000, b"nope", b"\xff\xfe", b"7" * 50_002, b"{]"])
def test_what_is_no_json_is_refused(hostile):
    with pytest.raises(compare.BadValue):
        compare.value_difference(hostile, list(range(1000)), 0.0, "real")


def test_a_value_far_too_large_is_not_taken_apart(monkeypatch):
    monkeypatch.setattr(compare, "parse", lambda _: pytest.fail("was parsed"))
    assert "bytes where" in (compare.value_difference(b"[" + b"[]," * 1_000_000 + b"[]]", [1], 0.0, "real") or "")


def test_nan_answers_nothing():
    assert compare.value_difference(b"NaN", 1.5, 1e-6, "real")
    assert compare.value_difference(b"Infinity", 1.5, 1e-6, "real")


def test_integers_as_long_as_livecodebenchs_runner_allows_under_its_rule():
    for digits, right in ((4301, True), (50_000, True), (50_003, False)):
        text = "7" * digits
        answer = 10**digits // 9 * 7
        if right:
            assert compare.value_difference(text.encode(), answer, 0.0, "lcb") is None
            assert compare.value_difference(f"[{text[:-1]}8]".encode(), [answer], 0.0, "lcb")
        else:
            with pytest.raises(compare.BadValue):
                compare.value_difference(text.encode(), answer, 0.0, "lcb")


@pytest.mark.parametrize("mark", ["[]", '{{"a":{}}}'])
@pytest.mark.parametrize("rule", ["real", "lcb"])
def test_depth_is_bounded_wherever_the_stack_stands(mark, rule):
    """Nested as deep as the parser itself takes, and a little less: never an exception of another kind."""
    for depth in (301, 900, 976, 984, 990, 1100):
        deep = "1"
        for _ in range(depth):
            deep = f"[{deep}]" if mark == "[]" else f'{{"a":{deep}}}'
        for expected in ([[1]], list(range(500)), "any", 1):
            with contextlib.suppress(compare.BadValue):
                assert compare.value_difference(deep.encode(), expected, 1e-6, rule)
        with pytest.raises(compare.BadValue):
            compare.parse(deep.encode())
    assert compare.parse(b"[" * 300 + b"]" * 300)


def test_showing_never_raises():
    deep: list = []
    for _ in range(5000):
        deep = [deep]
    for value in (deep, 10**10_000, {1, 2}, float("nan"), object(), b"x", "\ud800", {"a": deep}):
        assert isinstance(compare.shown(value), str)
    assert len(compare.shown([10**10_000])) < 200


@pytest.mark.parametrize("unit", ["1 ", "\n", "1\n", "x ", "\n1 1", "1.0 "])
@pytest.mark.parametrize("rule", ["difference", "difference_lcb"])
def test_a_flood_is_not_taken_apart(unit, rule):
    """16 MB of tokens or lines beside a short answer: memory in proportion to the text, not to what it holds."""
    flood = unit * ((16 << 20) // len(unit))
    tracemalloc.start()
    try:
        for expected in ("7", "1 1\n1 1", unit * 100):
            found = compare.difference(flood, expected, 1e-6) if rule == "difference" else None
            found = found if rule == "difference" else compare.difference_lcb(flood, expected)
            assert found or not flood.strip(), (unit, expected)
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()


def test_a_value_of_another_structure_is_not_taken_apart(monkeypatch):
    want = list(range(100_000))
    forged = b"[" + b"[]," * 200_000 + b"1]"
    assert compare.value_difference(json.dumps([float(x) for x in want]).encode(), want, 1e-6, "real") is None
    monkeypatch.setattr(compare, "parse", lambda *_, **__: pytest.fail("was parsed"))
    assert "structure" in (compare.value_difference(forged, want, 0.0, "real") or "")
