"""A small store in which every question has an answer: a training run with evaluations, and two evaluations of it."""

from evals.store import SampleRow, Store


def sample(split: str, item: int, repeat: int, step: int, reward: float | None, **more) -> SampleRow:
    outcome = {1.0: "right", 0.0: "wrong", None: "timeout"}[reward]
    tokens = tuple(range(100 + item, 110 + item + step + repeat))
    told = {"finish_reason": "length" if reward == 0.0 and item % 2 else "stop", "path": "box:string", **more}
    return SampleRow(
        split=split, item=f"problem-{item}", repeat=repeat, step=step, prompt=f"What is {item} + {item}?",
        response=f"It is \\boxed{{{2 * item}}}, naïvely. 数" * (1 + repeat), token_ids=tokens,
        logprobs=tuple(-0.25 * i for i in range(len(tokens))) if split == "train" else None,
        entropies=tuple(0.125 * i for i in range(len(tokens))) if split == "train" else None,
        token_chars=tuple(i % 3 for i in range(len(tokens))),
        outcome=outcome, answer=None if reward is None else str(2 * item - (reward == 0.0)), reference=str(2 * item),
        reward=reward, seed=2**62 + item, seconds=0.5 + item / 8, weight_version=f"step-{step}",
        meta={"level": item % 3 + 1, "subject": "Algebra" if item % 2 else "Geometry"}, **told,
    )  # fmt: skip


def fill(store: Store, files: str = "/runs") -> tuple[str, str, str]:
    """Returns the ids of the training run and of its two evaluations."""
    train = store.start_run("train", "tiny", method="agpo", model="tiny", seed=3, config={"update": {"lr": 1e-4}})
    for step in range(1, 4):
        rewards = {0: (1.0, 1.0), 1: (1.0, 0.0), 2: (0.0, 0.0), 3: (None, 1.0)}
        store.log_samples(
            train, [sample("train", i, r, step, x) for i, pair in rewards.items() for r, x in enumerate(pair)]
        )
        store.log_metrics(train, step, {"reward/mean": step / 4, "entropy": 1.0 / step, "grad_norm": float("nan")})
    for step in (0, 3):
        store.log_samples(train, [sample("eval/arith", i, 0, step, float((i + step) % 2)) for i in range(6)])
        store.log_metrics(train, step, {"eval/pass1": 0.5})
    evals = []
    for number in range(2):
        run = store.start_run("eval", "arith", method="agpo", model="tiny", seed=number, config={"n": 1}, parent=train)
        rewards = [0.0, 1.0, float(number), None, 1.0, 0.0]
        store.log_samples(run, [sample("arith", i, 0, 3, reward) for i, reward in enumerate(rewards)])
        store.log_metrics(run, 3, {"pass1": 0.5 + number / 6})
        evals.append(run)
    for run in (train, *evals):
        store.finish_run(run, "done")
    return train, evals[0], evals[1]
