"""What one update costs: peak memory at a large vocabulary, and time as groups are masked.

    python benchmarks/update.py memory [--rows 8 --tokens 256]      ours against whole [B, T, V] logits
    python benchmarks/update.py memory --rows 8 --tokens 2048 --only ours
    python benchmarks/update.py cost [--model tiny] [--rounds 5]    time and tokens against the share of live groups

memory: a narrow Qwen2 (hidden 64, 2 layers) with the vocabulary of Qwen2.5 (151,936), float32 on the CPU, one forward
and backward pass in a process of its own; what is reported is the most memory the process held beyond the loaded model.
The plain side computes `log_softmax` of all logits of all response tokens, as a straightforward loss does.

cost: one `grpo` update of 8 groups x 8 with 0 to 8 of the groups live, a share of live response tokens from 0 to 1. The
CPU time of an update is compared with the share: 1.00 is proportional.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VOCABULARY = 151_936
PROMPT = 16
GROUPS, SAMPLES = 8, 8


def narrow_model():
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
    )
    return Qwen2ForCausalLM(config).eval()


def held() -> float:
    """MiB of memory this process holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def memory_of(side: str, rows: int, tokens: int) -> dict[str, float]:
    """MiB beyond the loaded model, and seconds, of one forward and backward pass over rows x tokens response tokens."""
    import torch

    model = narrow_model()
    generator = torch.Generator().manual_seed(0)
    ids_BS = torch.randint(VOCABULARY, (rows, PROMPT + tokens), generator=generator)
    weight_T = torch.randn(rows * tokens, generator=generator)
    start, began = held(), time.perf_counter()
    if side == "plain":
        logits_BTV = model(ids_BS, use_cache=False, logits_to_keep=tokens + 1).logits[:, :-1].float()
        logp_BT = logits_BTV.log_softmax(-1).gather(2, ids_BS[:, PROMPT:, None])[..., 0]
        (logp_BT.flatten() * weight_T).sum().backward()
    else:
        from agpo.batch import Row
        from agpo.logprobs import attention_of, log_probs

        sequences = [(tuple(row[:PROMPT]), tuple(row[PROMPT:])) for row in ids_BS.tolist()]
        asked = [Row(prompt, response, (), 0, 0.0, 1.0, 1.0) for prompt, response in sequences]
        with attention_of(model, "packed"):
            (log_probs(model, asked, 1.0)[0] * weight_T).sum().backward()
    norm = float(model.model.embed_tokens.weight.grad.norm())
    return {"mib": peak() - start, "seconds": time.perf_counter() - began, "gradient_norm": norm}


def memory(rows: int, tokens: int, sides: list[str], rounds: int) -> None:
    results: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    for _ in range(rounds):
        for side in sides:
            command = [
                sys.executable,
                __file__,
                "memory",
                "--rows",
                str(rows),
                "--tokens",
                str(tokens),
                "--worker",
                side,
            ]
            environment = {**os.environ, "PYTHONPATH": str(ROOT)}
            done = subprocess.run(command, env=environment, text=True, capture_output=True, check=False)
            if done.returncode:
                raise SystemExit(f"{side} failed with exit code {done.returncode}:\n{done.stderr[-2000:]}")
            results[side].append(json.loads(done.stdout.splitlines()[-1]))
    print(f"{rows} x {tokens} response tokens, vocabulary {VOCABULARY:,}, {rounds} rounds, medians")
    medians = {side: {k: statistics.median(r[k] for r in found) for k in found[0]} for side, found in results.items()}
    for side, found in medians.items():
        share = f", {found['mib'] / medians['plain']['mib']:.3f} of plain" if "plain" in medians else ""
        print(
            f"{side:>6}: {found['mib']:8,.0f} MiB{share}; {found['seconds']:.1f} s; "
            f"gradient norm {found['gradient_norm']:.6g}"
        )


def minibatch_with(live: int, lengths: list[int], vocabulary: int):
    """A mini-batch of GROUPS groups of which the first `live` are live, with random tokens."""
    import torch

    from agpo.batch import Group, Sample, plan_step
    from agpo.objective import PRESETS
    from evals.engines import Completion
    from evals.grading import Verdict
    from evals.items import Item

    generator = torch.Generator().manual_seed(1)

    def ids(n: int) -> tuple[int, ...]:
        return tuple(torch.randint(3, vocabulary, (n,), generator=generator).tolist())

    groups = []
    for g in range(GROUPS):
        samples = []
        for k in range(SAMPLES):
            reward = float(k % 2) if g < live else 0.0
            n = lengths[(g * SAMPLES + k) % len(lengths)]
            completion = Completion(ids(n), (-1.0,) * n, "stop", 0.0)
            samples.append(Sample(completion, "", Verdict("right" if reward else "wrong", ""), reward, 0))
        groups.append(Group(Item(str(g), "", ""), ids(PROMPT), tuple(samples)))
    (minibatch,) = plan_step(groups, PRESETS["grpo"], GROUPS, max(lengths))
    return minibatch


def cost(model_name: str, rounds: int, budget: int) -> None:
    import torch

    from agpo.objective import PRESETS
    from agpo.optimizer import make_trained
    from agpo.policy import Policy, Settings
    from agpo.update import update
    from evals.engines.hf import load_model
    from evals.models import model_path

    model, tokenizer = load_model(model_path(model_name), device="cpu", dtype="float32")
    policy = Policy(model.eval(), tokenizer, make_trained(model, lr=1e-9), lambda k: 1e-9)
    lengths = torch.randint(20, 49, (64,), generator=torch.Generator().manual_seed(2)).tolist()
    vocabulary = model.config.vocab_size
    batches = [minibatch_with(live, lengths, vocabulary) for live in range(GROUPS + 1)]
    settings = Settings(micro_batch_tokens=budget, max_grad_norm=1.0)
    seconds: list[list[float]] = [[] for _ in batches]
    update(policy, batches[-1], PRESETS["grpo"], settings, on_policy=True)  # warm
    for _ in range(rounds):
        for live, minibatch in enumerate(batches):
            began = time.process_time()
            update(policy, minibatch, PRESETS["grpo"], settings, on_policy=True)
            seconds[live].append(time.process_time() - began)
    whole = statistics.median(seconds[-1])
    tokens = batches[-1].live_tokens
    print(f"{model_name}: update of {GROUPS} groups x {SAMPLES}, {rounds} rounds, medians of CPU seconds")
    print(f"{'live groups':>11} {'live tokens':>11} {'seconds':>8} {'of all':>7} {'over share':>10}")
    for live, minibatch in enumerate(batches):
        median, share = statistics.median(seconds[live]), minibatch.live_tokens / tokens
        over = f"{median / whole / share:10.2f}" if share else f"{'-':>10}"
        print(f"{live:>11} {100 * share:>9.0f} % {median:>8.3f} {100 * median / whole:>5.0f} % {over}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("memory", "cost"))
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=256, help="response tokens of each row")
    parser.add_argument("--only", choices=("ours", "plain"), help="one side, where the other does not fit")
    parser.add_argument("--model", default="tiny", help="for cost: `tiny` or a model folder")
    parser.add_argument("--budget", type=int, default=4096, help="for cost: micro-batch tokens")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(memory_of(args.worker, args.rows, args.tokens)))
    elif args.what == "memory":
        memory(args.rows, args.tokens, [args.only] if args.only else ["plain", "ours"], args.rounds)
    else:
        sys.path.insert(0, str(ROOT))
        cost(args.model, args.rounds, args.budget)


if __name__ == "__main__":
    main()
