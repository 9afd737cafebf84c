"""How likely a transformers model finds given continuations: what multiple-choice tasks and perplexity are made of."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from evals.errors import UserError

LOGITS = 1 << 27
"""most logits of a batch: 512 MiB in float32"""


@torch.inference_mode()
def score(
    model: Any, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], max_context: int
) -> Iterator[tuple[int, float, bool]]:
    """(index, log-probability, greedy) of each (context ids, continuation ids), as they are done, longest first.

    The log-probability is the sum over the continuation's tokens given all before them, at temperature 1; `greedy` says
    whether each of them was the most likely one. Raises UserError for an empty context or continuation, and for a pair
    that does not fit the model's context: it is not cut.
    """
    for number, (context, continuation) in enumerate(pairs):
        if not context or not continuation:
            raise UserError(f"request {number} has an empty {'context' if not context else 'continuation'}.")
        if len(context) + len(continuation) > max_context + 1:  # the last token is predicted, not read
            raise UserError(
                f"request {number} has {len(context)} + {len(continuation)} tokens, more than the model's context of "
                f"{max_context}. Give a model with a longer one, or fewer examples (--num-fewshot)."
            )
    order = sorted(range(len(pairs)), key=lambda i: -len(pairs[i][0]) - len(pairs[i][1]))
    vocabulary = model.config.get_text_config().vocab_size
    device = next(model.parameters()).device
    while order:
        longest = sum(map(len, pairs[order[0]])) - 1
        size = max(1, LOGITS // (longest * vocabulary))
        batch, order = order[:size], order[size:]
        ids_BT = torch.zeros(len(batch), longest, dtype=torch.long)
        mask_BT = torch.zeros_like(ids_BT)
        for row, i in enumerate(batch):
            read = [*pairs[i][0], *pairs[i][1]][:-1]
            ids_BT[row, : len(read)] = torch.tensor(read)
            mask_BT[row, : len(read)] = 1
        logits_BTV = model(input_ids=ids_BT.to(device), attention_mask=mask_BT.to(device), use_cache=False).logits
        for row, i in enumerate(batch):
            context, continuation = pairs[i]
            start = len(context) - 1
            logp_TV = logits_BTV[row, start : start + len(continuation)].float().log_softmax(-1)
            wanted_T = torch.tensor(list(continuation), device=logp_TV.device)
            logp = float(logp_TV.gather(1, wanted_T[:, None]).double().sum())
            yield i, logp, bool((logp_TV.argmax(-1) == wanted_T).all())
