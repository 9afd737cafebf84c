"""Log-probabilities of sampled tokens and the policy's entropy there, without ever holding [tokens, vocabulary].

The logits of a chunk of tokens exist while that chunk is looked at, in forward and once more in backward.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch

from agpo.packing import NAME, Sequence_, pack, packed_hidden
from agpo.parallel import as_forward
from evals.errors import UserError

Layout = Literal["packed", "padded"]
"""how sequences go through the model: packed with shared prompts, or padded on the right where a model's attention
cannot be replaced"""

LOGITS_AT_ONCE = {"cpu": 1 << 23, "cuda": 1 << 26}
"""most float32 logits that exist at a time, by device: 32 MiB stay near a CPU's cache, a GPU wants larger products"""


def log_probs(
    model: Any, rows: Sequence[Sequence_], temperature: float, layout: Layout = "packed", *, entropy: bool = False
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """([T], [T] or None): log pi of the response tokens, in row order, and the entropy there.

    Under softmax(logits / temperature). float32 for a model in half precision, else in the model's precision.
    Differentiable where gradient is on.
    """
    device = next(model.parameters()).device

    def work() -> tuple[torch.Tensor, torch.Tensor | None]:
        if layout == "packed":
            packed = pack(rows).to(device)
            with attention_of(model, layout):
                hidden_TH, target_T = packed_hidden(model, packed), packed.target_T
        else:
            hidden_TH, target_T = _padded_hidden(model, rows, device)
        head = model.get_output_embeddings()
        bias = getattr(head, "bias", None)
        return _SampledLogProbs.apply(hidden_TH, head.weight, bias, target_T, temperature or 1.0, entropy)

    return as_forward(model, work)


@contextmanager
def attention_of(model: Any, layout: Layout) -> Iterator[None]:
    """Let the model attend as the layout wants; around backward too, where gradient checkpointing runs it again."""
    config = model.config.get_text_config()
    before = config._attn_implementation
    if layout == "packed":
        config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before


def _padded_hidden(model: Any, rows: Sequence[Sequence_], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """([T, H], [T]): hidden states that predict the response tokens, and these. Padding on the right needs no mask."""
    sequences = [row.prompt_ids + row.response_ids for row in rows]
    ids_BS = torch.zeros(len(rows), max(map(len, sequences)), dtype=torch.long)
    for i, tokens in enumerate(sequences):
        ids_BS[i, : len(tokens)] = torch.tensor(tokens)
    hidden_BSH = model.base_model(input_ids=ids_BS.to(device), use_cache=False).last_hidden_state
    at = [(i, s - 1) for i, row in enumerate(rows) for s in range(len(row.prompt_ids), len(sequences[i]))]
    at_T2 = torch.tensor(at, device=device)  # the token at position s is predicted at s - 1
    target_T = torch.tensor([token for row in rows for token in row.response_ids], device=device)
    return hidden_BSH[at_T2[:, 0], at_T2[:, 1]], target_T


class _SampledLogProbs(torch.autograd.Function):
    """log softmax(W h + b)[target] and the entropy, by chunks of tokens. Backward makes the logits of a chunk again.

    With p the softmax and z the logits over the temperature: d logp / dz = onehot - p, dH / dz = -p (log p + H).
    """

    @staticmethod
    def forward(ctx: Any, hidden_TH, weight_VH, bias_V, target_T, temperature: float, with_entropy: bool):  # type: ignore[override]
        logps, entropies, sums = [], [], []
        buffer_CV = _buffer(hidden_TH, weight_VH)
        for hidden_CH, target_C in _chunks(hidden_TH, target_T, buffer_CV):
            logits_CV = _logits(hidden_CH, weight_VH, bias_V, temperature, buffer_CV)
            at_target_C = logits_CV.gather(1, target_C[:, None])[:, 0]
            if with_entropy:
                sum_C = logits_CV.logsumexp(-1)
                p_CV = (logits_CV - sum_C[:, None]).exp_()
                entropies.append(sum_C - p_CV.mul_(logits_CV).sum(-1))
            else:
                most_C1 = logits_CV.amax(-1, keepdim=True)
                sum_C = logits_CV.sub_(most_C1).exp_().sum(-1).log_() + most_C1[:, 0]
            logps.append(at_target_C - sum_C)
            sums.append(sum_C)
        entropy_T = torch.cat(entropies) if with_entropy else None
        ctx.save_for_backward(hidden_TH, weight_VH, bias_V, target_T, torch.cat(sums), entropy_T)
        ctx.temperature = temperature
        return torch.cat(logps), entropy_T

    @staticmethod
    def backward(ctx: Any, grad_logp_T, grad_entropy_T):  # type: ignore[override]
        hidden_TH, weight_VH, bias_V, target_T, sum_T, entropy_T = ctx.saved_tensors
        wants_weight, wants_bias = ctx.needs_input_grad[1], ctx.needs_input_grad[2]
        exact = torch.promote_types(weight_VH.dtype, torch.float32)  # chunks are summed in it
        grad_hidden_TH = torch.empty_like(hidden_TH)
        grad_weight_VH = torch.zeros_like(weight_VH, dtype=exact) if wants_weight else None
        grad_bias_V = torch.zeros_like(bias_V, dtype=exact) if wants_bias else None
        start, buffer_CV = 0, _buffer(hidden_TH, weight_VH)
        for hidden_CH, target_C in _chunks(hidden_TH, target_T, buffer_CV):
            part = slice(start, start + len(target_C))
            start += len(target_C)
            logp_CV = _logits(hidden_CH, weight_VH, bias_V, ctx.temperature, buffer_CV).sub_(sum_T[part, None])
            if entropy_T is not None and grad_entropy_T is not None:
                slope_C1, p_CV = grad_entropy_T[part, None], logp_CV.exp()
                grad_CV = p_CV * (logp_CV + entropy_T[part, None]) * -slope_C1 - p_CV * grad_logp_T[part, None]
            else:
                grad_CV = logp_CV.exp_().mul_(-grad_logp_T[part, None])
            grad_CV.scatter_add_(1, target_C[:, None], grad_logp_T[part, None])
            grad_CV = grad_CV.div_(ctx.temperature).to(weight_VH.dtype)
            grad_hidden_TH[part] = grad_CV @ weight_VH
            if grad_weight_VH is not None:
                if grad_weight_VH.dtype == weight_VH.dtype:
                    grad_weight_VH.addmm_(grad_CV.T, hidden_CH)
                else:
                    grad_weight_VH += grad_CV.T @ hidden_CH
            if grad_bias_V is not None:
                grad_bias_V += grad_CV.sum(0)
        grads = [None if g is None else g.to(weight_VH.dtype) for g in (grad_weight_VH, grad_bias_V)]
        return grad_hidden_TH, *grads, None, None, None


def _buffer(hidden_TH: torch.Tensor, weight_VH: torch.Tensor) -> torch.Tensor:
    """Room for the logits of a chunk, [C, V]: one piece of memory for all chunks: nothing for an allocator to keep."""
    size = max(1, LOGITS_AT_ONCE.get(weight_VH.device.type, 1 << 26) // len(weight_VH))
    dtype = torch.promote_types(weight_VH.dtype, torch.float32)
    return weight_VH.new_empty(min(size, len(hidden_TH)), len(weight_VH), dtype=dtype)


def _chunks(hidden_TH: torch.Tensor, target_T: torch.Tensor, buffer_CV: torch.Tensor):
    return zip(hidden_TH.split(len(buffer_CV)), target_T.split(len(buffer_CV)), strict=True)


def _logits(
    hidden_CH: torch.Tensor,
    weight_VH: torch.Tensor,
    bias_V: torch.Tensor | None,
    temperature: float,
    buffer_CV: torch.Tensor,
) -> torch.Tensor:
    """[C, V] logits over the temperature, at least in float32, in the buffer."""
    logits_CV = buffer_CV[: len(hidden_CH)]
    if weight_VH.dtype == logits_CV.dtype:
        torch.mm(hidden_CH, weight_VH.T, out=logits_CV)
    else:
        logits_CV.copy_(hidden_CH @ weight_VH.T)
    if bias_V is not None:
        logits_CV += bias_V
    return logits_CV if temperature == 1 else logits_CV.div_(temperature)


@torch.no_grad()
def choose_layout(model: Any, longest: int) -> Layout:
    """How this model's sequences of up to `longest` tokens can be run, found out by running some.

    Raises UserError for a model whose logits are not its output embedding of the last hidden state (soft caps, logit
    scales), which chunks would not reproduce.
    """
    config = model.config.get_text_config()
    size, window = config.vocab_size, getattr(config, "sliding_window", None)
    rows = [_Probe(tuple(3 + x % (size - 3) for x in p), tuple(3 + x % (size - 3) for x in r)) for p, r in _PROBES]
    device = next(model.parameters()).device
    wanted = []
    for row in rows:
        logits_SV = model(torch.tensor([row.prompt_ids + row.response_ids], device=device), use_cache=False).logits[0]
        logp_TV = logits_SV[len(row.prompt_ids) - 1 : -1].float().log_softmax(-1)
        wanted.append(logp_TV.gather(1, torch.tensor(row.response_ids, device=device)[:, None])[:, 0])
    tolerance = 1e-3 if model.dtype in (torch.float32, torch.float64) else 0.1
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"]
    slides = bool(window) and window < longest and "sliding_attention" in kinds
    layouts: tuple[Layout, ...] = ("padded",) if slides else ("packed", "padded")
    for layout in layouts:
        try:
            found = log_probs(model, rows, 1.0, layout)[0]
        except (ValueError, TypeError, RuntimeError, AttributeError):
            continue  # this model's attention cannot be replaced
        if torch.allclose(found.float(), torch.cat(wanted), rtol=0, atol=tolerance):
            return layout
    raise UserError(
        f"{type(model).__name__}: log-probabilities in chunks differ from the model's own. It changes its logits after "
        "the output embedding (a soft cap or a scale), which is not supported. Use a model without it."
    )


class _Probe(NamedTuple):
    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]


_PROBES = (((1, 2, 3), (4, 5)), ((1, 2, 3), (6, 7, 8, 9)), ((5, 4), (3, 2, 1)))
