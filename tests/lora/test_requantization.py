"""Re-quantizing loses a small update (the model-wide test is in lora/test_merging.py)."""

import dataclasses

import pytest
import torch
from torch import nn

from minilora import LoRALayer, NF4Linear
from minilora.lora.requantization import Requantized, loss_of, outputs, quantize_like

from ..test_foreign import make


def layer_with_update(scale):
    torch.manual_seed(0)
    layer = LoRALayer(
        NF4Linear.from_linear(nn.Linear(256, 256), block_size=128, double_quant=False, kind="fp4"),
        r=4,
    )
    nn.init.normal_(layer.lora_B, std=scale)
    return layer


def loss_after(name, layer):
    merged = layer.merged_base()
    return loss_of(name, layer, None, merged.weight, quantize_like(layer.base, merged))


def test_it_is_put_back_as_it_was_packed():
    layer = layer_with_update(0.1)
    again = quantize_like(layer.base, layer.merged_base())
    assert (again.kind, again.block_size, again.absmax2) == ("fp4", 128, None)
    assert torch.equal(again.bias, layer.base.bias)
    layer.eval().base.compute_dtype = torch.bfloat16
    again = quantize_like(layer.base, layer.merged_base())
    assert (again.compute_dtype, again.training) == (torch.bfloat16, False)


def test_the_smaller_the_update_the_more_of_it_is_lost():
    losses = []
    for scale in (1e-3, 1e-2, 1e-1):
        layer = layer_with_update(scale)
        losses.append(loss_after("x", layer))
    assert losses[0].of_update > losses[1].of_update > losses[2].of_update
    assert losses[0].bytes_changed < losses[1].bytes_changed < losses[2].bytes_changed
    assert losses[0].of_update > 0.9


def test_the_shares_are_of_the_update_and_of_the_whole_however_small_they_are():
    """Both norms are below 1 here, where a floor that is too high would hide them."""
    torch.manual_seed(0)
    small = nn.Linear(64, 64)
    small.weight.data *= 0.01
    layer = LoRALayer(NF4Linear.from_linear(small), r=2)
    nn.init.normal_(layer.lora_B, std=1e-4)
    merged = layer.merged_base().weight
    loss = loss_after("x", layer)
    lost = (quantize_like(layer.base, layer.merged_base()).weight - merged).norm()
    assert loss.of_update == pytest.approx((lost / layer.delta_weight().norm()).item(), rel=1e-3)
    assert loss.of_output == pytest.approx((lost / merged.norm()).item(), rel=1e-3)
    assert merged.norm() < 1


def test_the_report_cannot_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Requantized((), None).losses = None


def test_the_report_reads_as_a_table():
    layer = layer_with_update(0.01)
    report = str(Requantized((loss_after("q_proj", layer),), 0.25))
    assert report.splitlines()[0].split("  ")[0] == "module"
    assert "q_proj" in report
    assert "moved by 25.0%" in report


def test_outputs_are_taken_without_dropout_and_the_mode_is_put_back():
    model = nn.Sequential(nn.Dropout(0.9)).train()
    assert torch.equal(outputs(model, torch.ones(50)), torch.ones(50))
    assert model.training


def test_outputs_of_transformers_are_their_logits():
    model, inputs, _ = make("Llama")
    assert torch.equal(outputs(model, inputs["input_ids"]), model(**inputs).logits)
