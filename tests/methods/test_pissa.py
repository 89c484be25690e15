"""PiSSA and OLoRA: PEFT's numbers, the base left alone, the conversion to plain LoRA."""

import copy

import peft
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import minilora
from minilora import LoraConfig
from minilora.lora.layer import LoRALayer
from minilora.methods.pissa import ResidualLoRALayer, principal

from ..strategies import alphas, seeds, sizes
from .peer import Holder, assert_equal_to_peft, bases, disturb, pair, theirs_of

starts = st.sampled_from(["pissa", "olora"])


def config_pair(**fields):
    """Ours and PEFT's."""
    fields = {"target_modules": ["lin"], "lora_alpha": 16, **fields}
    return LoraConfig(**fields), peft.LoraConfig(**fields)


@given(bases(dtypes=(torch.float32,)), starts, st.integers(1, 6), alphas, st.booleans())
def test_forward_and_gradients_are_pefts(case, start, r, alpha, rslora):
    """PEFT's B A is the trained one on the residual base; ours is taken off the whole one."""
    base, x = case
    r = min(r, *base.lin.weight.shape)
    fields = {"r": r, "lora_alpha": alpha, "use_rslora": rslora, "init_lora_weights": start}
    ours, theirs = pair(base, *config_pair(**fields))
    layer = ours.lin
    size = layer.scaling * (layer.lora_B.abs() @ layer.lora_A.abs()).max().item() * x.shape[-1]
    assert_equal_to_peft(ours, theirs, x, size=10 * (1 + size))


@given(bases(), starts, st.integers(1, 6))
def test_it_starts_as_its_base_to_the_bit_in_every_dtype(case, start, r):
    base, x = case
    plain, r = base(x), min(r, *base.lin.weight.shape)
    minilora.inject(base, config_pair(r=r, init_lora_weights=start)[0])
    assert torch.equal(base(x), plain)
    assert base.lin.lora_B.any()


def test_pefts_disabled_adapter_is_no_longer_its_base_and_ours_is():
    torch.manual_seed(0)
    base, x = Holder(nn.Linear(6, 4)), torch.randn(3, 6)
    theirs = theirs_of(base, config_pair(r=2, init_lora_weights="pissa")[1])
    with theirs.disable_adapter():
        assert (theirs(x) - base(x)).abs().max() > 0.01
    ours, plain = copy.deepcopy(base), base(x)
    minilora.inject(ours, config_pair(r=2, init_lora_weights="pissa")[0])
    disturb(ours)
    with minilora.disable_adapter(ours):
        assert torch.equal(ours(x), plain)


@given(sizes, sizes, seeds, alphas)
def test_the_start_is_the_best_approximation_of_its_rank(rows, width, seed, scaling):
    """Eckart and Young: what is left has the singular values from r + 1 on."""
    torch.manual_seed(seed)
    weight, r = torch.randn(rows, width), min(2, rows, width)
    A, B = principal(weight, r, scaling)
    rest = torch.linalg.svdvals(weight - scaling * B @ A)
    expected = torch.linalg.svdvals(weight)[r:]
    torch.testing.assert_close(rest[: len(expected)], expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("start", ["pissa", "olora"])
@pytest.mark.parametrize("rslora", [False, True])
def test_as_plain_lora_it_has_twice_the_rank_and_the_same_update(start, rslora):
    layer = ResidualLoRALayer(nn.Linear(7, 5), 2, 6, 0.0, rslora, start)
    disturb(layer)
    plain = layer.as_lora()
    assert type(plain) is LoRALayer
    assert plain.r == 4
    assert plain.scaling == pytest.approx(layer.scaling)
    torch.testing.assert_close(plain.delta_weight(), layer.delta_weight())
    assert torch.linalg.matrix_rank(layer.delta_weight()) == 4


def test_dropout_is_on_the_trained_side_only():
    torch.manual_seed(0)
    base, x = Holder(nn.Linear(30, 8)), torch.randn(5, 30)
    ours, theirs = pair(base, *config_pair(r=2, lora_dropout=0.4, init_lora_weights="pissa"))
    y = []
    for model in (ours.train(), theirs.train()):
        torch.manual_seed(1)
        y.append(model(x))
    torch.testing.assert_close(*y, rtol=0, atol=1e-5)


def test_a_rank_that_the_weight_does_not_have_is_refused():
    model = Holder(nn.Linear(6, 4))
    with pytest.raises(ValueError, match=r"r=5 is above min\(in, out\) = 4"):
        minilora.inject(model, config_pair(r=5, init_lora_weights="pissa")[0])
    assert type(model.lin) is nn.Linear
    assert all(p.requires_grad for p in model.parameters())


def test_its_defaults_are_loras():
    plain, layer = LoRALayer(nn.Linear(20, 20)), ResidualLoRALayer(nn.Linear(20, 20))
    fields = ("r", "lora_alpha", "lora_dropout", "use_rslora", "scaling")
    assert [getattr(layer, f) for f in fields] == [getattr(plain, f) for f in fields]
    assert layer.start == "pissa"


def test_the_representation_tells_the_start():
    layer = ResidualLoRALayer(nn.Linear(7, 5), 2, start="olora")
    assert repr(layer) == "ResidualLoRALayer(olora, 7 -> 5, r=2, scaling=8)"


def test_one_variant_at_a_time_and_only_those_there_are():
    with pytest.raises(ValueError, match="choose one"):
        LoraConfig(use_dora=True, init_lora_weights="pissa")
    with pytest.raises(ValueError, match="must be True, 'pissa' or 'olora', got 'corda'"):
        LoraConfig(init_lora_weights="corda")
    with pytest.raises(TypeError, match="use_dora must be True or False"):
        LoraConfig(use_dora=1)
