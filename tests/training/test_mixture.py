"""The mixed loss against its formula by hand; shares of rows, exact on average, and of tokens."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis.strategies import floats, integers

from minilora.training.batches import IGNORE, Encoded, pad
from minilora.training.loss_scaling import LossScaler
from minilora.training.mixture import (
    TASK,
    MixedLoss,
    Part,
    divergence,
    label_tokens,
    rows_until,
    shares,
)

from .runs import equal, filled

TASK_ROWS = pad([Encoded([5, 6, 7, 8], [IGNORE, IGNORE, 7, 8]), Encoded([9, 3], [IGNORE, 3])])
MORE_TASK = pad([Encoded([4, 4, 4], [IGNORE, 4, 4])])
OLD_ROWS = pad([Encoded([11, 12, 13], [11, 12, 13])])
WINDOWS = pad([Encoded([21, 22, 23, 24], [21, 22, 23, 24])])


def part(batch, source, weight, teacher=None):
    """A part of a step."""
    return Part(batch.ids, batch.labels, batch.segments, batch.padding, source, weight, teacher)


def log_probabilities(model, batch):
    """log q (rows, time - 1, vocab) of every next token, by the model's ordinary forward."""
    return torch.log(torch.softmax(model(batch.ids)[:, :-1], dim=-1))


def by_hand(model, teacher):
    """(4 · L_task + 1 · L_old + 3 · KL) / 8, each token by token."""
    loss = torch.zeros(())
    spoken, tokens = torch.zeros(()), 0
    for batch in (TASK_ROWS, MORE_TASK):
        q = log_probabilities(model, batch)
        for row in range(len(batch.ids)):
            for time, label in enumerate(batch.labels[row, 1:].tolist()):
                if label != IGNORE:
                    spoken, tokens = spoken - q[row, time, label], tokens + 1
    loss = loss + 4 / 8 * spoken / tokens
    q = log_probabilities(model, OLD_ROWS)[0]
    loss = loss + 1 / 8 * -(q[0, 12] + q[1, 13]) / 2
    q = log_probabilities(model, WINDOWS)[0]
    p = torch.softmax(teacher, dim=-1)
    apart = sum((p[i] * (torch.log(p[i]) - q[i])).sum() for i in range(3))
    return loss + 3 / 8 * apart / 3


def test_the_loss_and_its_gradient_are_the_formula_by_hand():
    torch.manual_seed(0)
    model = filled().double()
    teacher = torch.randn(3, 1536, dtype=torch.float64)
    parts = [
        part(TASK_ROWS, TASK, 4 / 8),
        part(OLD_ROWS, "examples", 1 / 8),
        part(MORE_TASK, TASK, 4 / 8),
        part(WINDOWS, "windows", 3 / 8, teacher),
    ]
    expected = by_hand(model, teacher)
    trained = [p for p in model.parameters() if p.requires_grad]
    right = torch.autograd.grad(expected, trained)
    objective = MixedLoss()
    loss = objective(model, parts)
    # the losses themselves are taken in float32
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    for p, gradient in zip(trained, right, strict=True):
        torch.testing.assert_close(p.grad, gradient, rtol=1e-4, atol=1e-6)
    losses = objective.losses
    weighted = 4 / 8 * losses[TASK] + 1 / 8 * losses["examples"] + 3 / 8 * losses["windows"]
    assert loss == pytest.approx(weighted)


def test_a_source_in_two_parts_is_one_mean():
    """Parts of unequal length must not change the objective."""
    model = filled()
    one = MixedLoss()
    both = pad([Encoded([5, 6, 7, 8], [IGNORE, IGNORE, 7, 8]), Encoded([4, 4], [IGNORE, 4])])
    whole = one(model, [part(both, TASK, 1.0)])
    whole_gradient = {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}
    model.zero_grad()
    halves = [pad([Encoded(both.ids[0].tolist(), both.labels[0].tolist())])]
    halves.append(pad([Encoded([4, 4], [IGNORE, 4])]))
    assert one(model, [part(half, TASK, 1.0) for half in halves]) == pytest.approx(whole, rel=1e-5)
    for name, p in model.named_parameters():
        if p.requires_grad:
            torch.testing.assert_close(p.grad, whole_gradient[name], rtol=1e-3, atol=1e-5)


def test_the_divergence_is_zero_at_the_teacher_and_asks_to_cover_it():
    teacher = torch.tensor([[4.0, 4.0, -9.0]])  # two likely tokens
    assert divergence(teacher, teacher + 2.5).item() == pytest.approx(0, abs=1e-6)
    narrow, wide = torch.tensor([[9.0, -9.0, -9.0]]), torch.tensor([[4.0, 4.0, 4.0]])
    # a model that lost one of the two is far off; the other direction would prefer it
    assert divergence(teacher, narrow) > 8 * divergence(teacher, wide)
    assert divergence(narrow, teacher) < divergence(teacher, narrow)


def test_the_weight_of_a_part_scales_its_gradient():
    gradients = []
    for weight in (1.0, 0.25):
        model = filled()
        MixedLoss()(model, [part(OLD_ROWS, "examples", weight)])
        gradients.append(
            {n: p.grad / weight for n, p in model.named_parameters() if p.requires_grad}
        )
    assert equal(*gradients)  # a quarter is exact in binary


def test_a_scaled_loss_scales_the_gradient_and_not_what_is_told():
    """By a power of 2, so to the bit; in float32 here, to see nothing but the scale."""
    gradients, told = [], []
    for scaler in (None, LossScaler(scale=1024.0)):
        model, objective = filled(), MixedLoss(scaler=scaler)
        objective.dtype = None
        parts = [part(OLD_ROWS, "examples", 0.5), part(TASK_ROWS, TASK, 0.5)]
        told.append((objective(model, parts), dict(objective.losses)))
        scale = 1.0 if scaler is None else scaler.scale
        gradients.append(
            {n: p.grad / scale for n, p in model.named_parameters() if p.requires_grad}
        )
    assert told[0] == told[1]
    assert equal(*gradients)


def test_a_steps_record_has_the_loss_of_each_source():
    objective = MixedLoss()
    objective.losses = {TASK: 1.5, "windows": 0.25}
    assert list(objective.noted(iter([{"step": 1}, {"step": 2}]))) == [
        {"step": 1, "task_loss": 1.5, "windows_loss": 0.25},
        {"step": 2, "task_loss": 1.5, "windows_loss": 0.25},
    ]


@given(
    task_rows=integers(1, 64),
    share=floats(0.01, 0.9),
    other=floats(0, 0.09),
    steps=integers(1, 400),
)
def test_a_share_is_reached_on_average_over_the_steps(task_rows, share, other, steps):
    all_shares = share + other
    until = [rows_until(step, task_rows, share, all_shares) for step in range(steps + 1)]
    due = steps * task_rows * share / (1 - all_shares)
    assert due - 1 < until[-1] <= due + 1e-5
    each = [after - before for before, after in pairwise(until)]
    assert max(each) - min(each) <= 1  # even, not in bursts


def test_the_share_in_tokens_counts_what_is_learnt():
    answer = Encoded([1, 2, 3, 4], [IGNORE, IGNORE, 3, 4])
    window = Encoded([1, 2, 3, 4, 5, 6, 7], [1, 2, 3, 4, 5, 6, 7])
    assert label_tokens([answer]) == 2
    assert label_tokens([window]) == 6
    [(rows, tokens)] = shares([answer], [(0.25, [window])])
    assert rows == 0.25
    assert tokens == pytest.approx(0.25 * 6 / (0.25 * 6 + 0.75 * 2))
