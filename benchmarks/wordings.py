"""How many ways must a question be asked in training, so that a new way is understood?

    python -m benchmarks.wordings [--seeds 0 1 2] [--steps 150]

The shipped base learns naval code from equally many examples, each question in 1, 4 or 16 wordings,
all of the same request: the whole log. Then 100 held-out logs are asked for in the wordings of the
training (``seen``), and in four that no run was trained on (``unseen``). Exact match.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

import minilora
from minilora import Example, LoraConfig, Task, data

from .common import Row, options, save

WORDINGS = (
    "Tell me the readings.", "What does the log say?", "Read the log.", "A full report, please.",
    "All systems?", "What is the state of the ship?", "Report on all systems.", "The log, please.",
    "How are we?", "Say what you see.", "List the readings.", "Readings?", "What are the numbers?",
    "Bring me up to date.", "The whole log.", "Anything to report?",
)  # fmt: skip
UNSEEN = (
    "Tell me about the ship.", "Full status.", "Show the log.", "What is there to know?",
)  # fmt: skip
COUNTS = (1, 4, 16)


def reworded(examples: Sequence[Any], wordings: Sequence[str], seed: int) -> tuple[Example, ...]:
    """Questions about the whole log, each in one of the wordings, with the same answers."""
    rng = random.Random(seed)
    return tuple(replace(example, instruction=rng.choice(wordings)) for example in examples)


def whole_logs(n_train: int, n_valid: int, seed: int) -> Task:
    """Naval code of whole logs."""

    def ask_all(count: int, heldout: bool) -> tuple[Example, ...]:
        rng = random.Random(f"{seed} {heldout} whole")
        more = {"several": 0.0, "everything": 1.0}
        return tuple(data.ship_example(rng, data.naval, heldout, **more) for _ in range(count))

    return Task("whole logs", ask_all(n_train, False), ask_all(n_valid, True))


def run_once(count: int, seed: int, steps: int, logs: int) -> Row:
    """One fine-tune with so many wordings, asked in those and in new ones."""
    torch.manual_seed(seed)
    task, known = whole_logs(1000, logs, seed), WORDINGS[:count]
    model = minilora.load_base()
    minilora.inject(model, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"))
    settings: Any = {"steps": steps, "batch_size": 16, "lr": 5e-3, "seed": seed}
    quiet: Any = {"validate_every": 0, "keep_best": False, "progress": False}
    minilora.train(model, reworded(task.train, known, seed), **settings, **quiet)
    seen, unseen = (reworded(task.valid, words, seed) for words in (known, UNSEEN))
    scores = {"seen": minilora.exact_match(model, seen)}
    scores["unseen"] = minilora.exact_match(model, unseen)
    return {"wordings": count, "seed": seed, **scores}


def main() -> None:
    """Every count, seed by seed."""
    settings = options(__doc__, seeds=[0, 1, 2], steps=150, logs=100)
    rows: list[Row] = []
    for seed in settings.seeds:
        for count in COUNTS:
            rows.append(run_once(count, seed, settings.steps, settings.logs))
            scores = f"seen {rows[-1]['seen']:.0%}, unseen {rows[-1]['unseen']:.0%}"
            print(f"seed {seed}  {count:>2} wordings: {scores}", flush=True)
            save("wordings", rows, settings)


if __name__ == "__main__":
    main()
