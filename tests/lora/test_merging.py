"""Merging whole models, in floats and in four bits, and adding adapters exactly."""

import copy

import pytest
import torch
from hypothesis import given
from torch import nn

import minilora
from minilora import (
    LoraConfig,
    NF4Linear,
    disable_adapter,
    inject,
    merge,
    merge_and_requantize,
    merge_and_unload,
    quantize_base,
    unmerge,
)
from minilora.lora.layer import LoRALayer, lora_layers
from minilora.lora.requantization import outputs

from ..strategies import models, targets
from ..tolerance import assert_as_close, exactly, gamma
from .test_injection import fill, tiny


def adapted(r=3, **config):
    model = tiny(**config).eval()
    inject(model, LoraConfig(r=r, lora_alpha=2 * r + 1))
    fill(model)
    return model


@given(models(), targets)
def test_merge_and_unload_leaves_an_ordinary_model_with_the_same_outputs(model, entries):
    plain = copy.deepcopy(model)
    inject(model, LoraConfig(r=2, target_modules=entries))
    fill(model)
    x = torch.randn(4, model[0].in_features)
    before, truth = model(x), exactly(model, x)
    assert merge_and_unload(model) is model
    kinds = [(name, type(module)) for name, module in plain.named_modules()]
    assert [(name, type(module)) for name, module in model.named_modules()] == kinds
    assert all(p.requires_grad for p in model.parameters())
    # the merged weights are rounded, whatever computes with them
    assert_as_close(model(x), [before, exactly(model, x)], truth)


def test_a_merged_model_can_be_unloaded_keeping_the_merge():
    model = adapted()
    ids = torch.randint(0, 16, (1, 6))
    merge(model)
    before = model(ids)
    assert all(repr(layer).endswith(", merged)") for _, layer in lora_layers(model))
    assert torch.equal(merge_and_unload(model)(ids), before)


def test_keep_base_false_holds_no_second_copy():
    model = merge(adapted(), keep_base=False)
    assert all(not layer.kept for _, layer in lora_layers(model))


def test_errors_name_the_layer_and_change_nothing():
    model = adapted()
    list(lora_layers(model))[-1][1].lora_A.data[0, 0] = float("inf")
    message = "model.layers.1.self_attn.v_proj: the merged weight is not finite"
    with pytest.raises(ValueError, match=rf"^{message}.*Nothing was changed$"):
        merge(model)
    assert not any(layer.merged for _, layer in lora_layers(model))


def learns_with_dropout(layer):
    layer.lora_dropout = 0.1
    layer.train()


def is_switched_off(layer):
    layer.enabled = False


@pytest.mark.parametrize(
    ("action", "before", "message"),
    [
        (merge, LoRALayer.merge, "is merged already: a second merge would add ΔW twice"),
        (merge, learns_with_dropout, "merging in training mode with lora_dropout=0.1"),
        (merge, is_switched_off, "switched off by disable_adapter"),
        (merge_and_unload, is_switched_off, "switched off by disable_adapter"),
        (unmerge, lambda layer: None, "is not merged: there is nothing to take back"),
    ],
)
def test_what_is_impossible_for_one_layer_is_done_to_none(action, before, message):
    model = adapted()
    layers = [layer for _, layer in lora_layers(model)]
    if action is unmerge:
        merge(model)
        layers[-1].unmerge()
    before(layers[-1])
    weights, merged = [layer.weight.clone() for layer in layers], [layer.merged for layer in layers]
    last = r"model\.layers\.1\.self_attn\.v_proj"
    with pytest.raises(ValueError, match=rf"^{last}: .*{message}.*Nothing was changed$"):
        action(model)
    assert [layer.merged for layer in layers] == merged
    assert all(torch.equal(a.weight, b) for a, b in zip(layers, weights, strict=True))


def test_parameters_stay_the_same_objects_through_merge_and_unmerge():
    """An optimizer or a tied module that holds a Parameter must not be left with an old one."""
    model = adapted()
    before = [id(p) for p in model.parameters()]
    unmerge(merge(model))
    assert [id(p) for p in model.parameters()] == before


def quantized(size=64, skip=("lm_head",)):
    """A model, and the same in four bits with trained adapters on its q and v."""
    torch.manual_seed(0)
    original = minilora.Llama(minilora.LlamaConfig(16, size, 96, 2, 2)).eval()
    model = quantize_base(copy.deepcopy(original), skip=skip)
    inject(model, LoraConfig(r=2))
    fill(model)
    return original, model


IDS = torch.arange(12).view(2, 6)
WAYS = "onto must be 'dequantized' or the original float model"


def test_merged_onto_the_dequantized_base_it_computes_what_it_did():
    _, model = quantized()
    before, state = model(IDS), {name: t.clone() for name, t in model.state_dict().items()}
    truth = exactly(model, IDS)
    assert merge(model, onto="dequantized") is model
    assert {type(layer.base) for _, layer in lora_layers(model)} == {nn.Linear}
    assert_as_close(model(IDS), before, truth)
    unmerge(model)
    assert all(torch.equal(t, state[name]) for name, t in model.state_dict().items())
    assert torch.equal(model(IDS), before)


def test_merged_onto_the_original_it_is_the_original_and_the_update():
    original, model = quantized()
    deltas = {name: layer.delta_weight() for name, layer in lora_layers(model)}
    merge(model, onto=original)
    for name, layer in lora_layers(model):
        assert torch.equal(layer.weight, original.get_submodule(name).weight + deltas[name])
    path = "model.layers.0.self_attn.q_proj"
    ours, theirs = model.get_submodule(path).weight, original.get_submodule(path).weight
    assert not torch.equal(ours, theirs), "the original itself must not change"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_an_original_of_another_dtype_is_summed_in_it_and_rounded_once(dtype):
    original, _ = quantized()
    model = quantize_base(copy.deepcopy(original).to(dtype))
    inject(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    fill(model)
    expected = {}
    for name, layer in lora_layers(model):
        weight = original.get_submodule(name).weight
        expected[name] = (weight.to(layer.lora_A) + layer.delta_weight()).to(dtype)
    plain = merge_and_unload(model, onto=original)
    assert {p.dtype for p in plain.parameters()} == {dtype}
    for name, weight in expected.items():
        assert torch.equal(plain.get_submodule(name).weight, weight)
    assert plain(IDS).dtype == dtype


def test_unloading_what_is_merged_checks_onto_as_well():
    _, model = quantized()
    merge(model, onto="dequantized")
    with pytest.raises(ValueError, match=f"{WAYS}, got 'original'"):
        merge_and_unload(model, onto="original")
    assert all(layer.merged for _, layer in lora_layers(model))


@pytest.mark.parametrize("four_bits", [False, True])
def test_a_merge_is_not_unloaded_while_it_is_switched_off(four_bits):
    """Inside the context W0 is in place, so an unload would give the base without its adapter."""
    model = quantized()[1] if four_bits else adapted()
    merge(model, onto="dequantized" if four_bits else None)
    before = model(IDS)
    message = "switched off by disable_adapter: merge and unmerge outside"
    with disable_adapter(model), pytest.raises(ValueError, match=message):
        merge_and_unload(model)
    assert torch.equal(merge_and_unload(model)(IDS), before)


@pytest.mark.parametrize("route", ["dequantized", "original"])
def test_merge_and_unload_of_a_qlora_is_an_ordinary_model(tmp_path, route):
    """Every Linear is a float one again, those without an adapter too."""
    original, model = quantized()
    expected = copy.deepcopy(original)
    if route == "dequantized":
        for name, module in model.named_modules():
            if isinstance(module, NF4Linear) and not name.endswith(".base"):
                expected.get_submodule(name).weight.data = module.weight
    for name, layer in lora_layers(model):
        base = layer.base.weight if route == "dequantized" else original.get_submodule(name).weight
        expected.get_submodule(name).weight.data = base + layer.delta_weight()
    plain = merge_and_unload(model, onto=original if route == "original" else "dequantized")
    assert torch.equal(plain(IDS), expected(IDS))
    assert not any(isinstance(m, NF4Linear) for m in plain.modules())
    assert not any(module.training for module in plain.modules()), "the model was in eval mode"
    minilora.save_model(plain, tmp_path)
    assert torch.equal(minilora.load_base(tmp_path)(IDS), plain(IDS))
    plain.model.layers[0].mlp.up_proj.weight.data.zero_()
    kept = original.model.layers[0].mlp.up_proj.weight
    assert kept.any(), "the original's storage must not be shared"


def test_a_merge_back_into_four_bits_says_what_it_lost():
    """The loss is counted anew here, from the weights before and after."""
    _, model = quantized()
    for _, layer in lora_layers(model):
        layer.lora_B.data *= 0.001  # a small update, as training makes: 3% of the weight
    before, expected = model(IDS), {}
    for name, layer in lora_layers(model):
        delta = layer.delta_weight()
        expected[name] = layer.base.weight + delta, delta, layer.base.packed
    lost = merge_and_requantize(model, inputs=IDS)
    assert [loss.name for loss in lost.losses] == [name for name, _ in lora_layers(model)]
    for loss, (_, layer) in zip(lost.losses, lora_layers(model), strict=True):
        total, delta, packed = expected[loss.name]
        assert isinstance(layer.base, NF4Linear)
        error = (layer.base.weight - total).norm()
        # each of two norms errs by half of it, on either side
        norms = gamma(total.numel() + 4, torch.float32)
        assert loss.of_update == pytest.approx((error / delta.norm()).item(), rel=2 * norms)
        assert loss.of_output == pytest.approx((error / total.norm()).item(), rel=2 * norms)
        changed = (layer.base.packed != packed).float().mean().item()
        assert loss.bytes_changed == pytest.approx(changed)
        assert loss.of_update > 0.5, "most of a small update is lost, hence the report"
    moved = ((model(IDS) - before).norm() / before.norm()).item()
    norms = gamma(before.numel() + 4, torch.float32)
    assert lost.output_difference == pytest.approx(moved, rel=2 * norms)
    assert "lost of ΔW" in str(lost)
    assert "outputs moved by" in str(lost)
    unmerge(model)
    assert torch.equal(model(IDS), before)
    merge_and_requantize(model, keep_base=False)
    assert sum(isinstance(m, NF4Linear) for m in merge_and_unload(model).modules()) == 14


def test_switching_off_a_merged_qlora_gives_the_quantized_base():
    original, model = quantized()
    base = quantize_base(copy.deepcopy(original))(IDS)
    merge(model, onto="dequantized")
    merged = model(IDS)
    with disable_adapter(model):
        assert torch.equal(model(IDS), base)
    assert torch.equal(model(IDS), merged)
    assert torch.equal(minilora.unload(model)(IDS), base)


def test_an_adapted_float_head_beside_quantized_layers_merges_with_them():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 4))
    quantize_base(model, skip=["1"])
    inject(model, LoraConfig(r=2, target_modules=["0", "1"]))
    fill(model)
    x = torch.randn(3, 64)
    before, head, truth = model(x), model[1].base.weight.clone(), exactly(model, x)
    merge(model, onto="dequantized")
    assert_as_close(model(x), before, truth)
    unmerge(model)
    assert torch.equal(model[1].base.weight, head)
    assert torch.equal(model(x), before)


def narrower():
    return minilora.Llama(minilora.LlamaConfig(16, 32, 96, 2, 2))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, r"0\.self_attn\.q_proj is in four bits, where most of ΔW would be .* Say onto="),
        ({"onto": "original"}, f"{WAYS}, got 'original'"),
        ({"onto": narrower()}, r"has shape \(32, 32\) there, expected \(64, 64\)"),
        ({"onto": nn.Linear(2, 2)}, "_proj is not a float Linear there"),
        ({"onto": quantized()[1]}, "_proj is not a float Linear there"),
    ],
)
@pytest.mark.parametrize("action", [merge, merge_and_unload])
def test_a_merge_that_does_not_say_where_to_is_refused(action, settings, message):
    _, model = quantized()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        action(model, **settings)
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_layer_in_four_bits_is_not_merged_alone():
    layer = LoRALayer(NF4Linear.from_linear(nn.Linear(8, 8)))
    message = r"this base is in four bits, which would lose most of ΔW: use minilora\.merge"
    with pytest.raises(ValueError, match=message):
        layer.merge()


def test_onto_and_requantize_are_for_four_bits_only():
    message = "onto and merge_and_requantize are for a base in four bits; this one is in floats"
    with pytest.raises(ValueError, match=message):
        merge(adapted(), onto="dequantized")
    with pytest.raises(ValueError, match=message):
        merge_and_requantize(adapted())


@pytest.mark.parametrize("flag", [True, False])
def test_the_flag_that_changed_the_result_names_the_function_that_replaced_it(flag):
    with pytest.raises(ValueError, match=r"call merge_and_requantize\(model\)"):
        merge(adapted(), requantize=flag)


def test_inputs_that_the_model_cannot_take_leave_it_unmerged():
    _, model = quantized()
    before = model(IDS)
    with pytest.raises(IndexError):
        merge_and_requantize(model, inputs=torch.tensor([[99]]))
    assert not any(layer.merged for _, layer in lora_layers(model))
    assert torch.equal(model(IDS), before)


@pytest.mark.parametrize("keep_base", [True, False])
@pytest.mark.parametrize("fails", [1, 2])
def test_a_measurement_that_fails_leaves_the_model_unmerged(monkeypatch, keep_base, fails):
    """Before the base is back in four bits, or after."""
    _, model = quantized()
    before, calls = {name: t.clone() for name, t in model.state_dict().items()}, []

    def failing(model, inputs):
        calls.append(model)
        if len(calls) == fails:
            raise RuntimeError("out of memory")
        return outputs(model, inputs)

    monkeypatch.setattr("minilora.lora.merging.outputs", failing)
    with pytest.raises(RuntimeError, match="out of memory"):
        merge_and_requantize(model, keep_base, inputs=IDS)
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any(layer.merged or layer.kept for _, layer in lora_layers(model))


@pytest.mark.parametrize("keep_base", [True, False])
def test_a_base_back_in_four_bits_is_kept_or_not(keep_base):
    _, model = quantized()
    merge_and_requantize(model, keep_base)
    for _, layer in lora_layers(model):
        assert isinstance(layer.base, NF4Linear)
        assert bool(layer.kept) == keep_base


class Doubled(nn.Linear):
    """A Linear that does more than its product."""

    def forward(self, x):
        return 2 * super().forward(x)


def test_beside_a_linear_that_does_more_than_its_product_nothing_is_merged():
    model = nn.Sequential(Doubled(4, 4))
    inject(model, LoraConfig(r=1, target_modules=["0"]))
    nn.init.normal_(model[0].lora_B)
    x = torch.randn(2, 4)
    before = model(x)
    with pytest.raises(ValueError, match="0: the forward of Doubled is not x Wᵀ"):
        merge(model)
    assert torch.equal(model(x), before)


def test_a_merged_model_s_state_dict_is_warned_of_and_none_is_loaded_into_it():
    model = nn.Sequential(nn.Linear(4, 4))
    inject(model, LoraConfig(r=1, target_modules=["0"]))
    nn.init.normal_(model[0].lora_B)
    plain = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    merge(model)
    with pytest.warns(UserWarning, match="adds ΔW twice"):
        model.state_dict()
    with pytest.raises(RuntimeError, match="0 is merged: unmerge"):
        model.load_state_dict(plain)
    unmerge(model).load_state_dict(plain)
