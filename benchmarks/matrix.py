"""The table engineers want: every method on the shipped base, two tasks, five seeds, in one run.

    python -m benchmarks.matrix [--seeds 5] [--steps 100] [--text-steps 30]

Tasks. *Naval code*: ship's logs answered in another style; score: held-out logs right to the
letter. *Manual*: Python's own language reference (the text of ``help()``, which every Python
carries); score: bits a byte on held-out pages. Forgetting is the loss on the prose that the base
was trained on, in bits a byte.

The runs are short, so that the whole table takes minutes: it compares methods at equal steps, not
at their best. The rates are the best of three that were tried for full, the smallest, a middle and
the largest LoRA, with a seed that is not among those reported; the others take their neighbour's.
Another method is another row of ``METHODS``.
"""

from __future__ import annotations

import pydoc_data.topics
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import minilora
from minilora import Example, LoraConfig, Task, data, ledger
from minilora.training.config import TrainConfig
from minilora.training.evaluation import PROSE
from minilora.training.history import History
from minilora.training.run import set_up

from .common import Row, measure, options, ratios, save


@dataclass(frozen=True)
class Method:
    """A row: name, targets (None: everything trains), rank, four bits or not, the tasks' rates."""

    name: str
    target: Any = None
    r: int = 8
    four_bits: bool = False
    naval_rate: float = 1e-2
    text_rate: float = 8e-3

    def build(self) -> Any:
        """The shipped base, ready to train."""
        model = minilora.load_base(quantize="nf4" if self.four_bits else None)
        if self.target is None:
            return model.requires_grad_(True)
        config = LoraConfig(r=self.r, lora_alpha=2 * self.r, target_modules=self.target)
        minilora.inject(model, config)
        return model


QV = ["q_proj", "v_proj"]
METHODS = (
    Method("full", naval_rate=1e-3, text_rate=2e-3),
    Method("LoRA q, v, r=1", QV, 1, naval_rate=2e-2, text_rate=1e-2),
    Method("LoRA q, v, r=8", QV, naval_rate=1e-2, text_rate=1e-2),
    Method("LoRA all, r=2", "all-linear", 2, naval_rate=1e-2, text_rate=8e-3),
    Method("LoRA all, r=8", "all-linear", naval_rate=1e-2, text_rate=8e-3),
    Method("LoRA all, r=32", "all-linear", 32, naval_rate=5e-3, text_rate=4e-3),
    Method("QLoRA all, r=8", "all-linear", 8, four_bits=True, naval_rate=1e-2, text_rate=8e-3),
)
QUIET: dict[str, Any] = {"validate_every": 0, "keep_best": False, "progress": False}
READ = 12_000  # characters of held-out text, of either kind
TARGET_LOSS = 0.1  # nats an answer token, mean of ten steps: naval code's grammar is learnt then


def manual(seed: int = 0, size: int = 600) -> tuple[Task, str]:
    """Python's language reference as a task in pieces of ``size`` characters, and a held-out text.

    Every eighth topic is held out.
    """
    topics = [text for _, text in sorted(pydoc_data.topics.topics.items())]
    pages = [page for i, page in enumerate(topics) if i % 8]
    pieces = [page[i : i + size] for page in pages for i in range(0, len(page) - size, size)]
    task = Task("manual", tuple(Example("", piece) for piece in pieces), ())
    return task, "\n".join(topics[::8])[:READ]


def fine_tune(
    method: Method, task: Task, steps: int, rate: float, batch: int, seed: int
) -> tuple[Any, History]:
    """A fresh model, trained, and the history of its training."""
    torch.manual_seed(seed)
    model = method.build()
    config = TrainConfig(steps=steps, lr=rate, batch_size=batch, seed=seed, **QUIET)
    return model, minilora.train(model, task, config)


def prose_bits(model: Any) -> float:
    """Bits a byte on the base's own held-out prose."""
    return minilora.bits_per_byte(model, PROSE.read_text(encoding="utf-8")[:READ])


def seconds_to(history: History, loss: float, window: int = 10) -> float | None:
    """Training seconds until the mean of ``window`` losses is below ``loss``; None: never."""
    for end in range(window, len(history.steps) + 1):
        if statistics.mean(history.losses[end - window : end]) < loss:
            return sum(record["seconds"] for record in history.steps[:end])
    return None


def run_seed(
    method: Method, seed: int, settings: Any, held_out: Sequence[Example], prose: float
) -> Row:
    """Both tasks with one seed; ``prose`` is the untouched base's bits a byte."""
    task = data.naval_log(seed=seed)
    model, history = fine_tune(method, task, settings.steps, method.naval_rate, 32, seed)
    row = {
        "naval_loss": statistics.mean(history.losses[-10:]),
        "exact_match": minilora.exact_match(model, held_out),
        "naval_forgetting": prose_bits(model) - prose,
        "step_seconds": statistics.median(record["seconds"] for record in history.steps),
        "seconds_to_target": seconds_to(history, TARGET_LOSS),
    }
    task, text = manual()
    model, _ = fine_tune(method, task, settings.text_steps, method.text_rate, 4, seed)
    row["manual_bits"] = minilora.bits_per_byte(model, text)
    row["manual_forgetting"] = prose_bits(model) - prose
    return row


def fixed_costs(
    build: Callable[[], Any],
    seconds: float,
    full: bool = False,
    onto: str | None = None,
    merges: bool = True,
    clock: Callable[[], float] = time.perf_counter,
) -> Row:
    """Costs that no seed changes: parameters, a step's memory, bytes to ship, a forward's time.

    ``build`` makes the model, ready to train; a ``full`` one ships whole, any other its adapter,
    which is merged ``onto`` for the last forward, if it ``merges``.
    """
    model = build()
    counted = ledger.count(model).total
    quiet = TrainConfig(steps=2, batch_size=32, validate_every=0, progress=False)
    run = set_up(model.train(), data.naval_log(200, 1), quiet)
    records = run.steps(model, quiet)
    next(records)
    peak = ledger.measure(lambda: next(records), model, run.optimizer).peak
    ids = torch.randint(0, 1536, (1, 128))
    models: dict[str, Any] = {"plain": minilora.load_base(), "unmerged": model.eval()}
    with tempfile.TemporaryDirectory() as folder:
        if full:
            minilora.save_model(model, folder)
        else:
            minilora.save_adapter(model, folder)
            if merges:
                models["merged"] = minilora.merge_and_unload(build(), onto=onto)
        size = max(file.stat().st_size for file in Path(folder).iterdir())
    forwards = {name: lambda model=model: model(ids) for name, model in models.items()}
    with torch.inference_mode():
        times = measure(forwards, seconds, clock=clock)
    plain = times.pop("plain")
    latency = {f"latency_{name}": ratios(each, plain)[1] for name, each in times.items()}
    share = {"trainable": counted.trainable, "share": counted.trainable / counted.parameters}
    return {**share, "peak_bytes": peak, "shipped_bytes": size, **latency}


def main() -> None:
    """All methods, seed by seed, so that a slow spell of the machine falls on all of them."""
    settings = options(__doc__, seeds=5, steps=100, text_steps=30, logs=100, seconds=2.0)
    started, base = time.perf_counter(), minilora.load_base()
    held_out = data.naval_log(1, settings.logs, seed=99).valid
    prose = prose_bits(base)
    untouched: Row = {
        "method": "the base, untouched",
        "prose_bits": prose,
        "exact_match": minilora.exact_match(base, held_out),
        "manual_bits": minilora.bits_per_byte(base, manual()[1]),
    }
    rows: dict[str, Row] = {}
    for method in METHODS:
        onto = "dequantized" if method.four_bits else None
        costs = fixed_costs(method.build, settings.seconds, method.target is None, onto)
        rows[method.name] = {"method": method.name, **costs, "seeds": []}
    for seed in range(settings.seeds):
        for method in METHODS:
            row = run_seed(method, seed, settings, held_out, prose)
            rows[method.name]["seeds"].append(row)
            scores = f"naval {row['exact_match']:.1%}, manual {row['manual_bits']:.3f} bits a byte"
            passed = time.perf_counter() - started
            print(f"{passed:5.0f} s  seed {seed}  {method.name:<16}{scores}", flush=True)
    save("matrix", [untouched, *rows.values()], settings)


if __name__ == "__main__":
    main()
