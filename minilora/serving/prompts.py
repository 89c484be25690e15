"""The prompts of a request as token ids, and what can be known of them before that.

A token is at least one byte and at most ``longest_token``, so a text's bytes bound its tokens::

    bytes / longest_token  ≤  tokens  ≤  bytes

What is too long by its lower bound, for the model or for the tenant's quota, is refused before a
second is spent on it (a text of a megabyte takes one).
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from .protocol import ChatRequest, CompletionRequest
from .refusals import Refused

MOST_ANSWERS = 64
Asked = ChatRequest | CompletionRequest


def least_prompts(asked: Asked, model: Any) -> list[int]:
    """The fewest tokens that each prompt can have. Raises ``Refused`` for one that cannot fit."""
    positions = model.config.max_position_embeddings
    least = asked.least_tokens(longest_token(model.tokenizer))
    if max(least) > positions:
        message = f"this model has {positions} positions, and the prompt takes at least"
        raise too_long(asked, f"{message} {max(least):,}")
    return least


def checked_prompts(asked: Asked, model: Any) -> list[list[int]]:
    """The prompts' ids. Raises ``Refused``."""
    try:
        prompts = asked.prompts(model.tokenizer)
    except ValueError as error:  # a template that refuses these messages
        raise Refused(400, str(error), param=asked.param) from error
    if (answers := len(prompts) * (asked.n or 1)) > MOST_ANSWERS:
        raise Refused(400, f"expected at most {MOST_ANSWERS} answers, got {answers}", param="n")
    positions = model.config.max_position_embeddings
    if (longest := max(map(len, prompts))) >= positions:
        message = f"this model has {positions} positions, and the prompt takes {longest}"
        raise too_long(asked, message)
    return prompts


def most_tokens(asked: Asked, prompts: Iterable[int], usual: int, positions: int) -> int:
    """The most tokens that answers to prompts of these lengths can take, the prompts included."""
    limit = asked.limit(usual)
    return sum(min(length + limit, positions) for length in prompts) * (asked.n or 1)


def too_long(asked: Asked, message: str) -> Refused:
    """400 for a prompt beyond the positions."""
    return Refused(400, message, param=asked.param, code="context_length_exceeded")


@lru_cache(maxsize=8)
def longest_token(tokenizer: Any) -> int:
    """The most bytes of text that a token can stand for."""
    return max(len(token.encode()) for token in tokenizer.raw.get_vocab(with_added_tokens=False))
