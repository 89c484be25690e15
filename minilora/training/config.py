"""How an adapter is trained: ``TrainConfig``, checked when it is made."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypedDict

from ..checks import is_number
from ..text import names_other_libraries_use

BIG = 50_000_000  # parameters; a base of more is trained, and measured, with more care
SMALLEST = {
    "steps": 1, "batch_size": 1, "accumulate": 1, "max_length": 2,
    "validate_every": 0, "valid_examples": 0, "valid_answers": 0, "checkpoint_every": 0,
}  # fmt: skip

SWITCHES = ("bf16", "fp16", "checkpointing", "keep_best", "resume", "progress", "measure_memory")


@names_other_libraries_use(
    learning_rate="lr", num_train_epochs="epochs", num_epochs="epochs", max_steps="steps",
    per_device_train_batch_size="batch_size", per_device_eval_batch_size="valid_batch",
    gradient_accumulation_steps="accumulate", warmup_ratio="warmup", max_grad_norm="clip",
    packing="pack", max_seq_length="max_length", max_seq_len="max_length",
    eval_steps="validate_every", save_steps="checkpoint_every", output_dir="out",
    gradient_checkpointing="checkpointing", eval_batch_size="valid_batch",
    resume_from_checkpoint="resume", load_best_model_at_end="keep_best",
)  # fmt: skip
@dataclass(frozen=True)
class TrainConfig:
    """How to train. Raises ``ValueError`` on values that mean nothing.

    - ``steps``: optimizer steps, or ``epochs``: how often each example is seen (then ``steps``
      follows from them); ``lr``: the peak rate; ``warmup``: the share of steps in which it rises.
    - ``batch_size`` examples a step, computed in ``accumulate`` parts of equal count.
    - ``clip``: the largest gradient norm (0: no clipping); ``weight_decay``: AdamW's, on matrices
      only; ``loraplus_ratio``: LoRA's B learns so many times as fast as all else (arXiv
      2402.12354).
    - ``bf16``: autocast to bfloat16; ``fp16``: to float16 with loss scaling, for cards without
      bfloat16; ``checkpointing``: compute activations again in backward instead of keeping them.
    - ``max_length``: the tokens of a row; ``pack``: several examples a row (True), one and padding
      (False), or what suits the examples (None: order.py).
    - ``validate_every``: steps between validations (0: none); ``valid_examples``: how many held-out
      examples a validation takes, drawn by the seed (0: all); ``valid_batch``: how many are
      computed at once (None: as many as a part of a batch); ``valid_answers``: how many are
      answered in full each time (exact match); ``keep_best``: return, at the end, to the state with
      the lowest validation loss.
    - ``out``: a folder for ``metrics.jsonl`` and, every ``checkpoint_every`` steps (0: only when
      interrupted), ``checkpoint.safetensors``; ``resume``: continue from it, to as many steps or
      more. ``measure_memory``: the bytes of the second step go into ``History.memory``.

    >>> TrainConfig(steps=100, lr=2e-3).batch_size
    32
    """

    steps: int = 500
    epochs: float | None = None
    lr: float = 5e-3
    warmup: float = 0.05
    batch_size: int = 32
    accumulate: int = 1
    clip: float = 1.0
    weight_decay: float = 0.0
    loraplus_ratio: float = 1.0
    bf16: bool = False
    fp16: bool = False
    checkpointing: bool = False
    pack: bool | None = None
    max_length: int = 512
    validate_every: int = 50
    valid_batch: int | None = None
    valid_examples: int = 256
    valid_answers: int = 0
    keep_best: bool = True
    seed: int = 0
    out: str | Path | None = None
    checkpoint_every: int = 0
    resume: bool = False
    progress: bool = True
    measure_memory: bool = False

    def __post_init__(self) -> None:
        for name, smallest in SMALLEST.items():
            check_count(name, getattr(self, name), smallest)
        for name in SWITCHES:
            if not isinstance(value := getattr(self, name), bool):
                raise ValueError(f"{name} must be True or False, got {value!r}")
        if not isinstance(self.pack, bool | None):
            raise ValueError(f"pack must be True, False or None (decide), got {self.pack!r}")
        if self.valid_batch is not None:
            check_count("valid_batch", self.valid_batch, 1)
        rates = ("lr", "warmup", "clip", "weight_decay", "loraplus_ratio")
        for name in rates if self.epochs is None else (*rates, "epochs"):
            value = getattr(self, name)
            if not is_number(value) or not math.isfinite(value):
                raise ValueError(f"{name} must be a finite number, got {value!r}")
        check_seed(self.seed)
        if self.epochs is not None and self.epochs <= 0:
            raise ValueError(f"epochs must be positive, got {self.epochs}")
        if self.epochs is not None and self.steps != TrainConfig.steps:
            raise ValueError(f"give steps or epochs, got steps={self.steps}, epochs={self.epochs}")
        if self.loraplus_ratio <= 0:
            raise ValueError(f"loraplus_ratio must be positive, got {self.loraplus_ratio}")
        if self.bf16 and self.fp16:
            raise ValueError("give bf16 or fp16, got both: bf16 where the card has it")
        if self.lr <= 0:
            raise ValueError(f"lr must be positive, got {self.lr}")
        if not 0 <= self.warmup <= 1:
            raise ValueError(f"warmup must be a share of the steps, in [0, 1], got {self.warmup}")
        if self.clip < 0 or self.weight_decay < 0:
            raise ValueError(
                "clip and weight_decay must not be negative, "
                f"got {self.clip} and {self.weight_decay}"
            )
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"batch_size={self.batch_size} must be a multiple of accumulate={self.accumulate}"
            )
        if (self.resume or self.checkpoint_every) and self.out is None:
            raise ValueError(
                "resume and checkpoint_every need out: the folder that holds the checkpoint"
            )

    @property
    def part_size(self) -> int:
        """Examples that are computed at once."""
        return self.batch_size // self.accumulate

    def for_examples(self, count: int) -> TrainConfig:
        """The same with ``steps`` that see each of ``count`` examples ``epochs`` times.

        >>> TrainConfig(epochs=3, batch_size=32).for_examples(100).steps
        10
        """
        if self.epochs is None:
            return self
        # 0.07 * 100 is above 7 by rounding alone
        steps = math.ceil(round(self.epochs * count / self.batch_size, 9))
        return replace(self, steps=max(1, steps), epochs=None)


class TrainSettings(TypedDict, total=False):
    """The fields of ``TrainConfig`` once more, so that editors complete ``train(…, steps=``."""

    steps: int
    epochs: float | None
    lr: float
    warmup: float
    batch_size: int
    accumulate: int
    clip: float
    weight_decay: float
    loraplus_ratio: float
    bf16: bool
    fp16: bool
    checkpointing: bool
    pack: bool | None
    max_length: int
    validate_every: int
    valid_batch: int | None
    valid_examples: int
    valid_answers: int
    keep_best: bool
    seed: int
    out: str | Path | None
    checkpoint_every: int
    resume: bool
    progress: bool
    measure_memory: bool


def rate_for(parameters: int) -> float:
    """A peak rate to begin with: the bigger the base, the smaller the steps it bears.

    ``TrainConfig.lr`` suits the shipped base. SmolLM2-135M with every Linear adapted took 1e-3
    (docs/smollm2.md). From a billion parameters on it is 2e-4, which QLoRA's authors used for 7B
    and 13B (arXiv 2305.14314, table 9).

    >>> rate_for(1_325_696), rate_for(134_515_008), rate_for(7_000_000_000)
    (0.005, 0.001, 0.0002)
    """
    if parameters <= BIG:
        return TrainConfig.lr
    return 1e-3 if parameters < 1e9 else 2e-4


def settings_for(parameters: int) -> dict[str, Any]:
    """Settings to begin with, by the size of the base: fewer and smaller steps for a big one.

    A big base reads an example before it is taught, and each of its steps costs more.

    >>> settings_for(134_515_008)
    {'lr': 0.001, 'steps': 150, 'batch_size': 8}
    """
    small = parameters <= BIG
    steps, batch_size = (TrainConfig.steps, TrainConfig.batch_size) if small else (150, 8)
    return {"lr": rate_for(parameters), "steps": steps, "batch_size": batch_size}


def check_count(name: str, value: Any, smallest: int) -> None:
    """Raise ``ValueError`` unless a value is a whole number of at least ``smallest``."""
    if not is_number(value, int) or value < smallest:
        raise ValueError(f"{name} must be a whole number of at least {smallest}, got {value!r}")


def check_seed(seed: int) -> None:
    """Raise ``ValueError`` unless torch can be seeded with this, and with a step's number added."""
    if not is_number(seed, int) or abs(seed) >= 2**32:
        raise ValueError(f"seed must be a whole number of at most 32 bits, such as 0, got {seed!r}")
