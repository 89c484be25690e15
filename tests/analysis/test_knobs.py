"""Random knobs: the identity at first, the gradient by hand, one set for a shared parameter."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import minilora
from minilora import data
from minilora.analysis.knobs import fix_knobs, install_knobs

from ..lora.test_injection import tiny


def test_a_model_with_knobs_at_zero_computes_what_it_did_to_the_bit():
    model = tiny(tie_word_embeddings=True).eval()
    ids = torch.randint(0, 16, (2, 5))
    before = model(ids)
    z = install_knobs(model, 10)
    assert torch.equal(model(ids), before)
    assert [p for p in model.parameters() if p.requires_grad] == [z]


def test_the_gradient_of_a_knob_is_the_signed_sum_of_its_weights():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)).double()
    plain = copy.deepcopy(model)
    z = install_knobs(model, 5, seed=3)
    z.data = z.data.double()
    x = torch.randn(6, 4, dtype=torch.float64)
    plain(x).square().sum().backward()
    model(x).square().sum().backward()
    expected = np.zeros(5)
    for index in (0, 2):
        for name in ("weight", "bias"):
            knobs = model[index].parametrizations[name][0]
            gradient = (knobs.signs * getattr(plain[index], name).grad).numpy()
            np.add.at(expected, knobs.which.numpy(), gradient)
    np.testing.assert_allclose(z.grad, expected)


def test_fixed_knobs_are_ordinary_weights_and_shared_ones_stay_shared():
    model = tiny(tie_word_embeddings=True).eval()
    names = [name for name, _ in model.named_parameters()]
    z = install_knobs(model, 7)
    nn.init.normal_(z, std=0.1)
    ids = torch.randint(0, 16, (2, 5))
    with torch.no_grad():
        turned = model(ids)
    fix_knobs(model)
    assert [name for name, _ in model.named_parameters()] == names
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert type(model.lm_head) is nn.Linear
    assert torch.equal(model(ids), turned)
    with pytest.raises(ValueError, match="has no knobs"):
        fix_knobs(model)


def test_train_turns_the_knobs_and_nothing_else():
    model = minilora.load_base()
    z = install_knobs(model, 1000)
    task = data.naval_log(8, 1)
    minilora.train(model, task, steps=2, batch_size=4, validate_every=0, progress=False)
    assert z.abs().max() > 0
    base, fixed = minilora.load_base(), fix_knobs(model)
    moved = (fixed.lm_head.weight - base.lm_head.weight).detach()
    # each entry moved by ± one of the knobs, to the rounding of a sum
    nearest = (moved.abs().flatten()[:50, None] - z.detach().abs()).abs().amin(1)
    assert nearest.max() < 1e-6


@pytest.mark.parametrize("d", [0, 10**9])
def test_a_number_of_knobs_that_means_nothing_is_refused(d):
    with pytest.raises(ValueError, match="d must be from 1 to the model's"):
        install_knobs(tiny(), d)
