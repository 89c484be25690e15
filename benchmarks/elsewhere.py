"""The methods on other bases: the shipped one in four bits, and SmolLM2.

    python -m benchmarks.elsewhere [--steps 60]                        # floats beside NF4
    python -m benchmarks.elsewhere --llm smollm2 [--llm-steps 30]       # and SmolLM2-135M

Floats and NF4: ``CHOSEN`` methods at the rate that ``benchmarks.methods`` found, one seed, the same
examples on both; exact match on held-out logs of naval code. SmolLM2: LoRA, DoRA, VeRA and a prefix
at one budget, each with three rates; the rate with the lowest loss on a held-out split makes the
row, whose answers are to other logs. Seconds are the processor's, of one thread. Finished rows and
tried rates are kept, so a run that was stopped continues.

``smollm2`` is the folder that ``python -m minilora.recipes.smollm2`` makes.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import minilora
from minilora import LoraConfig, PrefixTuningConfig, VeraConfig, data, ledger
from minilora.training.config import TrainConfig

from .common import RESULTS, Row, kept_rows, options, save
from .matrix import QUIET, prose_bits
from .methods import METHODS, Method, held_out_loss

CHOSEN = (
    *("LoRA q, v, r=8", "DoRA q, v, r=8", "VeRA q, v, r=256"),
    *("(IA)³ k, v, down", "Houlsby, k=8", "prefix, k=16"),
)
LARGE = "SmolLM2-135M"
LLM = (
    Method("LoRA q, v, r=8", LoraConfig(r=8), (2e-3, 4e-3, 8e-3)),
    Method("DoRA q, v, r=8", LoraConfig(r=8, use_dora=True), (2e-3, 4e-3, 8e-3)),
    Method("VeRA q, v, r=256", VeraConfig(r=256), (1e-2, 3e-2, 1e-1)),
    Method("prefix, k=16", PrefixTuningConfig(16), (1e-2, 3e-2, 1e-1)),
)


def fit(model: Any, method: Method, rate: float, steps: int, batch: int, task: Any) -> Row:
    """Train a fresh model with a method; its loss and the processor's seconds a step."""
    config = method.config_for(steps)
    torch.manual_seed(0)
    trainable = minilora.inject(model, config).trainable
    settings = TrainConfig(
        steps=steps, lr=rate, batch_size=batch, loraplus_ratio=method.ratio, **QUIET
    )
    begun = time.thread_time()
    history = minilora.train(model, task, settings)
    seconds = (time.thread_time() - begun) / steps
    loss = statistics.mean(history.losses[-max(1, steps // 10) :])
    return {"trainable": trainable, "rate": rate, "loss": loss, "step_seconds": seconds}


def scores(model: Any, logs: int, prose: float) -> Row:
    """Held-out logs right, prose lost, bytes to ship."""
    held_out = data.naval_log(1, logs, seed=99).valid
    with tempfile.TemporaryDirectory() as folder:
        minilora.save_adapter(model, folder)
        size = (Path(folder) / "adapter_model.safetensors").stat().st_size
    return {
        "exact_match": minilora.exact_match(model, held_out),
        "forgotten": prose_bits(model) - prose,
        "shipped_bytes": size,
    }


def small_row(method: Method, rate: float, four_bits: bool, settings: Any) -> Row:
    """One method on the shipped base."""
    base = minilora.load_base(quantize="nf4" if four_bits else None)
    prose, stored = prose_bits(base), ledger.count(base).total.bytes
    task = data.naval_log(settings.steps * settings.batch, 1)
    row = fit(base, method, rate, settings.steps, settings.batch, task)
    return row | {"base_bytes": stored} | scores(base, settings.logs, prose)


def llm_rates(method: Method, llm: str, settings: Any, row: Row) -> Iterator[Row]:
    """One method on SmolLM2: its row after each rate that ``row`` has not tried yet."""
    steps, batch, prose = settings.llm_steps, settings.llm_batch, None
    task = data.naval_log(steps * batch, 20, seed=1)
    for rate in method.rates:
        if str(rate) in row.get("tried", {}):
            continue
        prose = prose_bits(minilora.load_base(llm)) if prose is None else prose
        model = minilora.load_base(llm)
        new = fit(model, method, rate, steps, batch, replace(task, valid=()))
        new["held_out_loss"] = held_out_loss(model, task)
        tried = row.get("tried", {}) | {str(rate): new["held_out_loss"]}
        if new["held_out_loss"] == min(tried.values()):
            row = row | new | scores(model, settings.llm_logs, prose)
        row = row | {"tried": tried}
        yield row


def main() -> None:
    """Both bases of the first part in turns, then SmolLM2."""
    settings = options(
        __doc__,
        **{"steps": 60, "batch": 16, "logs": 100, "llm": "", "llm_steps": 30},
        **{"llm_batch": 4, "llm_logs": 20, "rates": str(RESULTS / "cpu" / "methods.json")},
    )
    rows = {(row["base"], row["method"]): row for row in kept_rows("elsewhere", settings)}
    content = json.loads(Path(settings.rates).read_text(encoding="utf-8"))
    rates = {row["method"]: row["rate"] for row in content["rows"] if "rate" in row}
    settings.rates = ""  # paths of a machine are not kept

    def put(base: str, method: Method, row: Row) -> None:
        rows[base, method.name] = {"base": base, "method": method.name} | row
        save("elsewhere", list(rows.values()), settings)
        print(base, method.name, f"{row['rate']:g}: {row['exact_match']:.1%}", flush=True)

    llm, settings.llm = settings.llm, ""
    for method in LLM if llm else ():
        before = rows.get((LARGE, method.name), {})
        for row in llm_rates(method, llm, settings, before):
            put(LARGE, method, row)
    for method in METHODS:
        if method.name not in CHOSEN or method.name not in rates:
            continue
        for name, four_bits in (("shipped, float32", False), ("shipped, NF4", True)):
            if (name, method.name) not in rows:
                put(name, method, small_row(method, rates[method.name], four_bits, settings))


if __name__ == "__main__":
    main()
