"""LiveCodeBench's code generation (Jain et al. 2024): contest problems with dates, by release and window of dates."""

import datetime
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from evals.benches import lcb_facts, private_tests
from evals.benches.bench import Bench, Option
from evals.code_tests import PRELUDE, Code, unix_lines
from evals.errors import UserError, first_line
from evals.files import Record
from evals.items import Item, read_rows
from sandbox import Limits, Problem, Test

HUB = "livecodebench/code_generation_lite"
LIMITS = Limits(cpu_s=6.0)
"""the official runner's 6 s per test, here of processor time, so that verdicts do not depend on the machine's load"""
COLUMNS = (
    *("question_title", "question_content", "platform", "question_id", "contest_id", "contest_date", "starter_code"),
    *("difficulty", "public_test_cases", "private_test_cases", "metadata"),
)

if TYPE_CHECKING:
    from evals.report.layout import Grid
    from evals.store import SampleRow

Window = tuple[datetime.date, datetime.date]


def load(path: str | None, release: str, window: str) -> list[Item]:
    """Problems of a release whose contest date lies in the window.

    path: None for the hub's files; a folder with them (test.jsonl, test2.jsonl, ...); or one file of records, .jsonl,
    .jsonl.gz or .parquet, which counts as the release unless its size or dates show another. `meta["source"]` says
    which, with counts. Raises UserError: an unknown release or window, a file of another release, nothing in the
    window, a malformed record, tests that are missing or cannot be decoded.
    """
    days = parse_window(window)
    where, files = _files(path, release, days[0])
    rows: dict[str, tuple[Path, Record]] = {}
    total, first, last = 0, datetime.date.max, datetime.date.min
    for file in files:
        for number, row in enumerate(read_rows(file)):
            total += 1
            date = _date(row, f"{file}, row {number}")
            first, last = min(first, date), max(last, date)
            if days[0] <= date <= days[1]:
                name = str(row["question_id"])
                if name in rows:
                    raise UserError(f"{file}, row {number}: the problem {name!r} is there twice.")
                rows[name] = file, row
    if not total:
        raise UserError(f"{where}: no rows.")
    whole = release if path is None or Path(path).is_dir() else None
    if whole is None and (why := lcb_facts.is_another(release, total, first, last)):
        raise UserError(f"{where} is not LiveCodeBench's {release}: {why}. Say which --release it is.")
    if not rows:
        raise UserError(
            f"{where}: none of {total} problems lies in the window {window}; they go from {first} to {last}."
        )
    source = f"{where}, {_count(total, whole, release, files)}; {_in_window(len(rows), release, days)}"
    items = []
    for name in list(rows):
        file, row = rows.pop(name)  # the encoded tests of the whole window are hundreds of megabytes
        items.append(to_item(row, f"{file.name}, problem {name!r}", source))
    return items


def parse_window(text: str) -> Window:
    """ "2024-10-01:2025-02-01", both days included; either side may be left out; "all" is every date."""
    start, colon, end = ("", ":", "") if text == "all" else text.partition(":")
    try:
        if not colon:
            raise ValueError(text)
        days = (
            datetime.date.fromisoformat(start) if start else datetime.date.min,
            datetime.date.fromisoformat(end) if end else datetime.date.max,
        )
    except ValueError as e:
        raise UserError(
            f"window {text!r}: expected START:END with dates like {lcb_facts.PAPER_WINDOW}; omit one for no bound, or "
            "use all."
        ) from e
    if days[0] > days[1]:
        raise UserError(f"window {text!r}: it ends before it starts.")
    return days


def _files(path: str | None, release: str, start: datetime.date) -> tuple[str, list[Path]]:
    """(where the problems come from, files to read); not those of the release that end before the window starts."""
    numbers = lcb_facts.increments(release)
    if path is not None and not Path(path).is_dir():
        return Path(path).name, [Path(path)]
    wanted = [lcb_facts.INCREMENTS[n - 1] for n in numbers]
    names = [increment.file for increment in wanted if increment.last >= start]
    if not names:
        raise UserError(f"release {release} of LiveCodeBench ends on {wanted[-1].last}, before the window starts.")
    if path is not None:
        files = [Path(path) / name for name in names]
        if missing := [file.name for file in files if not file.is_file()]:
            raise UserError(f"{path}: no {', '.join(missing)}, which release {release} needs for this window.")
        return f"{Path(path).name} ({', '.join(names)})", files
    files = [_download(name) for name in names]
    revision = files[0].parent.name[:12]  # the hub's cache keeps files under the revision they are of
    return f"{HUB} at {revision} ({', '.join(names)})", files


def _download(name: str) -> Path:
    """One file of the data set, from the hub or its cache. Its loading script is never run."""
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(HUB, name, repo_type="dataset"))
    except (OSError, ValueError) as e:  # httpx's and the hub's own errors are both of them
        raise UserError(
            f"cannot load {name} of {HUB} from the Hugging Face hub: {first_line(e).rstrip('.')}. "
            "Check the network, or give --data: a folder with its files, or one file of its records "
            "(.jsonl, .jsonl.gz or .parquet)."
        ) from e


def _count(total: int, whole: str | None, release: str, files: Sequence[Path]) -> str:
    """The number of problems read, against the number there should be."""
    if whole is not None:
        known = {increment.file: increment.problems for increment in lcb_facts.INCREMENTS}
        expected = sum(known[file.name] for file in files)
        return f"{total} problems" + ("" if total == expected else f" (expected {expected}: the data set has changed)")
    expected = lcb_facts.size(release)
    if total == expected:
        return f"a local file with all {total} problems of {release}"
    alike = lcb_facts.releases_of_size(total)
    told = f", as many as {' or '.join(alike)}" if alike else ""
    return f"a local file with {total} problems{told}, not the {expected} of {release}"


def _in_window(count: int, release: str, days: Window) -> str:
    """The number of problems in the window, against the paper's 166 where that is what was asked for."""
    paper = parse_window(lcb_facts.PAPER_WINDOW)
    v5_last = lcb_facts.increments(release)[-1] == 5
    if not (v5_last and days[0] == paper[0] and days[1] >= lcb_facts.INCREMENTS[4].last):
        return f"{count} in the window"
    if count == lcb_facts.PAPER_PROBLEMS:
        return f"{count} in the window, as in the paper"
    return f"{count} in the window (the paper's has {lcb_facts.PAPER_PROBLEMS})"


def _date(row: Record, where: str) -> datetime.date:
    if missing := [name for name in COLUMNS if row.get(name) is None]:
        raise UserError(f"{where}: no column {missing[0]!r}. The row has: {', '.join(sorted(row))}.")
    try:
        return datetime.date.fromisoformat(str(row["contest_date"])[:10])
    except ValueError as e:
        raise UserError(f"{where}: contest_date is {row['contest_date']!r}, expected YYYY-MM-DD...") from e


def to_item(row: Record, where: str, source: str) -> Item:
    """One record as an Item. Raises UserError naming `where` for tests that cannot be decoded, or none at all."""
    cache = private_tests.cache_folder()
    found: dict[str, list[dict[str, str]]] = {}
    for kind in ("public", "private"):
        try:
            found[kind] = private_tests.read(row[f"{kind}_test_cases"], cache)
        except private_tests.BadTests as e:
            raise UserError(f"{where}: its {kind} tests cannot be read: {e}.") from e
    if not found["public"] and not found["private"]:
        raise UserError(f"{where}: it has no tests, so nothing could fail. Remove it from the file.")
    entry = _entry(row, where)
    tests = tuple(_tests(found["public"] + found["private"], bool(entry), where))
    date = str(row["contest_date"])[:10]
    meta = {
        "difficulty": row["difficulty"],
        "platform": row["platform"],
        "month": date[:7],
        "date": date,
        "contest": row["contest_id"],
        "title": row["question_title"],
        "public_tests": len(found["public"]),
        "private_tests": len(found["private"]),
        "source": source,
    }
    name = str(row["question_id"])
    if name in lcb_facts.ERRATA:
        meta["errata"] = lcb_facts.ERRATA[name]
    code = Code(Problem(tests), "call" if entry else "stdin", entry, LIMITS, row["starter_code"], prelude=PRELUDE)
    return Item(name, row["question_content"], "", meta, code)


def _entry(row: Record, where: str) -> str:
    """What to call: LeetCode's `Solution().method`, or a function if the starter code has no class; "" for stdin."""
    try:
        metadata = json.loads(row["metadata"] or "{}")
        name = metadata.get("func_name") or ""
    except (ValueError, AttributeError, TypeError) as e:
        raise UserError(f"{where}: metadata is not a JSON object: {row['metadata']!r}.") from e
    if not name:
        return ""
    owner = "Solution()." if "class Solution" in row["starter_code"] or not row["starter_code"] else ""
    return f"{owner}{name}"


def _tests(found: Sequence[Mapping[str, str]], call: bool, where: str) -> Iterator[Test]:
    """Public tests first, as in the official runner. A call's arguments are one JSON value per line."""
    for number, test in enumerate(found):
        if not call:
            yield Test(unix_lines(test["input"]), unix_lines(test["output"]))
            continue
        try:
            lines = test["input"].rstrip("\n").split("\n")
            yield Test([json.loads(line) for line in lines], json.loads(test["output"]))
        except ValueError as e:
            raise UserError(f"{where}, test {number}: expected one JSON value per line ({e}).") from e


def report(rows: "Sequence[SampleRow]") -> "list[str | Grid]":
    from evals.code_report import code_report  # statistics and the store: not to say what benchmarks there are

    return code_report(rows)


def notes(items: Sequence[Item], options: Mapping[str, str]) -> list[str]:
    """Release, window, counts, problems without private tests, and known errata."""
    sources = dict.fromkeys(str(item.meta["source"]) for item in items)
    said = [
        f"{options['release']}, window {options['window']} by contest date, both days included. {source}."
        for source in sources
    ]
    weak = [item for item in items if not item.meta["private_tests"]]
    if weak:
        said.append(
            f"{len(weak)} of {len(items)} problems have no private tests, only those of the statement, which wrong "
            "programs pass more easily."
        )
    faulty = {item.id: item.meta["errata"] for item in items if "errata" in item.meta}
    if faulty:
        listed = ", ".join(f"{name} ({why})" for name, why in faulty.items())
        said.append(f"known errata, asked and counted; the report gives Pass@1 without them too: {listed}.")
    return said


BENCH = Bench(
    name="livecodebench",
    title="LiveCodeBench",
    load=load,
    size=lcb_facts.PAPER_PROBLEMS,
    grader="code",
    prompt="lcb-chat",
    max_tokens=32768,
    groups=("difficulty", "platform", "month"),
    licence="CC (statements: of their sites)",
    source=HUB,
    options=(
        Option(
            "release",
            "release_v1 to release_v6, an increment (v5), a range (v4_v5) or release_latest",
            lcb_facts.PAPER_RELEASE,
        ),
        Option("window", "START:END by contest date, both included, or all", lcb_facts.PAPER_WINDOW),
    ),
    notes=notes,
    report=report,
)
