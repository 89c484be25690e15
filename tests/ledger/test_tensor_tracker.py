"""What a step keeps alive, and when: sums on paper are the oracle."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import minilora
from minilora import ledger


def test_the_peak_is_the_largest_sum_of_live_tensors():
    def step():
        first = torch.empty(100, dtype=torch.float32)
        second = first + 1  # 400 + 400
        del first
        third = torch.cat([second, second])  # 400 + 800
        del second, third
        return torch.empty(10)

    measured = ledger.measure(step, nn.Linear(2, 2, bias=False))
    assert measured.at_peak["temporary"] == measured.peaks["temporary"] == 1200
    assert measured.resident == dict.fromkeys(ledger.CATEGORIES, 0) | {"weights": 16}
    assert measured.peak == 1216
    assert "1,216" in str(measured)


def test_a_result_that_autograd_keeps_is_an_activation_from_the_moment_it_is_the_peak():
    """exp keeps its result, a temporary at first: no byte comes or goes when it changes role."""
    x = torch.ones(100, requires_grad=True)
    measured = ledger.measure(lambda: x.exp(), nn.Linear(2, 2))
    assert (measured.at_peak["activations"], measured.at_peak["temporary"]) == (400, 0)


def test_a_step_of_an_mlp_costs_what_the_sum_on_paper_says():
    model = nn.Sequential(nn.Linear(64, 32, bias=False), nn.ReLU(), nn.Linear(32, 16, bias=False))
    optimizer = torch.optim.AdamW(model.parameters())

    def step():
        model(torch.ones(10, 64)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    measured = ledger.measure(step, model, optimizer)
    weights = 4 * (64 * 32 + 32 * 16)
    assert measured.resident == dict.fromkeys(ledger.CATEGORIES, 0) | {
        "weights": weights,
        "optimizer": 2 * weights + 2 * 4,
    }
    assert measured.peaks["gradients"] == weights
    # the input, ReLU's result, the output that is squared
    assert measured.peaks["activations"] == 4 * 10 * (64 + 32 + 16)
    assert measured.peak >= weights + 2 * weights + weights + 8
    assert measured == ledger.measure(step, model, optimizer)


def test_an_optimizer_that_the_ledger_was_not_told_of_is_found_when_it_steps():
    model = nn.Linear(8, 8, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    def step():
        model(torch.ones(1, 8)).sum().backward()
        optimizer.step()

    assert ledger.measure(step, model).resident["optimizer"] == 256
    assert ledger.measure(step, model).resident["gradients"] == 256  # nobody set them to None


def test_frozen_weights_that_autograd_keeps_are_still_weights(base):
    minilora.inject(base)
    ids = torch.zeros(1, 16, dtype=torch.long)
    measured = ledger.measure(lambda: F.cross_entropy(base(ids)[0], ids[0]).backward(), base)
    assert measured.peaks["weights"] == 4 * 1_304_192
    assert measured.peaks["adapters"] == measured.peaks["gradients"] == 4 * 21_504


def test_checkpointing_keeps_the_inputs_and_one_recomputed_part():
    """Sigmoid's result is the next Linear's input: two tensors a part, and the first input."""

    def part():
        return nn.Sequential(nn.Linear(64, 64), nn.Sigmoid(), nn.Linear(64, 64), nn.Sigmoid())

    model = nn.Sequential(*(part() for _ in range(4)))
    one = 4 * 10 * 64

    def forward(x, checkpointed):
        for part in model:
            x = checkpoint(part, x, use_reentrant=False) if checkpointed else part(x)
        return x.sum()

    def activations(checkpointed):
        x = torch.ones(10, 64, requires_grad=True)
        measured = ledger.measure(lambda: forward(x, checkpointed).backward(), model)
        return measured.peaks["activations"]

    assert activations(False) == (1 + 4 * 2) * one
    # the parts' inputs, and what the last part computes again
    assert activations(True) == (4 + 2) * one


def test_measuring_leaves_nothing_behind(base):
    before = torch.autograd.graph.saved_tensors_hooks.__init__
    with pytest.raises(RuntimeError, match="half-way"):
        ledger.measure(lambda: (_ for _ in ()).throw(RuntimeError("half-way")), base)
    assert torch.autograd.graph.saved_tensors_hooks.__init__ is before
    assert not any(p._post_accumulate_grad_hooks for p in base.parameters())
