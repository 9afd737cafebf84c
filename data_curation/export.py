"""Exports: the built problems in the shapes that trainers read. Equal rows give equal bytes (with one pyarrow)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_curation.solve_rate import item_of
from data_curation.sources import KINDS, Source
from data_curation.stage import Record, Row, dumps, write_lines
from evals.items import item_id
from evals.prompts import words

Prompt = str | list[dict[str, str]]


def write(rows: Sequence[Row], formats: Sequence[str], prompt: str, kinds: Mapping[str, Source], out: Path) -> None:
    """Write every format into `out`. `kinds`: source name -> its options.

    The prompt of train.parquet stays the bare problem: our trainer applies its preset. verl does not: where the recipe
    names a preset, verl/train.parquet carries its words.
    """
    metas = _columns([dict(row.meta) for row in rows])
    options: list[Any] = [kinds.get(row.source) for row in rows]
    bare, asked = ([chat(row, preset) for row in rows] for preset in ("", prompt))
    for name in formats:
        place = FORMATS[name]
        wanted = {place: asked} if name != "verl" else {place: bare, **({f"verl/{place}": asked} if prompt else {})}
        for path, prompts in wanted.items():
            table = [_formats(*one)[name] for one in zip(rows, prompts, options, metas, strict=True)]
            if name == "verl":
                table = [{**line, "extra_info": {"index": n, **line["extra_info"]}} for n, line in enumerate(table)]
            (out / path).parent.mkdir(parents=True, exist_ok=True)
            if path.endswith(".jsonl"):
                write_lines(table, out / path)
            else:
                pq.write_table(pa.Table.from_pylist(table), out / path, compression="zstd")


def _formats(row: Row, prompt: Prompt, options: Source, meta: Record) -> dict[str, Record]:
    """What a row becomes, by format."""
    problem_id, answer, where = item_id(row.problem), truth(row), data_source(options)
    return {
        "verl": {  # `data_source` is a name that verl has a scorer for; agpo.train reads this too
            "data_source": where,
            "prompt": prompt,
            "ability": KINDS[options.kind].ability,
            "reward_model": {"style": "rule", "ground_truth": answer},
            "extra_info": {"split": "train", "id": problem_id, "row": row.id, "source": row.source, **meta},
        },
        # conversational `prompt`, and the columns that reward functions get
        "trl": {"prompt": prompt, "answer": answer, "source": row.source},
        # --input_key input --label_key label, with --apply_chat_template
        "openrlhf": {"input": prompt, "label": answer, "datasource": where},
        # --input-key prompt --label-key label --metadata-key metadata --apply-chat-template
        "slime": {"prompt": prompt, "label": answer, "metadata": {"id": problem_id, "source": row.source}},
        # a folder that `datasets.load_dataset` takes, with a data card
        "hf": {"id": problem_id, "row": row.id, "source": row.source, "problem": row.problem, "answer": answer, **meta},
    }


FORMATS = {
    "verl": "train.parquet",
    "trl": "trl/train.parquet",
    "openrlhf": "openrlhf/train.jsonl",
    "slime": "slime/train.jsonl",
    "hf": "hf/data/train-00000-of-00001.parquet",
}
"""name -> where it is written"""


def data_source(options: Source) -> str:
    """verl's name for a source: of a table it is the user's, otherwise the kind's."""
    return getattr(options, "data_source", "") or KINDS[options.kind].data_source


def truth(row: Row) -> str:
    """What the grader compares with: the answer, or the tests as JSON {inputs, outputs, fn_name?}."""
    if row.code is None:
        return row.answer
    return dumps({name: said for name in ("inputs", "outputs", "fn_name") if (said := getattr(row.code, name)) != ""})


def chat(row: Row, prompt: str) -> Prompt:
    """The problem as messages, under a prompt preset where one is given; a text where the preset is for base models."""
    if not prompt:
        return [{"role": "user", "content": row.problem}]
    said = words(prompt, item_of(item_id(row.problem), row))
    return said if isinstance(said, str) else list(said)


def _columns(rows: list[Record]) -> list[Record]:
    """Every row with every key and one type per key: what is no plain value, or of two types, becomes text."""
    kinds: dict[str, set[type]] = {}
    for row in rows:
        for name, value in row.items():
            large = isinstance(value, int) and not -(2**63) <= value < 2**63  # parquet has no such integers
            kinds.setdefault(name, set()).add(object if large else type(value))
    text = {name for name, found in kinds.items() if len(found) > 1 or not found <= {str, int, float, bool}}

    def plain(name: str, value: object) -> object:
        return dumps(value) if name in text and not isinstance(value, str) else value

    return [{name: plain(name, row[name]) if name in row else None for name in sorted(kinds)} for row in rows]
