"""An audit that tells a fine-tune from an unrelated model."""

import copy

import pytest
import torch
from torch import nn

from minilora import LoraConfig, audit, disable_adapter, inject, merge_and_unload, quantize_base

from ..test_foreign import make
from .test_injection import fill, tiny


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_audit_finds_the_rank_and_size_of_a_fine_tune(dtype):
    before = tiny(num_key_value_heads=2).to(dtype).eval()
    after = copy.deepcopy(before)
    inject(after, LoraConfig(r=2))
    fill(after)
    ids = torch.randint(0, 16, (2, 5))
    unmerged = audit(before, after, ids)
    merged = audit(before, merge_and_unload(after), ids)
    names = [f"model.layers.{i}.self_attn.{p}_proj" for i in (0, 1) for p in "qv"]
    for changed in (unmerged, merged):
        assert [change.name for change in changed.changes] == names
        assert {change.rank for change in changed.changes} == {2}
        assert {change.full_rank for change in changed.changes} == {8}
        assert changed.elsewhere == ()
        assert changed.output_difference > 0
    assert "2 of 8" in str(merged)
    assert "outputs differ by" in str(merged)


def test_the_audit_tells_two_unrelated_models_from_a_fine_tune():
    """'The norm is above 1e-5' passes here too; the rank and the size give it away."""
    torch.manual_seed(0)
    changed = audit(nn.Sequential(nn.Linear(64, 64)), nn.Sequential(nn.Linear(64, 64)))
    assert changed.changes[0].rank == 64
    assert 1.3 < changed.changes[0].relative_norm < 1.5
    assert changed.elsewhere == ("0.bias",)
    assert "changed outside the Linears: 0.bias" in str(changed)


def test_the_audit_of_a_model_with_itself_is_empty():
    model = tiny()
    changed = audit(model, copy.deepcopy(model), torch.zeros(1, 3, dtype=torch.long))
    assert changed.changes == ()
    assert changed.output_difference == 0
    assert "no Linear changed" in str(changed)


def test_the_audit_refuses_another_architecture():
    with pytest.raises(ValueError, match="two models of one architecture; these differ: 0"):
        audit(nn.Sequential(nn.Linear(3, 3)), nn.Sequential(nn.Linear(3, 4)))


def test_a_bias_that_only_one_of_them_has_is_a_change():
    plain, biased = nn.Sequential(nn.Linear(3, 3, bias=False)), nn.Sequential(nn.Linear(3, 3))
    biased[0].weight.data = plain[0].weight.data.clone()
    assert audit(plain, biased).elsewhere == audit(biased, plain).elsewhere == ("0.bias",)


def test_the_audit_sees_through_four_bits():
    """Adapters on a quantized base change by ΔW what the codes stand for, and nothing else."""
    before = quantize_base(tiny())
    after = copy.deepcopy(before)
    inject(after, LoraConfig(r=1))
    fill(after)
    changed = audit(before, after)
    assert len(changed.changes) == 4
    assert {change.rank for change in changed.changes} == {1}
    quantized = audit(tiny(), quantize_base(tiny()))
    assert quantized.changes[0].rank > 4, "quantizing is not a low-rank change"


def test_the_audit_knows_gpt2_biases_and_adapters_that_are_switched_off():
    """GPT-2 keeps its weights as (in, out), and a bias has another name inside an adapter."""
    before, _, targets = make("GPT-2")
    after = copy.deepcopy(before)
    inject(after, LoraConfig(r=2, target_modules=targets))
    fill(after)
    assert {change.rank for change in audit(before, after).changes} == {2}
    with disable_adapter(after):
        assert audit(before, after).changes == ()
    after.transformer.h[0].attn.c_attn.base.bias.data += 1
    assert audit(before, after).elsewhere == ("transformer.h.0.attn.c_attn.bias",)
