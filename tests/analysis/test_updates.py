"""ΔW by path, and a model that has other updates for a moment."""

import copy

import pytest
import torch
from torch import nn

import minilora
from minilora import LoraConfig, inject, merge_and_unload
from minilora.analysis.updates import (
    adapter_updates,
    by_kind,
    by_layer,
    weight_updates,
    with_updates,
    without_parts,
)
from minilora.lora.linears import weight_of

from ..lora.test_injection import fill, tiny


@pytest.fixture
def tuned():
    """A base, and the same with a filled adapter."""
    base = tiny().eval()
    model = copy.deepcopy(base)
    inject(model, LoraConfig(r=2, target_modules="all-linear"))
    fill(model)
    return base, model


def test_the_updates_of_an_adapter_are_those_of_its_merge(tuned):
    base, model = tuned
    own = adapter_updates(model)
    merged = merge_and_unload(copy.deepcopy(model))
    differences = weight_updates(base, merged)
    assert own.keys() == differences.keys()
    for path, update in own.items():
        torch.testing.assert_close(differences[path], update, rtol=1e-4, atol=1e-5)
    assert weight_updates(base, model).keys() == own.keys()
    assert weight_updates(base, base) == {}


def test_a_base_with_an_adapters_updates_computes_what_the_adapter_does(tuned):
    base, model = tuned
    ids = torch.randint(0, 16, (2, 6))
    kept = {name: p.clone() for name, p in base.named_parameters()}
    with with_updates(base, adapter_updates(model)) as changed:
        torch.testing.assert_close(changed(ids), model(ids), rtol=1e-4, atol=1e-4)
    assert all(torch.equal(p, kept[name]) for name, p in base.named_parameters())


def test_the_weights_come_back_after_an_error_too(tuned):
    base, _ = tuned
    before = base.lm_head.weight.clone()
    with (
        pytest.raises(RuntimeError, match="on the way"),
        with_updates(base, {"lm_head": torch.ones_like(before)}),
    ):
        raise RuntimeError("on the way")
    assert torch.equal(base.lm_head.weight, before)


def test_all_parts_undone_are_the_base(tuned):
    base, model = tuned
    ids = torch.randint(0, 16, (1, 5))
    own = adapter_updates(model)
    layers = by_layer(own)
    assert list(layers) == [0, 1]
    assert sorted(path for paths in layers.values() for path in paths) == sorted(own)
    undone = without_parts(model, own, {"all": list(own), **layers}, lambda m: m(ids).clone())
    torch.testing.assert_close(undone["all"], base(ids), rtol=1e-4, atol=1e-4)
    one_layer = copy.deepcopy(model)
    for path in layers[0]:
        one_layer.get_submodule(path).lora_B.data.zero_()
    torch.testing.assert_close(undone[0], one_layer(ids), rtol=1e-4, atol=1e-4)


def test_kinds_are_last_names(tuned):
    kinds = by_kind(adapter_updates(tuned[1]))
    assert {len(paths) for paths in kinds.values()} == {2}
    assert set(kinds) == {
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    }


@pytest.mark.parametrize(
    ("path", "shape", "message"),
    [
        ("model.norm", (2, 2), "model.norm is no Linear here. Nothing was changed"),
        ("nowhere", (2, 2), "nowhere is no Linear here"),
        ("lm_head", (2, 2), r"lm_head: expected ΔW \(16, 8\), got \(2, 2\)"),
    ],
)
def test_updates_that_do_not_fit_are_refused(path, shape, message):
    model = tiny()
    before = copy.deepcopy(model.state_dict())
    first = "model.layers.0.self_attn.q_proj"
    good = torch.ones_like(weight_of(model.get_submodule(first)))
    with (
        pytest.raises(ValueError, match=message),
        with_updates(model, {first: good, path: torch.ones(shape)}),
    ):
        pass
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_four_bits_are_told_to_dequantize():
    model = nn.Sequential(minilora.quantize_base(nn.Sequential(nn.Linear(64, 4)))[0])
    with (
        pytest.raises(ValueError, match="0 is in four bits: take dequantize_base"),
        with_updates(model, {"0": torch.ones(4, 64)}),
    ):
        pass


def test_models_of_other_shapes_are_refused():
    with pytest.raises(ValueError, match="these differ: 0"):
        weight_updates(nn.Sequential(nn.Linear(2, 3)), nn.Sequential(nn.Linear(2, 4)))
