"""A store as two short training runs, their checkpoints and evaluations would leave it, for the tests of the page."""

from dataclasses import replace

from agpo.telemetry import METRICS
from evals.store import SampleRow, Store

ATTACK = (
    '<script>window.hacked = 1</script><img src="http://evil.test/x.png" onerror="window.hacked = 1">'
    '<svg onload="window.hacked = 1"></svg><iframe srcdoc="<script>parent.hacked = 1</script>"></iframe>'
    "[click](javascript:window.hacked=1) </script><script>window.hacked = 1</script><!-- {{ 7 * 7 }} "
    "$\\text{<img src=x onerror=window.hacked=1>}$ `<b>code</b>` ${window.hacked = 1}"
)
FORMULA = "We have $x^2 = \\frac{1}{4}$, so\n\n\\[x = \\pm\\frac{1}{2}.\\]\n\nThe answer is $\\boxed{\\frac12}$."
PROGRAM = "Use a loop:\n\n```python\ndef double(n):  # twice\n    return 2 * n\n```\n\n**Done**: it is `double`."


def sample(
    item="1+1",
    repeat=0,
    step=0,
    *,
    split="arith",
    response="\\boxed{2}",
    answer="2",
    reference="2",
    right=True,
    tokens=10,
    finish="stop",
    prompt=None,
    meta=None,
    outcome=None,
) -> SampleRow:
    return SampleRow(
        split=split,
        item=item,
        repeat=repeat,
        step=step,
        prompt=prompt or f"What is {item}?",
        response=response,
        token_ids=(1,) * tokens,
        logprobs=None,
        finish_reason=finish,
        outcome=outcome or ("right" if right else "wrong"),
        path="box",
        answer=answer,
        reference=reference,
        reward=None if outcome == "timeout" else float(right),
        seed=2**62 + 1,
        seconds=0.5,
        meta=meta or {"terms": 2},
    )


def add_training(store: Store, method: str, seed: int, folder, *, steps=6, parent=None) -> str:
    """A training run: four groups of four samples a step, metrics, evaluations before and after, two checkpoints."""
    config = {
        "steps": steps,
        "data": {"path": "arith"},
        "objective": {"preset": method},
        "rollout": {"max_tokens": 64, "samples_per_prompt": 4},
        "update": {"lr": 1e-4 if method == "agpo" else 2e-4},
        "eval": {"n": 2, "temperature": 1.0},
        "prompt": "arith",
    }
    about = {"advantage": "A = (r − group mean) / (sample std + 1e-6)", "masked_groups": "mask", "metrics": METRICS}
    if method == "grpo":
        about["masked_groups"] = "keep"
    run = store.start_run(
        "train", "tiny", method=method, model="tiny", seed=seed, config=config, parent=parent, about=about
    )
    for step in range(1, steps + 1):
        rows = []
        for group in range(4):  # one is all wrong, one all right, two are live
            for k in range(4):
                right = group > 0 and (k < 2 or group == 3)
                answer = "2" if right else "3"
                text = f"{step}+{group}=... \\boxed{{{answer}}}"
                item = f"{step}+{group}"
                row = sample(item, k, step, split="train", right=right, answer=answer, tokens=8 + k, response=text)
                live = (0.5 if right else -0.5) / (0.57735 + 1e-6) if group in (1, 2) else 0.0
                rows.append(replace(row, advantage=live))
        store.log_samples(run, rows)
        metrics = {
            "reward/mean": 0.3 + 0.05 * step + 0.01 * seed,
            "tokens/response_mean": 20 - step,
            "entropy": 0.2 - 0.01 * step,
            "groups/live": 2,
            "clip/clipped_updates": 1,
            "clip/rate": 0.25,
            "updates/made": 3,
            "updates/refused": 0,
            "grad_norm": 0.1,
            "speed/step_seconds": 2.0,
        }
        store.log_metrics(run, step, metrics)
    for step, right in ((0, 3), (steps, 7 if method == "grpo" else 4)):
        rows = [
            sample(f"{i}+{i}", k, step, split="eval/arith", right=i < right, answer=str(2 * i))
            for i in range(10)
            for k in range(2)
        ]
        store.log_samples(run, rows)
        store.log_metrics(run, step, {"eval/pass1": right / 10, "eval/arith/pass1": right / 10})
    for step in (steps // 2, steps):
        checkpoint = folder / run / "checkpoints" / f"step-{step:06d}"
        checkpoint.mkdir(parents=True)
        (checkpoint / "model.safetensors").write_text(f"{run} {step}")
        store.add_artifact(run, "checkpoint", checkpoint)
    store.finish_run(run, "done")
    return run


def add_evaluation(
    store: Store,
    right,
    *,
    bench="arith",
    parent=None,
    step=0,
    model="tiny",
    folder=None,
    status="done",
    items=range(10),
    **config,
) -> str:
    """An evaluation of ten problems (or of `items`), one sample each; problem i is right when i is in `right`."""
    path = f"{folder}/{parent}/checkpoints/step-{step:06d}" if parent else model
    of = store.find_run(parent) if parent else None
    run = store.start_run(
        "eval",
        bench,
        method=of.method if of else "",
        model=model,
        seed=of.seed if of else 0,
        config={"bench": bench, "model": path, "temperature": 0.0, "n": 1} | config,
        parent=parent,
    )
    rows = []
    for i in items:
        answer = str(2 * i if i in right else 2 * i + 1)
        text = f"{i}+{i}={answer}. So the answer is \\boxed{{{answer}}}."
        verdict = {"right": i in right, "answer": answer, "reference": str(2 * i), "response": text}
        rows.append(sample(f"{i}+{i}", 0, step, split=bench, tokens=10 + i, meta={"terms": 2 + i % 2}, **verdict))
    store.log_samples(run, rows)
    if status != "running":
        store.finish_run(run, status)
    return run


def fill(store: Store, folder) -> dict[str, str]:
    """Two methods with two seeds each, from a curation run; evaluations of both ends; a model from elsewhere."""
    manifest = folder / "manifest.json"
    manifest.write_text("{}")
    data = store.start_run("curation", "arith", config={"recipe": "arith"})
    store.add_artifact(data, "manifest", manifest)
    store.finish_run(data, "done")
    runs = {"data": data}
    for method in ("agpo", "grpo"):
        for seed in (0, 1):
            run = runs[f"{method}{seed}"] = add_training(store, method, seed, folder, parent=data)
            for step, right in ((3, (2, 3)), (6, range(2, 10) if method == "grpo" else range(1, 6))):
                name = f"{method}{seed}-{step}"
                runs[name] = add_evaluation(store, set(right), parent=run, step=step, folder=folder)
    lone = runs["lone"] = store.start_run("eval", "math500", model="org/model", config={"bench": "math500", "n": 1})
    of = {"split": "math500"}
    chat = f"<|im_start|>user\n{ATTACK}<|im_end|>\n"
    hostile = {"response": ATTACK, "answer": ATTACK, "reference": ATTACK, "meta": {"terms": ATTACK, "detail": ATTACK}}
    rows = [
        sample("formula", response=FORMULA, answer="\\frac12", reference="\\frac{1}{2}", tokens=40, **of),
        sample("program", response=PROGRAM, right=False, answer=None, tokens=300, finish="length", **of),
        sample("unscored", response="", answer=None, tokens=1, outcome="timeout", **of),
        sample("attack" + ATTACK, right=False, tokens=7, prompt=chat, **hostile, **of),
    ]
    store.log_samples(lone, rows)
    store.finish_run(lone, "done")
    return runs
