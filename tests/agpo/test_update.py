"""The update on a real model: equal to one autograd pass over the whole objective, however it is cut."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch

from agpo.batch import Group, Row, Sample, micro_batches, plan_step
from agpo.objective import PRESETS, Objective, minibatch_loss, overlong_penalty
from agpo.policy import Policy, log_probs, update
from agpo.tiny_model import make_model
from evals.engines import Completion
from evals.grading import Verdict
from evals.items import Item

VOCABULARY = 21


@pytest.fixture(scope="module")
def start():
    torch.manual_seed(0)
    return make_model(VOCABULARY).eval()


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


REWARDS = [[1, 0, 0, 1], [1, 1, 1, 1], [0, 1, None, 0], [0.2, 0.2, 0.2, 0.2]]


def gradient_of(model, groups, objective, on_policy, budget, start):
    """(gradient by parameter, update) of one SGD step: lr 1 and no momentum make the step the gradient."""
    model = deepcopy(model)
    policy = Policy(model, None, torch.optim.SGD(model.parameters(), lr=1.0), lambda k: 1.0, deepcopy(start))
    (minibatch,) = plan_step(groups, objective, len(groups), 16)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    done = update(
        policy,
        minibatch,
        objective,
        on_policy=on_policy,
        temperature=1.0,
        micro_batch_tokens=budget,
        max_grad_norm=0.0,
    )
    return {name: before[name] - p.detach() for name, p in model.named_parameters()}, done


def reference_gradient(model, groups, objective, start):
    """The same from `minibatch_loss` over one unpadded pass per sequence."""
    model = deepcopy(model)
    samples = [(g, s) for g in groups for s in g.samples]
    logps, entropies, refs = [], [], []
    for g, s in samples:
        ids = torch.tensor([[*g.prompt_ids, *s.completion.token_ids]])
        at = slice(len(g.prompt_ids) - 1, -1)
        logits = model(ids).logits[0, at].log_softmax(-1)
        target = torch.tensor(s.completion.token_ids)[:, None]
        logps.append(logits.gather(1, target)[:, 0])
        entropies.append(-(logits.exp() * logits).sum(-1))
        with torch.no_grad():
            refs.append(start(ids).logits[0, at].log_softmax(-1).gather(1, target)[:, 0])
    rewards = [[float("nan") if s.reward is None else s.reward for s in g.samples] for g in groups]
    loss, report = minibatch_loss(
        torch.cat(logps),
        torch.tensor([x for _, s in samples for x in s.completion.logprobs]),
        torch.tensor([len(s.completion.token_ids) for _, s in samples]),
        torch.tensor(rewards),
        objective,
        ref_logp_T=torch.cat(refs) if objective.beta else None,
        entropy_T=torch.cat(entropies) if objective.entropy_coef else None,
    )
    loss.backward()
    return {name: p.grad for name, p in model.named_parameters()}, report


def moved(model, by=0.02):
    """A policy that has drifted from the one that sampled, so that ratios differ from 1."""
    model = deepcopy(model)
    g = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(by * torch.randn(p.shape, generator=g))
    return model


OBJECTIVES = {
    **{name: o for name, o in PRESETS.items() if name != "dapo"},
    "group": Objective(clip_scope="group"),
    "sequence": Objective(clip_scope="sequence"),
    "token": Objective(clip_scope="token"),
    "softplus": Objective(clip="softplus"),
    "exp": Objective(clip="exp", clip_scope="group"),
    "kl": Objective(beta=0.05, clip="none"),
    "entropy": Objective(entropy_coef=0.01),
    "dual": Objective(dual_clip=1.1),
}


@pytest.mark.parametrize("budget", [1, 30, 60, 100_000], ids=lambda b: f"budget{b}")
@pytest.mark.parametrize("name", OBJECTIVES)
def test_any_cut_gives_the_gradient_of_the_whole(start, name, budget):
    objective = replace(OBJECTIVES[name], norm_length=16)
    policy = moved(start)
    groups = make_groups(start, REWARDS, seed=3)
    expected, report = reference_gradient(policy, groups, objective, start)
    got, done = gradient_of(policy, groups, objective, False, budget, start)
    assert done.decision.value == pytest.approx(report.value, rel=1e-4, abs=1e-6)
    assert done.decision.clipped is report.clipped
    scale = max(float(g.abs().max()) for g in expected.values()) if done.stepped else 1.0
    for parameter, gradient in expected.items():
        assert torch.allclose(got[parameter], gradient, atol=2e-4 * scale), parameter


@pytest.mark.parametrize("name", OBJECTIVES)
def test_at_ratio_one_the_plan_knows_what_a_forward_pass_would_say(start, name):
    objective = replace(OBJECTIVES[name], norm_length=16)
    for seed in range(4):
        groups = make_groups(start, REWARDS, seed=seed)
        expected, report = reference_gradient(start, groups, objective, start)
        got, done = gradient_of(start, groups, objective, True, 60, start)
        assert done.decision.clipped is report.clipped
        assert done.decision.value == pytest.approx(report.value, rel=1e-3, abs=1e-5)
        for parameter, gradient in expected.items():
            assert torch.allclose(got[parameter], gradient, atol=1e-4), parameter


def find_seed(start, clipped):
    for seed in range(50):
        groups = make_groups(start, REWARDS, seed=seed)
        if plan_step(groups, PRESETS["agpo"], 4, 16)[0].at_ratio_1.clipped is clipped:
            return groups
    raise AssertionError("no such batch")


def adamw(model, steps=1):
    """An optimizer with moments, as in the middle of a run."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(steps):
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return optimizer


def test_a_clipped_update_costs_nothing_and_changes_nothing(start):
    groups = find_seed(start, clipped=True)
    model = deepcopy(start)
    optimizer = adamw(model)
    policy = Policy(model, None, optimizer, lambda k: 1e-3)
    before, state = deepcopy(model.state_dict()), deepcopy(optimizer.state_dict())
    (minibatch,) = plan_step(groups, PRESETS["agpo"], 4, 16)
    knobs = {"temperature": 1.0, "micro_batch_tokens": 100, "max_grad_norm": 1.0}
    done = update(policy, minibatch, PRESETS["agpo"], on_policy=True, **knobs)
    assert (done.stepped, done.tokens_run, policy.updates) == (False, 0, 1)
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    after = optimizer.state_dict()["state"]
    assert all(torch.equal(after[i]["exp_avg"], slots["exp_avg"]) for i, slots in state["state"].items())
    # off policy the forward pass runs, and still nothing changes
    done = update(policy, minibatch, PRESETS["agpo"], on_policy=False, **knobs)
    assert not done.stepped
    assert done.tokens_run > 0
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())


def test_on_clip_zero_grad_still_moves_adamw(start):
    """The literal reading of max(0, L): a zero gradient, and moments and decay go on (documented difference)."""
    groups = find_seed(start, clipped=True)
    model = deepcopy(start)
    policy = Policy(model, None, adamw(model), lambda k: 1e-3)
    before = deepcopy(model.state_dict())
    objective = replace(PRESETS["agpo"], on_clip="zero_grad")
    (minibatch,) = plan_step(groups, objective, 4, 16)
    done = update(
        policy, minibatch, objective, on_policy=True, temperature=1.0, micro_batch_tokens=100, max_grad_norm=1.0
    )
    assert done.stepped
    assert done.tokens_run == 0
    assert any(not torch.equal(x, before[name]) for name, x in model.state_dict().items())


def test_masked_groups_are_never_run(start):
    groups = make_groups(start, REWARDS, seed=3)
    (minibatch,) = plan_step(groups, PRESETS["agpo_no_clip"], 4, 16)
    assert {row.group for row in minibatch.rows} == {0, 2}
    assert len(minibatch.rows) == 7  # the one that is not scorable is out too
    _, done = gradient_of(start, groups, PRESETS["agpo_no_clip"], True, 60, start)
    assert done.tokens_run == sum(row.tokens for row in minibatch.rows)
    (kept,) = plan_step(groups, PRESETS["grpo"], 4, 16)
    assert len(kept.rows) == 15


def test_a_loss_that_is_not_finite_is_refused(start):
    model = deepcopy(start)
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    policy = Policy(model, None, torch.optim.SGD(model.parameters(), lr=1.0), lambda k: 1.0)
    before = deepcopy(model.state_dict())
    (minibatch,) = plan_step(make_groups(start, REWARDS), PRESETS["grpo"], 4, 16)
    done = update(
        policy, minibatch, PRESETS["grpo"], on_policy=False, temperature=1.0, micro_batch_tokens=100, max_grad_norm=1.0
    )
    assert done.refused
    assert not done.stepped
    assert all(torch.equal(x, before[n]) for n, x in model.state_dict().items() if n != "model.norm.weight")


def test_log_probs_do_not_depend_on_padding_or_chunks(start, monkeypatch):
    rows = [
        Row(g.prompt_ids, s.completion.token_ids, (), 0, 0.0, 1.0, 1.0)
        for g in make_groups(start, REWARDS)
        for s in g.samples
    ]
    whole, entropy = log_probs(start, rows, 0.7)
    alone = torch.cat([log_probs(start, [row], 0.7)[0] for row in rows])
    assert torch.allclose(whole, alone, atol=1e-5)
    whole.sum().backward()
    gradient = start.lm_head.weight.grad.clone()
    start.zero_grad(set_to_none=True)
    monkeypatch.setattr("agpo.policy.LOGITS_AT_ONCE", 5 * VOCABULARY)
    chunked, chunked_entropy = log_probs(start, rows, 0.7)
    chunked.sum().backward()
    assert torch.allclose(chunked, whole)
    assert torch.allclose(chunked_entropy, entropy)
    assert torch.allclose(start.lm_head.weight.grad, gradient, atol=1e-4)
    start.zero_grad(set_to_none=True)


def test_micro_batches_hold_every_wanted_row_once_and_keep_the_budget(start):
    rows = [Row((1,) * n, (1,), (), 0, 0.0, 1.0, 1.0) for n in (5, 3, 9, 1, 9, 2)]
    parts = micro_batches(rows, [0, 1, 2, 4, 5], 12)
    assert sorted(i for part in parts for i in part) == [0, 1, 2, 4, 5]
    assert all(len(part) == 1 or len(part) * max(rows[i].tokens for i in part) <= 12 for part in parts)


def test_overlong_answers(start):
    groups = make_groups(start, [[1, 0, 0, 1]], seed=1)
    cut = groups[0].samples[1]
    samples = list(groups[0].samples)
    samples[1] = replace(cut, completion=replace(cut.completion, finish_reason="length"))
    groups = [replace(groups[0], samples=tuple(samples))]
    masked = plan_step(groups, replace(PRESETS["agpo_no_clip"], overlong="mask"), 1, 16)[0]
    assert len(masked.rows) == 3
    assert masked.rows[0].advantage == plan_step(groups, PRESETS["agpo_no_clip"], 1, 16)[0].rows[0].advantage
    penalty = overlong_penalty(torch.tensor([6, 8, 10]), 10, 4)
    assert penalty.tolist() == [0.0, 0.5, 1.0]
