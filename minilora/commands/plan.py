"""``minilora plan``: a fine-tune's cost as a table, as JSON, as a picture, as an HTML page.

Its other questions (serving, cards, money, spot, storage) are in ``plan_questions.py``.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..ledger.cards import Cards, plan_cards
from ..ledger.estimate import DTYPES, GB, GPUS, METHODS, OPTIMIZERS, Plan, Settings, plan
from ..ledger.method_costs import COUSINS, default_config
from ..ledger.shapes import architecture, presets
from ..lora.adapter_config import AdapterConfig, AttachedConfig
from ..lora.config import LoraConfig, read_targets
from ..plots.style import save_figure, short
from . import plan_questions
from .options import check_picture

TERMS = """
weights: the base as it is stored, a 4-bit weight in half a byte. constants: the scales of 4-bit
weights. adapters: A and B, or what the method has instead. gradients and optimizer: of the trained
numbers; AdamW's two moments are 8 bytes a number. activations: the tensors that the forward pass
keeps for the backward pass; they grow with batch and tokens. temporary: tensors of the worst moment
only, as logits. GB are decimal.
Not counted: the process itself (half a gigabyte on a card), fragmentation, a float32 copy of 16-bit
weights that train (4 bytes each, where one is kept), and what several cards hold twice. time is
FLOPs and nothing else, at a round 100 TFLOP/s: cards that sustain 400 together need a quarter of
it; opening 4-bit weights comes on top.
""".strip()
SPEED = 1e14  # FLOP/s, a round number


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of ``minilora plan``."""
    add = parser.add_argument
    add("model", nargs="?", help="a preset (--list names them), a config.json, or a model's folder")
    add("--list", action="store_true", help="name the presets and stop")
    one = parser.add_mutually_exclusive_group()
    parser.usage = "minilora plan [model] [options]"
    of = f"{', '.join(METHODS)} (default: %(default)s); --dora is --method dora, and so each"
    one.add_argument("--method", choices=METHODS, default="lora", metavar="METHOD", help=of)
    for method in METHODS:
        hidden = argparse.SUPPRESS
        one.add_argument(
            f"--{method}", action="store_const", const=method, dest="method", help=hidden
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
    plan_questions.add_options(parser)
    parser.add_argument_group("what the table says", TERMS)


def run(options: argparse.Namespace) -> int:
    """``minilora plan``."""
    if options.page is not None:
        check_alone(options, "page", "model")
        from ..plots.planner_page import write_planner

        page = write_planner(options.page, options.model)
        print(f"Saved {page}. Open it in a browser; it needs no network.")
        return 0
    if options.list:
        check_alone(options, "list")
        for name in presets():
            print(f"{name:16}{short(architecture(name).parameters):>6}")
        return 0
    if options.model is None and options.question is None:
        raise ValueError(
            "which model? Name a preset (minilora plan --list), a config.json, "
            "or a folder that holds one"
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
    if options.dark and options.chart is None:
        raise ValueError("--dark is how a chart looks: name its file with --chart")
    if options.chart is not None:
        check_picture(options.chart, "--chart")
    plan_questions.check_asked(options)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        targets = read_targets(options.target)
        config = LoraConfig(options.r, 2 * options.r, targets)
        if options.question is not None:
            print(*plan_questions.answer(options, config, settings), sep="\n")
            return 0
        cousin = options.method in COUSINS
        chosen = default_config(options.method, targets, options.r) if cousin else config
        cards = plan_cards(options.model, chosen, options.method, settings)
        planned = cards.plan
        sums = {} if options.json else totals(options.model, config, chosen, planned)
        if options.chart is not None:
            save_figure(plan_figure(options.model, config, settings, options.dark), options.chart)
    for note in dict.fromkeys(str(warning.message) for warning in caught):
        print(f"note: {note}", file=sys.stderr)
    if options.json:
        print(json.dumps(planned.as_dict(), indent=1))
    else:
        print_totals(planned, sums)
        print_plan(cards)
        if options.chart is not None:
            print(f"Saved {options.chart}.")
    return 0


def check_alone(options: argparse.Namespace, *read: str) -> None:
    """Raise ``ValueError`` on an option that ``--list`` or ``--page`` would not read."""
    parser = argparse.ArgumentParser()
    add_options(parser)
    unasked = vars(parser.parse_args([]))
    for name, value in vars(options).items():
        if name not in read and value != unasked[name]:
            typed = {"model": value, "question": f"--{value}"}
            typed["method"] = f"--{value} (--method {value})"  # either: both mean the same
            word = typed.get(name) or f"--{name.replace('_', '-')}"
            raise ValueError(f"--{read[0]} does not read {word}: leave it out")


def totals(
    source: str, config: LoraConfig, chosen: AdapterConfig | AttachedConfig, planned: Plan
) -> dict[str, dict[str, int]]:
    """Bytes in all of full, LoRA, QLoRA and what was asked for, without and with checkpointing."""
    methods = {"full": config, "lora": config, "qlora": config, planned.method: chosen}
    return {
        name: {
            method: plan(source, each, method, replace(planned.settings, checkpointing=again)).total
            for method, each in methods.items()
        }
        for name, again in (("GB in all", False), ("with checkpointing", True))
    }


def print_totals(planned: Plan, sums: dict[str, dict[str, int]]) -> None:
    """What is asked first: how many GB, by three methods or four; the ledger of one follows."""
    from rich.console import Console
    from rich.table import Table

    settings = planned.settings
    table = Table(box=None, pad_edge=False)
    table.add_column(f"{planned.model}, {settings.batch} × {settings.seq} tokens")
    for name in next(iter(sums.values())):
        table.add_column({"lora": "LoRA", "qlora": "QLoRA"}.get(name, name), justify="right")
    for name, row in sums.items():
        table.add_row(name, *(f"{total / GB:,.1f}" for total in row.values()), style="bold")
    console = Console(highlight=False, soft_wrap=True)
    console.width = max(console.width, 60)
    console.print(table)
    console.print()


def print_plan(cards: Cards) -> None:
    """The plan as a table and the lines below it, by rich."""
    from rich.console import Console

    planned, config = cards.plan, cards.plan.config
    how = what_trains(planned) if config else "everything trains"
    console = Console(highlight=False, soft_wrap=True)
    console.width = max(console.width, 60)  # in a narrower window lines wrap; a number is never cut
    console.print(f"{planned.model}, {planned.method}: {how}")
    console.print(bytes_table(planned))
    console.print()
    for name, text in [*cost_lines(planned), *card_lines(cards)]:
        console.print(f"{name:13}{text}")


def what_trains(planned: Plan) -> str:
    """The rank, where the method has one, and on how many modules; or what stands beside them."""
    config: Any = planned.config
    if isinstance(config, AttachedConfig):
        rows = getattr(config, "num_virtual_tokens", None)
        kind = getattr(config, "kind", "")
        return f"{rows} rows before each text" if rows else f"{kind}, in each layer"
    r = getattr(config, "r", getattr(config, "init_r", None))
    modules = f"{planned.adapted} {'norms' if config.takes_norms else 'Linears'}"
    return f"r = {r} on {modules}" if r else f"on {modules}"


def bytes_table(planned: Plan) -> Any:
    """A row for each category of bytes, and their total."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for name in ("bytes", "GB", "share"):
        table.add_column(name, justify="right")
    for name, size in {**planned.bytes, "total": planned.total}.items():
        style = "bold" if name == "total" else "dim" if not size else None
        share = f"{100 * size / planned.total:.1f}%"
        table.add_row(name, f"{size:,}", f"{size / GB:,.2f}", share, style=style)
    return table


def cost_lines(planned: Plan) -> Iterator[tuple[str, str]]:
    """(name, text) of each line about parameters, files and FLOPs."""
    settings = planned.settings
    share = f"({100 * planned.share:.4f}%)"
    yield "trainable", f"{planned.trainable:,} of {planned.parameters:,} {share}"
    if planned.active < planned.parameters:
        yield "active", f"{planned.active:,} a token; all experts lie in memory"
        yield "experts", "no adapter, no 4 bits: two tensors, not Linears, in transformers 5"
    if planned.config is not None:
        size = planned.adapter_file_bytes
        yield "adapter file", f"{size:,} bytes ({size / 1e6:,.1f} MB)"
    forward, backward = planned.flops_forward / 1e9, planned.flops_backward / 1e9
    again = " with the forward again" * settings.checkpointing
    yield "FLOPs", f"{forward:,.2f} G a token forward, {backward:,.2f} G backward{again}"
    yield "time", f"{time_text(planned)} a million tokens, were 100 TFLOP/s sustained"
    tokens = f"{settings.batch} × {settings.seq} tokens"
    checkpointing = ", checkpointing" * settings.checkpointing
    yield "step", f"{tokens}, {settings.dtype} base, {settings.optimizer}{checkpointing}"


def card_lines(cards: Cards) -> Iterator[tuple[str, str]]:
    """(name, text) of each line about the cards that hold the step, or nearly do."""
    planned = cards.plan
    fitting = [name for name, fits in planned.fits.items() if fits]
    yield "fits", ", ".join(fitting) or f"none of {', '.join(GPUS)}"
    if not fitting:
        yield "", f"by FSDP {plan_questions.cards_in_words(cards)} (more: --cards)"
    for name, size in GPUS.items():
        over = planned.total - size * GB
        if 0 < over <= 0.07 * size * GB:
            margin = "cards hold up to 7% more, the driver takes part of that"
            yield "close", f"{name}: over by {over / GB:.2f} GB; {margin}"


def time_text(planned: Plan) -> str:
    """How long a million tokens take at ``SPEED``, in the unit that suits."""
    seconds = (planned.flops_forward + planned.flops_backward) * 1e6 / SPEED
    if seconds >= 3600:
        return f"{seconds / 3600:.2g} hours"
    return f"{seconds / 60:.2g} minutes" if seconds >= 60 else f"{seconds:.2g} seconds"


def plan_figure(source: str, config: LoraConfig, settings: Settings, dark: bool = False) -> Any:
    """A model under each method with one config, by ``memory_chart``.

    Below each bar stand the cards that hold it.
    """
    from ..plots.charts import memory_chart

    methods = ("full", "LoRA", "QLoRA")
    plans = {title: plan_cards(source, config, title.lower(), settings) for title in methods}
    bars = {f"{title}\n{below(cards)}": [cards.plan.bytes] for title, cards in plans.items()}
    sizes = {name: size * float(GB) for name, size in GPUS.items()}
    targets = config.target_modules
    names = targets if isinstance(targets, str) else ", ".join(targets)
    parts = [f"{settings.dtype} base, {settings.optimizer}, r = {config.r} on {names}"]
    parts += [f"{settings.batch} × {settings.seq} tokens"]
    parts += ["checkpointing"] * settings.checkpointing
    return memory_chart([plans["full"].plan.model], bars, sizes, ", ".join(parts), dark=dark)


def below(cards: Cards) -> str:
    """The smallest card that holds the step, or how many do by FSDP."""
    if (fewest := plan_questions.fewest_cards(cards)) is None:
        return "no number of cards"
    count, name = fewest
    return f"a card of {name}" if count == 1 else f"≥ {count} × {name}"
