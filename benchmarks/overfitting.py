"""How much data does a fine-tune need, and does LoRA prevent overfitting? Two sweeps, with curves.

    python -m benchmarks.overfitting [--seeds 0 1] [--steps 250]

Both are on the shipped base, which learns naval code in ``--steps`` steps of eight examples:

    data   30, 100, 300 and 2,000 examples × full, r = 1, 8, 64 × nothing, dropout 0.1, decay 0.1
    grid   100 examples × full, r = 1, 8, 64 × three rates × decay 0 and 1; half as many steps

A curve has the loss in nats an answer token at some steps, with dropout off: ``train`` on at most
50 of the examples that are trained, ``held`` on 50 logs that never are. ``exact`` is the share of
50 further logs right to the letter after the last step. In ``data`` each method has the rate that
other benchmarks found good for it; ``grid`` asks whether that mattered. The steps are fixed, not
the epochs: they see 30 examples 67 times, and 2,000 once.

LoRA's dropout drops inputs of A, and the base sees all of x. Full fine-tuning has no A, so there
the same share of each Linear's inputs is dropped, and the base's own products see it.

The results lie beside lesson 08, which draws them. A finished run is kept at once, so a call that
was stopped goes on where it was; ``--most 5`` stops after so many.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

import minilora
from minilora import LoraConfig, Task, data
from minilora.training.batches import Batch, encode_all, pad
from minilora.training.config import TrainConfig
from minilora.training.objective import summed_loss
from minilora.training.run import set_up

from .common import Row, kept_rows, options, rounded, save

HERE = Path(__file__).parents[1] / "lessons" / "data"
LOOKED_AT = (10, 25, 50, 75, 100, 150, 200)  # and before the first step, and after the last
READ, ASKED = 50, 50
SIZES = (30, 100, 300, 2000)
RATES = {0: 1e-3, 1: 1e-2, 8: 5e-3, 64: 2e-3}  # by rank; 0: full fine-tuning
BATCH = 8


@dataclass(frozen=True)
class Setting:
    """One run: what it is part of, its examples, its rank (0: full), and how it is held back."""

    sweep: str
    examples: int
    r: int
    rate: float
    dropout: float = 0.0
    decay: float = 0.0
    seed: int = 0


def settings_of(seed: int) -> Iterator[Setting]:
    """Every run of both sweeps with one seed, those without dropout and decay first."""
    yield from of_every_size(seed)
    yield from of_every_size(seed, dropout=0.1)
    for r, rate in RATES.items():
        for factor in (0.3, 1.0, 3.0):
            for decay in (0.0, 1.0):
                yield Setting("grid", 100, r, rate * factor, decay=decay, seed=seed)
    yield from of_every_size(seed, decay=0.1)


def of_every_size(seed: int, **held_back: float) -> Iterator[Setting]:
    """The runs of ``data`` with one way of holding back."""
    for size in SIZES:
        for r, rate in RATES.items():
            yield Setting("data", size, r, rate, **held_back, seed=seed)


def build(setting: Setting) -> Any:
    """The shipped base, ready to train."""
    torch.manual_seed(setting.seed)
    model = minilora.load_base()
    if setting.r == 0:
        drop_inputs(model.model.layers, setting.dropout)
        return model.requires_grad_(True)
    config = LoraConfig(
        r=setting.r,
        lora_alpha=2 * setting.r,
        target_modules="all-linear",
        lora_dropout=setting.dropout,
    )
    minilora.inject(model, config)
    return model


def drop_inputs(blocks: nn.Module, share: float) -> None:
    """In training mode each Linear of the blocks gets its inputs with a share of them dropped."""

    def dropped(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return (F.dropout(inputs[0], share, module.training), *inputs[1:])

    for module in blocks.modules():
        if isinstance(module, nn.Linear) and share:
            module.register_forward_pre_hook(dropped)


@torch.no_grad()
def mean_loss(model: Any, rows: Batch) -> float:
    """Nats an answer token, with dropout off."""
    loss = summed_loss(model.eval(), rows).item() / rows.answer_tokens
    model.train()
    return loss


def run_once(setting: Setting, steps: int, held_out: Sequence[Any]) -> Row:
    """Train once and look at both losses on the way."""
    model = build(setting)
    task = data.naval_log(setting.examples, 1, seed=setting.seed)
    rows = {
        "train": pad(encode_all(model.tokenizer, task.train[:READ], 512)),
        "held": pad(encode_all(model.tokenizer, held_out[:READ], 512)),
    }
    steps = steps if setting.sweep == "data" else steps // 2
    config = TrainConfig(
        steps=steps,
        lr=setting.rate,
        weight_decay=setting.decay,
        batch_size=BATCH,
        seed=setting.seed,
        validate_every=0,
        keep_best=False,
        progress=False,
    )
    began = time.thread_time()
    run = set_up(model.train(), Task("naval", task.train, ()), config)
    curve: dict[str, list[float]] = {"step": [], "train": [], "held": []}

    def look(step: int) -> None:
        curve["step"].append(step)
        for side, batch in rows.items():
            curve[side].append(mean_loss(model, batch))

    look(0)
    for record in run.steps(model, config):
        if record["step"] in LOOKED_AT or record["step"] == steps:
            look(record["step"])
    exact = minilora.exact_match(model.eval(), held_out[READ:])
    seconds = time.thread_time() - began
    return {**asdict(setting), **curve, "exact": exact, "seconds": seconds}


def main() -> None:
    """Every run that has no row yet; the rows are written after each."""
    torch.set_flush_denormal(True)
    chosen = options(__doc__, seeds=[0], steps=250, most=1000, out=str(HERE))
    torch.set_num_threads(1)
    rows = kept_rows("overfitting", chosen)
    held_out = data.naval_log(1, READ + ASKED, seed=99).valid
    fields = Setting.__dataclass_fields__
    done = {tuple(row[name] for name in fields) for row in rows}
    every = [setting for seed in chosen.seeds for setting in settings_of(seed)]
    left = [each for each in every if tuple(rounded(asdict(each)).values()) not in done]
    for setting in left[: chosen.most]:
        rows.append(run_once(setting, chosen.steps, held_out))
        save("overfitting", rows, chosen)
        print(described(rows[-1]), flush=True)
    print(f"{max(0, len(left) - chosen.most)} runs are left")


def described(row: Row) -> str:
    """A row in one line."""
    name = "full" if row["r"] == 0 else f"r = {row['r']}"
    held = f"held out {min(row['held']):.3f} at best, {row['held'][-1]:.3f} at the end"
    return (
        f"seed {row['seed']}  {row['sweep']} {row['examples']:5} {name:<7} rate {row['rate']:.0e} "
        f"dropout {row['dropout']} decay {row['decay']}  train {row['train'][-1]:.3f}  {held}  "
        f"exact {row['exact']:.0%}  {row['seconds']:.0f} s"
    )


if __name__ == "__main__":
    main()
