"""DoRA against PEFT, and on rows of zeros, where PEFT has none."""

import copy

import peft
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import minilora
from minilora import LoraConfig
from minilora.methods.dora import DoRALayer

from ..strategies import alphas, ranks
from .peer import Holder, assert_equal_to_peft, bases, disturb, pair, theirs_of


def config_pair(**fields):
    """Ours and PEFT's."""
    fields = {"target_modules": ["lin"], "use_dora": True, "lora_alpha": 16, **fields}
    return LoraConfig(**fields), peft.LoraConfig(**fields)


@given(bases(), ranks, alphas, st.booleans())
def test_forward_and_gradients_are_pefts(case, r, alpha, rslora):
    base, x = case
    ours, theirs = pair(base, *config_pair(r=r, lora_alpha=alpha, use_rslora=rslora))
    size = ours.lin.delta_weight().abs().max().item() * x.shape[-1]
    assert_equal_to_peft(ours, theirs, x, size=1 + size)


def test_with_dropout_the_bases_term_sees_the_dropped_input_too():
    torch.manual_seed(0)
    base, x = Holder(nn.Linear(30, 8)), torch.randn(5, 30)
    ours, theirs = pair(base, *config_pair(r=2, lora_dropout=0.4))
    y = []
    for model in (ours.train(), theirs.train()):
        torch.manual_seed(1)
        y.append(model(x))
    torch.testing.assert_close(*y, rtol=0, atol=1e-5)


def test_without_training_nothing_is_dropped():
    torch.manual_seed(0)
    ours, _ = pair(Holder(nn.Linear(30, 8)), *config_pair(r=2, lora_dropout=0.4))
    x = torch.randn(5, 30)
    y = ours.eval()(x)
    assert torch.equal(ours(x), y)
    minilora.merge(ours)
    torch.testing.assert_close(ours(x), y, rtol=0, atol=1e-5)


def zero_rows():
    """A model whose Linear has two rows of zeros, as the shipped base has 48."""
    torch.manual_seed(0)
    base = Holder(nn.Linear(6, 4, bias=False))
    base.lin.weight.data[[1, 3]] = 0
    return base


def test_a_row_of_zeros_is_no_nan():
    base, x = zero_rows(), torch.randn(5, 6)
    theirs = theirs_of(base, config_pair(r=2)[1])
    assert theirs(x).isnan().any()  # huggingface/peft #2049
    plain = base(x)
    minilora.inject(base, config_pair(r=2)[0])
    assert torch.equal(base(x), plain)
    assert base.lin.relative_magnitude(base.lin.weight).tolist() == [1, 1, 1, 1]
    base(x).square().sum().backward()
    assert all(p.grad.isfinite().all() for p in base.parameters() if p.requires_grad)
    minilora.merge(base)
    assert torch.equal(base(x), plain)


def test_a_row_of_zeros_can_learn():
    base, x = zero_rows(), torch.randn(50, 6)
    minilora.inject(base, config_pair(r=2)[0])
    target = x @ torch.randn(6, 4)
    optimizer = torch.optim.Adam([p for p in base.parameters() if p.requires_grad], lr=0.05)
    losses = []
    for _ in range(200):
        optimizer.zero_grad()
        loss = (base(x) - target)[:, [1, 3]].square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 4


def test_the_merged_rows_have_the_trained_lengths():
    model = Holder(nn.Linear(7, 5))
    minilora.inject(model, config_pair(r=2)[0])
    disturb(model)
    magnitudes = model.lin.lora_magnitude_vector.detach().abs()
    minilora.merge(model)
    torch.testing.assert_close(model.lin.weight.norm(dim=1), magnitudes)


def test_the_norm_is_a_constant_to_the_gradient():
    """Section 4.3: ∂L/∂B is g times LoRA's."""
    torch.manual_seed(0)
    layer, x = DoRALayer(nn.Linear(6, 4), r=2), torch.randn(3, 6)
    disturb(layer)
    g = layer.relative_magnitude(layer.weight).detach()
    c = torch.randn(3, 4)
    (layer(x) * c).sum().backward()
    expected = (c * g).T @ (x @ layer.lora_A.T) * layer.scaling
    torch.testing.assert_close(layer.lora_B.grad, expected)


def test_it_is_no_low_rank_sum():
    model = Holder(nn.Linear(6, 4))
    minilora.inject(model, config_pair(r=2)[0])
    with pytest.raises(ValueError, match="DoRA multiplies every row"):
        minilora.low_rank_parts(model)
    assert repr(model.lin) == "DoRALayer(6 -> 4, r=2, scaling=8)"


def test_loras_own_inject_refuses_a_variant_instead_of_forgetting_it():
    model = Holder(nn.Linear(6, 4))
    before = copy.deepcopy(model.state_dict())
    for fields in ({"use_dora": True}, {"init_lora_weights": "pissa"}):
        with pytest.raises(ValueError, match="minilora.inject knows LoRA's variants"):
            minilora.lora.inject(model, LoraConfig(target_modules=["lin"], **fields))
    assert model.state_dict().keys() == before.keys()
    assert all(p.requires_grad for p in model.parameters())
