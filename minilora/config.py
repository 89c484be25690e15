"""What an adapter is to be (``LoraConfig``, with PEFT's field names) and how it is to be trained (``TrainConfig``).

Both are validated when they are made, before anything happens.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


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

    def __post_init__(self) -> None:
        check_rank(self.r)
        check_alpha(self.lora_alpha)
        check_dropout(self.lora_dropout)
        if not isinstance(self.use_rslora, bool):
            raise TypeError(f"use_rslora must be True or False, got {self.use_rslora!r}")
        for field in ("target_modules", "exclude_modules"):
            object.__setattr__(self, field, check_patterns(field, getattr(self, field)))
        if not self.target_modules:
            raise ValueError('target_modules is empty: name at least one module, for example ["q_proj", "v_proj"]')

    @property
    def scaling(self) -> float:
        """The factor in front of B A."""
        return scaling_of(self.r, self.lora_alpha, self.use_rslora)


@dataclass(frozen=True)
class TrainConfig:
    """How to train. Raises ``ValueError`` on values that mean nothing.

    - ``steps``: optimizer steps; ``lr``: the peak rate; ``warmup``: share of the steps in which it rises.
    - ``batch_size`` examples a step, computed in ``accumulate`` parts of equal count.
    - ``clip``: largest gradient norm (0: no clipping); ``weight_decay``: AdamW's, on matrices only.
    - ``bf16``: autocast to bfloat16; ``pack``: several examples a row instead of padding; ``max_length`` in tokens.
    - ``validate_every`` steps (0: never), ``valid_answers`` held-out examples are answered in full then (exact match),
      ``keep_best``: at the end, go back to the state with the lowest validation loss.
    - ``out``: a folder for ``metrics.jsonl`` and, every ``checkpoint_every`` steps (0: only when interrupted),
      ``checkpoint.safetensors``; ``resume``: go on from there.
    """

    steps: int = 500
    lr: float = 5e-3
    warmup: float = 0.05
    batch_size: int = 32
    accumulate: int = 1
    clip: float = 1.0
    weight_decay: float = 0.0
    bf16: bool = False
    pack: bool = False
    max_length: int = 512
    validate_every: int = 50
    valid_answers: int = 0
    keep_best: bool = True
    seed: int = 0
    out: str | Path | None = None
    checkpoint_every: int = 0
    resume: bool = False
    progress: bool = True

    def __post_init__(self) -> None:
        least = {
            "steps": 1,
            "batch_size": 1,
            "accumulate": 1,
            "max_length": 2,
            "validate_every": 0,
            "valid_answers": 0,
            "checkpoint_every": 0,
        }
        for name, smallest in least.items():
            if not isinstance(value := getattr(self, name), int) or value < smallest:
                raise ValueError(f"{name} must be a whole number of at least {smallest}, got {value!r}")
        for name in ("lr", "warmup", "clip", "weight_decay"):
            if isinstance(value := getattr(self, name), bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise ValueError(f"{name} must be a finite number, got {value!r}")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise ValueError(f"seed must be a whole number, got {self.seed!r}")
        if self.lr <= 0:
            raise ValueError(f"lr must be positive, got {self.lr}")
        if not 0 <= self.warmup <= 1:
            raise ValueError(f"warmup must be a share of the steps, in [0, 1], got {self.warmup}")
        if self.clip < 0 or self.weight_decay < 0:
            raise ValueError(f"clip and weight_decay must not be negative, got {self.clip} and {self.weight_decay}")
        if self.batch_size % self.accumulate:
            raise ValueError(f"batch_size={self.batch_size} must be a multiple of accumulate={self.accumulate}")
        if (self.resume or self.checkpoint_every) and self.out is None:
            raise ValueError("resume and checkpoint_every need out: the folder that holds the checkpoint")


def scaling_of(r: int, lora_alpha: float, use_rslora: bool) -> float:
    """``alpha / r``, or ``alpha / sqrt(r)`` for rank-stabilised LoRA (arXiv 2312.03732 eq. 3).

    >>> scaling_of(4, 8, False), scaling_of(4, 8, True)
    (2.0, 4.0)
    """
    return lora_alpha / (math.sqrt(r) if use_rslora else r)


def check_rank(r: int) -> None:
    """Raise unless ``r`` is a whole number of at least 1."""
    if isinstance(r, bool) or not isinstance(r, int):
        raise TypeError(f"r must be a whole number, got {r!r}")
    if r < 1:
        raise ValueError(f"r must be at least 1, got {r}: the rank is the number of directions the update may use")


def check_alpha(lora_alpha: float) -> None:
    """Raise unless ``lora_alpha`` is a positive, finite number."""
    if isinstance(lora_alpha, bool) or not isinstance(lora_alpha, int | float):
        raise TypeError(f"lora_alpha must be a number, got {lora_alpha!r}")
    if not 0 < lora_alpha <= sys.float_info.max:
        raise ValueError(f"lora_alpha must be positive and finite, got {lora_alpha}: at 0 the adapter could change nothing")


def check_dropout(lora_dropout: float) -> None:
    """Raise unless ``lora_dropout`` is in [0, 1)."""
    if isinstance(lora_dropout, bool) or not isinstance(lora_dropout, int | float):
        raise TypeError(f"lora_dropout must be a number, got {lora_dropout!r}")
    if not 0 <= lora_dropout < 1:
        raise ValueError(f"lora_dropout must be in [0, 1), got {lora_dropout}: it is the share of inputs dropped in training")


def check_patterns(field: str, value: str | Sequence[str]) -> str | tuple[str, ...]:
    """A pattern as given, or a list of names as a tuple; raise on anything else."""
    if isinstance(value, str):
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"{field}={value!r} is no regular expression: {error}") from error
        return value
    names = tuple(value)
    if bad := [name for name in names if not isinstance(name, str) or not name]:
        raise TypeError(f"{field} must be names, got {bad[0]!r} among them")
    return names
