"""The steps of training, one after the other: whatever has ``requires_grad`` is trained.

    for each step:   the batch that (seed, step) fixes, in parts   (order.py)
                     the loss of the batch, and its gradient       (objective.py)
                     clip the gradient, set the rate, step AdamW   (optimizer.py)
                     yield a record; whoever watches looks at it   (observers.py)

Nothing random survives a step: dropout is seeded by (seed, step, part), the order of examples by
(seed, step). A resumed run therefore continues to the same bits (tests/training/test_loop.py).

Left out: other optimizers.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import nn

from .batches import Batch
from .config import TrainConfig
from .history import Record
from .limits import all_finite
from .loss_scaling import LossScaler
from .objective import mean_over_answers
from .optimizer import rate_at


def steps(
    model: nn.Module,
    batches: Callable[[int], Sequence[Batch]],
    optimizer: torch.optim.Optimizer,
    config: TrainConfig,
    *,
    objective: Callable[[nn.Module, Sequence[Batch]], float] = mean_over_answers,
    schedule: Callable[[int, float], float] | None = None,
    scaler: LossScaler | None = None,
    start: int = 0,
) -> Iterator[Record]:
    """One optimizer step after the other; yields each step's record.

    ``batches(step)`` gives the parts of a step's batch; ``objective(model, parts)`` their loss,
    with its gradient left in the parameters; ``schedule(step, peak)`` the rate of a group. Weights
    change only if loss and gradient are finite. Raises ``NotFinite`` when they are not, or when the
    step leaves weights that are not. With a ``scaler``, by whose scale the objective multiplies its
    loss, a step whose gradient overflows is skipped: its norm is None. A step seeds torch's
    generator.
    """
    rate = schedule or partial(rate_at, config=config)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])  # as torch's own schedules
    for step in range(start, config.steps):
        began = time.perf_counter()
        torch.manual_seed(config.seed * 1_000_003 + step)  # dropout
        optimizer.zero_grad()  # what a failed attempt, or whoever watches, left behind
        parts = batches(step)
        loss = objective(model, parts)
        if scaler is not None:
            scaler.unscale(parameters)
        norm = nn.utils.clip_grad_norm_(parameters, config.clip or math.inf).item()
        skipped = scaler is not None and scaler.must_skip(math.isfinite(norm))
        if not math.isfinite(loss) or not (math.isfinite(norm) or skipped):
            optimizer.zero_grad()
            raise NotFinite(step, loss, norm)
        for group in optimizer.param_groups:
            group["lr"] = rate(step, group["initial_lr"])
        if not skipped:
            optimizer.step()
        optimizer.zero_grad()
        if not all_finite(parameters):
            raise NotFinite(step, loss, norm, weights=True)
        yield {
            "step": step + 1,
            "loss": loss,
            "lr": optimizer.param_groups[0]["lr"],
            "grad_norm": None if skipped else norm,
            "tokens": sum(part.tokens for part in parts),
            "seconds": round(time.perf_counter() - began, 4),
        }


class NotFinite(FloatingPointError):
    """The loss or the gradient of a step is not finite, or what the step made of the weights."""

    def __init__(self, step: int, loss: float, norm: float, weights: bool = False):
        super().__init__(f"step {step + 1}: loss {loss}, gradient norm {norm}")
        self.step, self.loss, self.norm, self.weights = step, loss, norm, weights
