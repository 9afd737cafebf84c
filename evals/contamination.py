"""Could the model have seen the problems? By its training data, if its run is known, and by dates."""

import datetime
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from evals.benches import BENCHES
from evals.errors import UserError
from evals.items import Item, parts_of, problem_text, source_rows

if TYPE_CHECKING:
    from evals.store import Store

NGRAM = 13
"""words; 8, common elsewhere, flags every tenth problem for its boilerplate"""
SHARE = 0.5
"""of a problem's n-grams in one training problem, for it to count as seen"""
COMMON = 0.2
"""n-grams in a larger share of the problems belong to a template, such as solved examples"""
_TOLD = ("id", "question_id", "title", "url", "link", "contest_date", "date")
"""columns of a training set that tell a problem's origin"""


@dataclass(frozen=True)
class Known:
    """The last date of problems that a family of models may have seen."""

    pattern: str
    """in the lower-case name of the model"""
    until: datetime.date
    stated: bool
    """True: the stated cut-off. False: none is stated, and this is the release date"""
    source: str


# The first match counts. Other models get no warning.
KNOWN: tuple[Known, ...] = (
    Known(r"deepseek-r1-distill", datetime.date(2025, 1, 20), False, "LiveCodeBench, lm_styles.py"),
    Known(r"qwen2\.5-coder", datetime.date(2024, 11, 12), False, "Qwen2.5-Coder's README"),
    Known(r"qwen2\.5", datetime.date(2024, 9, 19), False, "Qwen2.5's README"),
    Known(r"qwen3", datetime.date(2025, 4, 29), False, "Qwen3's README"),
    Known(r"qwq-32b-preview", datetime.date(2024, 11, 28), False, "QwQ's announcement"),
    Known(r"qwq-32b", datetime.date(2025, 3, 6), False, "QwQ's announcement"),
    Known(r"llama-?3[._-][123](?!\d)", datetime.date(2023, 12, 31), True, "model card"),
    Known(r"gemma-?3(?!\d)", datetime.date(2024, 8, 31), True, "model card"),
    Known(r"phi-4(?!\d)", datetime.date(2024, 6, 30), True, "model card"),
    Known(r"smollm2", datetime.date(2024, 11, 1), False, "its announcement"),
    Known(r"smollm3", datetime.date(2025, 7, 8), False, "its announcement"),
)


def known(model: str) -> Known | None:
    """The entry for the model's name, or the last parts of its path."""
    name = "/".join(Path(model).parts[-2:]).lower()
    return next((one for one in KNOWN if re.search(one.pattern, name)), None)


def dates_note(model: str, items: Sequence[Item]) -> str | None:
    """A warning if dated problems are no newer than the model's training data may be."""
    one = known(model)
    dated = [item.meta["date"] for item in items if item.meta.get("date")]
    if one is None or not dated:
        return None
    old = sum(date <= one.until.isoformat() for date in dated)
    if not old:
        return None
    when = "has a stated cut-off of" if one.stated else "states no cut-off; it was released on"
    return (
        f"warning: {model} {when} {one.until} ({one.source}): {old} of {len(dated)} problems are no newer and may have "
        "been in its training data."
    )


def training_notes(training: Mapping[str, object], items: Sequence[Item]) -> list[str]:
    """Warnings if the data of a training run (section `data` of its configuration) overlaps the problems.

    A problem counts as seen if a training problem has its id or title, or half of its 13-grams. Training problems dated
    within the problems' dates are counted too.
    """
    path = str(training.get("path") or "")
    if not path or path in BENCHES:  # problems that are made on the spot: their sides are apart
        return []
    try:
        trained = list(training_items(path, str(training.get("prompt_column") or "prompt")))
    except UserError as e:
        return [f"warning: whether the training data holds these problems could not be checked: {e}"]
    said = []
    if found := overlap(items, trained):
        few = ", ".join(f"{name} ({why})" for name, why in list(found.items())[:10])
        more = ", ..." if len(found) > 10 else ""
        said.append(
            f"warning: the training data {path} holds {len(found)} of the {len(items)} problems: {few}{more}. "
            "This result says little about new problems."
        )
    dates = [str(item.meta["date"]) for item in items if item.meta.get("date")]
    if dates:
        dated = {t.id: str(t.meta.get("contest_date") or t.meta.get("date") or "")[:10] for t in trained}
        if within := [name for name, date in dated.items() if min(dates) <= date <= max(dates)]:
            said.append(
                f"warning: {len(within)} training problems of {path} are dated within the problems' {min(dates)} to "
                f"{max(dates)} (first: {within[0]})."
            )
    manifest = Path(path).parent / "manifest.json"
    if not said and manifest.is_file():
        said.append(
            f"the training data {path} ({len(trained)} problems, with a manifest) holds none of these problems."
        )
    return said


def overlap(items: Sequence[Item], trained: Iterable[Item]) -> dict[str, str]:
    """Item id -> why it counts as seen."""
    by_name: dict[str, str] = {}
    by_gram: dict[tuple[str, ...], list[str]] = {}
    for item in items:
        title = _plain(str(item.meta.get("title") or ""))
        if title.count("-") >= 2:  # "Sort" is the title of many problems
            by_name[title] = item.id
        if not item.id.isdigit():  # a bare number is some other set's id as well
            by_name[_plain(item.id)] = item.id
        for gram in _grams(item.prompt):
            by_gram.setdefault(gram, []).append(item.id)
    most = max(4, COMMON * len(items))
    by_gram = {gram: names for gram, names in by_gram.items() if len(names) <= most}
    sizes = Counter(name for names in by_gram.values() for name in names)
    found: dict[str, str] = {}
    for other in trained:
        for text in _names_of(other):
            if hit := by_name.get(_plain(text)):
                found.setdefault(hit, f"named {text!r} there")
        shared = Counter(name for gram in _grams(other.prompt) for name in by_gram.get(gram, ()))
        for name, count in shared.items():
            if count >= SHARE * sizes[name]:
                found.setdefault(name, f"{100 * count / sizes[name]:.0f} % of its {NGRAM}-grams")
    return found


def training_items(path: str, column: str = "prompt") -> Iterator[Item]:
    """The problems of training data, without their answers: tests can be megabytes each."""
    for number, row in enumerate(row for part in parts_of(path) for row in source_rows(part)):
        asked = problem_text(row.get(column), f"{path}, row {number}, {column!r}")
        if asked is None:
            raise UserError(f"{path}, row {number}: no column {column!r}. The row has: {', '.join(sorted(row))}.")
        meta = {**{k: v for k, v in row.items() if isinstance(v, str | int)}, **(row.get("extra_info") or {})}
        yield Item(str(meta.get("id", number)), str(asked), "", {k: meta[k] for k in _TOLD if meta.get(k) is not None})


def _names_of(item: Item) -> list[str]:
    """What a training row says of where it is from. The last parts of a URL name the problem: .../1873/A, .../slug/."""
    names = [item.id]
    for text in (str(item.meta[k]) for k in ("id", "question_id", "title", "url", "link") if k in item.meta):
        parts = [part for part in text.split("/") if part]
        names += [text, *parts[-1:], "_".join(parts[-2:])]
    return names


def _plain(text: str) -> str:
    return "-".join(re.findall(r"\w+", text.lower()))


def _grams(text: str) -> set[tuple[str, ...]]:
    """All n-grams of the words; the whole text where it has fewer words."""
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[i : i + NGRAM]) for i in range(max(1, len(words) - NGRAM + 1))} if words else set()


def notes(model: str, label: Mapping[str, object], items: Sequence[Item], store: "Store | None" = None) -> list[str]:
    """Warnings about a model before it is evaluated on these problems.

    model: folder or hub id. label: the folder's agpo_run.json. The training data are found by the checkpoint's state,
    else by the run's record in the store.
    """
    said = [note] if (note := dates_note(str(label.get("model", model)), items)) else []
    state = Path(model) / "trainer" / "state.json"
    data = None
    if state.is_file():
        data = (json.loads(state.read_text()).get("config") or {}).get("data")
    elif store is not None and label.get("run"):
        data = next((run.config.get("data") for run in store.runs("train") if run.id == label["run"]), None)
    return said + training_notes(data if isinstance(data, Mapping) else {"path": data or ""}, items)
