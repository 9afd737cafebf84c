"""Groups of random tokens with their true log-probabilities, for tests of updates on a real model."""

import math

import torch

from agpo.batch import Group, Row, Sample
from agpo.logprobs import log_probs
from agpo.optimizer import Trained
from evals.engines import Completion
from evals.grading import Verdict
from evals.items import Item

VOCABULARY = 21


def make_groups(model, rewards, seed=0, longest=9):
    """Groups of random tokens with their true log-probabilities under `model`; rewards [G][N], None = not scorable."""
    g = torch.Generator().manual_seed(seed)
    groups = []
    for number, group_rewards in enumerate(rewards):
        prompt = tuple(torch.randint(3, VOCABULARY, (2 + number,), generator=g).tolist())
        samples = []
        for reward in group_rewards:
            length = int(torch.randint(1, longest, (1,), generator=g))
            ids = tuple(torch.randint(3, VOCABULARY, (length,), generator=g).tolist())
            row = Row(prompt, ids, (), 0, 0.0, 1.0, 1.0)
            with torch.no_grad():
                logp = tuple(log_probs(model, [row], 1.0)[0].tolist())
            outcome = "error" if reward is None else "right" if reward == 1 else "wrong"
            samples.append(Sample(Completion(ids, logp, "stop", 0.0), "", Verdict(outcome, "test"), reward, 0))
        groups.append(Group(Item(str(number), "", ""), prompt, tuple(samples)))
    return groups


def graded(rewards, lengths, prompt=(1, 2)):
    """Groups of one token again and again, of these lengths [G][N]; a reward of NaN or None is not scorable."""
    return [
        Group(
            Item(str(number), "", ""),
            prompt,
            tuple(
                Sample(
                    Completion((7,) * n, (0.0,) * n, "stop", 0.0),
                    "",
                    Verdict("scored", "test"),
                    None if r is None or math.isnan(r) else r,
                    0,
                )
                for r, n in zip(*group, strict=True)
            ),
        )
        for number, group in enumerate(zip(rewards, lengths, strict=True))
    ]


REWARDS = [[1, 0, 0, 1], [1, 1, 1, 1], [0, 1, None, 0], [0.2, 0.2, 0.2, 0.2]]


def sgd(model):
    """lr 1 and no momentum make the step the gradient."""
    return Trained(torch.optim.SGD(model.parameters(), lr=1.0), list(model.parameters()), [])
