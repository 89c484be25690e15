"""The ledger counts what is there: PEFT, bitsandbytes and sums by hand are the oracles."""

import dataclasses

import pytest
import torch
from torch import nn

import minilora
from minilora import LoraConfig, NF4Linear, ledger
from minilora.ledger.measurement import Tally, parts

from ..lora.test_adapter_layer import Scaled, ToyConfig


def test_the_base_is_counted_with_its_tied_head_once(base):
    counted = ledger.count(base)
    assert counted.total == Tally(1_304_192, 1_304_192, 4 * 1_304_192)
    assert counted.by_group["model.embed_tokens"].parameters == 1536 * 128
    assert "lm_head" not in counted.by_group
    assert counted.by_group["model.layers.*.mlp.up_proj"].parameters == 6 * 128 * 352
    assert set(counted.by_dtype) == {"float32"}


def test_adapters_are_a_group_of_their_own_and_agree_with_peft(base):
    import peft
    import transformers

    report = minilora.inject(base, LoraConfig(r=8, target_modules="all-linear"))
    counted = ledger.count(base)
    assert (counted.total.trainable, counted.total.parameters) == (report.trainable, report.total)
    in_q = counted.by_group["model.layers.*.self_attn.q_proj.lora"]
    assert in_q == Tally(12_288, 12_288, 4 * 12_288)
    config = peft.LoraConfig(r=8, target_modules=["c_attn"], fan_in_fan_out=True)
    with torch.device("meta"):
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config())
        theirs = peft.get_peft_model(model, config, low_cpu_mem_usage=True)
    assert theirs.get_nb_trainable_parameters() == (294_912, 124_734_720)
    total = ledger.count(theirs).total
    assert (total.trainable, total.parameters) == (294_912, 124_734_720)


def test_packed_bytes_are_bytes_and_never_parameters():
    model = nn.Sequential(NF4Linear(128, 256, bias=False), nn.Linear(256, 2).to(torch.bfloat16))
    counted = ledger.count(model)
    assert counted.by_group["*"].parameters == 128 * 256 + 256 * 2 + 2
    assert counted.by_dtype["uint8"] == Tally(128 * 256, 0, 128 * 256 // 2 + 512)
    assert counted.by_dtype["float32"] == Tally(0, 0, 2 * 4 + 4)
    assert counted.by_dtype["bfloat16"] == Tally(514, 514, 1028)


def test_the_4_bit_layers_of_bitsandbytes_count_what_they_stand_for():
    import bitsandbytes

    layer = bitsandbytes.nn.Linear4bit(
        128, 64, bias=False, quant_type="nf4", compress_statistics=True
    )
    layer.load_state_dict({"weight": torch.randn(64, 128)})
    counted = ledger.count(layer.to("cpu")).total
    assert counted.parameters == 64 * 128
    # codes, 128 scales of one byte, one second scale, the offset
    assert counted.bytes == 64 * 128 // 2 + 128 + 4 + 4


def test_a_storage_that_two_tensors_share_is_stored_once():
    model = nn.Linear(4, 4, bias=False)
    model.register_buffer("view", model.weight.detach().view(-1))
    model.register_buffer("apart", torch.zeros(3))
    assert ledger.count(model).total == Tally(16, 16, 64 + 12)


def test_bytes_on_the_meta_device_are_what_they_would_be(base):
    with torch.device("meta"):
        shapes = minilora.Llama(base.config)
    assert ledger.count(shapes).total == ledger.count(base).total


def test_what_was_counted_and_measured_prints_as_aligned_columns():
    layer = nn.Linear(8, 4)
    counted = ledger.count(layer)
    lines = str(counted).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[-1].split() == ["total", "36", "36", "144"]
    assert counted.share == 1.0
    measured = ledger.measure(lambda: layer(torch.ones(2, 8)).sum().backward(), layer)
    lines = str(measured).splitlines()
    assert len({len(line) for line in lines[:-1]}) == 1
    assert lines[-1].split()[1:] == [f"{sum(measured.resident.values()):,}", f"{measured.peak:,}"]


def test_a_record_is_not_changed_afterwards():
    """A count that a later line of the program changed would not be a measurement."""
    layer = nn.Linear(2, 1)
    counted = ledger.count(layer)
    part, measured = next(ledger.measurement.parts(layer)), ledger.measure(lambda: None, layer)
    for record in (counted, counted.total, part, measured):
        for field in dataclasses.fields(record):
            with pytest.raises(dataclasses.FrozenInstanceError):
                setattr(record, field.name, 0)


def test_the_share_of_one_parameter_is_one_and_of_none_is_zero():
    assert ledger.count(nn.Linear(1, 1, bias=False)).share == 1.0
    assert ledger.count(nn.ReLU()).share == 0.0


def test_what_stands_beside_a_tied_weight_counts_all_the_same():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    assert ledger.count(model).total == Tally(16 + 4 + 4, 16 + 4 + 4, 4 * (16 + 4 + 4))


def test_scales_are_constants_and_codes_are_weights():
    """In both layouts; a buffer with only the name of a scale or of codes is an ordinary one."""
    import bitsandbytes

    theirs = bitsandbytes.nn.Linear4bit(
        128, 64, bias=False, quant_type="nf4", compress_statistics=True
    )
    theirs.load_state_dict({"weight": torch.randn(64, 128)})
    for layer in (NF4Linear(128, 64, bias=False), theirs.to("cpu")):
        resident = ledger.measure(lambda: None, layer).resident
        assert (resident["weights"], resident["constants"]) == (128 * 64 // 2, 128 + 4 + 4)
    plain = nn.Linear(4, 2, bias=False)
    plain.register_buffer("packed", torch.zeros(3))
    plain.register_buffer("offset", torch.zeros(5))
    assert ledger.count(plain).total == Tally(8, 8, 4 * (8 + 3 + 5))
    resident = ledger.measure(lambda: None, plain).resident
    assert (resident["weights"], resident["constants"]) == (4 * (8 + 3 + 5), 0)


def test_gradients_that_were_there_before_the_step_are_counted():
    layer = nn.Linear(8, 4, bias=False)
    layer.weight.grad = torch.ones(4, 8)
    assert ledger.measure(lambda: None, layer).resident["gradients"] == 4 * 8 * 4


def test_a_method_that_nobody_told_the_ledger_of_is_an_adapter_all_the_same():
    """By its names it was a weight: only those of the methods here were known."""
    model = nn.Sequential(nn.Linear(3, 2))
    minilora.inject(model, ToyConfig(target_modules=["0"], kind=Scaled))
    assert ledger.count(model).by_group["*.adapter"] == Tally(4, 4, 16)
    assert [part.category for part in parts(model)] == ["adapters"] * 2 + ["weights"] * 2
