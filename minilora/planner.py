"""The commands ``minilora plan`` and ``minilora chart``: a plan as a table, as JSON, as a picture, as a page to play with."""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from pathlib import Path
from typing import Any

from .config import LoraConfig
from .ledger import GPUS, METHODS, OPTIMIZERS, Plan, architecture, plan, presets
from .plan import DTYPES, GB, Settings
from .plots import save_figure, short


def add_plan_options(made: argparse.ArgumentParser) -> None:
    """Options of ``minilora plan``."""
    made.add_argument("model", nargs="?", help="a preset (--list names them), a config.json, or a model's folder")
    made.add_argument("--list", action="store_true", help="name the presets and stop")
    made.add_argument("--method", choices=METHODS, default="lora", help="(default: %(default)s)")
    made.add_argument("--qlora", action="store_const", const="qlora", dest="method", help="the same as --method qlora")
    made.add_argument("--full", action="store_const", const="full", dest="method", help="the same as --method full")
    made.add_argument("--r", type=int, default=8, help="rank (default: %(default)s)")
    made.add_argument("--target", nargs="+", default=["all-linear"], help="modules to adapt (default: all-linear)")
    made.add_argument("--batch", type=int, default=1, help="sequences at once (default: %(default)s)")
    made.add_argument("--seq", type=int, default=2048, help="tokens a sequence (default: %(default)s)")
    made.add_argument("--dtype", choices=[*DTYPES], default="bfloat16", help="of the base (default: %(default)s)")
    made.add_argument("--adapter-dtype", choices=[*DTYPES], default="float32", help="of A and B (default: %(default)s)")
    made.add_argument("--optimizer", choices=OPTIMIZERS, default="adamw", help="(default: %(default)s)")
    made.add_argument("--checkpointing", action="store_true", help="gradient checkpointing")
    made.add_argument("--single-quant", action="store_true", help="QLoRA without double quantization")
    made.add_argument("--json", action="store_true", help="for programs")
    made.add_argument("--chart", type=Path, help="also draw it: .png or .svg")
    made.add_argument("--page", type=Path, help="write the interactive planner, one HTML file, and stop")


def run_plan(options: argparse.Namespace) -> int:
    """``minilora plan``."""
    if options.page is not None:
        from .page import write_planner

        print(f"Saved {write_planner(options.page)}. Open it in a browser; it needs no network.")
        return 0
    if options.list:
        for name in presets():
            print(f"{name:16}{short(architecture(name).parameters):>6}")
        return 0
    if options.model is None:
        raise ValueError("which model? Name a preset (minilora plan --list), a config.json, or a folder that holds one")
    settings = Settings(
        batch=options.batch,
        seq=options.seq,
        dtype=options.dtype,
        adapter_dtype=options.adapter_dtype,
        optimizer=options.optimizer,
        checkpointing=options.checkpointing,
        double_quant=not options.single_quant,
    )
    targets = "all-linear" if options.target == ["all-linear"] else options.target
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = plan(options.model, LoraConfig(options.r, 2 * options.r, targets), options.method, settings)
        if options.chart is not None:
            save_figure(plan_figure(found, options.model), options.chart)
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
    table = Table(title=f"{found.model}, {found.method}: {how}", title_justify="left", box=None, pad_edge=False)
    for name, justify in (("", "left"), ("bytes", "right"), ("GB", "right"), ("share", "right")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for name, size in {**found.bytes, "total": found.total}.items():
        style = "bold" if name == "total" else "dim" if not size else None
        table.add_row(name, f"{size:,}", f"{size / GB:,.2f}", f"{100 * size / found.total:.1f}%", style=style)
    console = Console(highlight=False, soft_wrap=True)
    console.print(table)
    console.print(f"\ntrainable    {found.trainable:,} of {found.parameters:,} ({100 * found.share:.4f}%)")
    if config is not None:
        console.print(f"adapter file {found.adapter_file_bytes:,} bytes ({found.adapter_file_bytes / 1e6:,.1f} MB)")
    forward, backward = found.flops_forward, found.flops_backward
    console.print(f"FLOPs        {forward / 1e9:,.2f} G a token forward, {backward / 1e9:,.2f} G backward")
    console.print(
        f"step         {s.batch} × {s.seq} tokens, {s.dtype} base, {s.optimizer}" + ", checkpointing" * s.checkpointing
    )
    console.print(
        "fits         " + (", ".join(name for name, fits in found.fits.items() if fits) or f"none of {', '.join(GPUS)}")
    )
    if not any(found.fits.values()):
        console.print(f"             over cards of 80 GB, at least {-(-found.total // (80 * GB))} of them")


def plan_figure(found: Plan, source: str) -> Any:
    """The plan's model under each method, with the plan's settings, as ``memory_chart`` draws it."""
    from .charts import memory_chart

    config, settings = found.config or LoraConfig(8, 16, "all-linear"), found.settings
    methods = {"full": "full", "LoRA": "lora", "QLoRA": "qlora"}
    bars = {title: [plan(source, config, method, settings).bytes] for title, method in methods.items()}
    cards = {name: size * float(GB) for name, size in GPUS.items()}
    note = f"r = {config.r}, {settings.batch} × {settings.seq} tokens" + ", checkpointing" * settings.checkpointing
    return memory_chart([found.model], bars, cards, note)


def add_chart_options(made: argparse.ArgumentParser) -> None:
    """Options of ``minilora chart``."""
    made.add_argument("name", nargs="?", help="which chart (without a name: lists them)")
    made.add_argument("--out", type=Path, help=".png or .svg (default: NAME.png)")
    made.add_argument("--dark", action="store_true", help="for dark pages")
    made.add_argument("--all", type=Path, metavar="DIR", help="every chart, light and dark, and index.html")


def run_chart(options: argparse.Namespace) -> int:
    """``minilora chart``."""
    from . import gallery

    if options.all is not None:
        print("Two of the charts train the shipped base for a moment …", flush=True)
        print(f"Saved {gallery.write_gallery(options.all)} and a PNG and an SVG of each chart.")
    elif options.name is None:
        for name, chart in gallery.CHARTS.items():
            print(f"{name:12}{(chart.__doc__ or '').splitlines()[0]}")
    else:
        print(f"Saved {save_figure(gallery.draw(options.name, options.dark), options.out or Path(f'{options.name}.png'))}.")
    return 0
