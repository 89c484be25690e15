"""Rotary positions: each pair of numbers of a query or key is turned by position · frequency.

    f_i = theta^(-2i/d)                      i = 0 … d/2 - 1

RoFormer (arXiv 2104.09864) eq. 15, in the half-split layout of Hugging Face: number i pairs with
number i + d/2. The product of a query and a key then depends on their distance alone.

A model meets longer texts than it was trained on if its angles stay in the range it knows. Two
ways are here. *Linear* (arXiv 2306.15595) divides every frequency by a factor. *llama3* (Llama 3.1)
looks at the turns that a pair makes within the original context L, ``t = L f / 2π``. Fast pairs,
which tell neighbours apart, keep their frequency; slow ones are divided; between low and high the
two are mixed::

    keep = clamp((t - low) / (high - low), 0, 1)
    f'   = keep · f + (1 - keep) · f / factor

Left out: dynamic NTK, YaRN, LongRoPE, rotations of a part of the head.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class RopeScaling:
    """How the frequencies are stretched, under the field names of Hugging Face.

    The last three fields belong to ``llama3``. Raises ``ValueError`` on another ``rope_type``, and
    where ``high_freq_factor`` is not above ``low_freq_factor``.
    """

    rope_type: str  # linear or llama3
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192

    def __post_init__(self) -> None:
        if self.rope_type not in ("linear", "llama3"):
            raise ValueError(f"rope_type must be 'linear' or 'llama3', got {self.rope_type!r}")
        if self.high_freq_factor <= self.low_freq_factor:
            raise ValueError(
                f"high_freq_factor={self.high_freq_factor} must be above "
                f"low_freq_factor={self.low_freq_factor}"
            )


def frequencies(exponents: Tensor, theta: float, scaling: RopeScaling | None) -> Tensor:
    """``theta^-exponent``, stretched; of (d/2) exponents as many frequencies."""
    plain = 1.0 / theta**exponents
    if scaling is None:
        return plain
    if scaling.rope_type == "linear":
        return plain / scaling.factor
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    turns = scaling.original_max_position_embeddings * plain / (2 * math.pi)
    keep = ((turns - low) / (high - low)).clamp(0, 1)
    return keep * plain + (1 - keep) * plain / scaling.factor


def rotary_angles(
    head_dim: int, theta: float, positions: Tensor, scaling: RopeScaling | None = None
) -> tuple[Tensor, Tensor]:
    """cos and sin of position · frequency, each (batch, 1, time, head_dim), for ``rotate``.

    ``positions`` is (batch, time), or (1, time) where all rows stand at the same places.
    """
    exponents = torch.arange(0, head_dim, 2, device=positions.device).float() / head_dim
    turn = frequencies(exponents, theta, scaling)
    angles = positions[:, None, :, None].float() * turn  # (batch, 1, time, head_dim / 2)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair ``(a, b) = (x[i], x[i + d/2])`` to ``(a cos - b sin, b cos + a sin)``.

    x: (batch, heads, time, head_dim). Rolling by half brings b under a and a under b; the minus
    stands in the first half of ``sin``.
    """
    return x * cos.to(x.dtype) + x.roll(x.shape[-1] // 2, -1) * sin.to(x.dtype)
