"""(IA)³ against PEFT, its merge, and the value that decay pulls towards."""

import peft
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import minilora
from minilora import IA3Config
from minilora.methods.ia3 import IA3Layer

from .peer import Holder, assert_equal_to_peft, bases, pair


@given(bases(), st.booleans())
def test_forward_and_gradients_are_pefts(case, feedforward):
    base, x = case
    modules = {"target_modules": ["lin"], "feedforward_modules": ["lin"] if feedforward else []}
    assert_equal_to_peft(*pair(base, IA3Config(**modules), peft.IA3Config(**modules)), x)


def test_a_merge_scales_the_bias_with_the_output_and_only_with_it():
    x = torch.randn(3, 6)
    for feedforward in (True, False):
        layer = IA3Layer(nn.Linear(6, 4), feedforward)
        nn.init.uniform_(layer.ia3_l, 0.5, 2)
        unmerged, bias = layer(x), layer.bias.detach().clone()
        layer.merge()
        torch.testing.assert_close(layer(x), unmerged)
        expected = bias if feedforward else bias * layer.ia3_l.detach().flatten()
        assert torch.equal(layer.bias, expected)


def test_a_factor_of_zero_is_unmerged_to_the_bit():
    """PEFT divides by l + 1e-8, and gets zeros."""
    layer = IA3Layer(nn.Linear(6, 4))
    weight, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    nn.init.zeros_(layer.ia3_l)
    layer.merge()
    assert not layer.weight.any()
    layer.unmerge()
    assert torch.equal(layer.weight, weight)
    assert torch.equal(layer.bias, bias)


def test_a_feedforward_module_must_be_a_target():
    with pytest.raises(ValueError, match="feedforward_modules: 'up_proj' is no target"):
        IA3Config(target_modules=["k_proj"], feedforward_modules=["up_proj"])
    # a longer name for one of the targets is no mistake
    config = IA3Config(target_modules=["lin"], feedforward_modules=["0.lin"])
    assert config.is_feedforward("layers.0.lin")
    assert not config.is_feedforward("layers.1.lin")


def test_feedforward_by_a_regular_expression():
    model = nn.Sequential(Holder(nn.Linear(4, 2)), Holder(nn.Linear(2, 5)))
    report = minilora.inject(model, IA3Config(target_modules=["lin"], feedforward_modules=r"0\..*"))
    assert [m.parameters for m in report.chosen] == [4, 5]
    assert report.trainable == 9


def test_a_layer_keeps_its_config_and_has_the_papers_without_one():
    config = IA3Config(target_modules=["lin"], feedforward_modules=[])
    assert IA3Layer(nn.Linear(6, 4), False, config).config is config
    assert IA3Layer(nn.Linear(6, 4)).config == IA3Config()


def test_the_representation():
    assert repr(IA3Layer(nn.Linear(6, 4), True)) == "IA3Layer(6 -> 4, feed-forward)"
