"""The update on a real model: equal to one autograd pass over the whole objective, however it is cut."""

from copy import deepcopy
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from groups import REWARDS, make_groups, sgd
from objective_reference import by_hand

from agpo.advantages import group_advantages
from agpo.batch import Row, balance, lengths_of, live_of, plan_step, raw_rewards
from agpo.config import load_config
from agpo.logprobs import log_probs
from agpo.objective import PRESETS, Correction, Objective, minibatch_loss, overlong_penalty
from agpo.optimizer import Trained
from agpo.policy import Policy, Settings, micro_batches, tokens_of, with_old_logps
from agpo.step import plan_of, settings_of, update_policy
from agpo.telemetry import Watch, step_metrics
from agpo.update import update
from evals.errors import UserError


def gradient_of(model, groups, objective, on_policy, budget, start):
    """(gradient by parameter, update) of one SGD step."""
    model = deepcopy(model)
    policy = Policy(model, None, sgd(model), lambda k: 1.0, deepcopy(start))
    (minibatch,) = plan_step(groups, objective, len(groups), 16)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    done = update(policy, minibatch, objective, Settings(micro_batch_tokens=budget), on_policy=on_policy)
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
    "sequences": Objective(clip_scope="sequences:3"),
    "sequences, exp": Objective(clip="exp", clip_scope="sequences:2", clip_ranks=3),
    "sequences, entropy": Objective(clip_scope="sequences:2", entropy_coef=0.01),
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


# kl_cov's |log rho| has a gradient of the sign of the rounding where the reference has it of a ratio not quite 1.
@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name != "kl_cov"])
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


def by_hand_passes(start, groups, objective, cuts, lr):
    """(the model after SGD over the cuts in turn, L of each), by an implementation of its own: no packing, no plan."""
    model, values = deepcopy(start), []
    for cut in cuts:
        chosen = [(groups[place], s) for place in cut for s in groups[place].samples]
        logp, old = [], []
        for group, s in chosen:
            ids = torch.tensor([[*group.prompt_ids, *s.completion.token_ids]])
            logits = model(ids).logits[0, len(group.prompt_ids) - 1 : -1].log_softmax(-1)
            logp.append(logits.gather(1, torch.tensor(s.completion.token_ids)[:, None])[:, 0])
            old += s.completion.logprobs
        rewards = [[float("nan") if s.reward is None else s.reward for s in groups[p].samples] for p in cut]
        lengths = [len(s.completion.token_ids) for _, s in chosen]
        loss, value = by_hand(objective, torch.cat(logp).double(), old, lengths, rewards)
        values.append(float(value.detach()))
        if objective.clip == "none" or values[-1] > 1e-6:
            model.zero_grad()
            loss.backward()
            with torch.no_grad():
                for p in model.parameters():
                    p -= lr * p.grad
    return model, values


@pytest.mark.parametrize("own_engine", [False, True], ids=["same model", "other engine"])
@pytest.mark.parametrize("name", ["agpo", "agpo_no_clip", "gspo"])
@pytest.mark.parametrize("seed", [0, 1])
def test_passes_after_the_first_have_ratios_against_the_policy_that_sampled(start, name, own_engine, seed):
    """Three passes over two mini-batches against the reference; L is known in advance only until something moves."""
    objective, lr = PRESETS[name], 0.3
    config = load_config("tiny", [f"objective={name}", "update.prompts_per_minibatch=2", "update.epochs=3"])
    groups = make_groups(start, [[1, 0, 0, 1], [0, 1, 1, 0], [1, 1, 0, 1], [0, 0, 1, 0]], seed=seed)
    model, plan = deepcopy(start), plan_of(groups, config)
    policy = Policy(model, None, sgd(model), lambda k: lr)
    run = SimpleNamespace(policy=policy, config=config, engine=SimpleNamespace(model=None if own_engine else model))
    settings = replace(settings_of(config), max_grad_norm=0.0)
    updates, _ = update_policy(run, plan, objective, settings, Watch())
    expected, values = by_hand_passes(start, groups, objective, [m.groups for m in plan], lr)
    assert len(updates) == 6 == policy.updates
    assert [u.decision.value for u in updates] == pytest.approx(values, rel=1e-3, abs=1e-6)
    for p, q in zip(model.parameters(), expected.parameters(), strict=True):
        assert torch.allclose(p, q, atol=2e-5)
    first = next((k for k, u in enumerate(updates) if u.stepped), len(updates))
    assert all(not u.seen.tokens for u in updates[:first])  # known: free in every pass
    assert all(u.seen.means.get("ratio/deviation", 0) > 1e-4 for u in updates[first + 1 :])
    metrics = step_metrics(groups, [True] * 4, plan, updates)
    assert metrics["groups/live_token_share"] == 1.0
    assert metrics["saved/of_tokens"] == 3 * step_metrics(groups, [True] * 4, plan[:2], updates[:2])["saved/of_tokens"]


@pytest.mark.parametrize("budget", [30, 100_000])
@pytest.mark.parametrize(
    ("objective", "clipped"),
    [
        (
            replace(PRESETS["grpo"], eps_low=0.02, eps_high=0.05, beta=0.1),
            lambda rho, a: rho > 1.05 if a > 0 else rho < 0.98,
        ),
        (replace(PRESETS["grpo"], eps_low=0.9, dual_clip=1.02), lambda rho, a: rho > 1.2 if a > 0 else rho > 1.02),
        (replace(PRESETS["cispo"], eps_low=0.02, eps_high=0.05), lambda rho, a: not 0.98 <= rho <= 1.05),
        (PRESETS["gspo"], lambda rho, a: rho > 1.0004 if a > 0 else rho < 0.9997),
    ],
    ids=["ppo", "dual", "cispo", "gspo"],
)
def test_an_update_reports_the_ratio_clip_the_kl_and_its_flops(start, objective, clipped, budget):
    policy, groups = moved(start, 0.005), make_groups(start, REWARDS, seed=3)
    (minibatch,) = plan_step(groups, objective, len(groups), 16)
    _, done = gradient_of(policy, groups, objective, False, budget, start)
    parts, weight = np.zeros(3), 0.0
    for i in minibatch.moving:
        row = minibatch.rows[i]
        logp, ref = (log_probs(model, [row], 1.0, "padded")[0].detach().double().numpy() for model in (policy, start))
        log_ratio = logp - np.array(row.engine_logp)
        if objective.ratio == "sequence":
            log_ratio[:] = log_ratio.mean()
        rho = np.exp(log_ratio)
        kl = np.exp(ref - logp) - (ref - logp) - 1
        each = [abs(rho - 1), [row.advantage != 0 and clipped(x, row.advantage) for x in rho], kl]
        parts, weight = parts + row.weight * np.array(each).sum(1), weight + row.weight * len(rho)
    deviation, share, kl = parts / weight
    assert 0 < share < 1
    assert done.seen.means["ratio/clipped"] == pytest.approx(share, abs=1e-6)
    assert done.seen.means["ratio/deviation"] == pytest.approx(deviation, rel=1e-3)
    assert done.seen.means.get("kl") == (pytest.approx(kl, rel=1e-3) if objective.beta else None)
    if budget > 30:  # a prompt that is cut runs twice
        config, weights = start.config, sum(p.numel() for p in start.parameters())
        lengths = [minibatch.rows[i].tokens for i in minibatch.moving]
        attention = 6 * config.hidden_size * config.num_hidden_layers * sum(n**2 for n in lengths)
        assert config.tie_word_embeddings
        assert done.seen.flops == 6 * weights * done.seen.tokens + attention


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
    policy = Policy(model, None, Trained(optimizer, list(model.parameters()), []), lambda k: 1e-3)
    before, state = deepcopy(model.state_dict()), deepcopy(optimizer.state_dict())
    (minibatch,) = plan_step(groups, PRESETS["agpo"], 4, 16)
    settings = Settings(micro_batch_tokens=100, max_grad_norm=1.0)
    done = update(policy, minibatch, PRESETS["agpo"], settings, on_policy=True)
    assert (done.stepped, done.seen.tokens, policy.updates) == (False, 0, 1)
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    after = optimizer.state_dict()["state"]
    assert all(torch.equal(after[i]["exp_avg"], slots["exp_avg"]) for i, slots in state["state"].items())
    # off policy the forward pass runs, and still nothing changes
    done = update(policy, minibatch, PRESETS["agpo"], settings, on_policy=False)
    assert not done.stepped
    assert done.seen.tokens > 0
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())


def test_on_clip_zero_grad_still_moves_adamw(start):
    """The literal reading of max(0, L): a zero gradient, and moments and decay go on (documented difference)."""
    groups = find_seed(start, clipped=True)
    model = deepcopy(start)
    policy = Policy(model, None, Trained(adamw(model), list(model.parameters()), []), lambda k: 1e-3)
    before = deepcopy(model.state_dict())
    objective = replace(PRESETS["agpo"], on_clip="zero_grad")
    (minibatch,) = plan_step(groups, objective, 4, 16)
    done = update(policy, minibatch, objective, Settings(micro_batch_tokens=100, max_grad_norm=1.0), on_policy=True)
    assert done.stepped
    assert done.seen.tokens == 0
    assert any(not torch.equal(x, before[name]) for name, x in model.state_dict().items())


def test_masked_groups_are_never_run(start):
    groups = make_groups(start, REWARDS, seed=3)
    (minibatch,) = plan_step(groups, PRESETS["agpo_no_clip"], 4, 16)
    assert {row.group for row in minibatch.rows} == {0, 2}
    assert len(minibatch.rows) == 7  # the one that is not scorable is out too
    _, done = gradient_of(start, groups, PRESETS["agpo_no_clip"], True, 60, start)
    prompts = sum(len(groups[i].prompt_ids) for i in (0, 2))
    assert done.seen.tokens == prompts + sum(len(row.response_ids) for row in minibatch.rows if row.advantage)
    (kept,) = plan_step(groups, PRESETS["grpo"], 4, 16)
    assert len(kept.rows) == 15


def test_a_loss_that_is_not_finite_is_refused(start):
    model = deepcopy(start)
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    policy = Policy(model, None, sgd(model), lambda k: 1.0)
    before = deepcopy(model.state_dict())
    (minibatch,) = plan_step(make_groups(start, REWARDS), PRESETS["grpo"], 4, 16)
    done = update(policy, minibatch, PRESETS["grpo"], Settings(max_grad_norm=1.0), on_policy=False)
    assert done.refused
    assert not done.stepped
    assert all(torch.equal(x, before[n]) for n, x in model.state_dict().items() if n != "model.norm.weight")


def test_a_row_without_advantage_counts_in_the_mean_and_never_runs(start):
    """GRPO keeps dead groups in its mean; their gradient is exactly 0, so running them would change nothing."""
    groups = make_groups(start, REWARDS, seed=3)
    (kept,) = plan_step(groups, PRESETS["grpo"], 4, 16)
    (masked,) = plan_step(groups, PRESETS["agpo_no_clip"], 4, 16)
    assert kept.rows[0].weight < masked.rows[0].weight
    _, grpo = gradient_of(start, groups, PRESETS["grpo"], False, 60, start)
    _, agpo = gradient_of(start, groups, PRESETS["agpo_no_clip"], False, 60, start)
    _, with_kl = gradient_of(start, groups, replace(PRESETS["grpo"], beta=0.1), False, 60, start)
    assert grpo.seen.tokens == agpo.seen.tokens < with_kl.seen.tokens


def test_mini_batches_are_whole_groups_balanced_by_length(start):
    rewards = [[1, 0], [0, 0], [1, 0], [0, 1], [1, 1], [0, 1], [1, 0], [0, 1]]
    groups = make_groups(start, rewards, longest=40)
    plan = plan_step(groups, PRESETS["agpo"], 2, 64)
    assert sorted(place for m in plan for place in m.groups) == list(range(8))
    assert [len(m.groups) for m in plan] == [2, 2, 2, 2]
    assert balance([5, 9, 1, 7, 0, 8], 2) == [[1, 4], [2, 5], [0, 3]]
    assert balance([1, 1, 1], 2) == [[0, 2], [1]]


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_micro_batches_hold_every_wanted_row_once_and_keep_the_budget(layout):
    prompts = (5, 3, 9, 3, 9, 2, 3)
    rows = [Row((n,) * n, (1,) * (1 + i), (), 0, 0.0, 1.0, 1.0) for i, n in enumerate(prompts)]
    parts = micro_batches(rows, [0, 1, 2, 3, 4, 6], 14, layout)
    assert sorted(i for part in parts for i in part) == [0, 1, 2, 3, 4, 6]
    padded = {part[0]: len(part) * max(rows[i].tokens for i in part) for part in parts}
    cost = padded if layout == "padded" else {part[0]: tokens_of([rows[i] for i in part], layout) for part in parts}
    assert all(len(part) == 1 or cost[part[0]] <= 14 for part in parts)
    assert any(len(part) > 1 for part in parts)


def test_old_log_probabilities_are_those_of_the_policy_before_it_moves(start):
    """For an engine with other rounding: engine_logp stays what the engine said, the ratio is against the trainer's."""
    groups = make_groups(start, REWARDS, seed=3)
    (minibatch,) = plan_step(groups, PRESETS["grpo"], 4, 16)
    off = tuple(replace(row, engine_logp=tuple(x - 0.5 for x in row.engine_logp)) for row in minibatch.rows)
    policy = Policy(deepcopy(start), None, sgd(start), lambda k: 1.0)
    rows = with_old_logps(policy, off, Settings(micro_batch_tokens=30))
    for row, true in zip(rows, minibatch.rows, strict=True):
        assert row.old_logp == pytest.approx(true.engine_logp, abs=1e-5)
        assert row.engine_logp != row.old_logp


def updated_with(start, shift, correction):
    """(parameters after one step, update) where the engine's log-probabilities are off by `shift`."""
    groups = make_groups(start, REWARDS, seed=3)
    (minibatch,) = plan_step(groups, PRESETS["agpo_no_clip"], 4, 16, corrected=correction is not None)
    rows = tuple(replace(row, engine_logp=tuple(x + shift for x in row.engine_logp)) for row in minibatch.rows)
    model = deepcopy(start)
    policy = Policy(model, None, sgd(model), lambda k: 1.0)
    settings = Settings(micro_batch_tokens=50, correction=correction)
    done = update(policy, replace(minibatch, rows=rows), PRESETS["agpo_no_clip"], settings, on_policy=True)
    return [p.detach() - q for p, q in zip(model.parameters(), start.parameters(), strict=True)], done


def test_the_gap_to_the_engine_is_measured_and_corrected_on_request(start):
    straight, done = updated_with(start, 0.0, None)
    assert done.seen.gap is not None
    assert max(done.seen.gap) < 1e-5
    shifted, done = updated_with(start, 0.2, None)
    assert done.seen.gap == pytest.approx((0.2, 0.2), abs=1e-5)
    assert all(torch.allclose(a, b) for a, b in zip(straight, shifted, strict=True))
    corrected, done = updated_with(start, 0.2, Correction())  # the engine thought them likelier: each counts exp(-0.2)
    assert all(torch.allclose(a * 0.8187308, b, atol=1e-6) for a, b in zip(straight, corrected, strict=True))
    capped, done = updated_with(start, -5.0, Correction())
    assert all(torch.allclose(a * 2, b, atol=1e-6) for a, b in zip(straight, capped, strict=True))


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


@pytest.mark.parametrize("preset", PRESETS)
def test_the_advantages_that_are_stored_are_those_of_the_plan(start, preset):
    groups = make_groups(start, REWARDS)
    stored_GN = group_advantages(raw_rewards(groups), lengths_of(groups), PRESETS[preset], 16)[2]
    (minibatch,) = plan_step(groups, PRESETS[preset], len(groups), 16)
    assert minibatch.rows
    for row in minibatch.rows:
        assert row.advantage == stored_GN[minibatch.groups[row.group], row.sample]
    # All right and of different lengths is live under a length penalty; 1 of 4 right is all the same to pass@4.
    live = live_of(groups, PRESETS[preset])
    assert live == {"grpo_length": [True] * 4, "pass_at_k": [False] * 4}.get(preset, [True, False, True, False])
    for advantage_N, alive in zip(stored_GN, live, strict=True):
        assert advantage_N.any().item() is alive


def test_several_rewards_are_normalised_before_they_are_summed(start):
    """GDPO by hand: two rewards that cancel in a sum teach all the same, one that is the same for all adds nothing."""
    keys = ["objective=gdpo", "rewards.right=math", "rewards.short=own:short", "rewards.short.weight=0.5"]
    config = load_config("tiny", [*keys, "update.prompts_per_minibatch=2"])
    parts = [[(1, 0), (0, 2), (0, 2), (1, None)], [(1, 0), (1, 0), (1, 1), (1, 3)]]
    groups = []
    for group, told in zip(make_groups(start, [[1, 1, 1, 1], [1, 1, 1, 1]]), parts, strict=True):
        verdicts = [
            replace(s.verdict, parts={"right": a, "short": b}) for s, (a, b) in zip(group.samples, told, strict=True)
        ]
        samples = tuple(replace(s, verdict=v) for s, v in zip(group.samples, verdicts, strict=True))
        groups.append(replace(group, samples=samples))

    def normalised(values):
        known = torch.tensor([x for x in values if x is not None], dtype=torch.float64)
        return [0.0 if x is None else float((x - known.mean()) / (known.std() + 1e-6)) for x in values]

    rights, shorts = ([[pair[f] for pair in told] for told in parts] for f in (0, 1))
    shorts = [normalised(values) for values in shorts]
    sums = torch.tensor(
        [[a + 0.5 * b for a, b in zip(normalised(rights[0]), shorts[0], strict=True)], [0.5 * b for b in shorts[1]]]
    )
    centred = sums - sums.mean(1, keepdim=True)
    expected = (centred / (centred.std() + 1e-6)).double()
    plan = plan_of(groups, config)
    assert [m.live_groups for m in plan] == [2]
    assert [row.advantage for row in plan[0].rows] == pytest.approx(expected.flatten().tolist(), abs=1e-6)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (["objective=gdpo"], "GDPO"),
        (["objective=gdpo", "rewards.right=math", "rewards.short=own:short", "rewards.short.weight=0"], "GDPO"),
        (["objective=gfpo", "rollout.samples_per_prompt=4"], "keep_shortest=4: with"),
        (["objective=pass_at_k", "objective.pass_k=9"], "pass_k=9: with rollout.samples_per_prompt=8 it is at most 8"),
        (["mismatch.bounds=0.5,2"], "correct is none"),
        (["mismatch.correct=sequence_mask", "mismatch.bounds=2,3"], "around 1"),
    ],
)
def test_what_the_groups_of_a_run_cannot_give_is_refused_at_the_start(keys, said):
    with pytest.raises(UserError, match=said):
        load_config("tiny", keys)
