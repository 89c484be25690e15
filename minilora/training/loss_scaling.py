"""Loss scaling, without which float16 loses small gradients (arXiv 1710.03740 section 3.2).

    backward of scale · loss        so that no gradient is below 6e-8, where float16 ends
    gradient / scale                in float32, before anything else looks at it
    not finite?                     skip this step and halve the scale
    2000 steps without that?        double it

bfloat16 has float32's range and needs none of this: ``fp16`` is for cards that lack it. The numbers
are those of ``torch.amp.GradScaler``, beside which tests/training/test_loss_scaling.py runs this
one; it is written here because a checkpoint must hold its state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

GROW_AFTER = 2000  # steps without an overflow


@dataclass
class LossScaler:
    """The factor on the loss, and how many steps ago a gradient overflowed.

    >>> scaler = LossScaler()
    >>> scaler.must_skip(finite=False), scaler.scale
    (True, 32768.0)
    """

    scale: float = 2.0**16
    clean: int = 0

    @torch.no_grad()
    def unscale(self, parameters: Sequence[Tensor]) -> None:
        """Divide every gradient by the scale."""
        for p in parameters:
            if p.grad is not None:
                p.grad.mul_(1 / self.scale)

    def must_skip(self, finite: bool) -> bool:
        """Set the scale after a step's gradient, and say whether its step must not be taken.

        Below a scale of 1 the gradient itself is not finite: that is not for a smaller scale.
        """
        if finite:
            self.clean += 1
            if self.clean == GROW_AFTER:
                self.scale, self.clean = 2 * self.scale, 0
            return False
        self.scale, self.clean = self.scale / 2, 0
        return self.scale >= 1
