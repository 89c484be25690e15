"""How the next token is chosen: the likeliest one, or one drawn with a temperature.

    p(token) = softmax(logits / temperature)

The lower the temperature, the more often the likeliest token is drawn; 0 always takes it. ``top_k``
draws from the k likeliest only. ``top_p`` draws from the nucleus, the smallest set of the likeliest
whose probabilities sum to p (arXiv 1904.09751, section 3.1); with both, from the k likeliest's.

Left out: penalties for repetition, min-p, beam search.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen, and when to stop. Raises ``ValueError`` where it means nothing."""

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_k: int | None = None
    seed: int = 0
    ends: tuple[int, ...] = ()  # tokens that end a row
    use_cache: bool = True
    top_p: float | None = None

    def __post_init__(self) -> None:
        check_sampling(self.max_new_tokens, self.temperature, self.top_k, self.top_p)


def check_sampling(
    max_new_tokens: int, temperature: float, top_k: int | None, top_p: float | None = None
) -> None:
    """Raise ``ValueError`` on sampling settings that mean nothing."""
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
    if temperature != 0 and not 1e-6 <= temperature < float("inf"):
        raise ValueError(
            f"temperature must be 0 (greedy) or a finite number of at least 1e-6, got {temperature}"
        )
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k must be at least 1, or None for all tokens, got {top_k}")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p must be above 0 and at most 1, or None, got {top_p}")


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
    p = logits.softmax(dim=-1)
    if top_p is not None and top_p < 1:
        p = nucleus(p, top_p)
    return torch.multinomial(p, 1, generator=random)[:, 0]


def nucleus(p: Tensor, top_p: float) -> Tensor:
    """(batch, vocab) probabilities, 0 outside the smallest set of the likeliest that reach p."""
    likeliest, order = p.sort(dim=-1, descending=True, stable=True)
    above = likeliest.cumsum(dim=-1) - likeliest  # what the likelier ones have together
    return p.masked_fill(
        torch.zeros_like(p, dtype=torch.bool).scatter(-1, order, above >= top_p), 0
    )
