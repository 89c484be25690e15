"""What an adapter is to be (``LoraConfig``, with PEFT's field names) and how it is to be trained (``TrainConfig``).

Both are validated when they are made, before anything happens.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class LoraConfig:
    """Rank, scale, dropout and targets of a LoRA adapter (arXiv 2106.09685 section 4.1).

    - ``r``: rank of the update, at least 1. A module gets ``r * (in + out)`` trainable parameters.
    - ``lora_alpha``: the update is scaled by ``lora_alpha / r``, with ``use_rslora`` by ``lora_alpha / sqrt(r)``
      (arXiv 2312.03732).
    - ``lora_dropout``: share of the adapter's inputs that training drops, in [0, 1); the base's input is left alone.
    - ``target_modules``: a list of names, each matching a module called so or ending in ``.name``; or one regular
      expression that must match a whole path; or ``"all-linear"``, every Linear but the output head.
    - ``exclude_modules``: a list or a regular expression likewise; what it matches stays as it is.
    - ``rank_pattern``, ``alpha_pattern``: another ``r`` or ``lora_alpha`` for some modules, ``{"k_proj": 4}``. A key is a
      regular expression for a path or its end after a dot; the first key that fits counts.
    - ``layers_to_transform``: only these layers, one number or several; the layer of a module is the first number in its
      path that has a name before it, or the number after ``layers_pattern`` (``"layers"``, ``"h"``; one or several). They
      narrow a *list* of targets only, and not an entry of it that is a whole path: as in PEFT.

    Raises ``ValueError`` on values outside these, ``TypeError`` on values of another kind.

    >>> LoraConfig(r=16, lora_alpha=32).scaling
    2.0
    """

    r: int = 8
    lora_alpha: float = 16
    target_modules: str | Sequence[str] = ("q_proj", "v_proj")
    lora_dropout: float = 0.0
    use_rslora: bool = False
    exclude_modules: str | Sequence[str] = ()
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    layers_to_transform: int | Sequence[int] | None = None
    layers_pattern: str | Sequence[str] | None = None

    def __post_init__(self) -> None:
        check_rank(self.r)
        check_alpha(self.lora_alpha)
        check_dropout(self.lora_dropout)
        check_rslora(self.use_rslora)
        for name in ("target_modules", "exclude_modules"):
            object.__setattr__(self, name, check_patterns(name, getattr(self, name)))
        if not self.target_modules:
            raise ValueError(
                'target_modules is empty: name at least one module, for example ["q_proj", "v_proj"]'
            )
        object.__setattr__(
            self, "rank_pattern", check_values("rank_pattern", self.rank_pattern, check_rank)
        )
        object.__setattr__(
            self, "alpha_pattern", check_values("alpha_pattern", self.alpha_pattern, check_alpha)
        )
        object.__setattr__(self, "layers_to_transform", check_layers(self.layers_to_transform))
        if self.layers_pattern:  # an empty one means none, as in PEFT
            several = (
                [self.layers_pattern]
                if isinstance(self.layers_pattern, str)
                else self.layers_pattern
            )
            names = check_patterns("layers_pattern", several)
            for name in names:
                check_regex("layers_pattern", name)
            object.__setattr__(self, "layers_pattern", names)
            if self.layers_to_transform is None:
                raise ValueError(
                    f"layers_pattern={self.layers_pattern!r} needs layers_to_transform: the numbers after that name"
                )
        if self.layers_to_transform is not None and isinstance(self.target_modules, str):
            raise ValueError(
                f"layers_to_transform narrows a list of target_modules, not {self.target_modules!r}: give a list, or write the "
                "layers into the regular expression"
            )

    @property
    def scaling(self) -> float:
        """The factor in front of B A."""
        return scaling_of(self.r, self.lora_alpha, self.use_rslora)


def read_targets(words: Sequence[str]) -> str | tuple[str, ...]:
    """``target_modules`` from a command line, where names are words or stand between commas.

    >>> read_targets(["q_proj,v_proj", "o_proj"]), read_targets(["all-linear"])
    (('q_proj', 'v_proj', 'o_proj'), 'all-linear')
    """
    names = tuple(name for word in words for name in word.split(",") if name)
    return "all-linear" if names == ("all-linear",) else names


def scaling_of(r: int, lora_alpha: float, use_rslora: bool) -> float:
    """``alpha / r``, or ``alpha / sqrt(r)`` for rank-stabilised LoRA (arXiv 2312.03732 eq. 3).

    >>> scaling_of(4, 8, False), scaling_of(4, 8, True)
    (2.0, 4.0)
    """
    return lora_alpha / (math.sqrt(r) if use_rslora else r)


def check_rank(r: int) -> None:
    """Raise unless ``r`` is a whole number of at least 1 (and no more than a tensor can have rows)."""
    if isinstance(r, bool) or not isinstance(r, int):
        raise TypeError(f"r must be a whole number, got {r!r}")
    if r < 1:
        raise ValueError(
            f"r must be at least 1, got {r}: the rank is the number of directions the update may use"
        )
    if r > sys.maxsize:
        raise ValueError(f"r must be at most {sys.maxsize}, the most rows that a tensor can have")


def check_alpha(lora_alpha: float) -> None:
    """Raise unless ``lora_alpha`` is a positive, finite number."""
    if isinstance(lora_alpha, bool) or not isinstance(lora_alpha, int | float):
        raise TypeError(f"lora_alpha must be a number, got {lora_alpha!r}")
    if not 0 < lora_alpha <= sys.float_info.max:
        raise ValueError(
            f"lora_alpha must be positive and finite, got {lora_alpha}: at 0 the adapter could change nothing"
        )


def check_dropout(lora_dropout: float) -> None:
    """Raise unless ``lora_dropout`` is in [0, 1)."""
    if isinstance(lora_dropout, bool) or not isinstance(lora_dropout, int | float):
        raise TypeError(f"lora_dropout must be a number, got {lora_dropout!r}")
    if not 0 <= lora_dropout < 1:
        raise ValueError(
            f"lora_dropout must be in [0, 1), got {lora_dropout}: it is the share of inputs dropped in training"
        )


def check_rslora(use_rslora: bool) -> None:
    """Raise unless ``use_rslora`` is True or False."""
    if not isinstance(use_rslora, bool):
        raise TypeError(f"use_rslora must be True or False, got {use_rslora!r}")


def check_patterns(field: str, value: str | Sequence[str] | None) -> str | tuple[str, ...]:
    """A pattern as given, or a list of names as a tuple; raise on anything else."""
    if isinstance(value, str):
        check_regex(field, value)
        return value
    if isinstance(value, Mapping) or not isinstance(value, Iterable | None):
        raise TypeError(f"{field} must be a list of names or one regular expression, got {value!r}")
    names = tuple(value or ())
    if bad := [name for name in names if not isinstance(name, str) or not name]:
        raise TypeError(f"{field} must be names, got {bad[0]!r} among them")
    return names


def check_regex(field: str, pattern: str) -> None:
    """Raise unless ``pattern`` compiles."""
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"{field}={pattern!r} is no regular expression: {error}") from error


def check_values(
    field: str, values: Mapping[str, Any], check: Callable[[Any], None]
) -> dict[str, Any]:
    """A copy of a pattern's mapping; raise unless its keys are regular expressions and every value passes ``check``."""
    if not isinstance(values, Mapping | None):
        raise TypeError(f"{field} must map names to values, got {values!r}")
    for name, value in (values or {}).items():
        if not isinstance(name, str) or not name:
            raise TypeError(f"{field} must have names as keys, got {name!r}")
        check_regex(field, name)
        try:
            check(value)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{field}[{name!r}]: {error}") from error
    return dict(values or {})


def check_layers(layers: Any) -> int | tuple[int, ...] | None:
    """One layer, several as a tuple, or None for all (an empty list too, as in PEFT); raise on anything else."""
    found = layers if isinstance(layers, list | tuple | set | range) else [layers]
    if layers is None or not found:
        return None
    if bad := [
        layer
        for layer in found
        if isinstance(layer, bool) or not isinstance(layer, int) or layer < 0
    ]:
        raise TypeError(f"layers_to_transform must be whole numbers from 0, got {bad[0]!r}")
    return layers if isinstance(layers, int) else tuple(layers)
