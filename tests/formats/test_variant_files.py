"""DoRA, PiSSA and OLoRA in LoRA's files: both ways with PEFT, and never read as plain LoRA."""

import copy
import json

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

import minilora
from minilora import LoraConfig, inject, load_adapter, save_adapter
from minilora.lora.adapter_layer import adapter_layers
from minilora.lora.layer import LoRALayer
from minilora.methods.dora import DoRALayer
from minilora.methods.pissa import ResidualLoRALayer

from ..methods.peer import disturb, give, theirs_of
from ..tolerance import assert_as_close, exactly
from .test_save_and_load import IDS, pair

FIELDS = {
    "dora": {"use_dora": True},
    "dora rslora": {"use_dora": True, "use_rslora": True, "rank_pattern": {"v_proj": 5}},
    "pissa": {"init_lora_weights": "pissa"},
    "olora rslora": {"init_lora_weights": "olora", "use_rslora": True},
}
each = pytest.mark.parametrize("name", FIELDS)


def fields(name):
    """A config for q and v."""
    common = {"r": 3, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj"]}
    return {**common, **FIELDS[name]}


def trained(name):
    """A small Llama with the variant, as after training, and its base twice, ours and PEFT's."""
    ours, theirs = pair()
    base = copy.deepcopy(ours)
    inject(ours, LoraConfig(**fields(name)))
    disturb(ours, 0.1)
    return ours, base, theirs


@each
def test_our_folder_opens_in_peft_with_equal_logits(tmp_path, name):
    ours, _, theirs = trained(name)
    save_adapter(ours, tmp_path)
    loaded = peft.PeftModel.from_pretrained(theirs, tmp_path).eval()
    assert_as_close(ours(IDS), loaded(input_ids=IDS).logits, exactly(loaded, IDS))


@each
def test_pefts_folder_opens_here_with_equal_logits(tmp_path, name):
    """Of PiSSA's the start is computed again from the base, here and there."""
    ours, base, theirs = trained(name)
    theirs = theirs_of(theirs, peft.LoraConfig(**fields(name))).eval()
    give(theirs, ours)
    theirs.save_pretrained(tmp_path)
    loaded = load_adapter(copy.deepcopy(base), tmp_path)
    assert type(next(adapter_layers(loaded))[1]) is type(next(adapter_layers(ours))[1])
    truth = exactly(theirs, IDS)
    # the residual base was rounded once more in PEFT
    assert (loaded(IDS) - truth).abs().max() <= 1e-4 * truth.abs().max()
    assert not torch.equal(loaded(IDS), base(IDS))


@each
def test_saved_and_loaded_is_the_same(tmp_path, name):
    ours, base, _ = trained(name)
    save_adapter(ours, tmp_path)
    again = load_adapter(base, tmp_path)
    kind = DoRALayer if "dora" in name else LoRALayer
    assert type(next(adapter_layers(again))[1]) is kind
    torch.testing.assert_close(again(IDS), ours(IDS), rtol=0, atol=1e-5)
    if kind is DoRALayer:
        assert torch.equal(again(IDS), ours(IDS))


def test_pissa_is_written_as_plain_lora_of_twice_the_rank(tmp_path):
    ours, _, _ = trained("pissa")
    save_adapter(ours, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["use_dora"]) == (6, 12, False)
    assert "init_lora_weights" not in config
    save_adapter(ours, tmp_path / "plain", plain=True)
    assert load_file(tmp_path / "plain/adapter_model.safetensors").keys() == {
        *load_file(tmp_path / "adapter_model.safetensors")
    }
    parts = minilora.low_rank_parts(ours)
    assert {len(part.A) for part in parts.values()} == {6}


def test_dora_is_not_plain_lora(tmp_path):
    ours, _, _ = trained("dora")
    with pytest.raises(ValueError, match="DoRA multiplies every row"):
        save_adapter(ours, tmp_path, plain=True)


def changed(folder, change=None, tensors=None):
    """Other fields, or other tensors."""
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | (change or {})))
    if tensors:
        file = folder / "adapter_model.safetensors"
        save_file(tensors({k: v.clone() for k, v in load_file(file).items()}), file)


BAD = {
    "no magnitudes": (
        {}, lambda t: {k: v for k, v in t.items() if "magnitude" not in k},
        "lora_magnitude_vector is missing"),
    "magnitudes without use_dora": (
        {"use_dora": False}, None, "magnitudes of DoRA, and its config does not say use_dora"),
    "a magnitude of another shape": (
        {}, lambda t: {k: v[:-1].clone() if "magnitude" in k else v for k, v in t.items()},
        r"lora_magnitude_vector has shape \(23,\), expected \(24,\)"),
    "a start that is not read": (
        {"init_lora_weights": "pissa_niter_4", "use_dora": False}, None, "changes the base"),
    "a start that is no word": ({"init_lora_weights": "corda"}, None, "changes the base"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_does_not_fit_is_named_and_nothing_is_changed(tmp_path, name):
    change, tensors, words = BAD[name]
    ours, base, _ = trained("dora")
    save_adapter(ours, tmp_path)
    changed(tmp_path, change, tensors)
    before = copy.deepcopy(base.state_dict())
    with pytest.raises(ValueError, match=words):
        load_adapter(base, tmp_path)
    assert all(torch.equal(t, before[n]) for n, t in base.state_dict().items())


def test_one_variants_file_does_not_go_into_anothers_layers(tmp_path):
    ours, base, theirs = trained("dora")
    save_adapter(ours, tmp_path / "dora")
    inject(base, LoraConfig(**fields("pissa")))
    with pytest.raises(ValueError, match=r"a ResidualLoRALayer in this model.*use_dora=True"):
        load_adapter(base, tmp_path / "dora")
    plain = {**fields("pissa"), "init_lora_weights": True}
    theirs_of(theirs, peft.LoraConfig(**plain)).save_pretrained(tmp_path / "lora")
    for fresh in (base, ours):
        with pytest.raises(ValueError, match=r"in this model, the file use_dora=False"):
            load_adapter(fresh, tmp_path / "lora")
    assert type(next(adapter_layers(base))[1]) is ResidualLoRALayer


def test_a_bank_and_a_sum_refuse_them_by_name(tmp_path):
    from minilora.formats.peft_files import read_adapter_files
    from minilora.serving.adapter_files import check_additive

    ours, _, theirs = trained("dora")
    save_adapter(ours, tmp_path / "dora")
    with pytest.raises(ValueError, match="holds DoRA"):
        check_additive(read_adapter_files(tmp_path / "dora"))
    theirs_of(theirs, peft.LoraConfig(**fields("pissa"))).save_pretrained(tmp_path / "pissa")
    with pytest.raises(ValueError, match="A and B of a changed base"):
        check_additive(read_adapter_files(tmp_path / "pissa"))


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_a_start_from_the_float_weight_is_not_read_beside_four_bits(tmp_path, start):
    """PEFT refuses a base in four bits; A0 and B0 of the rounded weight are further off than ΔW."""
    name = "pissa" if start == "pissa" else "olora rslora"
    ours, base, theirs = trained(name)
    theirs = theirs_of(theirs, peft.LoraConfig(**fields(name))).eval()
    give(theirs, ours)
    theirs.save_pretrained(tmp_path)
    packed = minilora.quantize_base(copy.deepcopy(base))
    with pytest.raises(ValueError, match=f"init_lora_weights='{start}' began with a part of the"):
        load_adapter(packed, tmp_path)
    assert not list(adapter_layers(packed))
