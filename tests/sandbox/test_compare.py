"""What counts as the right answer."""

import json

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


@pytest.mark.parametrize("hostile", [b"", b"[" * 4000, b"nope", b"\xff\xfe", b"7" * 4400, b"{]"])
def test_what_is_no_json_is_refused(hostile):
    with pytest.raises(compare.BadValue):
        compare.value_difference(hostile, list(range(1000)), 0.0, "real")


def test_a_value_far_too_large_is_not_taken_apart(monkeypatch):
    monkeypatch.setattr(compare, "parse", lambda _: pytest.fail("was parsed"))
    assert "bytes where" in (compare.value_difference(b"[" + b"[]," * 1_000_000 + b"[]]", [1], 0.0, "real") or "")


def test_nan_answers_nothing():
    assert compare.value_difference(b"NaN", 1.5, 1e-6, "real")
    assert compare.value_difference(b"Infinity", 1.5, 1e-6, "real")
