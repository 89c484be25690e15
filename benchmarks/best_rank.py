"""Which rank does a base of which size need? The gap of each rank to full fine-tuning.

    python -m benchmarks.best_rank --work FOLDER [--pretrain 1500] [--steps 150] [--llm smollm2]

Three bases of the recipe: two small ones, pretrained here into ``--work`` for ``--pretrain`` steps
(the recipe's own stages, cut short), and the shipped one, which had more of them. Each learns naval
code with LoRA on all Linears at ranks 1 to 32 (α = 2 r) and as a whole; the rate is the best of
three for each. ``loss`` is nats an answer token on 200 held-out logs, which says more than exact
match where a model is far from right. SmolLM2 comes last, with ``--llm-steps`` steps of 8 and one
rate.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import minilora
from minilora import LoraConfig, data
from minilora.model.transformer import LlamaConfig
from minilora.recipes.pretrain import CONFIG, pretrain
from minilora.training.config import TrainConfig

from .common import Row, kept_rows, options, save
from .matrix import QUIET
from .methods import held_out_loss

SIZES: dict[str, LlamaConfig] = {
    "64 wide": replace(CONFIG, hidden_size=64, intermediate_size=176, head_dim=32),
    "96 wide": replace(CONFIG, hidden_size=96, intermediate_size=264, head_dim=32),
}
RANKS = (1, 2, 4, 8, 16, 32)
RATES = {"full": (5e-4, 1e-3, 2e-3), "LoRA": (2.5e-3, 5e-3, 1e-2)}
LLM_RATES = {"full": (1e-4,), "LoRA": (2e-3,)}


def adapt(base: Any, rank: int | None, rate: float, steps: int, batch: int) -> Any:
    """The base with an adapter of that rank, or as a whole, trained."""
    torch.manual_seed(0)
    model = minilora.load_base(base)
    if rank is None:
        model.requires_grad_(True)
    else:
        minilora.inject(model, LoraConfig(rank, 2 * rank, "all-linear"))
    task = data.naval_log(steps * batch, 1)
    config = TrainConfig(steps=steps, lr=rate, batch_size=batch, **QUIET)
    minilora.train(model, replace(task, valid=()), config)
    return model


def row_of(name: str, base: Any, rank: int | None, rates: Any, settings: Any) -> Row:
    """The best of the rates: held-out loss, exact match, parameters."""
    llm, best = name == "SmolLM2", None
    steps, batch = (settings.llm_steps, 8) if llm else (settings.steps, settings.batch)
    task = data.naval_log(1, 40 if llm else settings.logs, seed=99)
    begun = time.thread_time()
    for rate in rates["full" if rank is None else "LoRA"]:
        model = adapt(base, rank, rate, steps, batch)
        loss = held_out_loss(model, task)
        if best is None or loss < best["loss"]:
            best = {
                "rate": rate,
                "loss": loss,
                "exact_match": minilora.exact_match(model, task.valid),
                "trainable": sum(p.numel() for p in model.parameters() if p.requires_grad),
                "parameters": sum(p.numel() for p in minilora.load_base(base).parameters()),
            }
    return {"base": name, "rank": rank, **(best or {}), "seconds": time.thread_time() - begun}


def main() -> None:
    """The bases one after the other; a finished row or base is not made again."""
    settings = options(
        __doc__,
        **{"work": "", "pretrain": 1500, "steps": 150, "batch": 16, "logs": 200},
        **{"llm": "", "llm_steps": 25, "llm_ranks": [1, 8, 64]},
    )
    rows = kept_rows("best_rank", settings)
    bases: dict[str, Any] = {}
    work, settings.work = Path(settings.work), ""  # paths of a machine are not kept
    llm, settings.llm = settings.llm, ""
    for name, config in SIZES.items():
        folder = work / name.replace(" ", "-")
        if not (folder / "done").exists():
            folder.mkdir(parents=True, exist_ok=True)
            pretrain(folder, settings.pretrain, config=config, report_every=settings.pretrain // 5)
            (folder / "done").touch()
        bases[name] = folder
    bases["128 wide, as shipped"] = None
    if llm:
        bases["SmolLM2"] = llm
    for name, base in bases.items():
        is_llm = name == "SmolLM2"
        for rank in (None, *(settings.llm_ranks if is_llm else RANKS)):
            if any((row["base"], row["rank"]) == (name, rank) for row in rows):
                continue
            rows.append(row_of(name, base, rank, LLM_RATES if is_llm else RATES, settings))
            save("best_rank", rows, settings)
            print({key: rows[-1][key] for key in ("base", "rank", "rate", "loss", "exact_match")})


if __name__ == "__main__":
    main()
