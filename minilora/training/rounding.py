"""Updates that rounding swallows: weights in bfloat16 that hardly move.

    w + u = w   in bfloat16, wherever |u| < |w| / 512        (8 bits of mantissa)

AdamW moves a weight by about the rate. A weight of 0.02 at a rate of 2e-5 stays where it is, step
after step, though loss and gradient look as ever. Adapters are spared: B begins at zero.

Left out: the cures, which are float32 weights with ``bf16=True`` (what the warning advises),
stochastic rounding and Kahan sums.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from .checkpoint import State
from .history import Record

AFTER = 20  # steps
SHARE = 0.2  # of the weights that had a gradient; fewer have moved: warn
SAMPLE = 4096  # weights of each tensor that are watched


class Standstill:
    """Warns, once, when few of the bfloat16 weights have changed after ``AFTER`` steps."""

    def __init__(self, state: State):
        half = [p for p in state.parameters.values() if p.dtype == torch.bfloat16]
        self.watched = [(p, sample(p).clone()) for p in half]
        self.state, self.steps = state, 0

    def __call__(self, record: Record) -> None:
        """One step is done."""
        self.steps += 1
        if self.steps != AFTER or not self.watched:
            return
        share = self.moved()
        self.watched = []
        if share < SHARE:
            message = (
                f"only {share:.0%} of the bfloat16 weights have changed in {AFTER} steps: updates "
                "below 1/512 of a weight are rounded away. Train float32 weights, "
                "load_base(dtype=torch.float32), with bf16=True for the speed; or a larger lr"
            )
            self.state.history.warnings.append(message)
            warnings.warn(message, stacklevel=2)

    def moved(self) -> float:
        """The share of watched weights that differ from what they were, of those with a gradient.

        An embedding has none for tokens that no example holds.
        """
        changed = learning = 0
        moments = self.state.optimizer.state
        for p, before in [(p, before) for p, before in self.watched if p in moments]:
            had_gradient = sample(moments[p]["exp_avg_sq"]) > 0
            changed += int(((sample(p) != before) & had_gradient).sum())
            learning += int(had_gradient.sum())
        return changed / max(1, learning)


def sample(p: Tensor) -> Tensor:
    """At most ``SAMPLE`` weights of a tensor, evenly spread."""
    flat = p.detach().flatten()
    return flat[:: -(-len(flat) // SAMPLE)]
