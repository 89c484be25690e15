"""What a job will need, before it starts: does it fit, and how long will it take?

    planned     the ledger's peak of a step, from shapes alone: before anything is opened
    measured    the second of three real steps, on a model that is thrown away
    seconds     the third step's time × steps

A job that will not fit is refused, with settings that would: fewer examples at once, activations
computed twice, the base in four bits. Time is of the steps alone; validations come on top.

Left out: the process itself, half a gigabyte or so.
"""

from __future__ import annotations

import itertools
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..ledger.estimate import Settings, plan
from ..ledger.measurement import Measured
from ..lora.adapter_config import AdapterConfig
from ..methods.injection import inject
from ..model.pretrained import SHIPPED
from ..text import size_text, time_text
from ..training.batches import encode_all
from ..training.config import TrainConfig
from ..training.examples import Task
from ..training.loop import train
from .spec import Spec

TRIAL = 3  # steps: the first makes AdamW's moments, the second is measured, the third is timed


@dataclass(frozen=True)
class Limits:
    """What one job may use: bytes of ``memory`` (None: what the machine has), ``seconds``.

    Raises ``ValueError`` for what is not positive.
    """

    memory: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and not value > 0:
                raise ValueError(f"a job's {name} must be a positive number, got {value}")

    def bytes(self, device: str) -> int:
        """The memory that counts for a device."""
        if self.memory is not None:
            return self.memory
        if device.startswith("cuda"):
            return torch.cuda.mem_get_info(device)[0]
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Forecast:
    """What a job will need; ``planned`` is None for a method that the ledger does not count."""

    planned: int | None
    measured: int
    seconds_a_step: float
    steps: int
    longest: int

    @property
    def seconds(self) -> float:
        """Of all steps."""
        return self.seconds_a_step * self.steps

    def as_dict(self) -> dict[str, Any]:
        """Every field and ``seconds``, for a row."""
        return {**self.__dict__, "seconds": self.seconds}

    def __str__(self) -> str:
        planned = "" if self.planned is None else f" (the ledger plans {size_text(self.planned)})"
        return (
            f"a step holds {size_text(self.measured)}, measured{planned}; "
            f"{self.steps:,} steps take about {time_text(self.seconds)}"
        )


def forecast(model: Any, task: Task, spec: Spec, config: TrainConfig) -> Forecast:
    """Measure three steps, adapters and all, on ``model``, which is spoilt by it."""
    rows = encode_all(model.tokenizer, task.train, config.max_length)
    longest = max(len(row.ids) for row in rows)
    steps = config.for_examples(len(rows)).steps
    trial = replace(config, epochs=None, steps=TRIAL, out=None, resume=False, checkpoint_every=0)
    trial = replace(trial, validate_every=0, measure_memory=True, progress=False)
    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("ignore")  # the run itself will say it
        inject(model, spec.config)
        history = train(model, replace(task, valid=()), trial)
    measured = Measured(**history.memory or {}).peak
    planned = planned_bytes(spec, config, longest)
    return Forecast(planned, measured, history.steps[-1]["seconds"], steps, longest)


def planned_bytes(
    spec: Spec, config: TrainConfig, longest: int, four_bits: bool | None = None
) -> int | None:
    """The ledger's peak of a step whose rows have ``longest`` tokens; None: it cannot say."""
    if not isinstance(spec.config, AdapterConfig):
        return None
    four_bits = spec.base.four_bits if four_bits is None else four_bits
    settings = Settings(
        config.part_size, longest, dtype="float32", checkpointing=config.checkpointing
    )
    plain = getattr(spec.config, "init_lora_weights", True) is True
    method = {"method": "qlora"} if four_bits and plain else {}
    folder = Path(spec.base.folder or SHIPPED)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return plan(folder, spec.config, settings=settings, **method).peak
    except (ValueError, TypeError):
        return None  # a family, or parts of a config, that it does not count


def check_fit(expected: Forecast, spec: Spec, config: TrainConfig, limits: Limits) -> None:
    """Raise ``ValueError``, with settings that would do, for a job that is too big or too long."""
    room = limits.bytes(spec.base.device)
    if expected.measured > room:
        raise ValueError(
            f"a step needs {size_text(expected.measured)}, measured, "
            f"and there are {size_text(room)}; " + advice(spec, config, expected.longest, room)
        )
    if limits.seconds is not None and expected.seconds > limits.seconds:
        most = int(limits.seconds / expected.seconds_a_step)
        raise ValueError(
            f"{expected.steps:,} steps take about {time_text(expected.seconds)}, "
            f"and a job may take {time_text(limits.seconds)}: train.steps = {most} would fit"
        )


def check_plan(spec: Spec, config: TrainConfig, longest: int, limits: Limits) -> int | None:
    """The same by the ledger's plan alone, before the base is opened; returns the planned bytes."""
    planned, room = planned_bytes(spec, config, longest), limits.bytes(spec.base.device)
    if planned is not None and planned > room:
        raise ValueError(
            f"by the ledger a step needs {size_text(planned)}, and there are {size_text(room)}; "
            + advice(spec, config, longest, room)
        )
    return planned


def advice(spec: Spec, config: TrainConfig, longest: int, room: int) -> str:
    """The smallest changes of the spec that fit, by the ledger."""
    for changes, planned in cheaper(spec, config, longest):
        if planned is not None and planned <= room:
            return f"{' and '.join(changes)} would fit ({size_text(planned)})"
    return "no setting of batch, recomputation or four bits fits: take a smaller base"


def cheaper(
    spec: Spec, config: TrainConfig, longest: int
) -> Iterator[tuple[list[str], int | None]]:
    """Changes that need less memory, the mildest first, and what the ledger plans for them."""
    parts = [
        n for n in range(config.accumulate, config.batch_size + 1) if not config.batch_size % n
    ]
    for four_bits, again in itertools.product((False, True), (False, True)):
        if (four_bits and spec.base.four_bits) or (again and config.checkpointing):
            continue
        for accumulate in parts:
            changes = [f"train.accumulate = {accumulate}"] * (accumulate > config.accumulate)
            changes += ["train.checkpointing = true"] * again
            changes += ["base.four_bits = true"] * four_bits
            changed = replace(
                config, accumulate=accumulate, checkpointing=again or config.checkpointing
            )
            in_four = four_bits or spec.base.four_bits
            if changes:
                yield changes, planned_bytes(spec, changed, longest, in_four)
