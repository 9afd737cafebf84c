"""Exports: the built problems in the shapes that trainers read. Equal rows give equal bytes (with one pyarrow)."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_curation.rows import Row, dumps, write_lines
from data_curation.solve_rate import item_of
from data_curation.sources import KINDS
from evals.items import item_id
from evals.prompts import words


def write(rows: Sequence[Row], formats: Sequence[str], prompt: str, kinds: Mapping[str, Any], out: Path) -> None:
    """Write every format into `out`. `kinds`: source name -> its options."""
    for name in formats:
        WRITERS[name](rows, prompt, kinds, out)


def verl(rows: Sequence[Row], prompt: str, kinds: Mapping[str, Any], out: Path) -> None:
    """train.parquet in verl's schema; `data_source` is a name that verl has a scorer for. agpo.train reads it too.

    The prompt of train.parquet stays the bare problem: our trainer applies its preset. verl does not: where the recipe
    names a preset, verl/train.parquet carries its words. A program's ground truth is JSON.
    """
    extra = _columns([{"id": item_id(row.problem), "row": row.id, "source": row.source, **row.meta} for row in rows])
    table = [
        {
            "data_source": data_source(kinds[row.source]),
            "prompt": [{"role": "user", "content": row.problem}],
            "ability": KINDS[kinds[row.source].kind].ability,
            "reward_model": {"style": "rule", "ground_truth": truth(row)},
            "extra_info": {"split": "train", "index": index, **more},
        }
        for index, (row, more) in enumerate(zip(rows, extra, strict=True))
    ]
    _parquet(table, out / "train.parquet")
    if prompt:
        asked = [{**line, "prompt": chat(row, prompt)} for line, row in zip(table, rows, strict=True)]
        _parquet(asked, out / "verl" / "train.parquet")


def trl(rows: Sequence[Row], prompt: str, kinds: Mapping[str, Any], out: Path) -> None:
    """TRL: conversational `prompt`, and the columns that reward functions get (`answer`, `source`)."""
    table = [{"prompt": chat(row, prompt), "answer": truth(row), "source": row.source} for row in rows]
    _parquet(table, out / "trl" / "train.parquet")


def openrlhf(rows: Sequence[Row], prompt: str, kinds: Mapping[str, Any], out: Path) -> None:
    """OpenRLHF: --input_key input --label_key label, with --apply_chat_template."""
    lines = [
        {"input": chat(row, prompt), "label": truth(row), "datasource": data_source(kinds[row.source])} for row in rows
    ]
    _lines(lines, out / "openrlhf" / "train.jsonl")


def slime(rows: Sequence[Row], prompt: str, kinds: Mapping[str, Any], out: Path) -> None:
    """slime: --input-key prompt --label-key label --metadata-key metadata --apply-chat-template."""
    lines = [
        {
            "prompt": chat(row, prompt),
            "label": truth(row),
            "metadata": {"id": item_id(row.problem), "source": row.source},
        }
        for row in rows
    ]
    _lines(lines, out / "slime" / "train.jsonl")


def hf(rows: Sequence[Row], prompt: str, kinds: Mapping[str, Any], out: Path) -> None:
    """A folder that `datasets.load_dataset` takes, with a data card."""
    extra = _columns([dict(row.meta) for row in rows])
    table = [
        {
            "id": item_id(row.problem),
            "row": row.id,
            "source": row.source,
            "problem": row.problem,
            "answer": truth(row),
            **more,
        }
        for row, more in zip(rows, extra, strict=True)
    ]
    _parquet(table, out / "hf" / "data" / "train-00000-of-00001.parquet")


WRITERS: dict[str, Callable[[Sequence[Row], str, Mapping[str, Any], Path], None]] = {
    "verl": verl,
    "trl": trl,
    "openrlhf": openrlhf,
    "slime": slime,
    "hf": hf,
}


def data_source(options: Any) -> str:
    """verl's name for a source: of a table it is the user's, otherwise the kind's."""
    return getattr(options, "data_source", "") or KINDS[options.kind].data_source


def truth(row: Row) -> str:
    """What the grader compares with: the answer, or the tests as JSON {inputs, outputs, fn_name?}."""
    if row.code is None:
        return row.answer
    tests = {"inputs": row.code["inputs"], "outputs": row.code["outputs"]}
    return dumps({**tests, **({"fn_name": row.code["fn_name"]} if row.code["fn_name"] else {})})


def chat(row: Row, prompt: str) -> str | list[dict[str, str]]:
    """The problem as messages, under a prompt preset where one is given; a text where the preset is for base models."""
    if not prompt:
        return [{"role": "user", "content": row.problem}]
    said = words(prompt, item_of(item_id(row.problem), row))
    return said if isinstance(said, str) else list(said)


def _columns(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every row with every key and one type per key: what is no plain value, or of two types, becomes text."""
    kinds: dict[str, set[type]] = {}
    for row in rows:
        for name, value in row.items():
            kinds.setdefault(name, set()).add(type(value))
    text = {name for name, found in kinds.items() if len(found) > 1 or not found <= {str, int, float, bool}}
    return [
        {name: None if name not in row else _text(row[name]) if name in text else row[name] for name in sorted(kinds)}
        for row in rows
    ]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else dumps(value)


def _parquet(table: list[dict[str, Any]], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(table), path, compression="zstd")


def _lines(lines: list[dict[str, Any]], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_lines(lines, path)
