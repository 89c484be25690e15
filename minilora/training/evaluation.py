"""Two questions about a model: are its answers exactly right, and how well does it predict prose?

    exact match    = answers equal to the expected text, to the letter / all answers
    bits a byte    = -log2 p(text) / bytes of the text

Fewer bits a byte are better; a fair coin for every bit would need 8. Unlike perplexity a token they
do not depend on the tokenizer, so models can be compared. Their rise during a fine-tune measures
how much the model forgot.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..model.foreign import Foreign, speaking
from ..model.generation import CausalLM
from ..model.pretrained import SHIPPED
from ..model.tokenizer import Tokenizer
from .examples import Conversation, Example, Learnt, asked_and_expected

PROSE = SHIPPED / "heldout.txt"


def answers(model: Any, examples: Sequence[Learnt], batch: int = 50) -> list[str]:
    """The model's greedy answer to each example, computed ``batch`` at a time.

    An answer has at most 64 tokens, or one more than the longest expected answer.
    """
    model = asked_in_words(model)
    pairs = [asked_and_expected(example) for example in examples]
    lengths = [len(model.tokenizer.answer(expected)) + 1 for _, expected in pairs]
    max_new_tokens = max([64, *lengths])
    prompts = [
        (example.instruction, example.input) if isinstance(example, Example) else asked
        for example, (asked, _) in zip(examples, pairs, strict=True)
    ]
    tools = [example.tools if isinstance(example, Conversation) else "" for example in examples]
    texts: list[str] = []
    for given, group in groupby(zip(tools, prompts, strict=True), key=itemgetter(0)):
        rows, more = [prompt for _, prompt in group], {"tools": json.loads(given)} if given else {}
        for start in range(0, len(rows), batch):
            texts += model.generate_texts(rows[start : start + batch], max_new_tokens, **more)
    return texts


def asked_in_words(model: Any) -> CausalLM:
    """The model with ``generate_texts``; ``ValueError`` unless it can be asked in words."""
    asked = speaking(model)
    others = isinstance(asked, Foreign) and not isinstance(asked.tokenizer, Tokenizer)
    if asked.tokenizer is None or others:
        name = type(asked.model if isinstance(asked, Foreign) else asked).__name__
        raise ValueError(
            "answers need a minilora Llama with a tokenizer, as load_base() makes it, or another "
            f"model with one, as add_tokenizer(model, folder) gives it, got a {name} without one"
        )
    return asked


def exact_match(model: Any, examples: Sequence[Learnt], batch: int = 50) -> float:
    """The share of examples answered to the letter, 0 to 1.

    Raises ``ValueError`` without examples, or for a model that cannot be asked in words.

    >>> import minilora
    >>> polite = minilora.data.polite_log(1, 20)  # what the base was taught
    >>> exact_match(minilora.load_base(), polite.valid)
    1.0
    """
    if not examples:
        raise ValueError("exact_match needs at least one example, got none")
    return share_right(answers(model, examples, batch), examples)


def share_right(given: Sequence[str], examples: Sequence[Learnt]) -> float:
    """The share of given answers that are the expected ones, spaces at their ends aside."""
    expected = [asked_and_expected(example)[1] for example in examples]
    right = [text.strip() == e.strip() for text, e in zip(given, expected, strict=True)]
    return sum(right) / len(examples)


@torch.no_grad()
def bits_per_byte(
    model: nn.Module, text: str | None = None, context: int = 256, batch: int = 16
) -> float:
    """Bits that the model needs for a byte of plain text, by default of the base's held-out prose.

    The text is cut into windows of ``context`` tokens; a rest shorter than a window does not count.
    The first token of each window is given, not predicted, so it counts neither as bits nor as
    bytes (a letter that is cut there is counted in part). Raises ``ValueError`` for a model without
    tokenizer, or for fewer than two tokens of text or of context.

    >>> import minilora
    >>> base = minilora.load_base()
    >>> prose = bits_per_byte(base, "the people of the United States")
    >>> prose < bits_per_byte(base, "qzx jkwv pfgh tvrb kqzw mnbx")
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
    device, counted = next(model.parameters()).device, len(ids) // context * context
    windows = torch.tensor(ids[:counted], device=device).view(-1, context)
    was_training, nats = model.training, 0.0
    model.eval()
    try:
        for rows in windows.split(batch):
            output, labels = model(rows[:, :-1]), rows[:, 1:]
            logits = getattr(output, "logits", output)  # transformers' models wrap theirs
            logits = logits.flatten(0, 1).float()  # (batch · (context - 1), vocab)
            loss = F.cross_entropy(logits, labels.flatten(), reduction="sum")
            nats += loss.item()
    finally:
        model.train(was_training)
    size = sum(
        len(tokenizer.decode(row).encode()) - len(tokenizer.decode(row[:1]).encode())
        for row in windows.tolist()
    )
    return nats / math.log(2) / size
