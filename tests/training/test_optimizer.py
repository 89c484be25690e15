"""The rate rises in a line and falls in a cosine; only matrices decay; every group follows."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import minilora
from minilora import TrainConfig, train
from minilora.training.optimizer import build_optimizer, rate_at

from .runs import QUICK, TASK


def test_norms_and_biases_are_not_decayed():
    parameters = dict(minilora.load_base().named_parameters())
    groups = build_optimizer(parameters, lr=1e-3, weight_decay=0.5).param_groups
    decays = [(group["weight_decay"], {p.dim() for p in group["params"]}) for group in groups]
    assert decays == [(0.5, {2}), (0.0, {1})]
    assert sum(len(group["params"]) for group in groups) == len(parameters)


def test_each_group_knows_its_peak_and_an_empty_one_is_left_out():
    matrix, vector = torch.ones(2, 2, requires_grad=True), torch.ones(2, requires_grad=True)
    for parameters in ({"a": matrix}, {"b": vector}, {"a": matrix, "b": vector}):
        groups = build_optimizer(parameters, lr=0.25).param_groups
        assert [len(group["params"]) for group in groups] == [1] * len(parameters)
        assert {(group["lr"], group["initial_lr"]) for group in groups} == {(0.25, 0.25)}
        assert {group["weight_decay"] for group in groups} == {0.0}


def test_it_is_adamw_with_the_usual_betas_unless_others_are_given():
    parameters = {"a": torch.ones(2, 2, requires_grad=True)}
    optimizer = build_optimizer(parameters, lr=0.1)
    assert type(optimizer) is torch.optim.AdamW
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.999)
    assert build_optimizer(parameters, 0.1, betas=(0.5, 0.6)).param_groups[0]["betas"] == (0.5, 0.6)


def test_every_group_has_the_rate_of_the_step(optimizer_steps):
    """Norms and biases are a group of their own, and follow the schedule too."""
    history = train(minilora.load_base(), TASK, steps=3, lr=1e-3, **QUICK)
    rates = [rates for _, rates in optimizer_steps]
    assert rates == [[record["lr"]] * 2 for record in history.steps]


def test_the_rate_rises_in_a_line_and_falls_in_a_cosine():
    config = TrainConfig(steps=100, lr=2.0, warmup=0.1)
    rates = [rate_at(step, config.lr, config) for step in range(100)]
    assert rates[:10] == pytest.approx([0.2 * i for i in range(1, 11)])
    assert all(a > b > 0 for a, b in itertools.pairwise(rates[9:]))
    assert rates[54] == pytest.approx(1.0, abs=0.03)


@given(st.integers(1, 300), st.floats(0, 1), st.floats(1e-6, 10))
def test_the_rate_is_the_formula_of_the_paper(steps, warmup, peak):
    """The peak is reached once, no step is wasted on a rate of zero, and the cosine is eq. 5."""
    config = TrainConfig(steps=steps, warmup=warmup)
    rates = [rate_at(step, peak, config) for step in range(steps)]
    warm = max(1, round(warmup * steps))
    assert all(0 < rate <= peak * (1 + 1e-15) for rate in rates)
    assert rates[warm - 1] == pytest.approx(peak)
    falling = steps + 1 - warm
    for after in range(1, falling):
        share = 0.5 + 0.5 * math.cos(math.pi * after / falling)
        assert rates[warm - 1 + after] == pytest.approx(peak * share)
