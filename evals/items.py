"""Items: problems with reference answers, from data files in verl's schema or with plain columns."""

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Number
from pathlib import Path
from typing import Any

from evals.code_tests import Code, read_code
from evals.errors import UserError, first_line
from evals.files import ENDINGS, Malformed, Record, ending, file_rows, local_files
from evals.hub import ask_hub
from sandbox import Limits

HUB_NAME = re.compile(r"(?P<name>[\w-][\w.-]*/[\w.-]+)(:(?P<config>[\w.-]+)(?=:))?(:(?P<split>[\w.-]+(\[.*\])?))?")


@dataclass(frozen=True)
class Item:
    """One problem. `prompt` is the bare problem: a prompt preset is applied when it is asked."""

    id: str
    prompt: str
    answer: str
    meta: Mapping[str, Any] = field(default_factory=dict)  # level, subject, source, ... : whatever reports group by
    code: Code | None = None
    """what the grader "code" runs; None for a problem that wants no program"""
    chat: tuple[dict[str, str], ...] = ()
    """the turns of a prompt with more than one user message: asked as they are, without a preset"""
    was_chat: bool = False
    """the data has the prompt as a chat, even if of one message"""

    @property
    def labels(self) -> dict[str, str | int | float | bool]:
        """`meta` without lists and the like: what every sample keeps in the store."""
        return {name: value for name, value in self.meta.items() if isinstance(value, str | int | float | bool)}


def read_rows(path: str | Path) -> Iterator[Record]:
    """Rows of a data file (`evals.files`), in order. Raises UserError for a bad file or, with its line, a bad row."""
    for number, row in enumerate(file_rows(path)):
        if isinstance(row, Malformed):
            where = f"line {row.line}" if row.line else f"row {number}"
            raise UserError(f"{path}, {where}: {row.reason}. Expected JSON objects, or rows under a header.")
        yield row


def hub_rows(name: str, split: str, config: str | None = None) -> Iterable[Record]:
    """Rows of a data set on the Hugging Face hub. Raises UserError where it cannot be reached."""
    from datasets import load_dataset

    ask_hub()
    try:
        return load_dataset(name, config, split=split)  # type: ignore[return-value]
    except (OSError, ValueError, RuntimeError) as e:
        raise UserError(
            f"cannot load {name} from the Hugging Face hub: {first_line(e)}. Check the network, or give a "
            "local file in the hub's shape: --data FILE or $AGPO_DATA for an evaluation, --input SOURCE=FILE for a "
            "build."
        ) from e


def hub_name(place: str) -> re.Match[str] | None:
    """The name, config and split of a data set of the hub; None for a file or folder, there or not."""
    return None if Path(place).exists() or ending(Path(place)) in ENDINGS else HUB_NAME.fullmatch(place)


def parts_of(path: str | Path) -> list[str]:
    """The places that `path` names, separated by commas."""
    return [str(path)] if Path(path).exists() else [part.strip() for part in str(path).split(",")]


def source_rows(part: str) -> Iterable[Record]:
    """Rows of a place: a file, a folder (`local_files`) or a data set of the hub, the last two as NAME, NAME:SPLIT or
    NAME:CONFIG:SPLIT. The default split is train."""
    name, *rest = [part] if Path(part).exists() else part.split(":")
    if Path(name).is_dir():
        files = local_files(name, rest[-1] if rest else "train", rest[0] if len(rest) > 1 else None)
        return (row for file in files for row in read_rows(file))
    hub = hub_name(part)
    return hub_rows(hub["name"], hub["split"] or "train", hub["config"]) if hub else read_rows(part)


def read_items(
    path: str | Path, prompt: str = "prompt", answer: str = "answer", limits: Limits | None = None
) -> list[Item]:
    """Items of a file in verl's schema (prompt as chat, reward_model.ground_truth) or with plain columns by name.

    path: one or more places (`source_rows`), separated by commas; ids then begin with the file's name.
    answer: "" without reference answers; all other columns go to `meta`.
    limits: the reference answers are tests (`read_code`), and programs run under these limits; `answer` is then empty,
    for every sample stores it and tests may be megabytes.
    Raises UserError naming the file, the row and the missing column; a file without rows is an error too.
    """
    items, parts = list[Item](), parts_of(path)
    for part in parts:
        before, source = len(items), Path(part).name.split(".")[0]
        for number, row in enumerate(source_rows(part)):
            where = f"{part}, row {number}"
            item = _item(where, row, prompt, answer)
            if limits is not None:
                code = read_code(item.answer, where, limits, str(item.meta.get("starter_code") or ""))
                item = replace(item, answer="", code=code)
            items.append(replace(item, id=f"{source}/{item.id}") if len(parts) > 1 else item)
        if len(items) == before:
            raise UserError(f"{part}: the file has no rows.")
    return items


def _item(where: str, row: Record, prompt: str, answer: str) -> Item:
    def column(name: str) -> object:
        if name not in row:
            what, there = "prompt" if name == prompt else "answer", ", ".join(sorted(row))
            raise UserError(
                f"{where}: no column {name!r}. The row has: {there}. Name yours: data.{what}_column=NAME, in evals.run "
                f"--{what}-column NAME."
            )
        if row[name] is None or row[name] == "":
            what = "null" if row[name] is None else "empty"
            raise UserError(f"{where}: column {name!r} is {what}. Fill it in, or leave the row out.")
        return row[name]

    def text(value: object, what: str, hint: str = "") -> str:
        """Never the repr of something else, which would be asked or compared in its place."""
        if isinstance(value, str):
            return value
        if isinstance(value, bool) or not isinstance(value, Number) or value != value:
            kind = "NaN" if value != value else f"a {type(value).__name__}"
            raise UserError(f"{where}: {what} is {kind}, and a text or a number is wanted. Convert it{hint}.")
        return str(value)

    nothing = ([], (), {}, "", b"", "[]", "{}")
    for name in ("image", "images", "video", "videos", "audio", "tools"):
        if isinstance(row.get(name), list | tuple | dict | str | bytes) and row[name] not in nothing:
            raise UserError(f"{where}: it has {name}, and only text is supported. Remove the row or the column.")
    chat = turns(column(prompt), f"{where}, {prompt!r}")
    if chat and chat[-1]["role"] != "user":
        raise UserError(f"{where}: the last turn is the {chat[-1]['role']}'s, and must be the user's. Remove it.")
    asked = problem_text(chat, where) if chat else text(column(prompt), "the prompt")
    verl = {name: row[name] for name in ("reward_model", "extra_info") if isinstance(row.get(name), Mapping)}
    if "reward_model" in verl and answer not in row:
        reference = verl["reward_model"].get("ground_truth")
        if reference in (None, "") and answer:
            raise UserError(f"{where}: reward_model has no 'ground_truth', or an empty one.")
    else:
        reference = column(answer) if answer else None
    hint = "; or, for a reward of your own, data.answer_column= leaves the column to item.meta"
    reference = "" if reference is None else text(reference, "the answer", hint)
    extra, known = verl.get("extra_info", {}), {prompt, answer, *verl}
    meta = {**{k: v for k, v in row.items() if k not in known and v is not None}, **extra}
    name = row.get("id", extra.get("id", extra.get("index")))
    ident = (
        text(name, "the id")
        if name is not None
        else item_id("\0".join(m["content"] for m in chat) if chat[1:] else asked)
    )
    own = chat if [message["role"] for message in chat] != ["user"] else ()
    return Item(ident, asked, reference, meta, chat=own, was_chat=bool(chat))


def turns(asked: object, where: str) -> tuple[dict[str, str], ...]:
    """The messages of a chat, each a role and a text; () for a prompt that is not a list. Raises UserError."""
    if not isinstance(asked, list | tuple):
        return ()
    expected = "Expected a chat with a user's message: a role and a content, which is a text."
    told: list[dict[str, str]] = []
    for message in asked:
        message = message if isinstance(message, Mapping) else {}
        role = message.get("role", message.get("from"))
        if not isinstance(role, str):
            raise UserError(f"{where}: a turn is no message ({dict(message)!r:.80}). {expected}")
        role = {"human": "user", "gpt": "assistant"}.get(role, role)  # as ShareGPT has it
        content = message.get("content", message.get("value"))
        parts = content if isinstance(content, list | tuple) else [None]
        if all(isinstance(part, Mapping) and part.get("type") == "text" for part in parts):
            content = "".join(str(part["text"]) for part in parts if part)
        if role == "tool" or message.get("tool_calls"):
            raise UserError(f"{where}: a turn uses tools, and only text is supported. Remove the row.")
        if not isinstance(content, str):
            raise UserError(f"{where}: the {role}'s turn holds more than text ({content!r:.80}). {expected}")
        known = {"role", "content", "from", "value"}  # what else a template may read, such as reasoning_content
        more = {k: v for k, v in message.items() if k not in known and isinstance(v, str) and v}
        told.append({**more, "role": role, "content": content})
    if not any(message["role"] == "user" for message in told):
        raise UserError(f"{where}: no turn is the user's. {expected}")
    return tuple(told)


def problem_text(asked: object, where: str) -> Any:
    """The user's messages in a chat, as verl's schema has prompts; anything but a list is returned as it is.

    Raises UserError naming `where` for a list that is not a chat of texts.
    """
    if chat := turns(asked, where):
        return "\n\n".join(message["content"] for message in chat if message["role"] == "user")
    return asked


def item_id(text: str) -> str:
    """An id for a problem without one: the first 16 hex digits of the SHA-256 of its text."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def derive_seed(*parts: object) -> int:
    """A 63-bit seed, a function of `parts` (run seed, item, repeat, step, ...)."""
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def choose(items: Sequence[Item], limit: int | None, seed: int) -> list[Item]:
    """A seeded sample of `limit` items in their order; None is all. (The first ones are often of one subject.)"""
    return [items[i] for i in choose_indices(len(items), limit, seed)]


def choose_indices(count: int, limit: int | None, seed: int) -> list[int]:
    """`choose` for the numbers below `count`."""
    if limit is None or limit >= count:
        return list(range(count))
    import numpy as np  # not for what takes all of them

    return sorted(np.random.default_rng(derive_seed("limit", seed)).choice(count, size=limit, replace=False).tolist())
