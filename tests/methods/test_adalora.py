"""AdaLoRA against PEFT's allocator: forward, importance, budget, and the three differences."""

import copy

import peft
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn

import minilora
from minilora import AdaLoraConfig
from minilora.lora.adapter_layer import adapter_layers
from minilora.methods.adalora import AdaLoRALayer, allocate

from ..strategies import seeds
from ..tolerance import unit_roundoff
from .peer import Holder, assert_equal_to_peft, bases, disturb, give, pair, theirs_of


def config_pair(**fields):
    """Ours and PEFT's."""
    fields = {"target_modules": ["lin"], "lora_alpha": 6, "total_step": 20, **fields}
    return AdaLoraConfig(**fields), peft.AdaLoraConfig(**fields)


@given(bases(), st.integers(1, 12))
def test_forward_and_gradients_are_pefts(case, r):
    base, x = case
    ours, theirs = pair(base, *config_pair(init_r=r, target_r=1))
    assert_equal_to_peft(ours, theirs, x, size=10.0)


@given(bases(), st.integers(1, 8), st.data())
def test_pruned_its_forward_and_gradients_are_pefts(case, r, data):
    """PEFT masks E to zero, as at an allocation, and keeps the shapes."""
    base, x = case
    ours, theirs = pair(base, *config_pair(init_r=r, target_r=1))
    left = torch.tensor(data.draw(st.lists(st.booleans(), min_size=r, max_size=r)))
    with torch.no_grad():
        ours.lin.lora_E[~left] = 0
    give(theirs, ours)
    assert_equal_to_peft(ours, theirs, x, size=10.0)
    ours.lin.alive.copy_(left)
    # what a file holds of it: the same layer with fewer ranks
    again = AdaLoRALayer(base.lin, ours.lin.config, left.tolist())
    again.load(ours.lin.tensors())
    assert again.lora_A.shape[0] == left.sum() == len(ours.lin.tensors()["lora_E"])
    truth = ours.double()(x.double())
    y = again(x).double()
    size = truth.abs().max() + base.lin.weight.abs().sum(dim=1).max() * x.abs().max() + 10
    assert (y - truth).abs().max() <= 64 * unit_roundoff(x.dtype) * size


@given(
    seed=seeds,
    tinit=st.integers(0, 4),
    tfinal=st.integers(0, 4),
    target=st.integers(0, 2),
    rank=st.integers(3, 6),
    steps=st.integers(12, 16),
)
def test_the_same_triplets_are_left_as_in_peft(seed, tinit, tfinal, target, rank, steps):
    """The gradients of every step are random; with deltaT = 1 nothing can grow back in between."""
    torch.manual_seed(seed)
    base = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3))
    fields = {"init_r": rank, "target_r": target, "tinit": tinit, "tfinal": tfinal}
    fields |= {"target_modules": ["0", "1"], "total_step": steps}
    configs = config_pair(**fields)
    theirs, ours = theirs_of(base, configs[1]), copy.deepcopy(base)
    minilora.inject(ours, configs[0])
    disturb(ours)
    give(theirs, ours)
    layers = [layer for _, layer in adapter_layers(ours)]
    for step in range(1, steps + 1):
        gradients(ours, theirs)
        AdaLoRALayer.update_and_allocate(layers, step)
        theirs.base_model.update_and_allocate(step)
        used = {n: p.detach() for n, p in theirs.named_parameters() if "lora_E" in n}
        for layer, (_, E) in zip(layers, used.items(), strict=True):
            torch.testing.assert_close(layer.lora_E.detach(), E)
            layer.lora_E.data += 0.1  # the optimizer, which does not know of masks
            E += 0.1
    pattern = theirs.peft_config["default"].rank_pattern
    assert [layer.alive_of_all() for layer in layers] == list(pattern.values())
    assert sum(layer.alive.sum().item() for layer in layers) == 2 * target


def gradients(ours, theirs):
    """The same random gradients for both."""
    for (_, layer), name in zip(adapter_layers(ours), ("0", "1"), strict=True):
        for part in ("lora_A", "lora_B", "lora_E"):
            grad = torch.randn_like(getattr(layer, part))
            getattr(layer, part).grad = grad
            peer = getattr(theirs.base_model.model.get_submodule(name), part)["default"]
            peer.grad = grad.clone()


@given(st.integers(1, 9), st.integers(0, 3), st.integers(1, 40), st.integers(0, 5))
def test_the_budget_is_pefts_and_never_rises(init_r, less, steps, tinit):
    assume(tinit < steps)
    target = max(0, init_r - less)
    ours, theirs = config_pair(init_r=init_r, target_r=target, total_step=steps, tinit=tinit)
    model = theirs_of(Holder(nn.Linear(3, 3)), theirs)
    allocator = model.base_model.rankallocator
    budgets = [ours.budget(step, modules=1) for step in range(steps + 1)]
    assert budgets == [allocator.budget_schedule(step)[0] for step in range(steps + 1)]
    assert budgets == sorted(budgets, reverse=True)
    assert budgets[-1] == target


def layers_after(steps, **fields):
    """The layer after random steps, and how many of its triplets were used after each."""
    torch.manual_seed(0)
    model = Holder(nn.Linear(6, 5))
    minilora.inject(model, config_pair(init_r=6, target_r=2, **fields)[0])
    disturb(model)
    used = []
    for step in range(1, steps + 1):
        for part in ("lora_A", "lora_B", "lora_E"):
            getattr(model.lin, part).grad = torch.randn_like(getattr(model.lin, part))
        model.lin.lora_E.data += 0.1
        AdaLoRALayer.update_and_allocate([model.lin], step)
        used.append(model.lin.lora_E.count_nonzero().item())
    return model.lin, used


def test_a_pruned_triplet_does_not_grow_back_between_two_allocations():
    _, used = layers_after(20, deltaT=5)
    assert used == sorted(used, reverse=True)
    assert used[:5] == [6, 6, 6, 6, 3]
    assert used[-1] == 2


def test_peft_lets_it_grow_back():
    theirs = theirs_of(Holder(nn.Linear(6, 5)), config_pair(init_r=6, target_r=2, deltaT=5)[1])
    named = dict(theirs.named_parameters())
    E = next(p for n, p in named.items() if "lora_E" in n)
    used = []
    for step in range(1, 10):
        for n, p in named.items():
            p.grad = torch.randn_like(p) if "lora_" in n else None
        E.data += 0.1
        theirs.base_model.update_and_allocate(step)
        used.append(E.count_nonzero().item())
    assert used[4] < 6
    assert used[5] == 6


def test_a_triplet_can_come_back_at_an_allocation():
    layer, _ = layers_after(19, deltaT=1)
    gone = (~layer.alive).nonzero()[0].item()
    for name, average in layer.averages.items():
        part = average.T if name.endswith("lora_B") else average
        part[gone] = 10.0
    allocate([layer], 2)
    assert layer.alive[gone]


def test_equal_ranks_prune_nothing():
    ours, theirs = config_pair(init_r=3, target_r=3)
    model, peers = Holder(nn.Linear(6, 5)), theirs_of(Holder(nn.Linear(6, 5)), theirs)
    minilora.inject(model, ours)
    disturb(model)
    for p in [*model.lin._parameters.values(), *peers.parameters()]:
        p.grad = torch.randn_like(p)
    AdaLoRALayer.update_and_allocate([model.lin], 1)
    assert model.lin.alive.all()
    with pytest.raises(RuntimeError, match="kthvalue"):
        peers.base_model.update_and_allocate(1)


def test_importance_by_hand():
    """One triplet, one step: I = |w g|, Ī = .15 I, Ū = .15 |I - Ī|, s = Ī Ū."""
    layer = AdaLoRALayer(nn.Linear(2, 1), config_pair(init_r=1, target_r=1)[0])
    with torch.no_grad():
        layer.lora_A.copy_(torch.tensor([[1.0, 2.0]]))
        layer.lora_B.fill_(3.0)
        layer.lora_E.fill_(4.0)
    for part in (layer.lora_A, layer.lora_B, layer.lora_E):
        part.grad = torch.ones_like(part)
    layer.observe()
    score = lambda I: 0.15 * I * 0.15 * (I - 0.15 * I)  # noqa: E731, E741
    expected = score(4) + (score(1) + score(2)) / 2 + score(3)
    assert layer.importance().tolist() == pytest.approx([expected])
    layer.lora_E.grad = None  # a module that took no part in a step
    layer.observe()


def test_the_orthogonality_by_hand():
    layer = AdaLoRALayer(nn.Linear(3, 2), config_pair(init_r=2, target_r=1)[0])
    with torch.no_grad():
        layer.lora_A.copy_(torch.eye(2, 3))
        layer.lora_B.copy_(2 * torch.eye(2))
    # ‖I − I‖ = 0 and ‖4 I − I‖ = 3 √2; half of their mean
    assert AdaLoRALayer.extra_loss([layer]).item() == pytest.approx(3 * 2**0.5 / 4)
    empty = AdaLoRALayer(nn.Linear(3, 2), layer.config, [False, False])
    assert AdaLoRALayer.extra_loss([empty]) is None
    assert torch.equal(empty(torch.ones(1, 3)), empty.base(torch.ones(1, 3)))


def test_dropout_is_on_the_adapters_input_and_refuses_a_merge_in_training():
    model = Holder(nn.Linear(400, 1, bias=False)).train()
    minilora.inject(model, config_pair(lora_dropout=0.5)[0])
    x = torch.ones(2, 400)
    assert torch.equal(model(x), model.lin.base(x))
    disturb(model)
    assert not torch.equal(model(x)[0], model(x)[1])
    with pytest.raises(ValueError, match=r"lora_dropout=0.5: call model.eval\(\) first"):
        minilora.merge(model)
    minilora.merge(model.eval())


@pytest.mark.parametrize(
    ("fields", "error", "words"),
    [
        ({"total_step": None}, ValueError, "needs total_step, the run.s optimizer steps"),
        ({"total_step": 0}, ValueError, "total_step must be at least 1"),
        ({"target_r": 13}, ValueError, "target_r=13 is above init_r=12"),
        ({"target_r": -1}, ValueError, "target_r must be at least 0"),
        ({"init_r": 0}, ValueError, "r must be at least 1"),
        ({"tinit": 15, "tfinal": 5}, ValueError, "leave no step of total_step=20"),
        ({"deltaT": 0}, ValueError, "deltaT must be at least 1"),
        ({"beta1": 1.0}, ValueError, "beta1 must be a finite number between 0 and 1"),
        ({"beta2": "x"}, TypeError, "beta2 must be a number"),
        ({"orth_reg_weight": -0.1}, ValueError, "orth_reg_weight must not be negative"),
        ({"tinit": 1.5}, TypeError, "tinit must be a whole number"),
    ],
)
def test_values_that_mean_nothing_are_refused(fields, error, words):
    with pytest.raises(error, match=words):
        AdaLoraConfig(**{"total_step": 20, **fields})


@pytest.mark.parametrize("left", [3, 1, 0])
def test_as_plain_lora_it_has_the_same_update(left):
    layer = AdaLoRALayer(nn.Linear(6, 4), config_pair(init_r=3, target_r=1)[0])
    disturb(layer)
    layer.alive[left:] = False
    layer.lora_E.data[~layer.alive] = 0
    plain = layer.as_lora()
    assert plain.r == max(1, left)
    assert plain.scaling == pytest.approx(layer.scaling)
    delta = layer.merged_base().weight - layer.weight
    torch.testing.assert_close(plain.delta_weight(), delta, rtol=1e-3, atol=1e-6)
