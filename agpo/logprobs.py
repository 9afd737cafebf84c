"""Log-probabilities of sampled tokens and the entropy there, without ever holding [tokens, vocabulary] logits.

Logits are computed for one chunk of tokens at a time, in forward and again in backward.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
from transformers import PreTrainedModel

from agpo.batch import Row
from agpo.distributed import as_forward, compute_device, layers_of
from agpo.model import compiled, output_embeddings
from agpo.packing import HALF, NAME, moved, pack, packed_hidden, trunk
from evals.errors import UserError, first_line

Layout = Literal["packed", "varlen", "padded"]
"""how sequences go through the model: packed with shared prompts, attending in padded blocks (`packed`) or in a
variable-length kernel (`varlen`); or each padded on the right, if the model's attention cannot be replaced"""

LOGITS_AT_ONCE = 1 << 23
"""most float32 logits at a time on a CPU: 32 MiB stay near its cache"""
LOGITS_SHARE = 1 / 64
"""the same on a GPU, as a share of its memory: large products are fast (80 GiB: 1.25 GiB, 2,200 tokens of 152,000)"""


def log_probs(
    model: PreTrainedModel,
    rows: Sequence[Row],
    temperature: float,
    layout: Layout = "packed",
    *,
    entropy: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """([T], [T] or None): log pi of the response tokens, in row order, and the entropy there.

    Under softmax(logits / temperature), differentiable. At least float32.
    """
    device = compute_device(model)

    def work() -> tuple[torch.Tensor, torch.Tensor | None]:
        if layout != "padded":
            packed = pack(rows, varlen=layout == "varlen", rounded=device.type == "cuda").to(device)
            with attention_of(model, layout):
                hidden_TH, target_T = packed_hidden(model, packed), packed.target_T
        else:
            hidden_TH, target_T = _padded_hidden(model, rows, device)
        head, (scale, cap), t = output_embeddings(model), logit_shape(model), temperature or 1.0
        bias = getattr(head, "bias", None)
        return _SampledLogProbs.apply(hidden_TH, head.weight, bias, target_T, t / scale, cap / t, entropy)

    return as_forward(model, work)


def logit_shape(model: PreTrainedModel) -> tuple[float, float]:
    """(scale, soft cap or 0) of the logits over the output embedding's product z: cap tanh(scale z / cap)."""
    config = model.config.get_text_config()
    named = ("logit_scale", "logits_scaling", "final_logit_softcapping", "logits_soft_cap")  # Cohere, Granite, Gemmas
    found = (getattr(config, name, None) for name in named)
    times, over, cap, caps = (x if isinstance(x, int | float) else 0.0 for x in found)
    return (times or 1.0) / (over or 1.0), cap or caps


@contextmanager
def attention_of(model: PreTrainedModel, layout: Layout) -> Iterator[None]:
    """Use the layout's attention and compiled layers, if any. Needed around backward too: gradient checkpointing runs
    layers again."""
    config = model.config.get_text_config()
    before = config._attn_implementation
    if layout != "padded":
        config._attn_implementation = NAME
    try:
        with compiled(model):
            yield
    finally:
        config._attn_implementation = before


def _padded_hidden(
    model: PreTrainedModel, rows: Sequence[Row], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """(hidden states that predict the response tokens [T, H], the tokens [T]). Right padding needs no mask."""
    sequences = [row.prompt_ids + row.response_ids for row in rows]
    ids_BS = torch.zeros(len(rows), max(map(len, sequences)), dtype=torch.long)
    for i, tokens in enumerate(sequences):
        ids_BS[i, : len(tokens)] = torch.tensor(tokens)
    hidden_BSH = trunk(model)(input_ids=moved(ids_BS, device), use_cache=False).last_hidden_state
    at = [(i, s - 1) for i, row in enumerate(rows) for s in range(len(row.prompt_ids), len(sequences[i]))]
    at_T2 = moved(torch.tensor(at), device)  # the token at position s is predicted at s - 1
    target_T = moved(torch.tensor([token for row in rows for token in row.response_ids]), device)
    return hidden_BSH[at_T2[:, 0], at_T2[:, 1]], target_T


class _SampledLogProbs(torch.autograd.Function):
    """log softmax(z)[target] and the entropy, by chunks of tokens. Backward recomputes the logits z of each chunk.

    z = x, or cap tanh(x / cap), of x = (W h + b) / temperature. With p the softmax:
    d logp / dz = onehot - p, dH / dz = -p (log p + H).
    """

    @staticmethod
    def forward(ctx: Any, hidden_TH, weight_VH, bias_V, target_T, temperature, cap, with_entropy: bool):  # type: ignore[override]
        logps, entropies, sums = [], [], []
        buffer_CV = _buffer(hidden_TH, weight_VH)
        for hidden_CH, target_C in _chunks(hidden_TH, target_T, buffer_CV):
            logits_CV = _logits(hidden_CH, weight_VH, bias_V, temperature, cap, buffer_CV)
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
        ctx.temperature, ctx.cap = temperature, cap
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
            logits_CV = _logits(hidden_CH, weight_VH, bias_V, ctx.temperature, ctx.cap, buffer_CV)
            bent_CV = 1 - (logits_CV / ctx.cap).square_() if ctx.cap else None  # of the soft cap
            logp_CV = logits_CV.sub_(sum_T[part, None])
            if entropy_T is not None and grad_entropy_T is not None:
                slope_C1, p_CV = grad_entropy_T[part, None], logp_CV.exp()
                grad_CV = p_CV * (logp_CV + entropy_T[part, None]) * -slope_C1 - p_CV * grad_logp_T[part, None]
            else:
                grad_CV = logp_CV.exp_().mul_(-grad_logp_T[part, None])
            grad_CV.scatter_add_(1, target_C[:, None], grad_logp_T[part, None])
            grad_CV = grad_CV if bent_CV is None else grad_CV.mul_(bent_CV)
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
        return grad_hidden_TH, *grads, None, None, None, None


def _buffer(hidden_TH: torch.Tensor, weight_VH: torch.Tensor) -> torch.Tensor:
    """[C, V] memory for the logits, reused by all chunks."""
    size = max(1, logits_at_once(weight_VH.device) // len(weight_VH))
    dtype = torch.promote_types(weight_VH.dtype, torch.float32)
    return weight_VH.new_empty(min(size, len(hidden_TH)), len(weight_VH), dtype=dtype)


def logits_at_once(device: torch.device) -> int:
    """The most logits at a time. A function of the device alone, so that chunks are reproducible."""
    if device.type != "cuda":
        return LOGITS_AT_ONCE
    return int(torch.cuda.get_device_properties(device).total_memory * LOGITS_SHARE) // 4


def _chunks(hidden_TH: torch.Tensor, target_T: torch.Tensor, buffer_CV: torch.Tensor):
    return zip(hidden_TH.split(len(buffer_CV)), target_T.split(len(buffer_CV)), strict=True)


def _logits(
    hidden_CH: torch.Tensor,
    weight_VH: torch.Tensor,
    bias_V: torch.Tensor | None,
    temperature: float,
    cap: float,
    buffer_CV: torch.Tensor,
) -> torch.Tensor:
    """[C, V] logits over the temperature, at least float32, in the buffer."""
    logits_CV = buffer_CV[: len(hidden_CH)]
    if weight_VH.dtype == logits_CV.dtype:
        torch.mm(hidden_CH, weight_VH.T, out=logits_CV)
    else:
        logits_CV.copy_(hidden_CH @ weight_VH.T)
    if bias_V is not None:
        logits_CV += bias_V
    logits_CV = logits_CV if temperature == 1 else logits_CV.div_(temperature)
    return logits_CV.div_(cap).tanh_().mul_(cap) if cap else logits_CV


class Chosen(NamedTuple):
    layout: Layout
    why: str


@torch.no_grad()
def choose_layout(model: PreTrainedModel, longest: int, wanted: Layout = "packed") -> Chosen:
    """The layout for this model's sequences of up to `longest` tokens: as `wanted`, or padded if that is not exact.

    Tested in float32 on a copy of the model's first layers: all layers attend alike, and in half precision a mere
    change in the order of sums moves an unlikely token by whole nats. Sliding windows and soft caps, which the test
    sequences would not reach, are read from the configuration.

    Raises UserError if the logits are not the function of the last hidden state that `logit_shape` describes, so that
    chunks would not reproduce them.
    """
    config = model.config.get_text_config()
    kinds = getattr(config, "layer_types", None) or ["sliding_attention", "chunked_attention"]
    bounds = {"sliding_attention": "sliding_window", "chunked_attention": "attention_chunk_size"}
    reach = min(
        (getattr(config, key, None) or longest for kind, key in bounds.items() if kind in kinds), default=longest
    )
    layouts: tuple[Layout, ...] = ("padded",)
    if reach < longest:
        why = f"its attention reaches over {reach} tokens, and sequences may have {longest}"
    elif cap := getattr(config, "attn_logit_softcapping", None):
        why = f"its attention has a soft cap of {cap:g}"
    else:
        layouts, why = tuple(dict.fromkeys((wanted, *layouts))), "asked for"
    size = output_embeddings(model).weight.shape[0]
    tokens = [[tuple(3 + x % (size - 3) for x in part) for part in probe] for probe in _PROBES]
    rows = [Row(prompt, response, (), 0, 0.0, 0.0, 0.0) for prompt, response in tokens]
    shallow = first_layers(model)
    exact_T = _of_whole_logits(shallow, rows)
    bound_T = TOLERANCE * exact_T.abs().clamp(min=1.0)
    for layout in layouts:
        try:
            gap_T = (log_probs(shallow, rows, 1.0, layout)[0] - exact_T).abs()
            if layout == "varlen" and model.dtype in HALF:  # on a GPU a kernel that float32 does not reach
                half = copy.deepcopy(shallow).to(model.dtype)  # type: ignore[arg-type]
                log_probs(half, rows, 1.0, layout)
        except (ValueError, TypeError, RuntimeError, AttributeError) as e:
            why = f"{layout} does not run: {first_line(e)}"
            continue  # this model's attention cannot be replaced
        if bool((gap_T <= bound_T).all()):
            if layout != "padded":
                why = f"log-probabilities are within {float(gap_T.max()):.0e} of separate sequences' in float32"
            return Chosen(layout, why)
        why = f"{layout} changes log-probabilities by {float(gap_T.max()):.2g} in float32"
    raise UserError(
        f"{type(model).__name__} cannot be trained: log-probabilities in chunks are not the model's own ({why}). "
        "Usual cause: it changes its logits after the output embedding in a way that its configuration does not name. "
        "Use another model."
    )


def first_layers(model: PreTrainedModel) -> PreTrainedModel:
    """A float32 copy of the model's first layers: at least two, and one of each kind of attention."""
    kinds = list(getattr(model.config.get_text_config(), "layer_types", None) or [])
    layers, count = layers_of(model), max([2, *(1 + kinds.index(kind) for kind in kinds)])
    memo: dict[int, Any] = {id(layer): None for layer in layers[count:]}
    beyond = {id(x) for layer in layers[count:] for x in (*layer.parameters(), *layer.buffers())}
    for x in (*model.parameters(), *model.buffers()):
        if id(x) not in beyond and x.is_floating_point():
            exact = x.detach().to(torch.promote_types(x.dtype, torch.float32))
            memo[id(x)] = torch.nn.Parameter(exact, False) if isinstance(x, torch.nn.Parameter) else exact
    shallow = copy.deepcopy(model, memo)
    for module in shallow.modules():
        if hasattr(module, "quant_state"):  # a 4-bit layer casts its input
            module.compute_dtype = torch.promote_types(model.dtype, torch.float32)  # type: ignore[assignment]
        if isinstance(module, torch.nn.ModuleList) and None in module._modules.values():
            del module[count:]
    shallow.config.get_text_config().num_hidden_layers = min(count, len(layers))
    return shallow


def _of_whole_logits(model: PreTrainedModel, rows: Sequence[Row]) -> torch.Tensor:
    """[T] by the model itself, one sequence at a time."""
    device, found = next(model.parameters()).device, []
    for row in rows:
        logits_SV = model(torch.tensor([row.prompt_ids + row.response_ids], device=device), use_cache=False).logits[0]
        exact = torch.promote_types(logits_SV.dtype, torch.float32)
        logp_TV = logits_SV[len(row.prompt_ids) - 1 : -1].to(exact).log_softmax(-1)
        found.append(logp_TV.gather(1, torch.tensor(row.response_ids, device=device)[:, None])[:, 0])
    return torch.cat(found)


TOLERANCE = 1e-3
"""of a float32 log-probability; relative below -1"""

_PROBES = (((1, 2, 3), (4, 5)), ((1, 2, 3), (6, 7, 8, 9)), ((5, 4), (3, 2, 1)))
