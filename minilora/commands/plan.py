"""``minilora plan``: a fine-tune's cost as a table, as JSON, as a picture, as a page to play with."""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from pathlib import Path
from typing import Any

from ..ledger.estimate import DTYPES, GB, GPUS, METHODS, OPTIMIZERS, Plan, Settings, plan
from ..ledger.shapes import architecture, presets
from ..lora.config import LoraConfig, read_targets
from ..plots.style import save_figure, short

TERMS = (
    "weights: the base as it is stored, a 4-bit weight in half a byte. constants: the scales of 4-bit weights. adapters: A and "
    "B. gradients and optimizer: of what trains; AdamW's two moments are 8 bytes a number. activations: what the forward pass "
    "keeps for the backward pass; they grow with batch and tokens. temporary: what passes by at the worst moment, as logits. "
    "GB are decimal. Not counted: the process itself (half a gigabyte on a card), fragmentation, a float32 copy of 16-bit "
    "weights that train (4 bytes each, where one is kept), and what several cards hold twice. time is FLOPs and nothing "
    "else, at a round 100 TFLOP/s: cards that sustain 400 together need a quarter of it; opening 4-bit weights comes on top."
)
SPEED = 1e14  # FLOP/s, a round number


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of ``minilora plan``."""
    add = parser.add_argument
    add("model", nargs="?", help="a preset (--list names them), a config.json, or a model's folder")
    add("--list", action="store_true", help="name the presets and stop")
    one = parser.add_mutually_exclusive_group()
    one.add_argument("--method", choices=METHODS, default="lora", help="(default: %(default)s)")
    for method in METHODS:
        same = f"the same as --method {method}"
        one.add_argument(
            f"--{method}", action="store_const", const=method, dest="method", help=same
        )
    add("--r", type=int, default=8, help="rank (default: %(default)s)")
    modules = "modules to adapt (default: all-linear; train and LoraConfig have q_proj v_proj)"
    add("--target", nargs="+", default=["all-linear"], help=modules)
    add("--batch", type=int, default=1, help="sequences at once (default: %(default)s)")
    add("--seq", type=int, default=2048, help="tokens a sequence (default: %(default)s)")
    of_base, of_adapter = "of the base (default: %(default)s)", "of A and B (default: %(default)s)"
    add("--dtype", choices=[*DTYPES], default="bfloat16", help=of_base)
    add("--adapter-dtype", choices=[*DTYPES], default="float32", help=of_adapter)
    add("--optimizer", choices=OPTIMIZERS, default="adamw", help="(default: %(default)s)")
    add("--checkpointing", action="store_true", help="gradient checkpointing")
    add("--single-quant", action="store_true", help="QLoRA without double quantization")
    add("--json", action="store_true", help="for programs: the fields of minilora.ledger.Plan")
    add("--chart", type=Path, help="also draw it beside the other methods: .png or .svg")
    add("--dark", action="store_true", help="the chart for dark slides")
    page = "write the interactive planner, one HTML file (a model is chosen there), and stop"
    add("--page", type=Path, help=page)
    parser.add_argument_group("what the table says", TERMS)


def run(options: argparse.Namespace) -> int:
    """``minilora plan``."""
    if options.page is not None:
        from ..plots.planner_page import write_planner

        print(
            f"Saved {write_planner(options.page, options.model)}. Open it in a browser; it needs no network."
        )
        return 0
    if options.list:
        for name in presets():
            print(f"{name:16}{short(architecture(name).parameters):>6}")
        return 0
    if options.model is None:
        raise ValueError(
            "which model? Name a preset (minilora plan --list), a config.json, or a folder that holds one"
        )
    settings = Settings(
        batch=options.batch,
        seq=options.seq,
        dtype=options.dtype,
        adapter_dtype=options.adapter_dtype,
        optimizer=options.optimizer,
        checkpointing=options.checkpointing,
        double_quant=not options.single_quant,
    )
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        config = LoraConfig(options.r, 2 * options.r, read_targets(options.target))
        found = plan(options.model, config, options.method, settings)
        if options.chart is not None:
            save_figure(plan_figure(options.model, config, settings, options.dark), options.chart)
    for note in dict.fromkeys(str(warning.message) for warning in said):
        print(f"note: {note}", file=sys.stderr)
    if options.json:
        print(json.dumps(found.as_dict(), indent=1))
    else:
        print_plan(found)
        if options.chart is not None:
            print(f"Saved {options.chart}.")
    return 0


def print_plan(found: Plan) -> None:
    """The plan as a table, by rich."""
    from rich.console import Console
    from rich.table import Table

    s, config = found.settings, found.config
    how = "everything trains" if config is None else f"r = {config.r} on {found.adapted} Linears"
    table = Table(box=None, pad_edge=False)
    for name, justify in (("", "left"), ("bytes", "right"), ("GB", "right"), ("share", "right")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for name, size in {**found.bytes, "total": found.total}.items():
        style = "bold" if name == "total" else "dim" if not size else None
        table.add_row(
            name, f"{size:,}", f"{size / GB:,.2f}", f"{100 * size / found.total:.1f}%", style=style
        )
    console = Console(highlight=False, soft_wrap=True)
    console.width = max(console.width, 60)  # in a narrower window lines wrap; a number is never cut
    console.print(f"{found.model}, {found.method}: {how}")
    console.print(table)
    console.print(
        f"\ntrainable    {found.trainable:,} of {found.parameters:,} ({100 * found.share:.4f}%)"
    )
    if config is not None:
        console.print(
            f"adapter file {found.adapter_file_bytes:,} bytes ({found.adapter_file_bytes / 1e6:,.1f} MB)"
        )
    forward, backward = found.flops_forward, found.flops_backward
    again = " with the forward again" * s.checkpointing
    console.print(
        f"FLOPs        {forward / 1e9:,.2f} G a token forward, {backward / 1e9:,.2f} G backward{again}"
    )
    console.print(f"time         {time_text(found)} a million tokens, were 100 TFLOP/s sustained")
    console.print(
        f"step         {s.batch} × {s.seq} tokens, {s.dtype} base, {s.optimizer}"
        + ", checkpointing" * s.checkpointing
    )
    console.print(
        "fits         "
        + (
            ", ".join(name for name, fits in found.fits.items() if fits)
            or f"none of {', '.join(GPUS)}"
        )
    )
    if not any(found.fits.values()):
        console.print(f"             over cards of 80 GB, at least {cards_of_80(found)} of them")
    for name, size in GPUS.items():
        if 0 < found.total - size * GB <= 0.07 * size * GB:
            over = f"over by {(found.total - size * GB) / GB:.2f} GB"
            console.print(
                f"close        {name}: {over}; cards hold up to 7% more, the driver takes part of that"
            )


def time_text(found: Plan) -> str:
    """How long a million tokens take at ``SPEED``, in the unit that suits."""
    seconds = (found.flops_forward + found.flops_backward) * 1e6 / SPEED
    size, unit = next(
        ((size, unit) for size, unit in ((3600, "hours"), (60, "minutes")) if seconds >= size),
        (1, "seconds"),
    )
    return f"{seconds / size:.2g} {unit}"


def cards_of_80(found: Plan) -> int:
    """The fewest cards of 80 GB that hold the step, were everything shared out evenly."""
    return -(-found.total // (80 * GB))


def plan_figure(source: str, config: LoraConfig, settings: Settings, dark: bool = False) -> Any:
    """A model under each method with one config, as ``memory_chart`` draws it; below each bar the cards that hold it."""
    from ..plots.charts import memory_chart

    plans = {
        title: plan(source, config, title.lower(), settings) for title in ("full", "LoRA", "QLoRA")
    }
    bars = {}
    for title, found in plans.items():
        card = next(
            (f"a card of {name}" for name, fits in found.fits.items() if fits),
            f"≥ {cards_of_80(found)} × 80 GB",
        )
        bars[f"{title}\n{card}"] = [found.bytes]
    cards = {name: size * float(GB) for name, size in GPUS.items()}
    targets = (
        config.target_modules
        if isinstance(config.target_modules, str)
        else ", ".join(config.target_modules)
    )
    note = f"{settings.dtype} base, {settings.optimizer}, r = {config.r} on {targets}, {settings.batch} × {settings.seq} tokens"
    note += ", checkpointing" * settings.checkpointing
    return memory_chart([plans["full"].model], bars, cards, note, dark=dark)
