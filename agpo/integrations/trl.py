"""AGPO in TRL: `AGPOTrainer` replaces GRPOTrainer in an existing script (docs/trl.md has an example).

TRL samples, grades and runs the model; the update, from advantages to clip, is made by the functions of
`agpo.objective`. A mini-batch is an optimizer step, with all micro-batches on all ranks. It holds whole groups, so
TRL's shuffle of samples is skipped. Settings that would change the update raise ValueError at the start.
"""

# pyright: reportMissingImports=false
# TRL is in an environment of its own.

import importlib.metadata
import math
from typing import Any

import torch
from transformers import TrainerCallback
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.utils import split_tensor_dict

from agpo.advantages import group_advantages, normalised_sum
from agpo.clip import clip_decision, unit_decision, unit_sums, units, weighted_sums
from agpo.mask import counted, sequence_weights
from agpo.presets import Objective, resolve
from agpo.surrogate import loss_at_ratio_1, token_losses

TRL_VERSION = "1.16.0"
"""the release whose protected methods are overridden here"""


class AGPOTrainer(GRPOTrainer):
    """GRPOTrainer with the update of `objective`, a preset's name or an `Objective`."""

    def __init__(
        self, model, reward_funcs=None, args=None, *more, objective: str | Objective = "agpo", **keywords
    ) -> None:
        self.objective = resolve(objective)
        check_version()
        check_objective(self.objective)
        if args is not None:
            check_config(args, self.objective)
        super().__init__(model, reward_funcs, args, *more, **keywords)
        check_config(self.args, self.objective)
        check_trainer(self)
        self._window_sums = torch.zeros(4, dtype=torch.float64, device=self.accelerator.device)
        self.add_callback(_Clip(self))

    def _calculate_rewards(self, *args, **keywords) -> torch.Tensor:
        rewards_BF = super()._calculate_rewards(*args, **keywords)  # of all ranks
        if self.model.training:
            weights_F, samples = self.reward_weights.to(rewards_BF.device), self.num_generations
            self._rewards_GN = raw_rewards(rewards_BF, weights_F, samples)
            if self.objective.several == "normalise":
                rewards_GNF = rewards_BF.double().reshape(-1, samples, len(weights_F))
                unknown_GN = self._rewards_GN.isnan()
                self._rewards_GN = normalised_sum(rewards_GNF, weights_F.tolist()).masked_fill(unknown_GN, math.nan)
        return rewards_BF

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        out = super()._generate_and_score_completions(inputs)
        if not self.model.training:
            return out
        if unknown := out.keys() & {"tool_mask", "pixel_values"}:
            raise ValueError(f"{', '.join(unknown)} in the samples: tools and images are not tested with agpo.")
        lengths_B = self.accelerator.gather(out["completion_mask"].sum(1))
        rewards_GN, live_G, advantage_GN = group_advantages(self._rewards_GN, lengths_B, self.objective, None)
        counted_B, advantage_B = counted(rewards_GN, live_G, self.objective).reshape(-1), advantage_GN.reshape(-1)
        # Each rank has whole micro-batches; the window is the optimizer step that a sample is in.
        rows, windows = len(inputs), self.args.steps_per_generation // self.args.gradient_accumulation_steps
        window_B = torch.arange(windows, device=lengths_B.device).repeat_interleave(rows // windows)
        window_B = window_B.repeat(self.accelerator.num_processes)
        weight_WB = [sequence_weights(lengths_B, counted_B & (window_B == k), self.objective) for k in range(windows)]
        kept_B = torch.ones_like(advantage_B)
        if below(self.objective):  # one window, at ratio 1: f' of every unit is known
            weight_B, tis = weight_WB[0].double(), out.get("importance_sampling_ratio")
            mass_B = weight_B * lengths_B
            value_B = loss_at_ratio_1(advantage_B, self.objective) * mass_B
            if tis is not None:
                sums_B = (tis * out["completion_mask"]).sum(1).double()
                value_B = loss_at_ratio_1(advantage_B, self.objective) * weight_B * self.accelerator.gather(sums_B)
            unit_B = units(lengths_B, weight_B, self.num_generations, self.objective)
            scale_U, self._decision = unit_decision(
                unit_sums(value_B, mass_B, unit_B, int(unit_B.max()) + 1).cpu(), self.objective
            )
            kept_B = scale_U.to(unit_B.device)[unit_B]
        mine = slice(self.accelerator.process_index * rows, (self.accelerator.process_index + 1) * rows)
        out |= {"advantages": advantage_B[mine], "agpo_weight": torch.stack(weight_WB).sum(0)[mine]}
        out["agpo_kept"] = kept_B[mine]
        self._metrics["train"]["agpo/live_groups"].append(float(live_G.double().mean()))
        return out

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        """TRL's, without the shuffle."""
        if not self.model.training:
            return super()._prepare_inputs(generation_batch)
        parts = self.args.steps_per_generation
        if self._buffered_inputs is None or self._step % (parts * self.num_iterations) == 0:
            self._buffered_inputs = split_tensor_dict(self._generate_and_score_completions(generation_batch), parts)
        return self._buffered_inputs[self._step % parts]

    def _compute_loss(self, model: torch.nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
        """This micro-batch's part of L, times the number of ranks, whose gradients are averaged."""
        if not self.model.training:
            return super()._compute_loss(model, inputs)
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
        attention = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
        logp_BC, entropy_BC, _ = self._get_per_token_logps_and_entropies(
            model, ids, attention, inputs["completion_ids"].shape[1], compute_entropy=True
        )
        old_BC = inputs.get("old_per_token_logps", logp_BC.detach())
        kept_BC = inputs["completion_mask"].bool() & (inputs["agpo_weight"] > 0)[:, None]
        lengths_B = kept_BC.sum(1)
        names = ("agpo_weight", "agpo_kept", "advantages")
        weight_T, scale_T, advantage_T = (inputs[name].repeat_interleave(lengths_B) for name in names)
        tis = inputs.get("importance_sampling_ratio")  # against vLLM's log-probabilities: a token's, or a sequence's
        tis_T = None if tis is None else tis.expand_as(logp_BC)[kept_BC]
        loss_T = token_losses(logp_BC[kept_BC], old_BC[kept_BC], advantage_T, lengths_B, self.objective, tis_T=tis_T)
        entropy = float(entropy_BC.detach()[kept_BC].sum())
        self._window_sums += self._window_sums.new_tensor(
            [*weighted_sums(loss_T, weight_T), entropy, float(lengths_B.sum())]
        )
        return self.accelerator.num_processes * (scale_T * weight_T * loss_T).sum()


class _Clip(TrainerCallback):
    """Decides with all ranks' sums between the last backward pass and the optimizer's step."""

    def __init__(self, trainer: AGPOTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args, state, control, optimizer=None, **_) -> None:
        found = type(getattr(optimizer, "optimizer", optimizer))
        if not found.__module__.startswith("torch.optim"):
            raise ValueError(
                f"{found.__module__}.{found.__name__}: a clipped update has no gradient, and only torch's are tested "
                "to do nothing then. Use optim adamw_torch, adamw_torch_fused or sgd."
            )
        # An earlier train() may have stopped in mid-step, and the dataloader starts over.
        self.trainer._step = 0
        self.trainer._window_sums = torch.zeros_like(self.trainer._window_sums)

    def on_pre_optimizer_step(self, args, state, control, model=None, **_) -> None:
        trainer = self.trainer
        sums = trainer.accelerator.reduce(trainer._window_sums, reduction="sum")
        value, magnitude, entropy, tokens = sums.tolist()
        trainer._window_sums = torch.zeros_like(sums)
        decision = clip_decision(value, magnitude, trainer.objective)
        if below(trainer.objective) and not math.isnan(decision.scale):
            decision = trainer._decision
        if math.isnan(decision.scale):
            raise ValueError(
                f"the loss of optimizer step {state.global_step + 1} is {decision.value}, so there is no update."
            )
        if decision.scale == 0:
            trainer.model.zero_grad(set_to_none=True)  # without gradients neither parameters nor moments change
        logged = {"loss": decision.value, "stepped": float(decision.scale != 0), "clipped": float(decision.clipped)}
        for name, x in logged.items():
            trainer._metrics["train"][f"agpo/{name}"].append(x)
        trainer._metrics["train"]["entropy"].append(entropy / max(tokens, 1.0))


def raw_rewards(rewards_BF: torch.Tensor, weights_F: torch.Tensor, samples: int) -> torch.Tensor:
    """[G, N] float64 weighted sums of F reward functions; NaN for a sample that is not scorable.

    None (NaN in TRL) is never 0. If a function returns None for some samples of a prompt, it failed and these do not
    count; if for all of them, it does not apply to the prompt. Raises ValueError for an infinite reward.
    """
    used = weights_F != 0
    rewards_GNF = rewards_BF[:, used].double().reshape(-1, samples, int(used.sum()))
    if rewards_GNF.isinf().any():
        raise ValueError("a reward is infinite. Give None for a completion that cannot be graded.")
    missing_GNF = rewards_GNF.isnan()
    failed_GN = (missing_GNF & ~missing_GNF.all(1, keepdim=True)).any(2) | missing_GNF.all(2)
    return (rewards_GNF.nan_to_num(0.0) * weights_F[used]).sum(2).masked_fill(failed_GN, math.nan)


def below(objective: Objective) -> bool:
    """Whether f acts on units below the mini-batch."""
    return objective.clip != "none" and objective.clip_scope != "mini_batch"


def check_version(found: str | None = None) -> None:
    """Raises ValueError for an untested release of TRL."""
    found = importlib.metadata.version("trl") if found is None else found
    if found != TRL_VERSION:
        raise ValueError(f"TRL {found} is installed; this is for TRL {TRL_VERSION}: pip install trl=={TRL_VERSION}.")


def check_objective(objective: Objective) -> None:
    """Raises ValueError for a knob that is not implemented here."""
    _refuse(
        "objective",
        objective,
        {
            "aggregation": (("token_mean",), "the mean is over the tokens of an optimizer step"),
            "clip": (("max0", "none"), "the gradient is kept or dropped, after its norm was clipped"),
            "clip_scope": (tuple({objective.clip_scope, "mini_batch"} - {"token"}), "units are of sequences"),
            "on_clip": (("skip_step",), "the step with a zero gradient is not implemented"),
            "masked_groups": (("mask", "keep"), "TRL draws no other prompts"),
            "beta": ((0,), "the KL term is not implemented"),
            "entropy_coef": ((0,), "the entropy bonus is not implemented"),
            "overlong": (("keep",), "truncated answers are not told apart"),
            "surrogate": (tuple({objective.surrogate, "ppo"} - {"kl_cov"}), "its tokens are of a whole optimizer step"),
        },
    )


def check_config(config: GRPOConfig, objective: Objective) -> None:
    """Raises ValueError for a setting that would change the update or be ignored."""
    ours = "agpo's objective has its own, so this would be ignored"
    together = "normalize_then_sum" if objective.several == "normalise" else "sum_then_normalize"
    high = config.epsilon if config.epsilon_high is None else config.epsilon_high
    if (config.epsilon, high) != (objective.eps_low, objective.eps_high):
        raise ValueError(
            f"epsilon={config.epsilon}, epsilon_high={config.epsilon_high}: the objective clips the ratio at "
            f"{objective.eps_low} and {objective.eps_high}. Set both alike: objective=resolve('agpo', eps_low=...)."
        )
    _refuse(
        "args",
        config,
        {
            "loss_type": (("dapo",), "the loss is the mean over the tokens of an optimizer step, as in dapo"),
            "beta": ((0.0,), "the KL term is not implemented"),
            "delta": ((None,), ours + ": objective=resolve('agpo', dual_clip=...)"),
            "importance_sampling_level": (("token",), ours),
            "scale_rewards": (("group",), ours + ": objective=resolve('agpo', advantage_std='none')"),
            "multi_objective_aggregation": ((together,), ours + ": objective=resolve('agpo', several=...)"),
            "mask_truncated_completions": ((False,), "truncated answers are not told apart"),
            "off_policy_mask_threshold": ((None,), "it is not in agpo's loss"),
            "top_entropy_quantile": ((1.0,), "it is not in agpo's loss"),
            "entropy_coef": ((0.0,), "the clip is on the policy loss alone"),
            "use_adaptive_entropy": ((False,), "the clip is on the policy loss alone"),
            "use_liger_kernel": ((False,), "it changes the model's forward pass and is not tested"),
            "fp16": ((False,), "its gradient scaler expects a gradient in every step; use bf16"),
            "parallelism_config": ((None,), "ranks that share a sample are not tested"),
        },
    )
    reason = "a rank would get only a part of its rows, and groups would span optimizer steps"
    _refuse("args.accelerator_config", config.accelerator_config, {"split_batches": ((False,), reason)})
    parts, micro = config.steps_per_generation, config.gradient_accumulation_steps
    if parts % micro:
        raise ValueError(
            f"steps_per_generation={parts} must be a multiple of gradient_accumulation_steps={micro}: a step's samples "
            "are of one policy."
        )
    if below(objective) and (parts > micro or config.num_iterations > 1):
        raise ValueError(
            f"clip_scope {objective.clip_scope} with steps_per_generation={parts}, num_iterations="
            f"{config.num_iterations}: f' of its units must be known before their gradient, so samples may serve one "
            f"optimizer step only. Set steps_per_generation={micro}, num_iterations=1, or clip_scope mini_batch."
        )
    rows = config.per_device_train_batch_size * micro
    if parts > micro and rows % config.num_generations:
        raise ValueError(
            f"per_device_train_batch_size * gradient_accumulation_steps = {rows} must be a multiple of num_generations="
            f"{config.num_generations} if samples serve several optimizer steps: each needs whole groups."
        )


def check_trainer(trainer: GRPOTrainer) -> None:
    """Raises ValueError unless gradients are those of one process or DDP, and the loss has no further terms."""
    kind, gpus = trainer.accelerator.distributed_type.value, trainer.args.n_gpu
    if kind not in ("NO", "MULTI_CPU", "MULTI_GPU") or gpus > 1:
        raise ValueError(
            f"distributed_type {kind}, {gpus} GPUs in this process: supported are one process or DDP with one GPU each "
            "(accelerate launch --multi_gpu). DeepSpeed steps in its own engine, before the clip can decide; FSDP is "
            "not tested. Train natively or on verl for that: docs/scale.md, docs/cluster.md."
        )
    if trainer.accelerator.mixed_precision == "fp16":  # also set by accelerate's own configuration
        raise ValueError(
            "mixed_precision fp16 is not supported by AGPOTrainer: its scaler expects a gradient. Use bf16."
        )
    wanted = {"tools": trainer.tools, "rollout_func": trainer.rollout_func}
    wanted |= {"environment_factory": trainer.environment_factories, "router_aux_loss_coef": trainer.aux_loss_enabled}
    for name, found in wanted.items():
        if found:
            raise ValueError(f"{name} is not supported by AGPOTrainer: what it adds to the loss is not tested.")


def _refuse(about: str, found: object, allowed: dict[str, tuple[tuple, str]]) -> None:
    for name, (values, reason) in allowed.items():
        value = getattr(found, name)
        if value not in values:
            may = " or ".join(map(repr, values))
            raise ValueError(f"{about}.{name}={value!r} is not supported by AGPOTrainer: {reason}. Set {may}.")
