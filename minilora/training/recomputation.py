"""Activation checkpointing: less memory for more time (arXiv 1604.06174).

    without   every block keeps what its backward needs        memory ~ layers · activations
    with      every block keeps its input, and computes the    memory ~ layers · inputs + 1 block
              rest again in backward: a third more time

The gradients are the same, to the bit: dropout is drawn again from the same state.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import nn

from ..lora.paths import unwrapped
from ..model.generation import CausalLM


@contextlib.contextmanager
def recomputing(model: nn.Module, wanted: bool = True) -> Iterator[None]:
    """A context in which a model's blocks are computed again in backward, if that is ``wanted``.

    Raises ``ValueError`` for a model that has no such switch.
    """
    if not wanted:
        yield
        return
    inner: Any = unwrapped(model)
    check_recomputable(inner)
    was_on = is_recomputing(inner)
    switch(inner, True)
    try:
        yield
    finally:
        switch(inner, was_on)


def check_recomputable(model: nn.Module) -> None:
    """Raise ``ValueError`` for a model that has no switch for activation checkpointing."""
    inner: Any = unwrapped(model)
    # transformers' models say so in a field of their class
    if not (decoders(inner) or getattr(inner, "supports_gradient_checkpointing", False)):
        raise ValueError(
            f"checkpointing=True: {type(inner).__name__} has no activation checkpointing "
            "to switch on; train without it, in more parts (accumulate)"
        )


def decoders(model: nn.Module) -> list[Any]:
    """The parts of one of our models that have the switch."""
    ours = model.modules() if isinstance(model, CausalLM) else ()
    return [module for module in ours if hasattr(module, "gradient_checkpointing")]


def is_recomputing(model: Any) -> bool:
    """Whether a model's switch is on."""
    if ours := decoders(model):
        return all(decoder.gradient_checkpointing for decoder in ours)
    return foreign(model, "is_{}_checkpointing")


def switch(model: Any, on: bool) -> None:
    """Set a model's switch."""
    ours = decoders(model)
    for decoder in ours:
        decoder.gradient_checkpointing = on
    if not ours and on:
        # the other kind, "reentrant", gives no gradient where the embeddings are frozen
        foreign(model, "{}_checkpointing_enable")({"use_reentrant": False})
    elif not ours:
        foreign(model, "{}_checkpointing_disable")()


def foreign(model: Any, name: str) -> Any:
    """What transformers calls so: "activation" in newer versions, "gradient" in older ones."""
    names = [name.format(kind) for kind in ("activation", "gradient")]
    return getattr(model, next(name for name in names if hasattr(type(model), name)))
