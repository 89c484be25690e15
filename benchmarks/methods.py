"""The field's table: each method on the shipped base, at a rate found for it, what it costs.

    python -m benchmarks.methods [--steps 500] [--seeds 5] [--search-steps 150] [--search-batch 16]

First a small search: three rates a method, the same short budget for each, on a held-out split that
no later number uses. Then the runs at the found rate, seed by seed: naval code (held-out logs right
to the letter; what is forgotten of the base's prose, in bits a byte), and as a second domain
Python's own manual, at the same rate (bits a byte). Costs are measured once: trained parameters,
bytes to ship, the peak of a training step, a step and a forward against LoRA's and the base's.

It is a part of ``make bench-quality`` and of no quick one. What is run is kept in
``results/cpu/methods.json`` with its settings; every number there is of that budget. A run that
was stopped continues: finished rows are read from the file.
"""

from __future__ import annotations

import json
import statistics
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

import minilora
from minilora import (
    AdaLoraConfig,
    BitFitConfig,
    IA3Config,
    LNTuningConfig,
    LoraConfig,
    VeraConfig,
    data,
)
from minilora.training.batches import encode_all, pad
from minilora.training.config import TrainConfig
from minilora.training.objective import summed_loss
from minilora.training.run import set_up

from .common import Row, measure, options, ratios, save
from .matrix import QUIET, fixed_costs, manual, prose_bits

QV = ("q_proj", "v_proj")


@dataclass(frozen=True)
class Method:
    """A row: name, config (None: everything trains), the rates to try, settings of ``train``."""

    name: str
    config: Any
    rates: tuple[float, ...]
    ratio: float = 1.0
    scratch: bool = False

    def build(self, seed: int, steps: int) -> Any:
        """The shipped base, ready to train with this method."""
        torch.manual_seed(seed)
        model = minilora.load_base()
        if self.scratch:
            fresh = minilora.Llama(model.config, model.tokenizer)
            model.load_state_dict(fresh.state_dict())
        if self.config is None:
            return model.requires_grad_(True)
        config = self.config
        if config is AdaLoraConfig:
            phases = {"tinit": steps // 10, "tfinal": steps // 5, "deltaT": 5}
            config = AdaLoraConfig(init_r=12, target_r=8, total_step=steps, **phases)
        minilora.inject(model, config)
        return model

    def train(self, task: Any, steps: int, batch: int, rate: float, seed: int) -> Any:
        """A fresh model, trained, and its history."""
        model = self.build(seed, steps)
        config = TrainConfig(
            steps=steps, lr=rate, batch_size=batch, seed=seed, loraplus_ratio=self.ratio, **QUIET
        )
        return model, minilora.train(model, task, config)


METHODS = (
    Method("full", None, (5e-4, 1e-3, 2e-3)),
    Method("from random weights", None, (1e-3, 2e-3, 4e-3), scratch=True),
    Method("LoRA q, v, r=8", LoraConfig(r=8), (5e-3, 1e-2, 2e-2)),
    Method("LoRA all, r=2", LoraConfig(2, 4, "all-linear"), (5e-3, 1e-2, 2e-2)),
    Method(
        "rsLoRA q, v, r=32", LoraConfig(r=32, lora_alpha=16, use_rslora=True), (2.5e-3, 5e-3, 1e-2)
    ),
    Method("LoRA+ q, v, r=8", LoraConfig(r=8), (1.25e-3, 2.5e-3, 5e-3), ratio=16),
    Method("DoRA q, v, r=8", LoraConfig(r=8, use_dora=True), (5e-3, 1e-2, 2e-2)),
    Method("PiSSA q, v, r=8", LoraConfig(r=8, init_lora_weights="pissa"), (1e-3, 2.5e-3, 5e-3)),
    Method("OLoRA q, v, r=8", LoraConfig(r=8, init_lora_weights="olora"), (5e-4, 1e-3, 2.5e-3)),
    Method("AdaLoRA q, v, 12 to 8", AdaLoraConfig, (5e-3, 1e-2, 2e-2)),
    Method("VeRA q, v, r=256", VeraConfig(r=256), (2.5e-2, 5e-2, 1e-1)),
    Method("(IA)³ k, v, down", IA3Config(), (2.5e-2, 5e-2, 1e-1)),
    Method("BitFit, all", BitFitConfig(), (1e-2, 2e-2, 4e-2)),
    Method("norms", LNTuningConfig(), (1e-2, 2e-2, 4e-2)),
)


def search(method: Method, settings: Any) -> Row:
    """The rate with the lowest held-out loss after a short run, and all that were tried."""
    task = data.naval_log(2000, 60, seed=77)
    tried = {}
    for rate in method.rates:
        try:
            model, _ = method.train(
                task, settings.search_steps, settings.search_batch, rate, seed=77
            )
            tried[rate] = held_out_loss(model, task)
        except FloatingPointError:  # diverged
            tried[rate] = float("inf")
    best = min(tried, key=tried.__getitem__)
    at_edge = len(tried) > 1 and best in (method.rates[0], method.rates[-1])
    return {"rate": best, "tried": {str(r): v for r, v in tried.items()}, "at_edge": at_edge}


@torch.no_grad()
def held_out_loss(model: Any, task: Any) -> float:
    """Nats an answer token on a task's held-out examples."""
    batch = pad(encode_all(model.tokenizer, task.valid, 512))
    return summed_loss(model.eval(), batch).item() / batch.answer_tokens


def run_seed(method: Method, rate: float, seed: int, settings: Any, prose: float) -> Row:
    """Both tasks with one seed; ``prose`` is the untouched base's bits a byte."""
    held_out = data.naval_log(1, settings.logs, seed=99).valid
    task = data.naval_log(settings.steps * settings.batch, 1, seed=seed)
    model, history = method.train(task, settings.steps, settings.batch, rate, seed)
    row = {
        "naval_loss": statistics.mean(history.losses[-10:]),
        "exact_match": minilora.exact_match(model, held_out),
        "forgotten": prose_bits(model) - prose,
    }
    task, text = manual()
    model, _ = method.train(task, settings.text_steps, 4, rate, seed)
    return row | {"manual_bits": minilora.bits_per_byte(model, text)}


def step_ratio(method: Method, settings: Any) -> float:
    """A training step's time over one of LoRA q, v, r=8: the median of rounds in turns."""
    quiet = TrainConfig(steps=1_000_000, batch_size=32, validate_every=0, progress=False)
    runs = {}
    for name, each in (("this", method), ("lora", METHODS[2])):
        model = each.build(0, quiet.steps)
        run = set_up(model.train(), data.naval_log(200, 1), quiet)
        runs[name] = run.steps(model, quiet)
    times = measure({name: lambda r=r: next(r) for name, r in runs.items()}, settings.seconds)
    return ratios(times["this"], times["lora"])[1]


def main() -> None:
    """Costs and rates first, then seed by seed, so that a slow spell falls on all methods."""
    settings = options(
        __doc__,
        **{"steps": 500, "batch": 32, "text_steps": 30, "seeds": 5, "logs": 200, "seconds": 2.0},
        **{"search_steps": 150, "search_batch": 16},
    )
    started, base = time.perf_counter(), minilora.load_base()
    held_out, prose = data.naval_log(1, settings.logs, seed=99).valid, prose_bits(base)
    untouched: Row = {
        "method": "the base, untouched",
        "prose_bits": prose,
        "exact_match": minilora.exact_match(base, held_out),
        "manual_bits": minilora.bits_per_byte(base, manual()[1]),
    }
    rows = {method.name: {"method": method.name, "seeds": []} for method in METHODS}
    rows |= kept(settings)

    def say(text: str) -> None:
        save("methods", [untouched, *rows.values()], settings)
        print(f"{time.perf_counter() - started:5.0f} s  {text}", flush=True)

    for method in METHODS:
        row: Row = rows[method.name]
        if "trainable" not in row:
            build = partial(method.build, 0, 2)
            row |= fixed_costs(build, settings.seconds, full=method.config is None)
            row["step"] = step_ratio(method, settings)
            say(f"{method.name:<22}{row['trainable']:,} trained")
    for method in METHODS:
        row = rows[method.name]
        if "rate" not in row:
            row |= search(method, settings)
            say(f"{method.name:<22}rate {row['rate']:g} of {row['tried']}")
    for seed in range(settings.seeds):
        for method in METHODS:
            seeds = rows[method.name]["seeds"]
            if len(seeds) <= seed:
                seeds.append(run_seed(method, rows[method.name]["rate"], seed, settings, prose))
                scores = ", ".join(f"{key} {value:.3f}" for key, value in seeds[-1].items())
                say(f"seed {seed}  {method.name:<22}{scores}")


def kept(settings: Any) -> dict[str, Row]:
    """The rows of an earlier run with the same settings, by method; {} without one."""
    file = Path(settings.out) / settings.device / "methods.json"
    if not file.exists():
        return {}
    content = json.loads(file.read_text(encoding="utf-8"))
    same = ("steps", "batch", "text_steps", "logs", "search_steps", "search_batch")
    if any(content["settings"].get(name) != getattr(settings, name) for name in same):
        return {}
    known = {method.name for method in METHODS}
    return {row["method"]: row for row in content["rows"] if row["method"] in known}


if __name__ == "__main__":
    main()
