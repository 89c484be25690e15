"""Norm tuning against PEFT, on LayerNorm and on a Llama's RMSNorm."""

import copy

import peft
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import minilora
from minilora import LNTuningConfig, LoraConfig
from minilora.methods.norm_tuning import NormLayer
from minilora.model.transformer import RMSNorm

from ..strategies import seeds
from .peer import Holder, assert_equal_to_peft, disturb, pair


@given(seeds, st.integers(1, 20), st.sampled_from(["layer", "layer, no bias", "rms"]))
@pytest.mark.filterwarnings("ignore:Unsupported layer type")
def test_forward_and_gradients_are_pefts(seed, width, kind):
    torch.manual_seed(seed)
    norm = RMSNorm(width, 1e-5) if kind == "rms" else nn.LayerNorm(width, bias=kind == "layer")
    base = Holder(norm)
    configs = LNTuningConfig(target_modules=["lin"]), peft.LNTuningConfig(target_modules=["lin"])
    ours, theirs = pair(base, *configs)
    # RMSNorm computes in float32 in PEFT's float64 copy too
    assert_equal_to_peft(ours, theirs, 3 * torch.randn(4, width), size=20.0)


def test_merge_unmerge_and_unload_to_the_bit():
    model, x = Holder(RMSNorm(6, 1e-5)), torch.randn(3, 6)
    plain, before = model(x), copy.deepcopy(model.state_dict())
    report = minilora.inject(model, LNTuningConfig(target_modules=["lin"]))
    assert report.trainable == 6
    assert torch.equal(model(x), plain)
    disturb(model)
    tuned = model(x)
    with minilora.disable_adapter(model):
        assert torch.equal(model(x), plain)
    minilora.merge(model)
    assert torch.equal(model(x), tuned)
    with minilora.disable_adapter(model):
        assert torch.equal(model(x), plain)
    minilora.unload(model)
    assert torch.equal(model.state_dict()["lin.weight"], before["lin.weight"])


def test_norms_and_linears_do_not_mix():
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    with pytest.raises(ValueError, match="'0' matches 0, a Linear: only norms can be adapted"):
        minilora.inject(model, LNTuningConfig(target_modules=["0"]))
    with pytest.raises(ValueError, match="a LayerNorm: only Linears and Embeddings can be adapted"):
        minilora.inject(model, LoraConfig(target_modules=["1"]))
    with pytest.raises(ValueError, match="did you mean 'norm'.*norms of this model: norm"):
        minilora.inject(one_norm(), LNTuningConfig(target_modules=["nrom"]))
    with pytest.raises(TypeError, match="expected a norm with a weight, got Linear"):
        NormLayer(nn.Linear(2, 2))


def one_norm():
    """A model with one norm of that name."""
    model = nn.Module()
    model.norm = nn.LayerNorm(4)
    return model


def test_a_norm_without_weights_is_none_to_tune():
    model = nn.Sequential(nn.LayerNorm(4, elementwise_affine=False))
    with pytest.raises(ValueError, match="only norms can be adapted"):
        minilora.inject(model, LNTuningConfig(target_modules=["0"]))


def test_the_audit_names_the_norms_that_changed():
    before = one_norm()
    after = copy.deepcopy(before)
    minilora.inject(after, LNTuningConfig(target_modules=["norm"]))
    assert minilora.audit(before, after).elsewhere == ()
    after.norm.tuned_weight.data += 1
    audit = minilora.audit(before, after)
    assert audit.elsewhere == ("norm.weight",)
    assert not audit.changes


def test_a_layer_freezes_its_base():
    layer = NormLayer(nn.LayerNorm(4))
    assert not any(p.requires_grad for p in layer.base.parameters())
    assert sum(p.requires_grad for p in layer.parameters()) == 2


def test_the_representation():
    assert repr(NormLayer(nn.LayerNorm(4))) == "NormLayer(4)"
