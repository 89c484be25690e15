"""Checker of lesson 07. The oracle: gradient descent with momentum on a linear layer, in NumPy."""

import numpy as np
import torch
from hypothesis.strategies import booleans, floats, integers

from minilora.learn import Wrong, cases, close


def loss_at(W, x, y):
    """L = Σ (x Wᵀ − y)² / (2 tokens)."""
    return np.square(x @ W.T - y).sum() / (2 * len(x))


def descend(W, batches, rate, momentum):
    """Each step's loss before and after its update, and the last W; velocity as in torch's SGD.

    ∂W = (x Wᵀ − y)ᵀ x / tokens.
    """
    before, after, velocity = [], [], np.zeros_like(W)
    for x, y in batches:
        before.append(loss_at(W, x, y))
        velocity = momentum * velocity + (x @ W.T - y).T @ x / len(x)
        W = W - rate * velocity
        after.append(loss_at(W, x, y))
    return np.array(before), np.array(after), W


@cases(
    first={
        "size_in": 5,
        "size_out": 3,
        "steps": 5,
        "rate": 0.1,
        "momentum": 0.7,
        "left_behind": False,
        "seed": 0,
    },
    size_in=integers(1, 5),
    size_out=integers(1, 4),
    steps=integers(2, 6),
    rate=floats(0.02, 0.2),
    momentum=floats(0.1, 0.9),
    left_behind=booleans(),
    seed=integers(0, 999),
)
def check_train_steps(answer, size_in, size_out, steps, rate, momentum, left_behind, seed):
    """Losses and weights after a few steps; sometimes an old gradient is lying around."""
    draw = np.random.default_rng(seed)
    W = draw.normal(size=(size_out, size_in))
    sizes = draw.integers(1, 6, size=steps)
    batches = [(draw.normal(size=(n, size_in)), draw.normal(size=(n, size_out))) for n in sizes]
    right_losses, late_losses, right_W = descend(W, batches, rate, momentum)
    weight = torch.tensor(W, requires_grad=True)
    if left_behind:
        weight.grad = torch.ones_like(weight)

    def loss_of(batch):
        x, y = (torch.tensor(part) for part in batch)
        return (x @ weight.T - y).square().sum() / (2 * len(x))

    case = f"W {W.shape}, {steps} steps" + (", an old gradient in .grad" if left_behind else "")
    losses = answer(loss_of, batches, torch.optim.SGD([weight], lr=rate, momentum=momentum))
    if not isinstance(losses, list | tuple):
        kind = type(losses).__name__
        raise Wrong(f"{case}: expected a list of {steps} floats, got {kind}")
    kinds = sorted({type(loss).__name__ for loss in losses} - {"float"})
    if kinds:
        raise Wrong(
            f"{case}: expected a list of {steps} floats, got {', '.join(kinds)}: a tensor keeps "
            "its whole graph in memory"
        )
    if np.array_equal(weight.detach(), W):
        raise Wrong(f"{case}: W is what it was before the training: its gradient was never used")
    if len(losses) == steps and np.allclose(losses, late_losses):
        raise Wrong(f"{case}: each loss is the one after the step's update, not before it")
    close(np.array(losses), right_losses, what="the losses", case=case)
    close(weight.detach(), right_W, what="the trained W", case=case)


def never_clears(loss_of, batches, optimizer):
    """Gradients pile up."""
    losses = []
    for batch in batches:
        loss = loss_of(batch)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def clears_too_late(loss_of, batches, optimizer):
    """Between backward and step: nothing is left to step with."""
    losses = []
    for batch in batches:
        loss = loss_of(batch)
        loss.backward()
        optimizer.zero_grad()
        optimizer.step()
        losses.append(loss.item())
    return losses


def steps_first(loss_of, batches, optimizer):
    """Each update uses the gradient of the batch before."""
    losses = []
    for batch in batches:
        loss = loss_of(batch)
        optimizer.step()
        optimizer.zero_grad()
        loss.backward()
        losses.append(loss.item())
    return losses


def loss_after(loss_of, batches, optimizer):
    """Reports the loss after the update."""
    losses = []
    for batch in batches:
        optimizer.zero_grad()
        loss_of(batch).backward()
        optimizer.step()
        losses.append(loss_of(batch).item())
    return losses


def clears_after(loss_of, batches, optimizer):
    """Right only where nothing was left behind."""
    losses = []
    for batch in batches:
        loss = loss_of(batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def keeps_tensors(loss_of, batches, optimizer):
    """Every graph stays in memory."""
    losses = []
    for batch in batches:
        loss = loss_of(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss)
    return losses


def as_given(loss_of, batches, optimizer):
    """The loop that the lesson starts from."""
    losses = []
    for batch in batches:
        loss_of(batch).backward()
        optimizer.zero_grad()
        optimizer.step()
        losses.append(loss_of(batch))
    return losses


def order_alone(loss_of, batches, optimizer):
    """One fault of three repaired."""
    losses = []
    for batch in batches:
        optimizer.zero_grad()
        loss_of(batch).backward()
        optimizer.step()
        losses.append(loss_of(batch))
    return losses


WRONG = {
    "train_steps": {
        "never clears": never_clears,
        "clears too late": clears_too_late,
        "steps first": steps_first,
        "loss after": loss_after,
        "clears after": clears_after,
        "keeps tensors": keeps_tensors,
        "as it was given": as_given,
        "one of three repaired": order_alone,
    }
}
