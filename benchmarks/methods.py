"""The field's table: each method on the shipped base, at a rate found for it, what it costs.

    python -m benchmarks.methods [--only DoRA] [--steps 500] [--seeds 5] [--out trial]

First a small search: three rates a method, and up to two more where the best stands at the edge,
the same short budget for each, on a held-out split that no later number uses. Then the runs at the
found rate, seed by seed, and one at half of it (did the short search choose too high a rate?):
naval code (held-out logs right to the letter; what is forgotten of the base's prose, in bits a
byte; when so many were right), with self-replay too for some methods; and as a second domain
Python's own manual, at the same rate (bits a byte). Costs are measured once: trained parameters,
bytes to ship, the peak of a training step, a step and a forward against LoRA's and the base's.

It is a part of ``make bench-quality`` and of no quick one. What is run is kept in
``results/cpu/methods.json`` with its settings; every number there is of that budget, and another
budget needs a folder of its own (``--out``). A run that was stopped continues from there.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

import minilora
from minilora import (
    AdaLoraConfig,
    BitFitConfig,
    BottleneckConfig,
    IA3Config,
    LNTuningConfig,
    LoraConfig,
    PrefixTuningConfig,
    PromptTuningConfig,
    SelfReplay,
    VeraConfig,
    data,
)
from minilora.lora.adapter_config import AttachedConfig
from minilora.training.batches import encode_all, pad
from minilora.training.config import TrainConfig
from minilora.training.history import History
from minilora.training.objective import summed_loss
from minilora.training.run import set_up

from .common import Row, measure, options, ratios, save
from .matrix import QUIET, fixed_costs, manual, prose_bits
from .methods_table import METHODS_HEAD, chosen_of, code_lines, kept, methods_rows, scores
from .tables import table

TEXT = "Report each reading of the ship's log in naval code, one after the other."
ROOM = 440  # tokens of a text that leave room for a soft prompt
EMPTY: Row = {"seeds": [], "half": [], "replay_seeds": [], "manual_bits": []}
MORE = 2  # rates beyond the three, where the best stands at the edge


@dataclass(frozen=True)
class Method:
    """A row: name, config (None: everything trains), the rates to try, settings of ``train``."""

    name: str
    config: Any
    rates: tuple[float, ...]
    ratio: float = 1.0
    scratch: bool = False
    replayed: bool = False

    @property
    def merges(self) -> bool:
        """Whether what is trained can become a part of the base's weights."""
        return self.config is not None and not isinstance(self.config, AttachedConfig)

    def build(self, seed: int, steps: int) -> Any:
        """The shipped base, ready to train with this method."""
        torch.manual_seed(seed)
        model = minilora.load_base()
        if self.scratch:
            fresh = minilora.Llama(model.config, model.tokenizer)
            model.load_state_dict(fresh.state_dict())
        if self.config is None:
            return model.requires_grad_(True)
        minilora.inject(model, self.config_for(steps))
        return model

    def config_for(self, steps: int) -> Any:
        """The config for a run of so many steps, which AdaLoRA asks for."""
        if self.config is not AdaLoraConfig:
            return self.config
        phases = {"tinit": steps // 10, "tfinal": steps // 5, "deltaT": 5}
        return AdaLoraConfig(init_r=12, target_r=8, total_step=steps, **phases)

    def train(
        self, task: Any, steps: int, batch: int, rate: float, seed: int, **more: Any
    ) -> tuple[Any, History]:
        """A fresh model, trained, and its history; ``more``: a replay, settings of ``train``."""
        model, replay = self.build(seed, steps), more.pop("replay", None)
        settings = QUIET | {"loraplus_ratio": self.ratio} | more
        config = TrainConfig(steps=steps, lr=rate, batch_size=batch, seed=seed, **settings)
        return model, minilora.train(model, task, config, replay=replay)


METHODS = (
    Method("full", None, (5e-4, 1e-3, 2e-3), replayed=True),
    Method("from random weights", None, (1e-3, 2e-3, 4e-3), scratch=True),
    Method("LoRA q, v, r=8", LoraConfig(r=8), (5e-3, 1e-2, 2e-2), replayed=True),
    Method("LoRA q, v, half the rate", LoraConfig(r=8), (1e-2,)),  # was the short search right?
    Method("LoRA all, r=2", LoraConfig(2, 4, "all-linear"), (5e-3, 1e-2, 2e-2), replayed=True),
    Method(
        "rsLoRA q, v, r=32", LoraConfig(r=32, lora_alpha=16, use_rslora=True), (2.5e-3, 5e-3, 1e-2)
    ),
    Method("LoRA+ q, v, r=8", LoraConfig(r=8), (1.25e-3, 2.5e-3, 5e-3), ratio=16),
    Method("DoRA q, v, r=8", LoraConfig(r=8, use_dora=True), (5e-3, 1e-2, 2e-2), replayed=True),
    Method("PiSSA q, v, r=8", LoraConfig(r=8, init_lora_weights="pissa"), (1e-3, 2.5e-3, 5e-3)),
    Method("OLoRA q, v, r=8", LoraConfig(r=8, init_lora_weights="olora"), (5e-4, 1e-3, 2.5e-3)),
    Method("AdaLoRA q, v, 12 to 8", AdaLoraConfig, (5e-3, 1e-2, 2e-2), replayed=True),
    Method("VeRA q, v, r=256", VeraConfig(r=256), (2.5e-2, 5e-2, 1e-1), replayed=True),
    Method("(IA)³ k, v, down", IA3Config(), (2.5e-2, 5e-2, 1e-1)),
    Method("BitFit, all", BitFitConfig(), (1e-2, 2e-2, 4e-2)),
    Method("norms", LNTuningConfig(), (1e-2, 2e-2, 4e-2)),
    Method("Houlsby, k=8", BottleneckConfig("houlsby", 8), (2.5e-3, 5e-3, 1e-2)),
    Method("Pfeiffer, k=8", BottleneckConfig("pfeiffer", 8), (2.5e-3, 5e-3, 1e-2)),
    Method("parallel, k=8", BottleneckConfig("parallel", 8), (2.5e-3, 5e-3, 1e-2)),
    Method("prefix, k=16", PrefixTuningConfig(16), (1.5e-2, 3e-2, 6e-2)),
    Method("prompt, k=64", PromptTuningConfig(64, "TEXT", TEXT), (3e-2, 1e-1, 3e-1)),
)


def search(method: Method, settings: Any, tried: dict[str, float]) -> Row:
    """The rate with the lowest held-out loss after a short run, and all that were tried.

    Where the best is the lowest or the highest so far, its half or its double is tried too, at
    most ``MORE`` times.
    """
    task, tried = data.naval_log(2000, 60, seed=77), dict(tried)

    def loss(rate: float) -> float:
        try:
            model, _ = method.train(
                task, settings.search_steps, settings.search_batch, rate, seed=77
            )
            return held_out_loss(model, task)
        except FloatingPointError:  # diverged
            return float("inf")

    for rate in method.rates:
        if str(rate) not in tried:
            tried[str(rate)] = loss(rate)
    most = len(method.rates) + MORE if len(method.rates) > 1 else 1
    while (further := beyond(tried)) is not None and len(tried) < most:
        tried[str(further)] = loss(further)
    best = float(min(tried, key=tried.__getitem__))
    return {"rate": best, "tried": tried, "at_edge": beyond(tried) is not None}


def beyond(tried: Mapping[str, float]) -> float | None:
    """Half or double of the best rate, where no rate was tried on that side of it."""
    rates, best = sorted(map(float, tried)), float(min(tried, key=tried.__getitem__))
    if best == rates[-1]:
        return 2 * best
    return best / 2 if best == rates[0] else None


@torch.no_grad()
def held_out_loss(model: Any, task: Any) -> float:
    """Nats an answer token on a task's held-out examples."""
    batch = pad(encode_all(model.tokenizer, task.valid, 512))
    return summed_loss(model.eval(), batch).item() / batch.answer_tokens


def run_naval(
    method: Method, rate: float, seed: int, settings: Any, prose: float, replay: Any = None
) -> Row:
    """Naval code with one seed; ``prose`` is the untouched base's bits a byte.

    ``curve``: ten times in the run, its step and the share of ``settings.watched`` logs right.
    """
    held_out = data.naval_log(1, settings.logs, seed=99).valid
    task = data.naval_log(settings.steps * settings.batch, settings.watched, seed=seed)
    watched = {"valid_answers": settings.watched, "valid_examples": 8, "replay": replay}
    each = max(1, settings.steps // 10)
    model, history = method.train(
        task, settings.steps, settings.batch, rate, seed, validate_every=each, **watched
    )
    return {
        "naval_loss": statistics.mean(history.losses[-10:]),
        "exact_match": minilora.exact_match(model, held_out),
        "forgotten": prose_bits(model) - prose,
        "curve": [(record["step"], record["exact_match"]) for record in history.validations],
    }


def run_manual(method: Method, rate: float, seed: int, settings: Any) -> float:
    """Bits a byte on held-out pages after training on Python's manual, at naval code's rate."""
    task, text = manual()
    if isinstance(method.config, AttachedConfig):  # its rows need some of the model's positions
        encode = minilora.load_base().tokenizer.encode
        task = replace(task, train=[e for e in task.train if len(encode(e.output)) < ROOM])
    model, _ = method.train(task, settings.text_steps, 4, rate, seed)
    return minilora.bits_per_byte(model, text)


def step_ratio(method: Method, settings: Any) -> float:
    """A training step's time over one of LoRA q, v, r=8: the median of rounds in turns."""
    quiet = TrainConfig(steps=1_000_000, batch_size=32, validate_every=0, progress=False)
    runs = {}
    for name, each in (("this", method), ("lora", METHODS[2])):
        model = each.build(0, quiet.steps)
        run = set_up(model.train(), data.naval_log(200, 1), quiet)
        runs[name] = run.steps(model, quiet)
    times = measure(
        {name: lambda r=r: next(r) for name, r in runs.items()},
        settings.seconds,
        clock=time.thread_time,
    )
    return ratios(times["this"], times["lora"])[1]


def main() -> None:
    """Costs and rates first, then seed by seed, so that a slow spell falls on all methods."""
    settings = options(
        __doc__,
        **{"steps": 500, "batch": 32, "text_steps": 30, "seeds": 5, "text_seeds": 1},
        **{"replay_seeds": 3, "logs": 200, "watched": 50, "seconds": 2.0},
        **{"search_steps": 100, "search_batch": 16, "only": ["all"]},
    )
    chosen = chosen_of(METHODS, vars(settings).pop("only"))
    rows = {method.name: {"method": method.name, **deepcopy(EMPTY)} for method in METHODS}
    for name, row in kept(settings, list(rows)).items():
        rows[name] |= row
    started, base = time.perf_counter(), minilora.load_base()
    held_out, prose = data.naval_log(1, settings.logs, seed=99).valid, prose_bits(base)
    untouched: Row = {
        "method": "the base, untouched",
        "prose_bits": prose,
        "exact_match": minilora.exact_match(base, held_out),
        "manual_bits": minilora.bits_per_byte(base, manual()[1]),
    }

    def say(text: str) -> None:
        save("methods", [untouched, *rows.values()], settings)
        print(f"{time.perf_counter() - started:5.0f} s  {text}", flush=True)

    for method in chosen:
        row: Row = rows[method.name]
        if "trainable" not in row:
            build, of = partial(method.build, 0, 2), {"full": method.config is None}
            of["merges"] = method.merges
            row |= fixed_costs(build, settings.seconds, clock=time.thread_time, **of)
            row["step"] = step_ratio(method, settings)
            say(f"{method.name:<22}{row['trainable']:,} trained")
    for method in chosen:
        row = rows[method.name]
        row["code_lines"] = code_lines(method.name)
        tried = row.get("tried", {})
        more = len(method.rates) > 1 and len(tried) < len(method.rates) + MORE
        if not tried or (beyond(tried) and more):
            before = row.get("rate")
            row |= search(method, settings, tried)
            row |= deepcopy(EMPTY) if row["rate"] != before else {}  # runs at another rate go
            say(f"{method.name:<22}rate {row['rate']:g} of {row['tried']}")
    for seed in range(settings.seeds):
        for method in chosen:
            row = rows[method.name]
            run: Any = partial(run_naval, method, row["rate"], seed, settings, prose)
            if len(row["seeds"]) <= seed and not (method.scratch and seed):
                row["seeds"].append(run())
                say(f"seed {seed}  {method.name:<22}{scores(row['seeds'][-1])}")
            if len(row["manual_bits"]) <= seed < settings.text_seeds:
                row["manual_bits"].append(run_manual(method, row["rate"], seed, settings))
                say(f"seed {seed}  {method.name:<22}manual {row['manual_bits'][-1]:.3f}")
            if method.replayed and len(row["replay_seeds"]) <= seed < settings.replay_seeds:
                row["replay_seeds"].append(run(replay=SelfReplay(0.25, 128)))
                say(f"seed {seed}  {method.name:<22}{scores(row['replay_seeds'][-1])}, replay")
            if not (row["half"] or method.scratch or len(method.rates) == 1):
                row["half"].append(run_naval(method, row["rate"] / 2, seed, settings, prose))
                say(f"seed {seed}  {method.name:<22}{scores(row['half'][0])}, half the rate")
    say("all there")
    result = {"rows": [untouched, *(rows[method.name] for method in chosen)]}
    print(table(METHODS_HEAD, methods_rows(result)))


if __name__ == "__main__":
    main()
