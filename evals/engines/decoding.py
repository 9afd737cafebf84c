"""Decoders: run a batch of prompts through a model, then their completions one token at a time.

Two of them with one interface: `logits_BV` for each row's first token; `step` appends a token to every row and returns
the next logits [B, V]; `keep` makes row i what row rows[i] was and drops the others. `SharedPrompts` stores a prompt's
keys and values once for all its completions; `AnyCache` serves every other model. Both run the model itself, except for
the attention of a step in `SharedPrompts`, and read its weights at every call.
"""

import contextlib
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from typing import Any

import numpy as np
import torch
from transformers import AttentionInterface, Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from evals.errors import UserError, first_line

PREFILL_TOKENS = 4096
"""prompt tokens (padded) in one forward pass: more of them leave the processor's cache and need more memory"""
OPEN_POSITIONS = 16
"""latest response positions that are written in place before they are joined to those before them"""
TILE = 4
"""fewest rows of a product: with fewer a CPU sums in another order, and a log-probability would depend on the batch"""
LANES = 16
"""prompts are padded to multiples of this: a vector's lanes then sum the same positions, whatever the padding"""
PROMPTS_KEPT = 0.8
"""prompts that nobody answers any more leave the cache when fewer than this share is still needed"""


def fill_holes(running_B: np.ndarray) -> np.ndarray:
    """The running rows, the last of them moved into the places of finished ones: few rows move."""
    rows = np.arange(running_B.sum())
    holes = np.flatnonzero(~running_B[: len(rows)])
    rows[holes] = len(rows) + np.flatnonzero(running_B[len(rows) :])
    return rows


# -- prompts stored once ---------------------------------------------------------------------------------------------


class SharedPrompts:
    """Decode with a prompt's keys and values stored once for all its rows.

    B rows, P prompts, H key-value heads, R query heads for each of them, D head width, S positions of the longest
    prompt, N most rows of one prompt. All rows start together, so that response positions need no mask.
    """

    def __init__(self, model: PreTrainedModel, prompts: Sequence[Sequence[int]], prompt_of_row: np.ndarray):
        self.model = model
        self.device = model.device
        self.layers: list[PromptAndResponses] = []
        logits_PV = self._prefill(prompts)
        self.cache: Any = DynamicCache()
        self.cache.layers = list(self.layers)
        self.prompt_of_row = prompt_of_row
        self.logits_BV = logits_PV[torch.from_numpy(prompt_of_row).to(self.device)]
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=self.device)
        self.position_B = lengths[torch.from_numpy(prompt_of_row).to(self.device)]
        longest = _width(prompts)
        pad_PS = torch.arange(longest, device=self.device) < (longest - lengths)[:, None]
        minus_infinity = torch.zeros_like(pad_PS, dtype=model.dtype).masked_fill_(pad_PS, float("-inf"))
        self.bias_P11S = minus_infinity[:, None, None] if pad_PS.any() else None
        self._place()

    def _prefill(self, prompts: Sequence[Sequence[int]]) -> torch.Tensor:
        """Run the prompts, each padded on the left, and keep their keys and values; their last logits [P, V]."""
        longest = _width(prompts)
        logits, at = [], 0
        while at < len(prompts):
            end = at + 1
            while end < len(prompts) and _width(prompts[at : end + 1]) * (end + 1 - at) <= PREFILL_TOKENS:
                end += 1
            cache: Any = DynamicCache(config=self.model.config)
            _, logits_CV = prefill(self.model, prompts[at:end], cache)
            if not self.layers:
                self.layers = [PromptAndResponses((x.keys, x.values), len(prompts), longest) for x in cache.layers]
            for layer, part in zip(self.layers, cache.layers, strict=True):
                width = part.keys.shape[2]
                for whole, x in zip(layer.prompt, (part.keys, part.values), strict=True):
                    whole[at:end, :, longest - width :] = x
            logits.append(logits_CV)
            at = end
        return torch.cat(logits)

    def _place(self) -> None:
        """Give every row a place in the grid [P, N] of its prompt's rows; None where rows fill the grid in order."""
        count_P = np.bincount(self.prompt_of_row, minlength=len(self.layers[0].prompt[0]))
        config = self.model.config.get_text_config()
        queries = config.num_attention_heads // (getattr(config, "num_key_value_heads", None) or 1)
        least = -(-TILE // max(queries, 1)) if self.device.type == "cpu" else 1
        self.most = max(int(count_P.max()), least)
        rank_B = np.empty(len(self.prompt_of_row), dtype=np.int64)
        rank_B[np.argsort(self.prompt_of_row, kind="stable")] = np.concatenate([np.arange(n) for n in count_P])
        place_B = self.prompt_of_row * self.most + rank_B
        in_order = len(place_B) == len(count_P) * self.most and (place_B == np.arange(len(place_B))).all()
        self.place_B = None if in_order else torch.from_numpy(place_B).to(self.device)

    def step(self, token_B: torch.Tensor) -> torch.Tensor:
        with _attention_of(self):
            return _step(self, token_B)

    def keep(self, rows: np.ndarray) -> None:
        moved = np.flatnonzero(rows != np.arange(len(rows)))
        to, source = torch.from_numpy(moved).to(self.device), torch.from_numpy(rows[moved]).to(self.device)
        for layer in self.layers:
            layer.move(to, source)
        self.position_B = self.position_B[torch.from_numpy(rows).to(self.device)]
        self.prompt_of_row = self.prompt_of_row[rows]
        needed, renumbered = np.unique(self.prompt_of_row, return_inverse=True)
        if len(needed) < PROMPTS_KEPT * len(self.layers[0].prompt[0]):
            self.prompt_of_row, needed_P = renumbered, torch.from_numpy(needed).to(self.device)
            self.bias_P11S = None if self.bias_P11S is None else self.bias_P11S[needed_P]
            for layer in self.layers:
                layer.prompt = [x[needed_P] for x in layer.prompt]
        self._place()

    def attend(self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Attention of one new token per row over its prompt, its closed blocks and the open block.

        `query` [B, H * R, 1, D] is scaled; `key` and `value` [B, H, used, D] are the open block's. Returns
        [B, 1, H * R, D]. Batched products of three dimensions: broadcasting over four costs more than the arithmetic.
        """
        B, H, _, D = key.shape
        R = query.shape[1] // H
        cached = self.layers[layer]
        prompt_key, prompt_value = (x.flatten(0, 1) for x in cached.prompt)
        blocks = [[x[:B].flatten(0, 1) for x in cached.closed]] if cached.closed else []
        blocks.append([key.flatten(0, 1), value.flatten(0, 1)])
        query_XRD = query.reshape(B * H, R, D)
        from_prompt = _scores(self._by_prompt(query_XRD, H), prompt_key)
        if self.bias_P11S is not None:
            from_prompt.unflatten(0, (-1, H)).add_(self.bias_P11S)
        scores = [self._by_row(from_prompt, H), *(_scores(query_XRD, k) for k, _ in blocks)]
        weights = torch.cat(scores, dim=-1).softmax(-1, dtype=torch.float32).to(value.dtype)
        weight, *rest = weights.split([x.shape[-1] for x in scores], dim=-1)
        out_XRD = self._by_row(torch.bmm(self._by_prompt(weight, H), prompt_value), H)
        for weight, (_, v) in zip(rest, blocks, strict=True):
            out_XRD = torch.baddbmm(out_XRD, weight, v)
        return out_XRD.view(B, 1, H * R, -1)

    def _by_prompt(self, x: torch.Tensor, H: int) -> torch.Tensor:
        """[B * H, R, k] -> [P * H, N * R, k]: what the rows of a prompt ask stands in one matrix."""
        _, R, k = x.shape
        x = x.reshape(-1, H, R, k)
        if self.place_B is not None:
            places = len(self.layers[0].prompt[0]) * self.most
            x = x.new_zeros(places, H, R, k).index_copy_(0, self.place_B, x)
        return x.view(-1, self.most, H, R, k).transpose(1, 2).reshape(-1, self.most * R, k)

    def _by_row(self, x: torch.Tensor, H: int) -> torch.Tensor:
        """[P * H, N * R, k] -> [B * H, R, k], the inverse of `_by_prompt`."""
        _, NR, k = x.shape
        R = NR // self.most
        x = x.view(-1, H, self.most, R, k).transpose(1, 2).reshape(-1, H, R, k)
        if self.place_B is not None:
            x = x.index_select(0, self.place_B)
        return x.reshape(-1, R, k)


def _scores(query_XRD: torch.Tensor, key_XSD: torch.Tensor) -> torch.Tensor:
    """query @ key^T [X, R, S]. In half precision a CPU is twice as fast with the long side on the left."""
    if query_XRD.dtype == torch.float32:
        return torch.bmm(query_XRD, key_XSD.transpose(1, 2))
    return torch.bmm(key_XSD, query_XRD.transpose(1, 2)).transpose(1, 2)


# -- caches ----------------------------------------------------------------------------------------------------------


class PromptAndResponses(DynamicLayer):
    """One layer's keys and values: of the prompts [P, H, S, D], and of what each row has answered so far.

    The latest positions of the responses are written into an open block [B, H, OPEN_POSITIONS, D]. When it is full it
    is joined to the closed ones [B, H, c, D]. A product over memory without gaps takes half the time of one over the
    used part of a large buffer, and the library's copy of everything at every token is avoided.
    """

    def __init__(self, like: Sequence[torch.Tensor], prompts: int, longest: int):
        super().__init__()
        # zeros: padding is masked out of the scores, but its values are multiplied with the weight 0
        self.prompt = [x.new_zeros(prompts, x.shape[1], longest, x.shape[3]) for x in like]
        self.closed: list[torch.Tensor] = []
        self.open: list[torch.Tensor] = []
        self.used = 0

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append a position [B, H, 1, D]; the open block's keys and values [B, H, used, D]."""
        new, rows = (key_states, value_states), len(key_states)
        if self.used == OPEN_POSITIONS:
            closed = self.closed or [x[:, :, :0] for x in self.open]
            self.closed = [torch.cat([c[:rows], x[:rows]], dim=2) for c, x in zip(closed, self.open, strict=True)]
        if self.used in (0, OPEN_POSITIONS):
            self.open = [x.new_empty(rows, x.shape[1], OPEN_POSITIONS, x.shape[3]) for x in new]
            self.used = 0
        for block, x in zip(self.open, new, strict=True):
            block[:rows, :, self.used] = x[:, :, 0]
        self.used += 1
        keys, values = self.open
        return keys[:rows, :, : self.used], values[:rows, :, : self.used]

    def get_seq_length(self) -> int:
        closed = self.closed[0].shape[2] if self.closed else 0
        return self.prompt[0].shape[2] + closed + self.used

    def move(self, to: torch.Tensor, source: torch.Tensor) -> None:
        """Row to[i] becomes what row source[i] was. The rows beyond those in use are left as they are."""
        for block in [*self.closed, *(x[:, :, : self.used] for x in self.open)]:
            block.index_copy_(0, to, block.index_select(0, source))


def _width(prompts: Sequence[Sequence[int]]) -> int:
    """Positions of prompts that are padded to one length."""
    return -(-max(map(len, prompts)) // LANES) * LANES


def prefill(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], cache: Cache
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run prompts, padded on the left to one length, into `cache`: their mask [P, S] and last logits [P, V]."""
    longest = _width(prompts)
    ids_PS = torch.tensor([[0] * (longest - len(p)) + list(p) for p in prompts], device=model.device)
    mask_PS = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=model.device)
    out = model(
        input_ids=ids_PS,
        attention_mask=mask_PS,
        position_ids=(mask_PS.cumsum(1) - 1).clamp(min=0),
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1 if len(prompts) >= TILE else TILE,
    )
    return mask_PS, out.logits[:, -1]


# -- the attention of a step -----------------------------------------------------------------------------------------

NAME = "evals_shared_prompts"
_decoding: ContextVar[SharedPrompts] = ContextVar("_decoding")
HARMLESS = {
    *("position_ids", "use_cache", "is_causal", "output_attentions", "output_router_logits", "return_dict"),
    *("dropout", "cache_position"),
}
"""arguments of an attention function that change nothing for one new token over all that came before"""


class NotPlainAttention(Exception):
    """The model's attention has something that `SharedPrompts` does not do, a soft cap for example."""


def _attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: object,
) -> tuple[torch.Tensor, None]:
    asked = [name for name, argument in kwargs.items() if argument is not None and name not in HARMLESS]
    if asked or attention_mask is not None:
        raise NotPlainAttention(", ".join(asked) or "attention_mask")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return _decoding.get().attend(module.layer_idx, query * scale, key, value), None


AttentionInterface.register(NAME, _attend)


@contextlib.contextmanager
def _attention_of(decoder: SharedPrompts) -> Iterator[None]:
    """Replace the model's attention for one forward pass: a trainer may use the same object."""
    config = decoder.model.config
    before, token = config._attn_implementation, _decoding.set(decoder)
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before
        _decoding.reset(token)


@torch.inference_mode()
def shares_prompts(model: PreTrainedModel) -> bool:
    """Whether `SharedPrompts` serves the model: full attention in every layer, through transformers' interface.

    How a model uses its cache and mask is not declared anywhere, so it is tried: three steps after prompts of two
    lengths must give `AnyCache`'s logits.
    """
    config = model.config
    if not getattr(model, "_supports_attention_backend", False) or config.get_text_config() is not config:
        return False
    if config.sub_configs or any(type(layer) is not DynamicLayer for layer in DynamicCache(config=config).layers):
        return False
    ids = [i % config.vocab_size for i in range(5, 14)]
    prompts, rows, steps = (ids[:4], ids[3:5]), np.array([0, 0, 1]), 3
    try:
        ours, theirs = SharedPrompts(model, prompts, rows), AnyCache(model, prompts, rows)
        gaps = []
        for at in range(steps):
            token_B = torch.tensor(ids[at : at + len(rows)], device=ours.device)
            got, wanted = ours.step(token_B).float(), theirs.step(token_B).float()
            gaps.append((got - wanted).square().mean(-1).sqrt() / wanted.std(-1))
    except (NotPlainAttention, RuntimeError):  # or keys and values differ in width (DeepSeek's)
        return False
    # Half precision is chaotic on such nonsense: either side is up to 0.7 from float32, 0.1 in the median.
    return bool(torch.cat(gaps).median() < (1e-3 if model.dtype == torch.float32 else 0.4))


@torch.inference_mode()
def check_decodes(model: PreTrainedModel) -> None:
    """Raise UserError where `AnyCache` would not be the model: it keeps state beside its cache (RWKV, RecurrentGemma),
    which stays where it was when rows change places, or has a cache of another kind (MiniMax)."""
    ids = [i % model.config.get_text_config().vocab_size for i in range(5, 11)]
    try:
        cached = AnyCache(model, (ids[:4], ids[2:4]), np.array([1, 0]))
        tokens = torch.tensor([ids, ids], device=cached.logits_BV.device)
        got = torch.stack([cached.logits_BV, *(cached.step(tokens[:, at]) for at in (4, 5))], 1).float()
    except (RuntimeError, ValueError, TypeError, AttributeError, IndexError) as e:
        raise UserError(
            f"engine hf cannot run {type(model).__name__} ({first_line(e)}). Serve it with another engine."
        ) from e
    alone = (model(input_ids=tokens[:1, start:], use_cache=False).logits[0, -3:] for start in (2, 0))
    wanted = torch.stack(list(alone)).float()
    gap = float(((got - wanted).square().mean(-1).sqrt() / wanted.std(-1)).median())
    if not gap < (1e-2 if model.dtype == torch.float32 else 0.4):
        raise UserError(
            f"engine hf cannot sample from {type(model).__name__}: token by token its logits are {gap:.2g} deviations "
            "off. It keeps state outside keys and values, or reads padding. Serve it with another engine."
        )


# -- any model -------------------------------------------------------------------------------------------------------


class AnyCache:
    """Decode with the cache that the model's configuration asks for, every row with a copy of its prompt's."""

    def __init__(self, model: PreTrainedModel, prompts: Sequence[Sequence[int]], prompt_of_row: np.ndarray):
        self.model = model
        self.cache: Any = DynamicCache(config=model.config)
        if not any(isinstance(layer, DynamicLayer) for layer in self.cache.layers):
            raise UserError(
                f"{type(model).__name__} has no attention layer: its state is not made of keys and values, and the hf "
                "engine would forget all but the last token. Serve it with another engine."
            )
        self.mask_BS, self.logits_BV = prefill(model, prompts, self.cache)
        self.position_B = self.mask_BS.sum(1)
        self.keep(prompt_of_row)
        self.logits_BV = self.logits_BV[torch.from_numpy(prompt_of_row).to(self.logits_BV.device)]

    def step(self, token_B: torch.Tensor) -> torch.Tensor:
        self.mask_BS = torch.cat([self.mask_BS, self.mask_BS.new_ones(len(token_B), 1)], dim=1)
        return _step(self, token_B, attention_mask=self.mask_BS)

    def keep(self, rows: np.ndarray) -> None:
        rows_B = torch.from_numpy(rows).to(self.mask_BS.device)
        self.mask_BS, self.position_B = self.mask_BS[rows_B], self.position_B[rows_B]
        self.cache.reorder_cache(rows_B)


Decoder = SharedPrompts | AnyCache


def _step(decoder: Decoder, token_B: torch.Tensor, **how: torch.Tensor) -> torch.Tensor:
    position_B1 = decoder.position_B[:, None]
    out = decoder.model(
        input_ids=token_B[:, None], position_ids=position_B1, past_key_values=decoder.cache, use_cache=True, **how
    )
    decoder.position_B = decoder.position_B + 1
    return out.logits[:, -1]
