"""Training in half precision, with adapters and with gradient checkpointing: exact where it can be, resumable."""

import json
from copy import deepcopy
from types import SimpleNamespace

import peft
import pytest
import torch
from groups import REWARDS, make_groups

from agpo import checkpoint_io
from agpo.batch import plan_step
from agpo.distributed import layers_of
from agpo.model import exported_weights, prepare, units, weight_stream
from agpo.objective import PRESETS
from agpo.optimizer import make_trained, restore, state
from agpo.policy import Policy, Settings
from agpo.sections import LoraConfig
from agpo.update import update
from evals.engines import Request, Sampling
from evals.engines.hf import HFEngine
from evals.errors import UserError

GRPO = PRESETS["grpo"]


def train(model, groups, lr=1e-2, steps=2, budget=60, trained=None):
    """(policy, its updates) after some updates on the same mini-batch."""
    trained = trained or make_trained(model, lr=lr)
    policy = Policy(model, None, trained, lambda k: lr)
    (minibatch,) = plan_step(groups, GRPO, len(groups), 16)
    settings = Settings(micro_batch_tokens=budget, max_grad_norm=1.0)
    return policy, [update(policy, minibatch, GRPO, settings, on_policy=k == 0) for k in range(steps)]


def prepared(start, lora=None, **options):
    model = deepcopy(start)
    prepare(model, lora=lora or LoraConfig(), **options)
    return model


def weights(model):
    return {name: x.detach().clone() for name, x in model.state_dict().items()}


def test_gradient_checkpointing_gives_the_same_bits_and_generation_goes_on(start):
    groups = make_groups(start, REWARDS, seed=3)
    plain, saving = prepared(start), prepared(start, gradient_checkpointing=True)
    calls = {plain: 0, saving: 0}

    def count(model):
        calls[model] += 1

    for model in calls:
        model.model.layers[0].register_forward_pre_hook(lambda *_, model=model: count(model))
        train(model, groups)
    assert calls[saving] == 2 * calls[plain] > 0  # each layer ran once more in backward
    assert all(torch.equal(x, weights(plain)[name]) for name, x in weights(saving).items())
    assert not saving.training
    eos = saving.generation_config.eos_token_id
    saving.generation_config.eos_token_id = eos if eos is not None else 1

    class Tokenizer:
        eos_token_id = 1

    engine = HFEngine(saving, Tokenizer())
    assert len(list(engine.generate([Request((3, 4), (1, 2))], Sampling(5)))) == 2


def test_small_steps_in_bfloat16_are_kept_in_float32_masters(start):
    """Steps of 1e-5 on weights near 1 vanish in bfloat16 one by one; in the masters they add up."""
    model = prepared(start).bfloat16()
    trained = make_trained(model, lr=1e-5)
    assert all(p.dtype == torch.float32 for p in trained.parameters)
    assert len(trained.masters) == len(list(model.parameters()))
    norm = model.model.norm.weight
    at, before = next(m for w, m in trained.masters if w is norm), norm.detach().clone()
    for _ in range(400):
        at.grad = torch.ones_like(at)
        trained.step()
    assert float((at - before.float()).detach().abs().max()) == pytest.approx(400 * 1e-5, rel=0.01)
    assert not torch.equal(norm, before)
    assert torch.equal(norm, at.bfloat16())


def test_half_precision_gradients_of_micro_batches_are_summed_in_float32(start):
    groups = make_groups(start, REWARDS, seed=3)
    model = prepared(start).bfloat16()
    (minibatch,) = plan_step(groups, GRPO, 4, 16)
    seen = {}
    for budget in (1, 100_000):
        copy = deepcopy(model)
        policy = Policy(copy, None, make_trained(copy, lr=1e-3), lambda k: 1e-3)
        done = update(policy, minibatch, GRPO, Settings(micro_batch_tokens=budget), on_policy=True)
        moments = policy.trained.optimizer.state_dict()["state"]
        assert all(slots["exp_avg"].dtype == torch.float32 for slots in moments.values())
        assert all(p.grad is None for p in copy.parameters())
        seen[budget] = done.grad_norm
    assert seen[1] == pytest.approx(seen[100_000], rel=0.02)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_offloaded_masters_make_the_same_steps(start, dtype):
    """On a CPU they lie where the weights do, so that the steps are the same to the bit."""
    groups, found = make_groups(start, REWARDS, seed=3), []
    for offload in (False, True):
        model = prepared(start).to(dtype)
        trained = make_trained(model, lr=1e-2, offload=offload)
        assert bool(trained.masters) == (offload or dtype == torch.bfloat16)
        buffers = {p.untyped_storage().data_ptr() for p in trained.parameters}
        assert len(buffers) < 10 if offload else len(buffers) == len(trained.parameters)
        assert trained.exported == (dtype == torch.float32)
        policy, updates = train(model, groups, steps=3, trained=trained)
        assert any(done.stepped for done in updates)
        assert all(p.grad is None for p in model.parameters())
        found.append((weights(model), state(policy.trained)))
    (plain, (tensors, numbers)), (offloaded, (tensors_of, numbers_of)) = found
    assert all(torch.equal(x, offloaded[name]) for name, x in plain.items())
    assert numbers == numbers_of
    assert tensors.keys() == tensors_of.keys()
    assert all(torch.equal(x, tensors_of[name]) for name, x in tensors.items())


def test_lora_trains_adapters_only_and_exports_an_ordinary_model(start, tmp_path):
    groups = make_groups(start, REWARDS, seed=3)
    model = prepared(start, LoraConfig(rank=4, alpha=8))
    policy, updates = train(model, groups)
    assert updates[0].stepped
    after = weights(model)
    for name, x in start.state_dict().items():  # what was there is as it was
        inner = name.replace(".weight", ".base_layer.weight").replace(".bias", ".base_layer.bias")
        assert torch.equal(after.get(name, after.get(inner)), x), name
    trained = sum(p.numel() for p in policy.trained.parameters)
    assert 0 < trained < 0.2 * sum(p.numel() for p in start.parameters())
    merged = exported_weights(model)
    model.save_pretrained(tmp_path, state_dict=merged)
    loaded = type(start).from_pretrained(tmp_path).eval()
    assert set(loaded.state_dict()) == set(start.state_dict())
    ids = torch.tensor([[3, 4, 5, 6]])
    assert torch.allclose(loaded(ids).logits, model(ids).logits, atol=1e-5)
    assert not torch.allclose(loaded(ids).logits, start(ids).logits, atol=1e-3)
    assert exported_weights(start) is None
    policy.tokenizer = SimpleNamespace(save_pretrained=lambda folder: None)
    saved = checkpoint_io.prepare(tmp_path / "run", 1, policy, {}, {"model": "start"})() / "adapter"
    adapted = peft.PeftModel.from_pretrained(deepcopy(start), saved)
    assert torch.allclose(adapted(ids).logits, model(ids).logits, atol=1e-6)
    assert json.loads((saved / "adapter_config.json").read_text())["base_model_name_or_path"] == "start"


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "lora", "lora-bfloat16", "checkpointing"])
def test_what_is_saved_of_the_optimizer_continues_to_the_bit(start, kind, tmp_path):
    groups = make_groups(start, REWARDS, seed=3)
    lora = LoraConfig(rank=4, alpha=8) if "lora" in kind else LoraConfig()

    def fresh():
        model = deepcopy(start).to(torch.bfloat16 if "bfloat16" in kind else torch.float32)
        torch.manual_seed(0)  # adapters start at random
        prepare(model, lora=lora, gradient_checkpointing=kind == "checkpointing")
        return model

    straight, _ = train(fresh(), groups, steps=4)
    half, _ = train(fresh(), groups, steps=2)
    tensors, numbers = state(half.trained)
    again = fresh()
    if "lora" not in kind:  # an ordinary model's weights come from its folder, rounded to its precision
        again.load_state_dict(half.model.state_dict())
    trained = make_trained(again, lr=1e-2)
    restore(trained, {k: x.clone() for k, x in tensors.items()}, numbers)
    (minibatch,) = plan_step(groups, GRPO, 4, 16)
    policy = Policy(again, None, trained, lambda k: 1e-2, updates=2)
    for _ in range(2):
        update(policy, minibatch, GRPO, Settings(micro_batch_tokens=60, max_grad_norm=1.0), on_policy=False)
    assert all(torch.equal(x, weights(straight.model)[name]) for name, x in weights(again).items())


def test_what_a_model_or_machine_cannot_do_is_said(start):
    with pytest.raises(UserError, match=r"lora\.targets"):
        prepared(start, LoraConfig(rank=4, targets="no_such_layer"))
    with pytest.raises(UserError, match="output embedding"):
        prepared(start, LoraConfig(rank=4, targets="q_proj,lm_head"))
    with pytest.raises(UserError, match="GPU"):
        prepared(start, liger=True)


def test_dropout_is_off(start):
    model = deepcopy(start)
    model.model.layers[0].self_attn.attention_dropout = 0.5
    model.model.layers[1].mlp.drop = torch.nn.Dropout(0.5)
    prepare(model, lora=LoraConfig())
    assert model.model.layers[0].self_attn.attention_dropout == 0.0
    assert model.model.layers[1].mlp.drop.p == 0.0


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=4, targets="q_proj,down_proj")])
def test_weights_in_pieces_are_those_of_a_checkpoint(start, lora):
    model = prepared(start, lora)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter)
    stream = weight_stream(model, model)
    got = {name: x.clone() for name, x in stream.tensors}
    whole = dict(exported_weights(model) or model.state_dict())
    assert {name: tuple(x.shape) for name, x in stream.like.items()} == {k: tuple(x.shape) for k, x in whole.items()}
    assert whole.keys() - got.keys() == {"lm_head.weight"}  # tied: it is the embeddings
    assert all(torch.equal(x, whole[name]) for name, x in got.items())
    pieces = [name for name, _ in units(model, layers_of(model))]
    layers = [f"model.layers.{i}" for i in range(len(model.model.layers))]
    assert pieces == ["model.embed_tokens", *layers, "model.norm", "lm_head"]
