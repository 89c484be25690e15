"""Invariants 1 to 7 for every method, over shapes and dtypes; which layer a config means."""

import copy
import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import minilora
from minilora import (
    AdaLoraConfig,
    BitFitConfig,
    BottleneckConfig,
    IA3Config,
    LNTuningConfig,
    LoraConfig,
    LoRALayer,
    NF4Linear,
    PrefixTuningConfig,
    PromptTuningConfig,
    VeraConfig,
    disable_adapter,
    explain_match,
    inject,
    ledger,
    merge,
    trainable_parameters,
    unload,
    unmerge,
)
from minilora.formats.method_files import CONFIGS
from minilora.methods.adalora import AdaLoRALayer
from minilora.methods.bitfit import BitFitLayer
from minilora.methods.dora import DoRALayer
from minilora.methods.ia3 import IA3Layer
from minilora.methods.injection import layers_of
from minilora.methods.pissa import ResidualLoRALayer
from minilora.methods.vera import VeraLayer

from ..strategies import DTYPES, seeds
from ..tolerance import gamma
from .peer import disturb

NAMES = ["a", "b"]
METHODS = {
    "dora": (LoraConfig(2, 3, NAMES, use_dora=True), DoRALayer),
    "pissa": (LoraConfig(1, 3, NAMES, init_lora_weights="pissa"), ResidualLoRALayer),
    "olora": (LoraConfig(1, 3, NAMES, init_lora_weights="olora"), ResidualLoRALayer),
    "vera": (VeraConfig(r=3, target_modules=NAMES), VeraLayer),
    "ia3": (IA3Config(target_modules=NAMES, feedforward_modules=["b"]), IA3Layer),
    "bitfit": (BitFitConfig(target_modules=NAMES), BitFitLayer),
    "adalora": (
        AdaLoraConfig(init_r=3, target_r=2, target_modules=NAMES, total_step=9),
        AdaLoRALayer,
    ),
}
methods = st.sampled_from(sorted(METHODS))


class Two(nn.Module):
    """Two Linears, ``a`` and ``b``."""

    def __init__(self, width, inner, bias):
        super().__init__()
        self.a, self.b = nn.Linear(width, inner, bias=bias), nn.Linear(inner, 3, bias=bias)

    def forward(self, x):
        return self.b(torch.tanh(self.a(x)))


@st.composite
def twos(draw):
    """A model of two Linears in some dtype or in four bits, and an input."""
    torch.manual_seed(draw(seeds))
    width, inner = draw(st.integers(1, 20)), draw(st.integers(1, 20))
    model = Two(width, inner, draw(st.booleans()))
    dtype = draw(st.sampled_from([*DTYPES, "nf4"]))
    if dtype == "nf4":
        model.a, model.b = NF4Linear.from_linear(model.a), NF4Linear.from_linear(model.b)
        dtype = torch.float32
    return model.to(dtype), torch.randn(2, 3, width).to(dtype)


def onto(model):
    """What ``merge`` must be told about this model's base."""
    return "dequantized" if isinstance(model.a.base, NF4Linear) else None


def same(state, other):
    """Equal names and bits."""
    return state.keys() == other.keys() and all(torch.equal(state[n], other[n]) for n in state)


def bits(model):
    """Copies of all its tensors."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@given(twos(), methods)
def test_1_injected_and_untrained_it_computes_the_base_to_the_bit(case, name):
    model, x = case
    plain = model(x)
    inject(model, METHODS[name][0])
    assert torch.equal(model(x), plain)
    assert type(model.a) is METHODS[name][1]


@given(twos(), methods)
def test_2_merged_is_unmerged_within_rounding(case, name):
    """Each Linear by itself: a bound for both in a row would be useless."""
    model, x = case
    inject(model, METHODS[name][0])
    disturb(model)
    layer, unmerged = model.a, model.a(x).detach()
    merge(model, onto=onto(model))
    weight = layer.base.weight.detach().double().abs()
    wide = x.double().abs()
    before = layer.original_base().weight.detach().double().abs()
    size = wide @ weight.T + 3 * (wide @ before.T) + 10
    # what is multiplied by more than one rounds more: A and B of the start are as large as W
    bound = 4 * gamma(layer.in_features + 30, x.dtype) * size * (1 + weight.max() + before.max())
    assert ((layer(x).double() - unmerged.double()).abs() <= bound).all()


@given(twos(), methods, st.booleans())
def test_3_unmerge_and_unload_give_the_base_back_to_the_bit(case, name, merged):
    model, x = case
    before, plain = bits(model), model(x)
    trained = [p.requires_grad for p in model.parameters()]
    inject(model, METHODS[name][0])
    disturb(model)
    adapted, y = bits(model), model(x)
    for _ in range(2):
        merge(model, onto=onto(model))
        with disable_adapter(model):
            assert torch.equal(model(x), plain)
        unmerge(model)
    assert same(bits(model), adapted)
    assert torch.equal(model(x), y)
    if merged:
        merge(model, onto=onto(model))
    assert same(bits(unload(model)), before)
    assert [p.requires_grad for p in model.parameters()] == trained


@given(twos(), methods)
def test_4_only_the_methods_own_numbers_get_gradients(case, name):
    model, x = case
    inject(model, METHODS[name][0])
    disturb(model)
    before = bits(model)
    model(x).float().square().sum().backward()
    learnt = {n for n, p in model.named_parameters() if p.grad is not None}
    own = {f"{path}.{n}" for path in NAMES for n in getattr(model, path)._parameters}
    assert learnt == own
    assert same(bits(model), before)


@given(seeds, st.sampled_from(["pissa", "olora", "vera", "adalora"]))
def test_5_the_rank_of_the_update_is_bounded(seed, name):
    torch.manual_seed(seed)
    model = Two(12, 14, False).double()
    inject(model, METHODS[name][0])
    disturb(model)
    layer = model.a
    delta = layer.merged_base().weight - layer.weight
    assert torch.linalg.matrix_rank(delta) <= {"pissa": 2, "olora": 2}.get(name, 3)


@given(twos(), methods)
def test_6_report_model_and_ledger_count_the_same(case, name):
    model, _ = case
    config = METHODS[name][0]
    planned = explain_match(model, config)
    before = trainable_parameters(model)[1]
    report = inject(model, config)
    assert report == planned
    assert trainable_parameters(model) == (report.trainable, report.total)
    assert report.total == before + report.trainable
    counted = ledger.count(model).total
    assert (counted.trainable, counted.parameters) == (report.trainable, report.total)
    assert report.trainable == sum(p.numel() for p in model.parameters() if p.requires_grad)


COUNTS = {  # a (5 to 6), b (6 to 3)
    "dora": 2 * (11 + 9) + 9,
    "pissa": 11 + 9,
    "olora": 11 + 9,
    "vera": 2 * 3 + 9,
    "ia3": 6 + 6,
    "bitfit": 9,
    "adalora": 3 * (12 + 10),
}


def test_every_method_with_a_file_is_held_to_these_properties():
    """A method that somebody adds; the norms, which no Linear has, have tests of their own."""
    assert {type(config) for config, _ in METHODS.values()} == (
        {LoraConfig, *CONFIGS.values()} - {LNTuningConfig}
    )


@pytest.mark.parametrize("name", METHODS)
def test_6_the_count_is_the_papers(name):
    report = inject(Two(5, 6, True), METHODS[name][0])
    assert report.trainable == COUNTS[name]
    assert f"{COUNTS[name]:,} of" in str(report)


@pytest.mark.parametrize("name", METHODS)
def test_10_a_merge_that_is_not_finite_merges_nothing(name):
    model = Two(5, 6, True)
    inject(model, METHODS[name][0])
    last = list(model.b._parameters.values())[-1]
    last.data[...] = float("nan")
    before = bits(model)
    with pytest.raises(ValueError, match=r"^b: the merged .* not finite"):
        merge(model)
    after = bits(model)
    assert all(torch.equal(before[n], after[n]) or before[n].isnan().any() for n in before)
    assert not model.a.merged


def test_a_plain_config_gives_lora_itself():
    model = Two(5, 6, True)
    inject(model, LoraConfig(target_modules=NAMES))
    assert type(model.a) is LoRALayer
    unload(model)
    minilora.inject(model, LoraConfig(target_modules=["a"], rank_pattern={"a": 3}, use_dora=True))
    assert (model.a.r, type(model.b)) == (3, nn.Linear)


def test_whatever_is_no_config_is_refused():
    with pytest.raises(TypeError, match=r"expected a config of a method.*got dict"):
        inject(Two(5, 6, True), {"r": 8})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: VeraConfig(lora_alpha=8), "VeraConfig has no 'lora_alpha': known are r, target"),
        (lambda: VeraConfig(lora_dropout=0.1), "did you mean 'vera_dropout'"),
        (lambda: IA3Config(r=8), "IA3Config has no 'r': known are target_modules, feedforward"),
        (lambda: AdaLoraConfig(r=8, total_step=9), "AdaLoraConfig has no 'r': known are init_r"),
        (lambda: BitFitConfig(bias="all"), "BitFitConfig has no 'bias': known are target_mod"),
        (lambda: LNTuningConfig(target_module=["a"]), "did you mean 'target_modules'"),
        (lambda: PromptTuningConfig(num_virtual_token=4), "did you mean 'num_virtual_tokens'"),
        (lambda: PrefixTuningConfig(4, prompt_tuning_init="TEXT"), "Prefix.* has no 'prompt_tun"),
        (lambda: BottleneckConfig(r=8), "BottleneckConfig has no 'r': known are kind, size"),
        (lambda: LoraConfig(use_vera=True), "LoraConfig has no 'use_vera'"),
    ],
)
def test_a_field_of_another_method_is_refused_with_those_there_are(make, message):
    with pytest.raises(TypeError, match=message):
        make()


def test_a_second_method_is_refused():
    model = Two(5, 6, True)
    inject(model, METHODS["vera"][0])
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="adapters already"):
        inject(model, METHODS["ia3"][0])
    assert same(model.state_dict(), before)


@pytest.mark.parametrize("name", METHODS)
def test_the_audit_tells_what_a_method_changed_merged_or_not(name):
    before, x = Two(5, 6, True), torch.randn(2, 3, 5)
    after = copy.deepcopy(before)
    inject(after, METHODS[name][0])
    untrained = minilora.audit(before, after)
    assert (untrained.changes, untrained.elsewhere) == ((), ())
    disturb(after)
    for merged in (False, True):
        found = minilora.audit(before, merge(after) if merged else after, x)
        changed = () if name == "bitfit" else ("a", "b")
        assert tuple(change.name for change in found.changes) == changed
        biases = {"bitfit": ("a.bias", "b.bias"), "ia3": ("a.bias",)}.get(name, ())
        assert found.elsewhere == biases


def test_a_pattern_that_matches_nothing_is_an_error_for_each_method():
    for config in (VeraConfig, IA3Config, BitFitConfig, LNTuningConfig):
        fields = {"feedforward_modules": []} if config is IA3Config else {}
        with pytest.raises(ValueError, match="no module matches 'c'"):
            inject(Two(5, 6, True), config(target_modules=["c"], **fields))


def test_the_report_of_a_vector_method_shows_no_rank():
    report = explain_match(Two(5, 6, True), METHODS["ia3"][0])
    assert [line.split()[-3:] for line in str(report).splitlines()[1:3]] == [
        ["–", "6", "'a'"],
        ["–", "6", "'b'"],
    ]


def test_veras_many_directions_are_no_idle_rank():
    report = explain_match(Two(5, 6, True), VeraConfig(r=256, target_modules=NAMES))
    assert "above min(in, out)" not in str(report)


@pytest.mark.parametrize("name", METHODS)
def test_a_layer_freezes_its_base_and_a_config_cannot_be_changed(name):
    config, model = METHODS[name][0], Two(5, 6, True)
    chosen = explain_match(model, config).chosen
    layers = layers_of(config, dict(model.named_modules()), chosen)
    assert [type(layer) for layer in layers.values()] == [METHODS[name][1]] * 2
    assert not any(p.requires_grad for p in [*model.a.parameters(), *model.b.parameters()])
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.target_modules = ["a"]
