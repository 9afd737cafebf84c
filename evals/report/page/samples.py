"""The samples of the page, in blocks: light columns to filter by, and texts that are unpacked when they are read."""

import json
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

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
"""tokens in the page whose log-probability and entropy are in it too, those of the latest runs; about 2 bytes each"""
MOST_NAMED = 1000
"""problems asked for by name; with more of them all samples are read and thinned here"""
USER_TURN = re.compile(
    r"(?:<\|im_start\|>user\n|<\|start_header_id\|>user<\|end_header_id\|>\n\n|<start_of_turn>user\n|<｜User｜>|\[INST\])"
    r"(.*?)"
    r"(?:<\|im_end\|>|<\|eot_id\|>|<end_of_turn>|<｜Assistant｜>|\[/INST\]|\Z)",
    re.DOTALL,
)


@dataclass
class Index:
    """What the page needs to know of all samples before any text is read."""

    items: dict[str, int] = field(default_factory=dict)
    finishes: dict[str, int] = field(default_factory=dict)
    outcomes: dict[str, int] = field(default_factory=dict)
    paths: dict[str, int] = field(default_factory=dict)
    facets: dict[str, dict[Any, int]] = field(default_factory=dict)
    blocks: list[dict[str, int]] = field(default_factory=list)
    """rows, and the numbers of the chunks with their columns and texts"""
    prompt_blocks: list[dict[str, int]] = field(default_factory=list)
    """first and last prompt, and the number of the chunk with their texts"""
    included: dict[int, int] = field(default_factory=dict)
    """place of a part -> samples of it in the page"""

    def as_json(self) -> dict[str, Any]:
        few = {
            key: list(codes)
            for key, codes in self.facets.items()
            if 1 < len(codes) <= MOST_FACET_VALUES  # one value tells nothing, many are no choice
        }
        return {
            **{name: list(getattr(self, name)) for name in ("items", "finishes", "outcomes", "paths")},
            "facets": few,
            "blocks": self.blocks,
            "promptBlocks": self.prompt_blocks,
            "included": self.included,
        }


def problem_text(prompt: str) -> str:
    """What the user asked: the last user turn of a chat, else the whole prompt; on one line, cut for a list."""
    turns = USER_TURN.findall(prompt)
    text = " ".join((turns[-1] if turns else prompt).split())
    return text if len(text) <= HEAD else text[: HEAD - 1].rstrip() + "…"


def elements(
    store: Store, parts: Sequence[Part], shares: Sequence[float], index: Index, chunks: Chunks
) -> Iterator[str]:
    """The script elements with the samples, block after block; `index` is complete when they are exhausted."""
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
            index.included[place] = index.included.get(place, 0) + 1
            if block.full:
                yield from block.flush(index, chunks)
            if prompts.full:
                yield from prompts.flush(index, chunks)
    yield from block.flush(index, chunks)
    yield from prompts.flush(index, chunks)


def _rows(store: Store, part: Part, share: float, with_tokens: bool) -> Iterator[SampleRow]:
    """The samples to take of one part."""
    key = {"split": part.split, "step": part.step}
    wanted = None
    if share < 1:
        wanted = take((item for (item,) in store.columns(part.run.id, ["item"], **key)), share)
    few = wanted if wanted is not None and len(wanted) <= MOST_NAMED else None
    for row in store.samples(part.run.id, items=few, with_tokens=with_tokens, **key):
        if wanted is None or row.item in wanted:
            yield row


class _Block:
    """Rows that wait to be written together, each in four parts."""

    def __init__(self) -> None:
        self.columns: list[dict[str, Any]] = []
        self.facets: list[dict[str, int]] = []
        self.texts: list[dict[str, Any]] = []
        self.tokens: list[dict[str, str]] = []
        self.characters = 0

    @property
    def full(self) -> bool:
        return len(self.columns) >= BLOCK_SAMPLES or self.characters >= BLOCK_CHARACTERS

    def add(self, row: SampleRow, place: int, prompt: int, index: Index) -> None:
        self.columns.append(
            {
                "part": place,
                "item": code(index.items, sys.intern(row.item)),
                "repeat": row.repeat,
                "tokens": row.response_tokens,
                "finish": code(index.finishes, row.finish_reason),
                "outcome": code(index.outcomes, row.outcome),
                "path": code(index.paths, row.path),
                "reward": row.reward,
                "advantage": None if row.advantage is None else round(row.advantage, 4),
                "prompt": prompt,
                "answer": None if row.answer is None else _cut(row.answer),
                "reference": _cut(row.reference),
            }
        )
        self.texts.append(
            {
                "response": row.response,
                "answer": row.answer,
                "reference": row.reference,
                "meta": dict(row.meta),
                "seed": str(row.seed),  # more digits than JavaScript's numbers have
                "seconds": round(row.seconds, 3),
                "weights": row.weight_version,
            }
        )
        known = row.token_chars is not None  # without their texts nothing can be shaded
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


def _table(rows: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
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
    """A number a character, which packs well: its size times `scale`, code 32 for 0. Empty: unknown."""
    if numbers is None:
        return ""
    sizes = np.minimum(np.abs(np.nan_to_num(np.asarray(numbers, np.float64), nan=400)), 400)
    codes = np.round(scale * sizes) + 32
    return codes.astype("<u2").tobytes().decode("utf-16-le")


def _cut(text: str) -> str:
    return text if len(text) <= 60 else text[:59] + "…"
