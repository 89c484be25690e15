"""BitFit: the gradients of biases that torch itself trains, on a base with biases or without."""

import copy

import peft
import torch
from hypothesis import given
from torch import nn

import minilora
from minilora import BitFitConfig
from minilora.methods.bitfit import BitFitLayer

from ..tolerance import gamma
from .peer import Holder, bases, disturb, theirs_of


@given(bases())
def test_forward_and_gradient_are_those_of_a_bias(case):
    """An ordinary Linear with bias b0 + b, and its ∂L/∂b."""
    base, x = case
    plain = copy.deepcopy(base).float()
    minilora.inject(base, BitFitConfig(target_modules=["lin"]))
    disturb(base)
    delta, own = base.lin.bias_delta, plain.lin.bias
    plain.lin.bias = nn.Parameter(delta.detach() + (0 if own is None else own.detach()))
    y, expected = base(x), plain(x.float())
    size = (x.float().abs() @ plain.lin.weight.abs().T).max() + plain.lin.bias.abs().max() + 1
    bound = gamma(x.shape[-1] + 6, x.dtype) * size
    assert ((y.float() - expected).abs() <= bound).all()
    c = torch.randn(y.shape)
    (y.float() * c).sum().backward()
    (expected * c).sum().backward()
    rows = x.numel() // x.shape[-1]
    limit = gamma(rows + 4, x.dtype) * (c.abs().sum() + 1)
    assert (delta.grad - plain.lin.bias.grad).abs().max() <= limit


def test_where_the_base_has_biases_it_trains_as_pefts_bias_all_does():
    torch.manual_seed(0)
    base, x, y = Holder(nn.Linear(6, 4)), torch.randn(20, 6), torch.randn(20, 4)
    theirs = theirs_of(base, peft.LoraConfig(r=1, target_modules=["lin"], bias="all"))
    minilora.inject(base, BitFitConfig(target_modules=["lin"]))
    bias = theirs.base_model.model.lin.base_layer.bias
    losses = []
    for model, trained in ((base, base.lin.bias_delta), (theirs, bias)):
        optimizer = torch.optim.Adam([trained], lr=0.05)
        losses.append([])
        for _ in range(10):
            optimizer.zero_grad()
            loss = (model(x) - y).square().mean()
            loss.backward()
            optimizer.step()
            losses[-1].append(loss.item())
    assert max(abs(a - b) for a, b in zip(*losses, strict=True)) < 1e-6


def test_peft_drops_biases_that_the_base_does_not_have_and_ours_do_not_need_them():
    base = Holder(nn.Linear(6, 4, bias=False))
    theirs = theirs_of(base, peft.LoraConfig(r=1, target_modules=["lin"], bias="all"))
    assert not any("bias" in name for name, _ in theirs.named_parameters())
    state = peft.get_peft_model_state_dict(theirs)
    state["base_model.model.lin.base_layer.bias"] = torch.ones(4)
    result = peft.set_peft_model_state_dict(theirs, state)
    assert not any("bias" in name for name, _ in theirs.named_parameters())  # no error, no bias
    assert "missing" not in str(result.missing_keys)
    report = minilora.inject(base, BitFitConfig(target_modules=["lin"]))
    assert report.trainable == 4


def test_a_merge_adds_to_the_bias_that_is_there():
    layer = BitFitLayer(nn.Linear(6, 4))
    disturb(layer)
    expected = layer.bias.detach() + layer.bias_delta.detach()
    layer.merge()
    assert torch.equal(layer.bias, expected)


def test_a_merge_gives_the_linear_a_bias_and_unmerge_takes_it_back():
    layer, x = BitFitLayer(nn.Linear(6, 4, bias=False)), torch.randn(3, 6)
    disturb(layer)
    unmerged = layer(x)
    layer.merge()
    torch.testing.assert_close(layer(x), unmerged)
    assert layer.base.bias is not None
    layer.unmerge()
    assert layer.base.bias is None
    assert repr(layer) == "BitFitLayer(6 -> 4)"
