"""Which token comes next: the likeliest, or one drawn with a temperature.

    p(token) = softmax(logits / temperature)      over the top_k likeliest tokens, of these over
                                                  the fewest that together reach top_p

The lower the temperature, the more often the likeliest token is drawn; 0 always takes it. ``top_p``
is nucleus sampling (arXiv 1904.09751 section 3.1): where the model is sure, few tokens are drawn
from, where it is not, many.

Left out: penalties for repetition, beam search.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real

import torch
from torch import Tensor

from ..checks import is_number


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen, and when to stop. Raises ``ValueError`` where it means nothing."""

    max_new_tokens: int
    temperature: float
    top_k: int | None
    seed: int
    ends: tuple[int, ...]
    use_cache: bool
    top_p: float | None = None

    def __post_init__(self) -> None:
        check_sampling(self.max_new_tokens, self.temperature, self.top_k, self.top_p)
        if not is_number(self.seed, Integral) or not -(2**63) <= self.seed < 2**64:
            raise ValueError(f"seed must be a whole number of 64 bits, got {self.seed!r}")


def ends_of(eos_id: int | Sequence[int] | None) -> tuple[int, ...]:
    """The tokens that end a row; none without one."""
    if eos_id is None:
        return ()
    return (eos_id,) if isinstance(eos_id, int) else tuple(eos_id)


def check_sampling(
    max_new_tokens: int, temperature: float, top_k: int | None, top_p: float | None = None
) -> None:
    """Raise ``ValueError`` on sampling settings that mean nothing."""
    if not is_number(max_new_tokens, Integral) or max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1, got {max_new_tokens!r}")
    finite = is_number(temperature, Real) and temperature < math.inf
    if not finite or not (temperature == 0 or temperature >= 1e-6):
        raise ValueError(
            "temperature must be 0 (greedy) or a finite number of at least 1e-6, "
            f"got {temperature!r}"
        )
    if top_k is not None and (not is_number(top_k, Integral) or top_k < 1):
        raise ValueError(f"top_k must be at least 1, or None for all tokens, got {top_k!r}")
    if top_p is not None and not (is_number(top_p, Real) and 0 < top_p <= 1):
        raise ValueError(f"top_p must be above 0 and at most 1, or None, got {top_p!r}")


def sample(
    logits: Tensor,
    temperature: float,
    top_k: int | None,
    random: torch.Generator,
    top_p: float | None = None,
) -> Tensor:
    """One token id for each row of (batch, vocab) logits."""
    if temperature == 0:
        return logits.argmax(dim=-1)
    logits = logits.float() / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        floor = logits.topk(top_k, dim=-1).values[:, -1:]  # (batch, 1)
        logits = logits.masked_fill(logits < floor, -torch.inf)
    if top_p is not None and top_p < 1:
        logits = nucleus(logits, top_p)
    return torch.multinomial(logits.softmax(dim=-1), 1, generator=random)[:, 0]


def nucleus(logits: Tensor, top_p: float) -> Tensor:
    """(batch, vocab) logits, −∞ outside the fewest likeliest tokens that together reach top_p."""
    ordered, places = logits.sort(dim=-1, descending=True)
    p = ordered.softmax(dim=-1)
    outside = p.cumsum(dim=-1) - p >= top_p  # likelier tokens reach it already
    outside[:, 0] = False  # the first stays, also where top_p is 0 in the logits' precision
    return logits.masked_fill(outside.scatter(-1, places, outside), -torch.inf)
