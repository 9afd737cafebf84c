"""The page's samples in blocks: light columns for filters, and texts that are unpacked when they are read."""

import json
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from evals.report.page.choice import take
from evals.report.page.encode import Chunks, code
from evals.report.parts import Part
from evals.store import SampleRow, Store

BLOCK_SAMPLES = 512
BLOCK_CHARACTERS = 400_000
HEAD = 110
"""characters of a problem in the list"""
MOST_FACET_VALUES = 40
MOST_TOKENS = 2_000_000
"""tokens with log-probability and entropy in the page, of the latest runs; about 2 bytes each"""
MOST_NAMED = 1000
"""problems that are queried by name; of more all samples are read and thinned here"""
USER_TURN = re.compile(
    r"(?:<\|im_start\|>user\n|<\|start_header_id\|>user<\|end_header_id\|>\n\n|<start_of_turn>user\n|<｜User｜>|\[INST\])"
    r"(.*?)"
    r"(?:<\|im_end\|>|<\|eot_id\|>|<end_of_turn>|<｜Assistant｜>|\[/INST\]|\Z)",
    re.DOTALL,
)


CODES = {"item": "items", "finish": "finishes", "outcome": "outcomes", "path": "paths"}
"""columns of codes -> the index's lists of their values"""


@dataclass
class Index:
    """What the page needs to know about all samples before it reads a text."""

    codes: dict[str, dict[str, int]] = field(default_factory=lambda: {name: {} for name in CODES})
    facets: dict[str, dict[object, int]] = field(default_factory=dict)
    blocks: list[dict[str, int]] = field(default_factory=list)
    """number of rows, and the chunks of their columns and texts"""
    prompt_blocks: list[dict[str, int]] = field(default_factory=list)
    """first prompt, number of prompts, and the chunks of their texts"""
    included: Counter[int] = field(default_factory=Counter)
    """place of a part -> its samples in the page"""

    def as_json(self) -> dict[str, object]:
        return {
            **{values: list(self.codes[name]) for name, values in CODES.items()},
            "facets": {key: list(codes) for key, codes in self.facets.items() if 1 < len(codes) <= MOST_FACET_VALUES},
            "blocks": self.blocks,
            "promptBlocks": self.prompt_blocks,
            "included": self.included,
        }


def problem_text(prompt: str) -> str:
    """The last user turn of a chat, else the whole prompt; on one line, cut for a list."""
    turns = USER_TURN.findall(prompt)
    text = " ".join((turns[-1] if turns else prompt).split())
    return text if len(text) <= HEAD else text[: HEAD - 1].rstrip() + "…"


def elements(
    store: Store, parts: Sequence[Part], shares: Sequence[float], index: Index, chunks: Chunks
) -> Iterator[str]:
    """The script elements with the samples, block by block; completes `index`."""
    block = _Block()
    prompts = _Prompts()
    room, with_tokens = float(MOST_TOKENS), set()
    for place in reversed(range(len(parts))):
        room -= shares[place] * parts[place].tokens
        if room >= 0:
            with_tokens.add(place)
    for place, (part, share) in enumerate(zip(parts, shares, strict=True)):
        if share <= 0:
            continue
        for row in _rows(store, part, share, place in with_tokens):
            block.add(row, place, prompts.number(row.prompt), index)
            index.included[place] += 1
            if block.full:
                yield from block.flush(index, chunks)
            if prompts.full:
                yield from prompts.flush(index, chunks)
    yield from block.flush(index, chunks)
    yield from prompts.flush(index, chunks)


def _rows(store: Store, part: Part, share: float, with_tokens: bool) -> Iterator[SampleRow]:
    """The chosen share of one part's samples."""
    key = {"split": part.split, "step": part.step}
    items = {item for (item,) in store.columns(part.run.id, ["item"], **key)} if share < 1 else set()
    wanted = take(items, share)
    few = wanted if share < 1 and len(wanted) <= MOST_NAMED else None
    for row in store.samples(part.run.id, items=few, with_tokens=with_tokens, **key):
        if share >= 1 or row.item in wanted:
            yield row


class _Block:
    """Rows that wait to be written together, each in four parts."""

    def __init__(self) -> None:
        self.columns: list[dict[str, object]] = []
        self.facets: list[dict[str, int]] = []
        self.texts: list[dict[str, object]] = []
        self.tokens: list[dict[str, str]] = []
        self.characters = 0

    @property
    def full(self) -> bool:
        return len(self.columns) >= BLOCK_SAMPLES or self.characters >= BLOCK_CHARACTERS

    def add(self, row: SampleRow, place: int, prompt: int, index: Index) -> None:
        coded = {"item": sys.intern(row.item), "finish": row.finish_reason, "outcome": row.outcome, "path": row.path}
        columns: dict[str, object] = {name: code(index.codes[name], value) for name, value in coded.items()}
        columns |= {"part": place, "repeat": row.repeat, "tokens": row.response_tokens, "reward": row.reward}
        columns["advantage"] = None if row.advantage is None else round(row.advantage, 4)
        columns["answer"] = None if row.answer is None else _cut(row.answer)
        self.columns.append({**columns, "prompt": prompt, "reference": _cut(row.reference)})
        texts: dict[str, object] = {name: getattr(row, name) for name in ("response", "answer", "reference")}
        # the seed as text: it has more digits than JavaScript's numbers
        texts |= {"meta": dict(row.meta), "seed": str(row.seed), "seconds": round(row.seconds, 3)}
        self.texts.append({**texts, "weights": row.weight_version})
        known = row.token_chars is not None  # else no text could be shaded
        scales = {"token_chars": 1, "logprobs": 100, "entropies": 100}
        self.tokens.append(
            {name: _characters(getattr(row, name) if known else None, scale) for name, scale in scales.items()}
        )
        facets = {}
        for key, value in row.meta.items():
            if isinstance(value, str | int | float):
                codes = index.facets.setdefault(key, {})
                if value in codes or len(codes) <= MOST_FACET_VALUES:
                    facets[key] = code(codes, value)
        self.facets.append(facets)
        self.characters += len(row.response) + len(row.reference) + len(json.dumps(row.meta, default=str))

    def flush(self, index: Index, chunks: Chunks) -> Iterator[str]:
        if not self.columns:
            return
        keys = dict.fromkeys(key for facets in self.facets for key in facets)
        facets = {key: [row.get(key, -1) for row in self.facets] for key in keys}
        yield chunks.element({**_table(self.columns), "facets": facets})
        yield chunks.element(_table(self.texts))
        index.blocks.append({"rows": len(self.columns), "columns": chunks.count - 2, "texts": chunks.count - 1})
        if any(row["token_chars"] for row in self.tokens):
            yield chunks.element(_table(self.tokens))
            index.blocks[-1]["tokens"] = chunks.count - 1
        self.__init__()


def _table(rows: Sequence[Mapping[str, object]]) -> dict[str, list[object]]:
    """Rows as columns."""
    return {name: [row[name] for row in rows] for name in rows[0]}


class _Prompts:
    """Each prompt once, however many samples it has."""

    def __init__(self) -> None:
        self.numbers: dict[int, int] = {}
        self.first = 0
        self.waiting: list[str] = []
        self.characters = 0

    @property
    def full(self) -> bool:
        return self.characters >= BLOCK_CHARACTERS

    def number(self, prompt: str) -> int:
        before, number = len(self.numbers), code(self.numbers, hash(prompt))  # 64 bits, for the life of this process
        if number == before:
            self.waiting.append(prompt)
            self.characters += len(prompt)
        return number

    def flush(self, index: Index, chunks: Chunks) -> Iterator[str]:
        if not self.waiting:
            return
        yield chunks.element(self.waiting)
        yield chunks.element([problem_text(prompt) for prompt in self.waiting])
        block = {"first": self.first, "count": len(self.waiting), "texts": chunks.count - 2, "heads": chunks.count - 1}
        index.prompt_blocks.append(block)
        self.first += len(self.waiting)
        self.waiting, self.characters = [], 0


def _characters(numbers: Sequence[float] | None, scale: int) -> str:
    """One character per number, which packs well: 32 + its size times `scale`. Empty: unknown."""
    if numbers is None:
        return ""
    sizes = np.minimum(np.abs(np.nan_to_num(np.asarray(numbers, np.float64), nan=400)), 400)
    codes = np.round(scale * sizes) + 32
    return codes.astype("<u2").tobytes().decode("utf-16-le")


def _cut(text: str) -> str:
    return text if len(text) <= 60 else text[:59] + "…"
