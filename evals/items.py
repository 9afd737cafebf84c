"""Items: one problem with its reference answer, read from data files (verl's schema or columns by name)."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from evals.code_tests import Code, read_code
from evals.errors import UserError
from evals.files import Malformed, file_rows
from evals.hub import hub_answers, stay_offline
from sandbox import Limits


@dataclass(frozen=True)
class Item:
    """One problem. `prompt` is the bare problem: a prompt preset is applied when it is asked, never baked in."""

    id: str
    prompt: str
    answer: str
    meta: Mapping[str, Any] = field(default_factory=dict)  # level, subject, source, ... : whatever reports group by
    code: Code | None = None
    """what the grader "code" runs; None for a problem that wants no program"""


def read_rows(path: str | Path) -> Iterator[Mapping[str, Any]]:
    """Rows of a data file (see `evals.files`), in file order.

    Raises UserError for a missing file, an unknown ending, or what is no row, with its line.
    """
    for number, row in enumerate(file_rows(path)):
        if isinstance(row, Malformed):
            where = f"line {row.line}" if row.line else f"row {number}"
            raise UserError(f"{path}, {where}: {row.reason}. Expected JSON objects, or rows under a header.")
        yield row


def hub_rows(name: str, split: str, config: str | None = None) -> Iterable[dict[str, Any]]:
    """Rows of a data set on the Hugging Face hub. Raises UserError where it cannot be reached."""
    from datasets import load_dataset

    if not hub_answers():
        stay_offline()
    try:
        return load_dataset(name, config, split=split)  # type: ignore[return-value]
    except (OSError, ValueError, RuntimeError) as e:
        reason = str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__
        raise UserError(
            f"cannot load {name} from the Hugging Face hub: {reason}. Check the network, or give a local file in the "
            "hub's shape: --data FILE or $AGPO_DATA for an evaluation, --input SOURCE=FILE for a build."
        ) from e


def read_items(
    path: str | Path, prompt: str = "prompt", answer: str = "answer", limits: Limits | None = None
) -> list[Item]:
    """Items of a file in verl's schema (prompt as chat, reward_model.ground_truth) or with plain columns by name.

    limits: the reference answers are tests, as `read_code` reads them, and programs are run under these limits; the
    item's own answer is then empty, for tests may be megabytes and every sample keeps its answer.
    Raises UserError naming the file, the row and the missing column; a file without a row is an error too.
    """
    items = []
    for number, row in enumerate(read_rows(path)):
        item = _item(path, number, row, prompt, answer)
        if limits is not None:
            code = read_code(item.answer, f"{path}, row {number}", limits, str(item.meta.get("starter_code") or ""))
            item = replace(item, answer="", code=code)
        items.append(item)
    if not items:
        raise UserError(f"{path}: the file has no rows.")
    return items


def _item(path: str | Path, number: int, row: Mapping[str, Any], prompt: str, answer: str) -> Item:
    def column(name: str) -> Any:
        if row.get(name) is None:
            raise UserError(f"{path}, row {number}: no column {name!r}. The row has: {', '.join(sorted(row))}.")
        return row[name]

    asked = problem_text(column(prompt), f"{path}, row {number}, {prompt!r}")
    if "reward_model" in row and answer not in row:
        reference = (row["reward_model"] or {}).get("ground_truth")
        if reference is None:
            raise UserError(f"{path}, row {number}: reward_model has no 'ground_truth'.")
    else:
        reference = column(answer)
    extra = dict(row.get("extra_info") or {})
    known = {prompt, answer, "reward_model", "extra_info"}
    meta = {**{k: v for k, v in row.items() if k not in known and isinstance(v, str | int | float | bool)}, **extra}
    name = row.get("id", extra.get("id", extra.get("index")))
    return Item(str(name) if name is not None else item_id(asked), str(asked), str(reference), meta)


def problem_text(asked: Any, where: str) -> Any:
    """What the user says in a chat, as verl's schema has prompts; whatever is no list comes back as it is.

    Raises UserError naming `where` for a list that is no chat of texts.
    """
    if not isinstance(asked, list | tuple):
        return asked
    try:
        if said := [
            turn["content"] if "content" in turn else turn["value"]
            for turn in asked
            if turn.get("role", turn.get("from")) in ("user", "human")
        ]:
            return "\n\n".join(said)
    except (AttributeError, KeyError, TypeError):
        pass
    raise UserError(f"{where}: expected a text, or a chat with a user's message: role and content, a text.")


def item_id(text: str) -> str:
    """A stable id for a problem that has none: the first 16 hex digits of the SHA-256 of its text."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def derive_seed(*parts: object) -> int:
    """A 63-bit seed that depends on nothing but `parts` (run seed, item, repeat, step, ...)."""
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
