"""The update on a GPU: tokens per second, model FLOP utilisation, peak memory, agreement with float32. NOT YET RUN.

    python benchmarks/gpu_update.py [--layers 12] [--peak-tflops 989] [--trl]

A model of Qwen2.5-7B's shape, random weights, bfloat16; the updates of 32 prompts x 8 completions of 1,024 tokens:
8 prompts x 8 each, gradient checkpointing on. An 80 GB GPU does not hold 7B weights with float32 masters, gradients and
moments (18 bytes a parameter): `--layers` cuts the depth, which leaves the utilisation of a layer as it is. FLOPs are
counted as 6 per parameter and token that runs, plus attention, without what gradient checkpointing runs again (model
FLOP utilisation). `--trl` adds TRL's log-probabilities on the same shapes in the same process (TRL beside agpo).
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
PROMPT, RESPONSE, GROUPS, SAMPLES = 128, 1024, 8, 8


def make_model(layers: int):
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=152_064,
        hidden_size=3584,
        intermediate_size=18_944,
        num_hidden_layers=layers,
        num_attention_heads=28,
        num_key_value_heads=4,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
    )
    with torch.device("cuda"):
        return Qwen2ForCausalLM(config).to(torch.bfloat16)


def minibatch(vocabulary: int):
    import torch

    from agpo.batch import Group, Sample, plan_step
    from agpo.objective import PRESETS
    from evals.engines import Completion
    from evals.grading import Verdict
    from evals.items import Item

    generator = torch.Generator().manual_seed(0)

    def ids(n: int) -> tuple[int, ...]:
        return tuple(torch.randint(vocabulary, (n,), generator=generator).tolist())

    groups = []
    for g in range(GROUPS):
        samples = tuple(
            Sample(
                Completion(ids(RESPONSE), (-12.0,) * RESPONSE, "stop", 0.0), "", Verdict("right", ""), float(k % 2), 0
            )
            for k in range(SAMPLES)
        )
        groups.append(Group(Item(str(g), "", ""), ids(PROMPT), samples))
    return plan_step(groups, PRESETS["grpo"], GROUPS, RESPONSE)[0]


def flops(model, tokens: int, sequences: int) -> float:
    """Of forward and backward: 6 per weight and token, and 12 d n^2 / 2 of causal attention per layer and sequence."""
    config = model.config
    weights = sum(p.numel() for name, p in model.named_parameters() if "embed_tokens" not in name)
    width = config.num_attention_heads * config.hidden_size // config.num_attention_heads
    attention = 6 * width * (PROMPT + RESPONSE) ** 2 * config.num_hidden_layers * sequences
    return 6.0 * weights * tokens + attention


def agreement() -> float:
    """Mean |log pi in bfloat16 - in float32| of random tokens under a small model of the same family."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from agpo.logprobs import log_probs

    torch.manual_seed(0)
    config = Qwen2Config(vocab_size=32_000, hidden_size=512, intermediate_size=1536, num_hidden_layers=4)
    config.num_attention_heads, config.num_key_value_heads = 8, 2
    model = Qwen2ForCausalLM(config).cuda().eval()
    rows = minibatch(32_000).rows[:8]
    with torch.no_grad():
        exact = log_probs(model, rows, 1.0)[0]
        half = log_probs(model.bfloat16(), rows, 1.0)[0]
    return float((exact - half).abs().mean())


def trl_loss(model, rows, micro: int) -> None:
    """TRL's per-token log-probabilities and loss shape on the same rows: padded, whole logits of each micro-batch."""
    import torch
    from trl.trainer.utils import selective_log_softmax

    for start in range(0, len(rows), micro):
        part = rows[start : start + micro]
        ids_BS = torch.tensor([row.prompt_ids + row.response_ids for row in part], device="cuda")
        logits_BTV = model(ids_BS, use_cache=False, logits_to_keep=RESPONSE + 1).logits[:, :-1]
        logp_BT = selective_log_softmax(logits_BTV, ids_BS[:, PROMPT:])
        advantage_B1 = torch.tensor([[row.advantage] for row in part], device="cuda")
        (-(logp_BT - logp_BT.detach()).exp() * advantage_B1).sum().div(len(rows) * RESPONSE).backward()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--micro-batch-tokens", type=int, default=16_384)
    parser.add_argument("--peak-tflops", type=float, default=989.0, help="dense bfloat16 peak of this GPU (H100: 989)")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--trl", action="store_true")
    args = parser.parse_args()
    import torch

    if not torch.cuda.is_available():
        raise SystemExit("this benchmark needs a GPU")
    from agpo.config import LoraConfig
    from agpo.model import checkpointing, prepare
    from agpo.objective import PRESETS
    from agpo.optimizer import make_trained
    from agpo.policy import Policy, Settings, tokens_of, update

    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    print(f"bfloat16 against float32, small model: mean |log-probability difference| {agreement():.4f}")
    model = make_model(args.layers)
    prepare(model, lora=LoraConfig(), gradient_checkpointing=True)
    policy = Policy(model, None, make_trained(model, lr=1e-6), lambda k: 1e-6)
    batch = minibatch(model.config.vocab_size)
    settings = Settings(micro_batch_tokens=args.micro_batch_tokens, max_grad_norm=1.0)
    tokens = tokens_of(batch.rows, "packed")
    torch.cuda.reset_peak_memory_stats()
    seconds = []
    for k in range(args.rounds + 1):
        torch.cuda.synchronize()
        began = time.perf_counter()
        update(policy, batch, PRESETS["grpo"], settings, on_policy=k == 0)
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    median = statistics.median(seconds[1:])
    share = flops(model, tokens, len(batch.rows)) / median / (args.peak_tflops * 1e12)
    speed = len(batch.rows) * RESPONSE / median
    print(
        f"ours: {median:.2f} s an update of {len(batch.rows)} x {RESPONSE} tokens, {speed:,.0f} response tokens/s, "
        f"model FLOP utilisation {100 * share:.1f} %, "
        f"peak memory {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB"
    )
    if args.trl:
        torch.cuda.reset_peak_memory_stats()
        seconds = []
        for _ in range(args.rounds + 1):
            torch.cuda.synchronize()
            began = time.perf_counter()
            with checkpointing(model):
                trl_loss(model, batch.rows, 4)
            policy.trained.step()
            torch.cuda.synchronize()
            seconds.append(time.perf_counter() - began)
        theirs = statistics.median(seconds[1:])
        print(
            f"TRL's loss: {theirs:.2f} s ({theirs / median:.2f}x ours), "
            f"peak memory {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB"
        )


if __name__ == "__main__":
    main()
