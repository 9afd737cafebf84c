"""What is known of LiveCodeBench's releases and of its faulty problems. Data, with where it comes from."""

import datetime
import re
from dataclasses import dataclass

from evals.errors import UserError


@dataclass(frozen=True)
class Increment:
    """One file of the data set: the problems that a release added."""

    file: str
    problems: int
    last: datetime.date
    """no problem is dated later"""


# File names: the data set's repository. Counts and months: LiveCodeBench's README (release_v1: 400 problems up to March
# 2024, release_v2: 511 up to May, ...), of which these are the differences.
INCREMENTS: tuple[Increment, ...] = (
    Increment("test.jsonl", 400, datetime.date(2024, 3, 31)),
    Increment("test2.jsonl", 111, datetime.date(2024, 5, 31)),
    Increment("test3.jsonl", 101, datetime.date(2024, 7, 31)),
    Increment("test4.jsonl", 101, datetime.date(2024, 9, 30)),
    Increment("test5.jsonl", 167, datetime.date(2025, 1, 31)),
    Increment("test6.jsonl", 175, datetime.date(2025, 4, 30)),
)

PAPER_RELEASE, PAPER_WINDOW = "release_v5", "2024-10-01:2025-02-01"
PAPER_PROBLEMS = 166
"""of v5 from October 2024 on; the last is dated 2025-01-04 (LiveCodeBench issue 99)"""

MULTIPLE = "several answers are right, one is accepted"
INTERACTIVE = "interactive: the tests cannot be passed"

# LiveCodeBench's ERRATA.md at 28fef95; LeetCode problems, which it names by title, by their question ids.
ERRATA: dict[str, str] = {
    "abc311_c": MULTIPLE,
    "abc326_d": MULTIPLE,
    "abc327_b": MULTIPLE,
    "abc333_e": MULTIPLE,
    "abc343_a": MULTIPLE,
    "abc343_e": MULTIPLE,
    "abc362_c": MULTIPLE,
    "arc185_c": MULTIPLE,
    "3194": MULTIPLE,  # find-words-containing-character
    "3221": MULTIPLE,  # find-the-peaks
    "3453": MULTIPLE,  # generate-binary-strings-without-adjacent-zeros
    "abc337_e": INTERACTIVE,
    "abc355_e": INTERACTIVE,
    "abc350_c": "wrong tests",
    "arc189_a": "one wrong test",
    "3308": "a wrong test with an empty string",  # apply-operations-to-make-string-empty
    "3363": "an input outside the constraints",  # most-frequent-ids
}


def increments(release: str) -> range:
    """Numbers (from 1) of the increments of a release, by LiveCodeBench's names.

    release_v5: v1 to v5. v5: that increment alone. v4_v5: from the one to the other. release_latest: all.
    Raises UserError for another name.
    """
    newest = len(INCREMENTS)
    if release == "release_latest":
        return range(1, newest + 1)
    if found := re.fullmatch(r"release_v(\d+)", release):
        first, last = 1, int(found[1])
    elif found := re.fullmatch(r"v(\d+)(?:_v(\d+))?", release):
        first, last = int(found[1]), int(found[2] or found[1])
    else:
        first, last = 0, 0
    if not 1 <= first <= last <= newest:
        raise UserError(
            f"unknown release {release!r} of LiveCodeBench. Known: release_v1 to release_v{newest} (everything up to "
            f"there), v1 to v{newest} (what that release added), ranges such as v4_v5, and release_latest."
        )
    return range(first, last + 1)


def size(release: str) -> int:
    """How many problems the release has."""
    return sum(INCREMENTS[n - 1].problems for n in increments(release))


def is_another(release: str, problems: int, first: datetime.date, last: datetime.date) -> str | None:
    """Why a file with this many problems between these dates cannot be (a part of) the release; None where it can.

    Two releases may share the month between them, as v5 and v6 share January 2025.
    """
    if problems == size(release):
        return None
    if alike := releases_of_size(problems):
        return f"it has {problems} problems, as many as {' or '.join(alike)}"
    numbers = increments(release)
    newest, before = INCREMENTS[numbers[-1] - 1], INCREMENTS[numbers[-1] - 2] if numbers[-1] > 1 else None
    if before and last <= before.last:
        return f"its last contest is of {last}, when v{numbers[-1]} had not begun"
    if last > newest.last + datetime.timedelta(days=31):
        return f"its last contest is of {last}, and {release} ends in {newest.last:%B %Y}"
    start = INCREMENTS[numbers[0] - 2].last.replace(day=1) if numbers[0] > 1 else datetime.date.min
    return f"its first contest is of {first}, and {release} begins in {start:%B %Y}" if first < start else None


def releases_of_size(problems: int) -> list[str]:
    """Names of the releases and increments that have this many problems."""
    numbers = range(1, len(INCREMENTS) + 1)
    names = [f"release_v{n}" for n in numbers] + [f"v{n}" for n in numbers]
    return [name for name in names if size(name) == problems]
