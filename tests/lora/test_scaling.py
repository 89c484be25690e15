"""The dial: ΔW times a factor, the base at 0, and nothing changed by an error."""

import pytest
import torch
from torch import nn

import minilora
from minilora import LoraConfig, disable_adapter, inject, merge, scale_adapter
from minilora.lora.layer import LoRALayer, lora_layers


def adapted():
    """Two Linears with adapters that are not zero."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3))
    inject(model, LoraConfig(r=2, lora_alpha=3, target_modules=["0", "1"]))
    for _, layer in lora_layers(model):
        nn.init.normal_(layer.lora_B)
    return model


@pytest.mark.parametrize("factor", [0.8, 1, 0.5, -1.0, 0])
def test_every_update_is_the_factor_times_what_it_was(factor):
    model = adapted()
    before = [layer.delta_weight() for _, layer in lora_layers(model)]
    assert scale_adapter(model, factor) is model
    for old, (_, layer) in zip(before, lora_layers(model), strict=True):
        torch.testing.assert_close(layer.delta_weight(), factor * old)


def test_at_zero_the_model_is_its_base_to_the_bit():
    model, x = adapted(), torch.randn(4, 6)
    scale_adapter(model, 0)
    scaled = model(x)
    with disable_adapter(model):
        assert torch.equal(model(x), scaled)


def test_one_module_is_linear_in_the_factor():
    """On one Linear the outputs move on a line from the base's to the adapted."""
    torch.manual_seed(1)
    model = nn.Sequential(LoRALayer(nn.Linear(4, 3), r=2))
    nn.init.normal_(model[0].lora_B)
    x = torch.randn(5, 4)
    full, base = model(x), model[0].base(x)
    half = scale_adapter(model, 0.5)(x)
    torch.testing.assert_close(half, (full + base) / 2)


@pytest.mark.parametrize("factor", [float("nan"), float("inf"), "1", None, True])
def test_a_factor_that_is_not_a_number_changes_nothing(factor):
    model = adapted()
    before = [layer.delta_weight() for _, layer in lora_layers(model)]
    with pytest.raises(ValueError, match="factor must be a finite number"):
        scale_adapter(model, factor)
    after = [layer.delta_weight() for _, layer in lora_layers(model)]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_without_an_adapter_or_merged_it_is_refused():
    with pytest.raises(ValueError, match="no adapter"):
        scale_adapter(nn.Linear(2, 2), 0.5)
    model = adapted()
    merge(model)
    with pytest.raises(ValueError, match="is merged"):
        scale_adapter(model, 0.5)


def test_of_a_mixed_model_nothing_is_changed():
    class Other(LoRALayer):
        """A method of its own."""

    model = nn.Sequential(LoRALayer(nn.Linear(4, 4), r=1), Other(nn.Linear(4, 4), r=1))
    nn.init.ones_(model[0].lora_B)
    with pytest.raises(ValueError, match="1 is a Other"):
        scale_adapter(model, 0.5)
    assert torch.equal(model[0].lora_B, torch.ones(4, 1))


def test_a_scaled_adapter_is_saved_as_it_is(tmp_path):
    model = minilora.load_base()
    inject(model, LoraConfig(r=2))
    for _, layer in lora_layers(model):
        nn.init.normal_(layer.lora_B)
    scale_adapter(model, 0.25)
    minilora.save_adapter(model, tmp_path)
    again = minilora.load_base()
    minilora.load_adapter(again, tmp_path)
    pairs = zip(lora_layers(model), lora_layers(again), strict=True)
    assert all(torch.equal(a.delta_weight(), b.delta_weight()) for (_, a), (_, b) in pairs)


def test_whole_parameters_that_train_too_are_not_left_behind_in_silence():
    base = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    inject(base, LoraConfig(r=1, target_modules=["0"], modules_to_save=["1"]))
    before = base[0].lora_B.clone()
    with pytest.raises(ValueError, match="1.weight trains too.* Nothing was changed"):
        scale_adapter(base, 0.5)
    assert torch.equal(base[0].lora_B, before)
