"""The numbers of an adapter: their checks, and the scale that follows from them. No torch."""

from __future__ import annotations

import math
import sys

from ..checks import check_switch, is_number


def scaling_of(r: int, lora_alpha: float, use_rslora: bool) -> float:
    """``alpha / r``, or ``alpha / sqrt(r)`` for rank-stabilised LoRA (arXiv 2312.03732 eq. 3).

    >>> scaling_of(4, 8, False), scaling_of(4, 8, True)
    (2.0, 4.0)
    """
    return lora_alpha / (math.sqrt(r) if use_rslora else r)


def check_all(r: int, lora_alpha: float, lora_dropout: float, use_rslora: bool) -> None:
    """The checks of all four, in this order."""
    check_rank(r)
    check_alpha(lora_alpha)
    check_dropout(lora_dropout)
    check_switch("use_rslora", use_rslora)


def check_rank(r: int) -> None:
    """Raise unless ``r`` is a whole number from 1 to the most rows that a tensor can have."""
    if not is_number(r, int):
        raise TypeError(f"r must be a whole number, got {r!r}")
    if r < 1:
        raise ValueError(
            f"r must be at least 1, got {r}: it is the number of directions that the update may use"
        )
    if r > sys.maxsize:
        raise ValueError(f"r must be at most {sys.maxsize}, the most rows that a tensor can have")


def check_alpha(lora_alpha: float) -> None:
    """Raise unless ``lora_alpha`` is a positive, finite number."""
    if not is_number(lora_alpha):
        raise TypeError(f"lora_alpha must be a number, got {lora_alpha!r}")
    if not 0 < lora_alpha <= sys.float_info.max:
        raise ValueError(
            f"lora_alpha must be positive and finite, got {lora_alpha}: "
            "at 0 the adapter could change nothing"
        )


def check_dropout(lora_dropout: float) -> None:
    """Raise unless ``lora_dropout`` is in [0, 1)."""
    if not is_number(lora_dropout):
        raise TypeError(f"lora_dropout must be a number, got {lora_dropout!r}")
    if not 0 <= lora_dropout < 1:
        raise ValueError(
            f"lora_dropout must be in [0, 1), got {lora_dropout}: "
            "it is the share of inputs that training drops"
        )


STARTS = ("pissa", "olora")


def check_variant(use_dora: bool, init_lora_weights: bool | str) -> None:
    """Raise unless these name a variant of LoRA that there is, one at most."""
    check_switch("use_dora", use_dora)
    if init_lora_weights == "loftq":
        raise ValueError(
            "init_lora_weights='loftq' needs the float weights beside the base in four bits: "
            "inject with True, then minilora.methods.replace_lora_weights_loftq(model, original)"
        )
    if init_lora_weights is not True and init_lora_weights not in STARTS:
        raise ValueError(
            f"init_lora_weights must be True, 'pissa' or 'olora', got {init_lora_weights!r}"
        )
    if use_dora and init_lora_weights is not True:
        raise ValueError(
            f"use_dora with init_lora_weights={init_lora_weights!r}: each changes what the other "
            "starts from; choose one"
        )
