"""VeRA against PEFT: the projections to the bit, forward and gradients."""

import peft
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import minilora
from minilora import VeraConfig
from minilora.methods.vera import VeraProjection

from ..strategies import ranks
from .peer import assert_equal_to_peft, bases, disturb, pair, theirs_of


def config_pair(**fields):
    """Ours and PEFT's."""
    theirs = peft.VeraConfig(**{"save_projection": True, **fields})
    return VeraConfig(**fields), theirs


@given(bases(), ranks, st.integers(0, 9))
def test_forward_and_gradients_are_pefts(case, r, key):
    base, x = case
    configs = config_pair(r=r, projection_prng_key=key, target_modules=["lin"])
    ours, theirs = pair(base, *configs)
    projection = ours.lin.projection
    assert torch.equal(projection.vera_A.float(), theirs.base_model.vera_A["default"].float())
    assert torch.equal(projection.vera_B.float(), theirs.base_model.vera_B["default"].float())
    assert_equal_to_peft(ours, theirs, x, size=10.0)


def test_layers_of_different_shapes_share_one_pair_as_large_as_the_largest():
    base = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 3))
    ours, theirs = pair(base, *config_pair(r=5, target_modules=["0", "2"]))
    assert ours[0].projection is ours[2].projection
    assert [each.shape for each in ours[2].corner()] == [(5, 9), (3, 5)]
    assert_equal_to_peft(ours, theirs, torch.randn(4, 6), size=10.0)
    # moved once, shared still
    assert ours.double()[0].projection.vera_A is ours[2].projection.vera_A


def test_other_targets_draw_another_projection():
    """huggingface/peft #1564: one seed, and yet another A and B."""
    base = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 3))
    theirs = theirs_of(base, peft.VeraConfig(r=2, target_modules=["0"]))
    minilora.inject(base, VeraConfig(r=2, target_modules=["0"]))
    assert base[0].projection.vera_A.shape == (2, 6)
    assert torch.equal(base[0].projection.vera_A, theirs.base_model.vera_A["default"])


def test_the_projections_have_seed_0_unless_told_and_no_place_in_a_state_dict():
    model = nn.Sequential(nn.Linear(6, 4))
    minilora.inject(model, VeraConfig(r=3, target_modules=["0"]))
    projection = model[0].projection
    assert torch.equal(VeraProjection(3, 6, 4).vera_A, projection.vera_A)
    assert not torch.equal(VeraProjection(3, 6, 4, key=1).vera_A, projection.vera_A)
    assert not [name for name in model.state_dict() if "vera_A" in name or "vera_B" in name]


def test_d_starts_where_it_is_told_and_b_at_zero():
    model = nn.Sequential(nn.Linear(6, 4))
    report = minilora.inject(model, VeraConfig(r=3, d_initial=0.7, target_modules=["0"]))
    assert model[0].vera_lambda_d.tolist() == pytest.approx([0.7] * 3)
    assert not model[0].vera_lambda_b.any()
    assert report.trainable == 3 + 4


def test_dropout_is_on_the_adapters_input_and_refuses_a_merge_in_training():
    model = nn.Sequential(nn.Linear(400, 1, bias=False)).train()
    minilora.inject(model, VeraConfig(r=3, vera_dropout=0.5, target_modules=["0"]))
    x = torch.ones(2, 400)
    assert torch.equal(model(x), model[0].base(x))
    nn.init.ones_(model[0].vera_lambda_b)
    assert not torch.equal(model(x)[0], model(x)[1])
    with pytest.raises(ValueError, match=r"vera_dropout=0.5: call model.eval\(\) first"):
        minilora.merge(model)
    minilora.merge(model.eval())
    assert repr(model[0]) == "VeraLayer(400 -> 1, r=3, key=0, dropout=0.5, merged)"


@pytest.mark.parametrize(
    ("fields", "error", "words"),
    [
        ({"r": 0}, ValueError, "r must be at least 1"),
        ({"projection_prng_key": -1}, ValueError, "projection_prng_key must be at least 0"),
        ({"projection_prng_key": 1.5}, TypeError, "whole number"),
        ({"d_initial": float("nan")}, ValueError, "d_initial must be a finite number"),
        ({"d_initial": "0.1"}, TypeError, "d_initial must be a number"),
        ({"save_projection": 1}, TypeError, "save_projection must be True or False"),
        ({"vera_dropout": 1.0}, ValueError, "lora_dropout must be in"),
        ({"target_modules": []}, ValueError, "target_modules is empty"),
    ],
)
def test_values_that_mean_nothing_are_refused(fields, error, words):
    with pytest.raises(error, match=words):
        VeraConfig(**fields)


def test_as_plain_lora_it_has_the_same_update():
    model = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 5))
    minilora.inject(model, VeraConfig(r=3, target_modules=["0", "1"]))
    disturb(model)
    for layer in model:
        plain = layer.as_lora()
        assert (plain.r, plain.scaling) == (3, 1)
        delta = layer.merged_base().weight - layer.weight
        torch.testing.assert_close(plain.delta_weight(), delta, rtol=1e-3, atol=1e-5)
    assert minilora.low_rank_parts(model)["1"].A.shape == (3, 4)
