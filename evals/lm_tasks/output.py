"""Results in lm-eval's own files, so that scripts that read them go on working.

<folder>/<model>/results_<date>.json and samples_<task>_<date>.jsonl, written by lm-eval's own tracker from what its
`evaluate` returned, with the entries that its `simple_evaluate` adds.
"""

import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lm_eval.api.model import LM
from lm_eval.loggers.evaluation_tracker import EvaluationTracker
from lm_eval.loggers.utils import add_env_info, add_tokenizer_info
from rich.console import Console

from evals.errors import UserError


def write_output(
    results: Mapping[str, Any], lm: LM, model: str, config: Mapping[str, Any], folder: Path, console: Console
) -> None:
    """Write both files. Raises UserError where they cannot be written: lm-eval itself would only log it."""
    results = dict(results)
    samples = results.pop("samples")
    results["config"] = {
        "model": config["engine"],
        "model_args": {"pretrained": model, **config["engine_options"]},
        "batch_size": None,
        "batch_sizes": [],
        "device": config["engine_options"].get("device"),
        "use_cache": None,
        "limit": config["limit"],
        "bootstrap_iters": None,
        "gen_kwargs": {k: config[k] for k in ("temperature", "top_p", "max_tokens", "n") if k in config},
        **{f"{name}_seed": config["seed"] for name in ("random", "numpy", "torch", "fewshot")},
        "agpo": dict(config),
    }
    results["git_hash"] = _git_hash()
    results["date"] = time.time()
    add_env_info(results)
    add_tokenizer_info(results, lm)
    tracker = EvaluationTracker(output_path=str(folder))
    tracker.general_config_tracker.log_experiment_args(
        model_source=config["engine"],
        model_args=results["config"]["model_args"],
        system_instruction=None,
        chat_template=None,
        fewshot_as_multiturn=False,
    )
    tracker.save_results_aggregated(results, samples)
    for task, rows in samples.items():
        tracker.save_results_samples(task, rows)
    made = folder / str(tracker.general_config_tracker.model_name_sanitized)
    date = getattr(tracker, "date_id", "")
    wanted = [f"results_{date}.json", *(f"samples_{task}_{date}.jsonl" for task in samples)]
    for name in wanted:
        if not (made / name).is_file():
            raise UserError(f"cannot write lm-eval's results to {made / name}. Is the folder writable?")
    console.print(f"lm-eval's format: {made / wanted[0]}", markup=False, soft_wrap=True)


def _git_hash() -> str | None:
    """As lm-eval has it: of the folder the command is started in. Its own function writes to the console."""
    try:
        said = subprocess.run(["git", "describe", "--always"], capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return said.stdout.strip()
