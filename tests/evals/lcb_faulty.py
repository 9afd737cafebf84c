"""Tests of the offline copy of LiveCodeBench's release v5 that are none: `python tests/evals/lcb_faulty.py PROBLEMS`.

The official private tests cannot be had, so that copy takes others (LeetCodeDataset's, samples cut from statements).
Some have inputs outside the problem's own constraints, prose for an expected output, or a wrong one. Prints them as
JSON lines for `python -m evals.verdicts --faulty`. Found by looking at every program that was officially accepted and
failed.
"""

import json
import sys
from collections import Counter
from collections.abc import Iterator

from evals.benches import livecodebench
from evals.verdicts import test_key


def _prime(n: int) -> bool:
    return n > 1 and all(n % d for d in range(2, int(n**0.5) + 1))


def _time(s: str) -> bool:
    times = (f"{h:02}:{m:02}" for h in range(12) for m in range(60))
    return len(s) == 5 and any(all(a in ("?", b) for a, b in zip(s, t, strict=True)) for t in times)


def _never_negative(ids: list[int], changes: list[int]) -> bool:
    counts: Counter[int] = Counter()
    for i, change in zip(ids, changes, strict=True):
        counts[i] += change
        if counts[i] < 0:
            return False
    return True


# id -> (what its statement promises, whether an input keeps the promise)
CONSTRAINTS = {
    "3361": ("five characters, and some time from 00:00 to 11:59 fits", _time),
    "3363": ("no id ever occurs a negative number of times", _never_negative),
    "3373": ("numbers up to 100, at least one prime", lambda ns: max(ns) <= 100 and any(map(_prime, ns))),
    "3397": (
        "0 to 1000, and one number makes the first list the second",
        lambda a, b: min(a + b) >= 0 and len({y - x for x, y in zip(sorted(a), sorted(b), strict=True)}) == 1,
    ),
    "3412": ("no letter twice, t a permutation of s", lambda s, t: len({*s}) == len(s) and sorted(s) == sorted(t)),
    "3468": ("lower-case letters", lambda s, k: s.isalpha() and s.islower()),
    "3560": (
        "all positions differ, none is the knight's",
        lambda x, y, ps: len({(x, y), *map(tuple, ps)}) == len(ps) + 1,
    ),
    "3583": ("queries below n(n-1)/2", lambda ns, qs: max(qs) < len(ns) * (len(ns) - 1) // 2),
    "3591": ("s and t equally long", lambda s, t, *_: len(s) == len(t)),
    "3605": ("primes up to 1000", lambda ns: all(n <= 1000 and _prime(n) for n in ns)),
    "3659": ("cells and k below 16", lambda grid, k: k < 16 and all(0 <= n < 16 for row in grid for n in row)),
    "3684": ("exactly one star", lambda s, p: p.count("*") == 1),
}
PROSE = {"abc328_d", "abc343_b", "abc344_a", "abc367_c", "abc372_a"}
"""an empty sample output: the file has the sentence that follows it"""
WRONG = {
    "2730": ([[24, 9], 1], "24*2 | 9 is 57, not 30"),
    "2872": ([[2, 5, 10, 16, 3]], "2+5+10+16 is 33, not 21"),
}


def faulty(problems: str) -> Iterator[dict[str, str]]:
    for item in livecodebench.load(problems, "release_v5", "all"):
        assert item.code is not None
        for test in item.code.problem.tests:
            why = ""
            if item.id in CONSTRAINTS and not CONSTRAINTS[item.id][1](*test.input):
                why = f"outside the constraints: {CONSTRAINTS[item.id][0]}"
            elif item.id in PROSE and len(test.expected.split()) > 4 and test.expected.strip().endswith("."):
                why = "its expected output is prose"
            elif item.id in WRONG and test.input == WRONG[item.id][0]:
                why = f"its expected output is wrong: {WRONG[item.id][1]}"
            if why:
                yield {"item": item.id, "test": test_key(test), "why": why}


if __name__ == "__main__":
    for row in faulty(sys.argv[1]):
        print(json.dumps(row))
