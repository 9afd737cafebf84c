"""`python -m agpo.deterministic MODEL`: which exactness guarantees hold here, and by how much the others fail."""

import argparse
import math
import os
import sys
from collections.abc import Callable, Sequence

from evals.console import make_console
from evals.errors import UserError, command
from evals.models import model_path


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Returns 1 if a guarantee fails."""
    parser = argparse.ArgumentParser(
        prog="python -m agpo.deterministic", description="Which exactness guarantees hold on this machine?"
    )
    parser.add_argument("model", nargs="?", default="tiny", help="a model folder or hub id (default: tiny)")
    parser.add_argument("--engine", choices=("hf", "vllm"), default="hf")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--threads", type=int, default=1, help="of torch (default: 1)")
    parser.add_argument("--prompts", type=int, default=16, help="random ones of 5 to 40 tokens (default: 16)")
    parser.add_argument("--n", type=int, default=8, help="samples of each (default: 8)")
    parser.add_argument("--max-tokens", type=int, default=48)
    args = parser.parse_args(argv)
    if args.prompts < 2 or args.n < 1 or args.max_tokens < 1:
        raise UserError("--prompts must be at least 2, --n and --max-tokens at least 1.")
    import torch

    if torch.cuda.is_available():  # before cuBLAS and vLLM start; on a CPU vLLM has no such kernels
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        os.environ.setdefault("VLLM_BATCH_INVARIANT", "1")
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(args.threads)
    lines = check(args)
    width, console = max(len(name) for name, _ in lines), make_console()
    for name, gap in lines:
        said = "exact" if gap == 0 else "other tokens" if math.isinf(gap) else f"off by up to {gap:.2g} nats"
        console.print(f"{name:{width}}  {said}")
    return int(any(gap != 0 for _, gap in lines))


def check(args: argparse.Namespace) -> list[tuple[str, float]]:
    """For each guarantee (name, largest difference of a log-probability; inf: the tokens differ)."""
    import numpy as np
    import torch

    from agpo.batch import Row
    from agpo.logprobs import Layout, choose_layout, log_probs
    from evals.engines import Engine, Request, Sampling, load_engine
    from evals.engines.hf import HFEngine, load_model
    from evals.items import derive_seed

    model, tokenizer = load_model(model_path(args.model), device=args.device, dtype=args.dtype)
    own = HFEngine(model.eval(), tokenizer)
    engine: Engine = own
    if args.engine == "vllm":
        engine = load_engine("vllm", model_path(args.model), dtype=str(model.dtype).removeprefix("torch."))
    rng, vocabulary = np.random.default_rng(0), len(tokenizer)
    asked = [
        Request(
            tuple(rng.integers(0, vocabulary, 5 + 35 * i // args.prompts).tolist()),
            tuple(derive_seed(0, i, k) for k in range(args.n)),
        )
        for i in range(args.prompts)
    ]
    sampling = Sampling(args.max_tokens, 1.0)

    def sample(requests: Sequence[Request]) -> list[tuple[tuple[int, ...], tuple[float, ...]]]:
        found = {(at, repeat): one for at, repeat, one in engine.generate(requests, sampling)}
        return [(found[key].token_ids, found[key].logprobs or ()) for key in sorted(found)]

    def gap(one: Sequence[float], other: Sequence[float]) -> float:
        return float(np.abs(np.subtract(one, other)).max(initial=0.0))

    def between(some: Sequence, others: Sequence) -> float:
        alike = all(a[0] == b[0] for a, b in zip(some, others, strict=True))
        return max(gap(a[1], b[1]) for a, b in zip(some, others, strict=True)) if alike else math.inf

    whole = sample(asked)
    singles = [Request(request.prompt_ids, (seed,)) for request in asked for seed in request.seeds]
    alone = [one for single in singles for one in sample([single])]
    lines = [
        ("same seeds, same samples", between(whole, sample(asked))),
        ("engine: a sample alone, or in a batch", between(whole, alone)),
        ("engine: few prompts, or many", between(whole, [one for request in asked for one in sample([request])])),
    ]
    rows = [Row(asked[i // args.n].prompt_ids, *one, i // args.n, 0.0, 0.0, 0.0) for i, one in enumerate(whole)]
    layout = choose_layout(model, own.max_context)[0]

    def trained(size: int, how: Layout = layout) -> list[float]:
        with torch.no_grad():
            parts = [log_probs(model, rows[at : at + size], 1.0, how)[0] for at in range(0, len(rows), size)]
        return torch.cat(parts).float().tolist()

    once, sampled = trained(len(rows)), [x for _, logps in whole for x in logps]
    cuts: dict[str, Callable[[], list[float]]] = {
        "trainer: the same twice": lambda: trained(len(rows)),
        "trainer: micro-batches of 5 sequences": lambda: trained(5),
        "trainer: one sequence at a time": lambda: trained(1),
        f"trainer: {layout}, or padded": lambda: trained(len(rows), "padded"),
    }
    lines += [(name, gap(once, cut())) for name, cut in cuts.items()]
    lines.append(("trainer, or engine", gap(once, sampled)))
    engine.close()
    return lines


if __name__ == "__main__":
    sys.exit(main())
