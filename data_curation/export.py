"""Exports: the built problems in the shape that a trainer reads."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from data_curation.sources import Problem, Source


def verl_parquet(problems: Sequence[Problem], source: Source, path: Path) -> None:
    """verl's schema: data_source, prompt (chat), ability, reward_model{style, ground_truth}, extra_info.

    The same problems give the same bytes (with one version of pyarrow).
    """
    rows = [
        {
            "data_source": source.data_source,
            "prompt": [{"role": "user", "content": problem.problem}],
            "ability": source.ability,
            "reward_model": {"style": "rule", "ground_truth": problem.answer},
            "extra_info": {"split": "train", "index": index, "id": problem.id, **problem.meta},
        }
        for index, problem in enumerate(problems)
    ]
    pq.write_table(pa.Table.from_pylist(rows), path, compression="zstd")
