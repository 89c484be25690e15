"""Weights in bfloat16 that hardly move are warned of; those that do, and adapters, are not."""

import warnings

import pytest
import torch

import minilora
from minilora import inject, train
from minilora.training.rounding import AFTER

from .runs import QUICK, TASK

SETTINGS = {**QUICK, "steps": AFTER, "batch_size": 2}


def bf16_base():
    return minilora.load_base(dtype=torch.bfloat16)


def changed(model, before):
    """The share of all weights that differ."""
    pairs = [(p, before[name]) for name, p in model.named_parameters()]
    return sum(int((p != q).sum()) for p, q in pairs) / sum(q.numel() for _, q in pairs)


def test_full_training_in_bfloat16_at_a_small_rate_is_warned_of_with_the_share():
    model = bf16_base()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with pytest.warns(
        UserWarning, match="of the bfloat16 weights have changed in 20 steps"
    ) as seen:
        history = train(model, TASK, lr=1e-5, **SETTINGS)
    said = int(str(seen[0].message).split("%")[0].removeprefix("only "))
    assert said / 100 == pytest.approx(changed(model, before), abs=0.01)
    assert history.warnings == [str(seen[0].message)]


def test_nothing_is_said_where_weights_move_or_an_adapter_learns():
    adapter = bf16_base()
    inject(adapter)
    adapter.to(torch.bfloat16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        moving = train(bf16_base(), TASK, lr=5e-3, **SETTINGS)
        learning = train(adapter, TASK, lr=2e-4, **SETTINGS)
        in_floats = train(minilora.load_base(), TASK, lr=1e-5, **SETTINGS)
    assert [each.warnings for each in (moving, learning, in_floats)] == [[], [], []]
