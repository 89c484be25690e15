"""Two questions about a model: does it answer exactly right, and how well does it still predict plain prose?

    exact match    = answers equal to the wanted text, to the letter / all answers
    bits a byte    = -log2 p(text) / bytes of the text        lower is better; a fair coin for every bit would be 8

Bits a byte does not depend on the tokenizer, unlike perplexity a token, so models can be compared. Its rise during a
fine-tune is what the model forgot.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..model.pretrained import SHIPPED
from .data import Example

PROSE = SHIPPED / "heldout.txt"


def answers(model: Any, examples: Sequence[Example], batch: int = 50) -> list[str]:
    """The model's greedy answer to each example, of at most 64 tokens or, where longer ones are wanted, one more than those."""
    check_answers(model)
    wanted = [len(model.tokenizer.answer(e.output)) + 1 for e in examples]
    max_new_tokens = max([64, *wanted])
    prompts = [(e.instruction, e.input) for e in examples]
    return [
        text
        for i in range(0, len(prompts), batch)
        for text in model.generate_texts(prompts[i : i + batch], max_new_tokens)
    ]


def check_answers(model: Any) -> None:
    """Raise ``ValueError`` unless the model can be asked in words."""
    if not hasattr(model, "generate_texts") or getattr(model, "tokenizer", None) is None:
        raise ValueError(
            f"answers need a minilora Llama with a tokenizer, as load_base() makes it; this is a {type(model).__name__}"
            + " without one" * hasattr(model, "generate_texts")
        )


def exact_match(model: Any, examples: Sequence[Example], batch: int = 50) -> float:
    """The share of examples answered to the letter, 0 to 1. Raises ``ValueError`` without examples or a model to ask.

    >>> import minilora
    >>> exact_match(minilora.load_base(), minilora.data.polite_log(1, 20).valid)  # what the base was taught
    1.0
    """
    if not examples:
        raise ValueError("exact_match needs at least one example, got none")
    return share_right(answers(model, examples, batch), examples)


def share_right(found: Sequence[str], examples: Sequence[Example]) -> float:
    """The share of given answers that are the wanted ones to the letter, spaces at their ends aside."""
    return sum(text == e.output.strip() for text, e in zip(found, examples, strict=True)) / len(
        examples
    )


@torch.no_grad()
def bits_per_byte(
    model: nn.Module, text: str | None = None, context: int = 256, batch: int = 16
) -> float:
    """Bits that the model needs for a byte of plain text; by default of the held-out prose that ships with the base.

    The text is cut into windows of ``context`` tokens, and what is left over at its end, less than a window, is not counted.
    The first token of each is given, not predicted, and so counts neither as bits nor as bytes (of a letter that is cut there,
    some bytes may count for others). Raises ``ValueError`` for a model without tokenizer, or fewer than two tokens of text or
    of context.

    >>> import minilora
    >>> base = minilora.load_base()
    >>> bits_per_byte(base, "the people of the United States") < bits_per_byte(base, "qzx jkwv pfgh tvrb kqzw mnbx")
    True
    """
    tokenizer: Any = getattr(model, "tokenizer", None)
    if tokenizer is None:
        raise ValueError("bits_per_byte needs model.tokenizer: load the model with load_base()")
    if context < 2:
        raise ValueError(
            f"context must be at least 2, a token to see and one to predict, got {context}"
        )
    text = PROSE.read_text(encoding="utf-8") if text is None else text
    ids = tokenizer.encode(text)
    if len(ids) < 2:
        raise ValueError(f"bits_per_byte needs at least two tokens of text, got {len(ids)}")
    context = min(context, len(ids))
    rows = torch.tensor(
        ids[: len(ids) // context * context], device=next(model.parameters()).device
    ).view(-1, context)
    was_training, bits = model.training, 0.0
    model.eval()
    try:
        for block in rows.split(batch):
            found = model(block[:, :-1])
            # (batch, context - 1, vocab); transformers' models wrap theirs
            logits = getattr(found, "logits", found)
            bits += F.cross_entropy(
                logits.flatten(0, 1).float(), block[:, 1:].flatten(), reduction="sum"
            ).item()
    finally:
        model.train(was_training)
    predicted = sum(
        len(tokenizer.decode(row).encode()) - len(tokenizer.decode(row[:1]).encode())
        for row in rows.tolist()
    )
    return bits / math.log(2) / predicted
