"""Evaluations as records of Every Eval Ever, the shared schema of the EvalEval coalition, with their uncertainty.

One JSON file per evaluation and one JSONL file of its completions, under the paths of the coalition's datastore:
data/BENCHMARK/DEVELOPER/MODEL/UUID.json (github.com/evaleval/every_eval_ever, arXiv 2606.14516).
"""

import hashlib
import json
import math
import re
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

from evals.benches import BENCHES
from evals.report.evaluations import Evaluation, read_evaluation
from evals.report.parts import Part, arm_of, measured, pool
from evals.stats import Estimate
from evals.stats.intervals import LEVEL
from evals.store import Json, RunRow, SampleRow, Store

SCHEMA = "0.3.0"
ON_HUB = re.compile(r"([\w.-]+)/([\w.-]+)(@[\w.-]+)?")
SHARE = "Wilson with the effective sample size, over problems"
LENGTH = "Student with Hall's correction for skewness, over problems"
Record: TypeAlias = Json


def write(store: Store, runs: Sequence[RunRow], split: str | None, organization: str, out: Path) -> tuple[int, int]:
    """Write the runs' evaluations under the folder. Returns how many, and how many have no score."""
    written, parts = 0, [part for part in pool(measured(store, runs)) if split in (None, part.split)]
    for part in parts:
        evaluation = read_evaluation(store, part)
        if math.isnan(evaluation.summary.pass1.value):  # it has not ended, or nothing could be graded
            continue
        model = _model(part, organization)
        name = f"{part.bench}/{model['id']}/{part.run.id}"
        head = {"schema_version": SCHEMA, "evaluation_id": name}
        # In the form of a random UUID, as the datastore wants, but the same for every export of an evaluation.
        number = uuid.UUID(bytes=hashlib.sha256(name.encode()).digest()[:16], version=4)
        place = Path("data", *map(_portable, (part.bench, model["developer"], model["id"].rpartition("/")[2])))
        (out / place).mkdir(parents=True, exist_ok=True)
        results, samples = _results(evaluation, name), place / f"{number}_samples.jsonl"
        linked = {"model_id": model["id"], "evaluation_name": part.bench}
        linked["evaluation_result_id"] = results[0]["evaluation_result_id"]
        digest, rows = hashlib.sha256(), 0
        with (out / samples).open("wb") as file:
            for one in (part, *part.also):
                for row in store.samples(one.run.id, split=one.split, step=one.step):
                    if row.reward is None:  # the schema requires a score, and an error is not a wrong answer
                        continue
                    line = json.dumps({**head, **linked, **_instance(row, part)}, allow_nan=False).encode() + b"\n"
                    file.write(line)
                    digest.update(line)
                    rows += 1
        record = {
            **head,
            "evaluation_timestamp": str(int(part.run.started.timestamp())),
            "retrieved_timestamp": str(int(time.time())),
            "source_metadata": {
                "source_name": "agpo",
                "source_type": "evaluation_run",
                "source_organization_name": organization,
                "evaluator_relationship": "first_party" if part.method else "third_party",
            },
            "eval_library": {
                "name": "agpo",
                "version": str(part.run.code.get("version", "unknown")),
                "additional_details": _texts({k: v for k, v in part.run.code.items() if k != "version"}),
            },
            "model_info": model,
            "evaluation_results": results,
            "detailed_evaluation_results": {
                "format": "jsonl",
                "file_path": samples.as_posix(),
                "hash_algorithm": "sha256",
                "checksum": digest.hexdigest(),
                "total_rows": rows,
            },
        }
        (out / place / f"{number}.json").write_text(json.dumps(record, indent=1, allow_nan=False) + "\n")
        written += 1
    return written, len(parts) - written


def _model(part: Part, organization: str) -> Record:
    """The id of a checkpoint names its training run, so that no two checkpoints are one model."""
    served = part.model.startswith("openai:")
    where = part.model.rpartition("#")[2] if served else part.model
    on_hub = None if Path(where).exists() else ON_HUB.fullmatch(where)
    developer, base = (on_hub[1], on_hub[2]) if on_hub else ("unknown", Path(where).name or "unknown")
    if part.method:
        made = (arm_of(part.trained).replace(" ", "-"), part.trained.id, "step", part.step)
        developer, base = organization, "-".join(map(str, (base, *made)))
    asked = part.settings.get("engine", "hf")
    engine = "transformers" if asked == "hf" else asked
    known = {"base_model": where, "training_run": part.trained.id} if part.method else {}
    return {
        "name": f"{where}, {part.name}" if part.method else where,
        "id": f"{developer.replace('/', '_')}/{base}",
        "developer": developer,
        "inference_engine": {"name": engine, "version": str(part.run.environment.get(engine, "unknown"))},
        "additional_details": {
            **_texts({**known, "revision": (on_hub[3] or "")[1:] if on_hub else ""}),
            "deployment_type": "unknown" if served else "self_deployed",
            "model_availability": "open_weights" if on_hub and not served and not part.method else "unknown",
        },
    }


def _results(e: Evaluation, name: str) -> list[Record]:
    s, part, bench = e.summary, e.part, BENCHES.get(e.part.bench)
    source = bench.source if bench else str(part.settings.get("data", part.bench))
    on_hub = bench and ON_HUB.fullmatch(source)
    asked = {key: part.settings[key] for key in ("temperature", "top_p", "max_tokens") if key in part.settings}
    rewards = e.columns.reward_S[e.columns.scored_S]
    scale = (0, 1) if rewards.min() >= 0 and rewards.max() <= 1 else ("-Infinity", "Infinity")
    at_k = {1: s.pass1, **s.pass_at}
    longest, tokens = (0, "Infinity"), s.tokens_mean
    measures = [
        *((f"pass@{k}", "pass_at_k", "pass_rate", "proportion", {"k": k}, scale, at_k[k], SHARE) for k in at_k),
        ("mean response tokens", "agpo.response_tokens", "tokens", "tokens", {}, longest, tokens, LENGTH),
        ("responses cut at max_tokens", "agpo.truncated", "rate", "proportion", {}, (0, 1), s.truncated, SHARE),
    ]
    data = {"dataset_name": part.bench, "additional_details": {"source": source}}
    data |= {"source_type": "hf_dataset", "hf_repo": source} if on_hub else {"source_type": "other"}
    others = {key: value for key, value in part.settings.items() if key not in asked and value is not None}
    counts = {"problems": s.problems, "samples": s.samples, "unscored": s.unscored, "outcomes": s.outcomes}
    return [
        {
            "evaluation_result_id": f"{name}#{title}",
            "evaluation_name": part.bench,
            "source_data": data,
            "metric_config": {
                "metric_id": metric,
                "metric_name": title,
                "metric_kind": kind,
                "metric_unit": unit,
                "metric_parameters": parameters,
                "lower_is_better": metric != "pass_at_k",
                "score_type": "continuous",
                "min_score": least,
                "max_score": most,
            },
            "score_details": {
                "score": found.value,
                "details": _texts(counts),
                "uncertainty": _uncertainty(found, s.problems, method),
            },
            "generation_config": {"generation_args": asked, "additional_details": _texts(others)},
        }
        for title, metric, kind, unit, parameters, (least, most), found, method in measures
        if math.isfinite(found.value)
    ]


def _uncertainty(found: Estimate, problems: int, method: str) -> Record:
    told: Record = {"num_samples": problems}
    if math.isfinite(found.se):
        told["standard_error"] = {"value": found.se, "method": "analytic, over problems"}
    if math.isfinite(found.low) and math.isfinite(found.high):
        limits = {"lower": found.low, "upper": found.high, "confidence_level": LEVEL}
        told["confidence_interval"] = {**limits, "method": method}
    return told


def _instance(row: SampleRow, part: Part) -> Record:
    extracted = {"turn_idx": 0, "source": "output.raw", "extraction_method": row.path, "is_terminal": True}
    facts = {name: getattr(row, name) for name in ("repeat", "seed", "finish_reason", "response_tokens")}
    return {
        "sample_id": row.item if part.split else f"{row.split}/{row.item}",
        "interaction_type": "single_turn",
        "input": {"raw": row.prompt, "reference": [row.reference]},
        "output": {"raw": [row.response]},
        "answer_attribution": [] if row.answer is None else [{**extracted, "extracted_value": row.answer}],
        "evaluation": {"score": row.reward, "is_correct": (row.reward or 0) >= 1},
        "metadata": _texts({**row.meta, **facts}),
    }


def _texts(values: Record) -> dict[str, str]:
    """As texts, which the schema wants for details."""
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in values.items() if value != ""}


def _portable(name: str) -> str:
    """A valid folder name on every system, other than the datastore's own `data`."""
    plain = re.sub(r'[<>:"\\|?*/\x00-\x1f]', "_", name).strip(". ") or "unknown"
    return f"{plain}_" if plain == "data" else plain
