"""What a method beside the stream needs to know of a model: its decoder and its sizes.

Such a method works inside the model's forward pass, so it must know how that one is called. Here
that is minilora's own Llama (and the families that are one). PEFT and the ``adapters`` library do
the same for transformers' models.
"""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor, nn

from ..lora.attached import GENERATES
from ..lora.paths import named_modules


def decoder_of(model: nn.Module, method: str) -> tuple[str, Any]:
    """The path of a Llama's decoder, and the decoder. Raises ``ValueError`` for another model."""
    for path, module in named_modules(model):
        if "segments" in inspect.signature(module.forward).parameters:
            return path, module
    raise ValueError(
        f"{method} works inside the forward pass of a minilora Llama, got {type(model).__name__}: "
        "load it with load_base, or take PEFT for transformers' own models"
    )


def check_room(k: int, decoder: Any, method: str) -> None:
    """Raise ``ValueError`` unless k rows before the text leave room for one."""
    most = decoder.config.max_position_embeddings
    if k >= most:
        raise ValueError(f"{method} of {k} rows leaves nothing of the model's {most} positions")


def check_text(k: int, time: int, segments: Tensor | None, decoder: Any, method: str) -> None:
    """Raise ``ValueError`` for packed rows, and for a text that k rows push out of the model.

    ``generate`` goes on beyond the positions, with a cache or without, as it does without rows:
    ``generate_text`` warns.
    """
    most = decoder.config.max_position_embeddings
    if time <= most < time + k and not GENERATES.get():
        raise ValueError(
            f"{method} of {k} rows and a text of {time} tokens are more than the model's {most} "
            f"positions: shorten the text to {most - k}"
        )
    if segments is not None and bool((segments > 1).any()):
        raise ValueError(
            f"{method} stands before one text, and these rows hold several: pack=False"
        )


def has_past(cache: Any, rows: int) -> bool:
    """Whether a cache holds the beginning of these rows already, and with it what stood before."""
    past = [bool(length) for length in cache.lengths[cache.first : cache.first + rows]]
    if any(past) and not all(past):
        raise ValueError("some of these rows have begun and others have not: start them together")
    return any(past)
