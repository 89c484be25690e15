"""A fingerprint is the base's alone: adapters, equal values in another dtype and other libraries'
classes do not change it."""

import copy

import pytest
import torch
from torch import nn

import minilora
from minilora import LoraConfig, disable_adapter, inject, merge, merge_and_unload, unload, unmerge
from minilora.formats.base_fingerprint import fingerprint

from ..lora.test_injection import fill, tiny
from .test_save_and_load import pair


def test_it_stays_through_everything_that_leaves_the_base_as_it_was():
    model = tiny(tie_word_embeddings=True)
    before = fingerprint(model)
    inject(model, LoraConfig(target_modules="all-linear"))
    assert fingerprint(model) == before
    fill(model)
    assert fingerprint(merge(model)) == before
    with disable_adapter(model):
        assert fingerprint(model) == before
    assert fingerprint(unmerge(model)) == before
    assert fingerprint(unload(model)) == before
    assert fingerprint(copy.deepcopy(model)) == before


def test_transformers_class_with_the_same_weights_has_the_same():
    ours, theirs = pair()
    assert fingerprint(ours) == fingerprint(theirs)


def test_a_dtype_that_holds_the_same_values_is_no_difference_and_rounding_is():
    stored = tiny().half()
    assert fingerprint(copy.deepcopy(stored).float()) == fingerprint(stored)
    rounded = fingerprint(copy.deepcopy(stored).bfloat16())
    assert rounded.architecture == fingerprint(stored).architecture
    assert rounded.tensors != fingerprint(stored).tensors


def test_a_merge_for_good_leaves_other_tensors_or_none_to_know():
    model = tiny()
    before = fingerprint(model)
    inject(model)
    fill(model)
    merge(model, keep_base=False)
    assert fingerprint(model).architecture == before.architecture
    assert fingerprint(model).tensors == ""
    merge_and_unload(model)
    assert fingerprint(model).tensors not in ("", before.tensors)


@pytest.mark.parametrize(
    "change", [lambda m: m[0].weight.data[0, 0].add_(1e-3), lambda m: m[1].bias.data.neg_()]
)
def test_any_value_counts(change):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    before = fingerprint(model)
    change(model)
    assert fingerprint(model).tensors != before.tensors
    assert fingerprint(model).architecture == before.architecture


def test_names_and_shapes_are_the_architecture():
    models = (
        nn.Sequential(nn.Linear(3, 4)),
        nn.Sequential(nn.Linear(4, 3)),
        nn.Sequential(nn.Linear(3, 4, bias=False)),
        nn.ModuleDict({"one": nn.Linear(3, 4)}),
    )
    assert len({fingerprint(model).architecture for model in models}) == 4


def test_tied_weights_count_once():
    tied, untied = tiny(), tiny(tie_word_embeddings=False)
    untied.load_state_dict(tied.state_dict())
    assert fingerprint(untied).architecture != fingerprint(tied).architecture


def test_a_base_in_four_bits_is_the_same_architecture_with_the_tensors_it_stands_for():
    model = tiny(num_key_value_heads=2)
    floats = fingerprint(model)
    minilora.quantize_base(model)
    packed = fingerprint(model)
    assert packed.architecture == floats.architecture
    assert packed.tensors != floats.tensors
    inject(model)
    fill(model)
    assert fingerprint(model) == packed
    assert fingerprint(merge(model, onto="dequantized")) == packed
    assert fingerprint(unmerge(model)) == packed
    with torch.no_grad():
        again = tiny(num_key_value_heads=2)
        for name, module in unload(model).named_modules():
            if hasattr(module, "quantized"):
                again.get_submodule(name).weight.copy_(module.weight)
            else:
                again.get_submodule(name).load_state_dict(module.state_dict(), strict=False)
    assert fingerprint(again) == packed, "dequantized, it is the same base in floats"


def test_an_adapter_of_qlora_is_used_on_the_float_base_with_a_word_about_it(tmp_path):
    torch.manual_seed(0)
    floats = tiny()
    model = minilora.quantize_base(copy.deepcopy(floats))
    inject(model)
    fill(model)
    minilora.save_adapter(model, tmp_path)
    minilora.load_adapter(minilora.quantize_base(copy.deepcopy(floats)), tmp_path, strict=True)
    with pytest.warns(UserWarning, match="one quantized or rounded otherwise"):
        minilora.load_adapter(copy.deepcopy(floats), tmp_path)
    with pytest.raises(ValueError, match="one quantized or rounded otherwise"):
        minilora.load_adapter(floats, tmp_path, strict=True)
