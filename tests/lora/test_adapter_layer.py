"""The rules that every method shares, shown with two toys: merge, unmerge, switch off, move, copy.

The toys are no LoRA. ``Scaled`` multiplies the output and changes the bias, as IA3 does
(arXiv 2205.05638). ``Stretched`` gives every row of W0 + B A a length of its own, as DoRA does
(arXiv 2402.09353). Each says its equation in ``adapt`` and its weight in ``fold``; all the rest is
``AdapterLayer``'s.
"""

import copy
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers.pytorch_utils import Conv1D

import minilora
from minilora import LoraConfig, LoRALayer, NF4Linear, disable_adapter, inject, merge, unmerge
from minilora.lora.adapter_layer import AdapterLayer, adapter_layers
from minilora.lora.linears import weight_of

from ..strategies import DTYPES, seeds, sizes
from ..tolerance import gamma


class Scaled(AdapterLayer):
    """``y = s · base(x) + t``, one s and one t an output."""

    def __init__(self, base):
        super().__init__(base)
        self.s = nn.Parameter(torch.ones(self.out_features))
        self.t = nn.Parameter(torch.zeros(self.out_features))

    def adapt(self, base, x):
        y = base(x)
        return (self.s * y + self.t).to(y.dtype)

    def fold(self, weight, bias):
        return self.s[:, None] * weight, self.t + (0 if bias is None else self.s * bias)

    def size(self, x):
        """The sum of the absolute values of all terms, in float64: the measure of rounding."""
        x, weight, s, t, bias = wide(x, weight_of(self.base), self.s, self.t, self.bias)
        return s * (x @ weight.T + bias) + t


class Stretched(AdapterLayer):
    """``y = f · (base(x) - b + x ΔWᵀ) + b`` with ``f = m / ‖W0 + ΔW‖``, row by row."""

    def __init__(self, base, r=2):
        super().__init__(base)
        self.A = nn.Parameter(torch.randn(r, self.in_features) / self.in_features**0.5)
        self.B = nn.Parameter(torch.zeros(self.out_features, r))
        self.m = nn.Parameter(weight_of(base).float().norm(dim=1))

    def factor(self, weight):
        return self.m / (weight + self.B @ self.A).norm(dim=1).clamp(min=1e-6)

    def adapt(self, base, x):
        y, b = base(x), 0 if self.bias is None else self.bias
        low_rank = x.to(self.A.dtype) @ (self.B @ self.A).T
        return (self.factor(weight_of(base)) * (y - b + low_rank) + b).to(y.dtype)

    def fold(self, weight, bias):
        return self.factor(weight)[:, None] * (weight + self.B @ self.A), bias

    def size(self, x):
        """As ``Scaled.size``: the terms of base(x), of b and of x ΔWᵀ."""
        f = self.factor(weight_of(self.base)).detach().double().abs()
        x, weight, A, B, bias = wide(x, weight_of(self.base), self.A, self.B, self.bias)
        return f * (x @ weight.T + 2 * bias + x @ (B @ A).T) + bias


def wide(*tensors):
    """Absolute values in float64; no bias is a bias of 0."""
    zero = torch.zeros((), dtype=torch.float64)
    return [zero if t is None else t.detach().double().abs() for t in tensors]


@dataclass(frozen=True)
class ToyConfig(LoraConfig):
    """Wraps the chosen Linears in a toy."""

    kind: type = Scaled

    def wrap(self, base, path):
        return self.kind(base)


KINDS = [Scaled, Stretched]


@st.composite
def toys(draw, dtypes=DTYPES):
    """A model of one Linear, ``NF4Linear`` or ``Conv1D`` with a trained toy, its base, an input."""
    torch.manual_seed(draw(seeds))
    form, dtype = draw(st.sampled_from(["Linear", "NF4Linear", "Conv1D"])), torch.float32
    if form == "Conv1D":
        base = Conv1D(draw(sizes), draw(sizes))
        nn.init.normal_(base.bias)
    else:
        base = nn.Linear(draw(sizes), draw(sizes), bias=draw(st.booleans()))
        dtype = draw(st.sampled_from(dtypes))
    base = base.to(dtype)
    if form == "NF4Linear":
        base = NF4Linear.from_linear(base)
    model, plain = nn.Sequential(base), copy.deepcopy(base)
    inject(model, ToyConfig(target_modules=["0"], kind=draw(st.sampled_from(KINDS))))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return model, plain, torch.randn(3, model[0].in_features).to(dtype)


def onto(model):
    """What ``merge`` must be told about this model's base."""
    return "dequantized" if isinstance(model[0].base, NF4Linear) else None


def same(state, other):
    """Equal names and bits."""
    pairs = [(state[name], other.get(name)) for name in state]
    return state.keys() == other.keys() and all(torch.equal(a, b) for a, b in pairs)


@given(toys())
def test_merged_equals_unmerged_within_rounding(toy):
    """in + r + 8 roundings on either side: the product, the bias, the scales, the sums."""
    model, _, x = toy
    layer, unmerged = model[0], model(x)
    terms = layer.in_features + 10
    bound = 2 * gamma(terms, x.dtype) * layer.size(x) + terms * torch.finfo(x.dtype).tiny
    merge(model, onto=onto(model))
    assert ((model(x).double() - unmerged.double()).abs() <= bound).all()


@given(toys(), st.integers(1, 3))
def test_unmerge_gives_everything_back_to_the_bit(toy, rounds):
    model, _, x = toy
    state, y = {name: t.clone() for name, t in model.state_dict().items()}, model(x)
    for _ in range(rounds):
        unmerge(merge(model, onto=onto(model)))
    assert same(state, model.state_dict())
    assert torch.equal(model(x), y)


@given(toys())
def test_a_merge_keeps_the_names_of_the_state_dict(toy):
    """A merged model's checkpoint has the same keys, and a bias if the method makes one.

    The codes and scales of a base in four bits are replaced by a float weight.
    """
    model, plain, _ = toy
    expected = {name for name in model.state_dict() if not name.startswith("0.base.")}
    makes_bias = plain.bias is not None or isinstance(model[0], Scaled)
    expected |= {"0.base.weight"} | ({"0.base.bias"} if makes_bias else set())
    merge(model, onto=onto(model))
    assert set(model.state_dict()) == expected


@given(toys(), st.booleans())
def test_switched_off_it_is_the_base_to_the_bit_merged_or_not(toy, merged):
    model, plain, x = toy
    if merged:
        merge(model, onto=onto(model))
    before = model(x)
    with disable_adapter(model):
        assert torch.equal(model(x), plain(x))
    assert torch.equal(model(x), before)


@given(toys(), st.booleans())
def test_unload_gives_the_base_back_to_the_bit(toy, merged):
    model, plain, x = toy
    if merged:
        merge(model, onto=onto(model))
    minilora.unload(model)
    assert type(model[0]) is type(plain)
    assert same(plain.state_dict(), model[0].state_dict())
    assert torch.equal(model(x), plain(x))


@given(toys())
def test_merge_and_unload_leaves_an_ordinary_linear(toy):
    model, plain, x = toy
    expected = merge(copy.deepcopy(model), onto=onto(model))(x)
    minilora.merge_and_unload(model, onto=onto(model))
    assert type(model[0]) is (nn.Linear if isinstance(plain, NF4Linear) else type(plain))
    assert torch.equal(model(x), expected)
    kinds = {p.dtype for p in model[0].parameters()}
    assert kinds == {x.dtype}


@given(toys(dtypes=(torch.float32,)))
def test_only_the_methods_parameters_learn(toy):
    model, plain, x = toy
    y = model(x)
    y.square().sum().backward()
    with_gradient = {name for name, p in model.named_parameters() if p.grad is not None}
    assert with_gradient == {f"0.{name}" for name in model[0]._parameters}
    assert same(plain.state_dict(), model[0].base.state_dict())


@pytest.mark.parametrize("kind", KINDS)
def test_a_fresh_toy_is_put_where_the_config_says(kind):
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 2))
    report = inject(model, ToyConfig(target_modules=["1"], kind=kind))
    assert [match.name for match in report.chosen] == ["1"]
    assert [(path, type(layer)) for path, layer in adapter_layers(model)] == [("1", kind)]
    assert not any(p.requires_grad for p in model[0].parameters())


def test_the_kept_base_moves_with_the_layer_and_comes_back_in_the_new_dtype():
    layer = Scaled(nn.Linear(3, 2))
    weight = layer.weight.detach().clone()
    layer.merge()
    layer.double()
    assert {p.dtype for base in layer.kept for p in base.parameters()} == {torch.float64}
    layer.unmerge()
    assert torch.equal(layer.weight, weight.double())


def test_a_copy_of_a_merged_layer_keeps_a_base_of_its_own():
    layer = Scaled(nn.Linear(3, 2))
    layer.merge()
    twin, weight = copy.deepcopy(layer), layer.kept[0].weight.detach().clone()
    twin.kept[0].weight.data.zero_()
    twin.unmerge()
    assert not twin.weight.any()
    layer.unmerge()
    assert torch.equal(layer.weight, weight)


def test_a_float_base_keeps_its_place_and_its_parameters_and_only_values_are_exchanged():
    layer = Scaled(base := nn.Linear(3, 2))
    nn.init.constant_(layer.s, 2)
    parameter, original = base.weight, base.weight.detach().clone()
    layer.merge()
    merged = layer.base.weight.detach().clone()
    assert not torch.equal(merged, original)
    for weight, kept in ((original, merged), (merged, original)):
        layer.swap()
        assert torch.equal(layer.base.weight, weight)
        assert torch.equal(layer.kept[0].weight, kept)
    assert layer.base is base
    assert base.weight is parameter


def test_a_base_in_four_bits_makes_room_for_its_twin_and_comes_back():
    layer = Scaled(base := NF4Linear.from_linear(nn.Linear(64, 2)))
    layer.put(layer.merged_base())
    assert type(layer.base) is nn.Linear
    assert layer.kept == (base,)
    layer.eval().unmerge()
    assert layer.base is base
    assert not base.training


@pytest.mark.parametrize("replace", ["by hand", "accelerate"])
def test_a_merge_is_computed_though_someone_replaced_the_bases_forward(replace):
    """accelerate's device_map does so; the new ``forward`` still belongs to the same module."""
    model = nn.Sequential(base := nn.Linear(3, 2))
    if replace == "accelerate":
        accelerate_hooks = pytest.importorskip("accelerate.hooks")
        accelerate_hooks.add_hook_to_module(base, accelerate_hooks.ModelHook())
    else:
        compute = base.forward
        base.forward = lambda x: compute(x)
    inject(model, ToyConfig(target_modules=["0"]))
    for parameter in (p for p in model.parameters() if p.requires_grad):
        parameter.data += 0.5
    x = torch.randn(4, 3)
    unmerged, bare = model(x), compute_bare(model, x)
    assert not torch.allclose(unmerged, bare)
    merge(model)
    torch.testing.assert_close(model(x), unmerged)
    unmerge(model)
    assert torch.equal(compute_bare(model, x), bare)


def compute_bare(model, x):
    with disable_adapter(model):
        return model(x)


def test_the_original_base_is_known_wherever_it_is():
    model = nn.Sequential(base := nn.Linear(3, 2))
    inject(model, ToyConfig(target_modules=["0"]))
    layer = model[0]
    original = base.weight.detach().clone()
    assert torch.equal(layer.original_base().weight, original)
    with disable_adapter(model):
        assert torch.equal(layer.original_base().weight, original)
    merge(model)
    assert torch.equal(layer.original_base().weight, original)
    with disable_adapter(model):
        assert torch.equal(layer.original_base().weight, original)
    unmerge(model)
    merge(model, keep_base=False)
    assert layer.original_base() is None


def test_a_method_must_say_its_equation_and_its_weight():
    layer = AdapterLayer(nn.Linear(3, 2))
    with pytest.raises(NotImplementedError):
        layer(torch.ones(1, 3))
    with pytest.raises(NotImplementedError):
        layer.merge()
    assert not layer.merged


class Unbiased(AdapterLayer):
    """``y = base(x) - b``: a method may take the bias away."""

    def adapt(self, base, x):
        return base(x) - self.bias

    def fold(self, weight, bias):
        return weight, None


def test_a_method_may_take_the_bias_away_and_unmerge_brings_it_back():
    layer, x = Unbiased(nn.Linear(3, 2)), torch.randn(4, 3)
    unmerged, bias = layer(x), layer.bias
    layer.merge()
    assert layer.bias is None
    torch.testing.assert_close(layer(x), unmerged)
    layer.unmerge()
    assert layer.bias is bias


def test_a_bias_that_the_method_leaves_alone_stays_the_same_object():
    """Also one that is not finite: it is not the method's."""
    layer = LoRALayer(nn.Linear(3, 2))
    layer.base.bias.data[0] = float("inf")
    assert layer.merged_base().bias is layer.base.bias


def test_a_merge_that_fails_in_the_last_layer_merges_none():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    inject(model, ToyConfig(target_modules=["0", "1"]))
    for part in ("s", "t"):
        values = getattr(model[1], part).data
        before = values[0].item()
        values[0] = float("nan")
        with pytest.raises(ValueError, match=r"^1: the merged .* not finite in torch.float32"):
            merge(model)
        values[0] = before
        assert not any(layer.merged for _, layer in adapter_layers(model))


def test_the_loss_of_four_bits_is_measured_against_what_the_method_changed():
    """A method that multiplies has no ΔW of its own: its change is fold(W) - W."""
    torch.manual_seed(0)
    model = nn.Sequential(NF4Linear.from_linear(nn.Linear(64, 32)))
    inject(model, ToyConfig(target_modules=["0"]))
    model[0].s.data += 0.02 * torch.randn(32)
    weight = model[0].weight.double()
    change = (model[0].s.detach().double()[:, None] - 1) * weight
    [loss] = minilora.merge_and_requantize(model).losses
    lost = model[0].base.weight.double() - weight - change
    assert loss.of_update == pytest.approx((lost.norm() / change.norm()).item(), rel=1e-3)


def test_the_audit_sees_a_method_that_is_no_lora():
    before = nn.Sequential(nn.Linear(6, 6))
    after = copy.deepcopy(before)
    inject(after, ToyConfig(target_modules=["0"], kind=Stretched))
    after[0].m.data *= 1.1
    assert minilora.audit(before, after).changes[0].relative_norm == pytest.approx(0.1, rel=1e-4)


def test_the_base_weight_and_bias_show_through():
    base = nn.Linear(3, 2, bias=False)
    layer = Scaled(base)
    assert layer.weight is base.weight
    assert layer.bias is None


def test_merging_twice_unmerging_twice_and_unmerging_without_a_base_are_refused():
    layer = LoRALayer(nn.Linear(3, 3))
    with pytest.raises(ValueError, match="not merged"):
        layer.unmerge()
    layer.merge()
    with pytest.raises(ValueError, match="merged already.*unmerge first"):
        layer.merge()
    layer.unmerge()
    layer.merge(keep_base=False)
    with pytest.raises(ValueError, match="keep_base=False, so W0 is gone"):
        layer.unmerge()


def test_a_merge_that_overflows_half_precision_is_refused():
    layer = LoRALayer(nn.Linear(3, 3).half(), r=1)
    nn.init.constant_(layer.lora_A, 300.0)
    nn.init.constant_(layer.lora_B, 300.0)
    before = layer.weight.clone()
    with pytest.raises(ValueError, match=r"not finite in torch.float16.*merge in float32"):
        layer.merge()
    assert torch.equal(layer.weight, before)
    assert not layer.merged
