"""The memory of training: full fine-tuning, LoRA and QLoRA, side by side, measured on real steps.

    resident = weights (and their scales) + adapters + optimizer      between two steps
    peak     = resident + gradients + activations + temporaries       at a step's largest moment

The same base, batch and optimizer each time; in the first step AdamW makes its moments, and
``ledger.measure`` watches the second. Tensors are counted, not pages of the process, so Python and
torch themselves are left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from shlex import quote

import torch

from ..ledger.measurement import Measured, measure
from ..lora.config import LoraConfig
from ..lora.injection import inject
from ..model.pretrained import load_base
from ..text import columns
from ..training.config import TrainConfig
from ..training.data import Task
from ..training.run import set_up

METHODS = ("full", "LoRA", "QLoRA")


def measure_footprints(
    task: Task,
    lora: LoraConfig,
    config: TrainConfig,
    *,
    base: str | Path | None = None,
    device: str = "cpu",
    methods: Sequence[str] = METHODS,
) -> dict[str, Measured]:
    """Bytes of a training step by method, each on a fresh copy of the base.

    Raises ``ValueError`` for an unknown method.
    """
    if unknown := [method for method in methods if method not in METHODS]:
        raise ValueError(f"unknown method {unknown[0]!r}: expected some of {METHODS}")
    task = replace(task, valid=())
    config = replace(config, out=None, resume=False, checkpoint_every=0)
    config = replace(config, steps=2, epochs=None)  # the second step is measured
    footprints = {}
    for method in methods:
        with torch.random.fork_rng():
            quantize = "nf4" if method == "QLoRA" else None
            model = load_base(base, device=device, quantize=quantize).train()
            if method != "full":
                inject(model, lora)
            run = set_up(model, task, config)
            records = run.steps(model, config)
            next(records)
            footprints[method] = measure(partial(next, records), model, run.optimizer)
    return footprints


def describe_footprints(footprints: Mapping[str, Measured], base: str | Path | None) -> str:
    """The table, and how to predict the methods that were not measured.

    One method alone is measured where the base may not even fit in floats.
    """
    text = f"A training step of this run held in memory (measured):\n{footprint_table(footprints)}"
    if len(footprints) == 1:
        text += "\nThe other methods hold the base in floats: "
        text += f"minilora plan {quote(str(base))} predicts their memory."
    return text


def footprint_table(footprints: Mapping[str, Measured]) -> str:
    """Resident and peak megabytes (10⁶ bytes), and the peak's parts.

    >>> parts = dict.fromkeys(["weights", "activations", "temporary"], 10**6)
    >>> print(footprint_table({"full": Measured(parts, parts, parts)}))
    MB    resident  peak  weights  activations  other
    full  3.0       3.0   1.0      1.0          1.0
    """
    rows: list[tuple[str, ...]] = [("MB", "resident", "peak", "weights", "activations", "other")]
    for method, measured in footprints.items():
        resident, peak = sum(measured.resident.values()), measured.peak
        weights = sum(measured.at_peak.get(name, 0) for name in ("weights", "constants"))
        activations = measured.at_peak.get("activations", 0)
        sizes = (resident, peak, weights, activations, peak - weights - activations)
        rows.append((method, *(f"{size / 1e6:.1f}" for size in sizes)))
    return "\n".join(columns(rows))
