"""``minilora plan``'s other questions: serving, several cards, money, spot instances, storage.

Each prints its answer first, in one line, and then the table that it was read from.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ..checks import check_positive
from ..ledger.cards import Cards, plan_cards
from ..ledger.claims import STORED, check_claims
from ..ledger.estimate import GB, GPUS, Plan, Settings, plan
from ..ledger.money import CHECKPOINT_BYTES, Spot, hours, plan_storage
from ..ledger.serving_costs import ServingPlan, plan_serving
from ..lora.config import LoraConfig
from ..text import columns, time_text
from .quantities import amount, duration

QUESTIONS = {
    "serve": "which card serves it, and how many tenants a card",
    "cards": "how many cards of which size train it, by data parallel and by FSDP",
    "cost": "hours and money, from a speed that you measured and a price that you pay",
    "spot": "spot instances: the best checkpoint interval, and when the discount pays",
    "store": "the storage of N adapters, and of N copies",
    "claims": "a table that is often repeated, planned beside claimed",
}
LADDER = ("llama-2-7b", "llama-2-13b", "llama-30b", "llama-2-70b", "gpt3-175b", "llama-3.1-405b")
SIZES = {name: size * GB for name, size in GPUS.items() if size >= 16}


Asked = tuple[Callable[[str], Any], Any, tuple[str, ...], str]  # type, default, questions, help
ASKED: dict[str, Asked] = {
    "adapters": (int, 100, ("serve", "store"), "how many (%(default)s)"),
    "streams": (int, 8, ("serve",), "texts written at once (%(default)s)"),
    "price": (amount, None, ("serve", "cost", "spot"), "of a card's hour; none is built in"),
    "tokens": (amount, None, ("cost",), "tokens to train on, as 2e9, 2B or 300M"),
    "speed": (amount, None, ("cost",), "tokens a second of one card, as you measured it"),
    "devices": (int, 1, ("cost", "spot"), "cards at once (%(default)s)"),
    "efficiency": (amount, 1.0, ("cost",), "speed left of each, as 0.9 or 90%% (%(default)s)"),
    "work": (duration, None, ("spot",), "time without interruptions (default: 10h)"),
    "between": (duration, None, ("spot",), "between interruptions on average, as 30m"),
    "checkpoint": (duration, 1.0, ("spot",), "to write one, as 30s (default: 1s)"),
    "restart": (duration, 120.0, ("spot",), "to work again (default: 2m)"),
    "every": (duration, None, ("spot",), "work between checkpoints (default: the best)"),
    "discount": (amount, None, ("spot",), "as 0.7 or 70%%"),
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """The questions, and what they ask for."""
    group = parser.add_argument_group("other questions, instead of one card's training step")
    one = group.add_mutually_exclusive_group()
    for name, purpose in QUESTIONS.items():
        one.add_argument(
            f"--{name}", action="store_const", const=name, dest="question", help=purpose
        )
    for name, (kind, default, questions, purpose) in ASKED.items():
        of = ", ".join(f"--{question}" for question in questions)
        group.add_argument(f"--{name}", type=kind, default=default, help=f"{of}: {purpose}")


def check_asked(options: argparse.Namespace) -> None:
    """Raise ``ValueError`` on an option that the question, or the step's plan, would not read."""
    question = options.question
    for name, (_, default, questions, _) in ASKED.items():
        if getattr(options, name) != default and question not in questions:
            asked = f"--{question} does not read it" if question else "none of them is asked"
            of = " and ".join(f"--{each}" for each in questions)
            raise ValueError(f"--{name} belongs to {of}, and {asked}")
    if question and (options.json or options.chart is not None):
        raise ValueError(
            f"--json and --chart are for the plan of a step: --{question}'s numbers are functions "
            "of minilora.ledger (plan_serving, plan_cards, hours, Spot, plan_storage, check_claims)"
        )
    if question == "claims" and options.model is not None:
        raise ValueError(f"--claims plans its own six rows: leave {options.model!r} out")


def answer(options: argparse.Namespace, config: LoraConfig, settings: Settings) -> Iterator[str]:
    """The lines that answer the question that was asked."""
    if options.price is not None:
        check_positive("price", options.price)
    if options.devices < 1:
        raise ValueError(f"--devices: expected at least 1 card, got {options.devices}")
    if options.question == "claims":
        return claim_lines()
    if options.question == "spot" and options.model is None:
        return spot_lines(options, None)
    if options.question == "cost" and options.model is None:
        return cost_lines(options, None)
    if options.question == "cards" and options.model is None:
        return ladder_lines(config, settings)
    if options.model is None:
        raise ValueError("which model? Name a preset (minilora plan --list) or a config.json")
    methods = ("lora", "qlora") if options.question == "serve" else ("full", "lora", "qlora")
    if options.method not in methods:
        allowed = ", ".join(methods[:-1]) + f" and {methods[-1]}"
        raise ValueError(f"--{options.question} plans {allowed}, got {options.method!r}")
    if options.question == "serve":
        return serve_lines(options, config, settings)
    if options.question == "cards":
        return cards_lines(plan_cards(options.model, config, options.method, settings))
    planned = plan(options.model, config, options.method, settings)
    if options.question == "store":
        return store_lines(options, planned)
    lines = {"cost": cost_lines, "spot": spot_lines}
    return lines[options.question](options, planned)


def serve_lines(
    options: argparse.Namespace, config: LoraConfig, settings: Settings
) -> Iterator[str]:
    """Which card, how many tenants a card, and what a tenant costs."""
    four_bit = options.method == "qlora"
    planned = plan_serving(
        options.model,
        config,
        four_bit=four_bit,
        dtype=settings.dtype,
        adapters=options.adapters,
        streams=options.streams,
        context=settings.seq,
    )
    fitting = [name for name, fits in planned.fits.items() if fits]
    where = f"a card of {fitting[0]} serves it" if fitting else "no card of these holds it"
    yield f"{planned.model}: {where}: {planned.total / GB:,.1f} GB"
    stored = "4 bits" if four_bit else settings.dtype
    stored += f", its experts in {settings.dtype}" if four_bit and planned.has_experts else ""
    yield (
        f"base in {stored}; {planned.adapters:,} adapters of {planned.adapter / 1e6:,.1f} MB; "
        f"{planned.streams} texts of {planned.context:,} tokens at once"
    )
    yield ""
    yield from columns([(name, f"{size / GB:8,.2f} GB") for name, size in planned.bytes.items()])
    yield ""
    yield from tenant_table(planned, options.price)


def tenant_table(planned: ServingPlan, price: float | None) -> Iterator[str]:
    """A row for each card, 0 where it does not hold one tenant."""
    head = ["card", "adapters in memory", "tenants, each with a text", "with a base each"]
    rows = [[*head, "an hour: shared", "a base each"] if price is not None else head]
    for name, card in SIZES.items():
        numbers = [planned.tenants(card), planned.speaking(card), planned.alone(card)]
        row = [name, *(f"{number:,}" for number in numbers)]
        if price is not None:
            row += [f"{price / n:.4g}" if n else "-" for n in (numbers[0], numbers[2])]
        rows.append(row)
    yield from columns(rows)
    if price is not None:
        yield f"a tenant's part of a card's hour at {price:g}, the card full"


def cards_lines(cards: Cards) -> Iterator[str]:
    """How many cards of which size."""
    planned = cards.plan
    fewest = {name: cards.shards(size) for name, size in SIZES.items()}
    enough = fewest["80 GB"] or planned.settings.checkpointing
    hint = "" if enough else "; --checkpointing makes a card's own batch smaller"
    yield f"{planned.model}, {planned.method}: {cards_in_words(cards)}{hint}"
    yield (
        f"{planned.settings.batch} × {planned.settings.seq} tokens a card; "
        f"one copy takes {planned.total / GB:,.1f} GB"
    )
    yield ""
    rows = [("card", "data parallel", "FSDP, fewest", "GB on each")]
    for name, size in SIZES.items():
        count = fewest[name]
        each = "-" if count is None else f"{cards.shared(count) / GB:,.1f}"
        copies = "any number" if cards.copies(size) else "no"
        rows.append((name, copies, str(count or "too small"), each))
    yield from columns(rows)
    yield ""
    n = max(2, (fewest_cards(cards) or (2, ""))[0])
    apart, shared = (cards.sent(n, shared) / 1e6 for shared in (False, True))
    sent = f"{apart:,.1f} MB a step by data parallel, {shared:,.0f} MB by FSDP"
    yield f"each of {n} cards sends {sent}"


def fewest_cards(cards: Cards) -> tuple[int, str] | None:
    """One card of the smallest size that holds it, or by FSDP the fewest of 80 GB, or of 141 GB."""
    for name, fits in cards.plan.fits.items():
        if fits:
            return 1, name
    counts = ((cards.shards(SIZES[name]), name) for name in ("80 GB", "141 GB"))
    return next(((count, name) for count, name in counts if count), None)


def cards_in_words(cards: Cards) -> str:
    """``one card of 24 GB``, ``at least 3 cards of 80 GB``, ``no number of cards``."""
    if (fewest := fewest_cards(cards)) is None:
        return "no number of cards"
    count, name = fewest
    return f"one card of {name}" if count == 1 else f"at least {count} cards of {name}"


def ladder_lines(config: LoraConfig, settings: Settings) -> Iterator[str]:
    """The fewest cards from 7B to 405B, by three methods."""
    chosen = ("24 GB", "40 GB", "80 GB", "141 GB")
    yield "the fewest cards by FSDP; 1: a card holds it alone"
    yield ""
    rows: list[Sequence[str]] = [("model", "method", *chosen)]
    for model in LADDER:
        for method in ("full", "lora", "qlora"):
            each = LoraConfig(config.r, config.lora_alpha, config.target_modules)
            cards = plan_cards(model, each, method, settings)
            counts = [cards.shards(SIZES[name]) for name in chosen]
            rows.append((model, method, *(str(count or "too small") for count in counts)))
    yield from columns(rows)


def cost_lines(options: argparse.Namespace, planned: Plan | None) -> Iterator[str]:
    """Hours, and money where a price is given."""
    if options.tokens is None or options.speed is None:
        raise ValueError(
            "--cost needs --tokens (to train on) and --speed (tokens a second of one card, "
            "as minilora train prints it on yours)"
        )
    took = hours(options.tokens, options.speed, options.devices, options.efficiency)
    money = "" if options.price is None else f", {took * options.devices * options.price:,.2f}"
    yield f"{time_text(3600 * took)}{money}"
    yield (
        f"{options.tokens:,.0f} tokens, {options.speed:,.0f} tokens a second on each of "
        f"{options.devices}, {100 * options.efficiency:g}% of it left"
    )
    if planned is not None:
        flops = (planned.flops_forward + planned.flops_backward) * options.speed
        yield f"{planned.model}, {planned.method}: that is {flops / 1e12:,.2f} TFLOP/s a card"


def spot_lines(options: argparse.Namespace, planned: Plan | None) -> Iterator[str]:
    """The interval, the time, and the discount from which on it pays."""
    if options.between is None:
        raise ValueError("--spot needs --between: the time between interruptions, as 30m")
    if options.price is not None and options.discount is None:
        raise ValueError("--spot compares prices: give --discount with --price, as 0.7")
    work = options.work if options.work is not None else 36_000.0
    run = Spot(work, options.between, options.checkpoint, options.restart, options.every)
    pays = f"pays from a discount of {100 * run.least_discount:.1f}% on"
    if options.discount is not None:
        saved = run.saved(options.discount)
        verb = "saves" if saved >= 0 else "loses"
        pays = f"{100 * options.discount:g}% off {verb} {100 * abs(saved):.1f}%; it {pays}"
    yield f"{pays}; a checkpoint every {time_text(run.interval)} of work"
    more = 100 * (run.stretch - 1)
    yield f"{time_text(work)} of work take {time_text(run.time)}, {more:.1f}% more"
    young = math.sqrt(2 * options.checkpoint * options.between)
    yield f"interval by the first-order rule √(2CM): {time_text(young)}"
    floor = 100 * options.restart / options.between
    yield f"with free checkpoints it would be {floor:.1f}% more: the restarts alone"
    if planned is not None:
        size = planned.trainable * CHECKPOINT_BYTES
        yield f"a checkpoint of {planned.model}, {planned.method}, is {size / 1e6:,.1f} MB"
    if options.price is not None:
        spot = run.time / 3600 * options.price * (1 - options.discount) * options.devices
        whole = work / 3600 * options.price * options.devices
        yield f"{spot:,.2f} on spot, {whole:,.2f} at the full price"


def store_lines(options: argparse.Namespace, planned: Plan) -> Iterator[str]:
    """N adapters beside N copies."""
    if planned.config is None:
        raise ValueError("--store compares adapters with copies: plan --lora or --qlora")
    kept = plan_storage(options.model, options.adapters, planned)
    yield (
        f"{kept.count:,} adapters and their base: {kept.adapters / GB:,.1f} GB; "
        f"{kept.count:,} copies: {kept.copies / GB:,.1f} GB, {kept.copies / kept.adapters:,.0f} ×"
    )
    each = planned.adapter_file_bytes / 1e6
    yield f"the base {kept.base / GB:,.1f} GB, an adapter {each:,.1f} MB"


def claim_lines() -> Iterator[str]:
    """Planned beside claimed, row by row."""
    yield "Claimed is the card; planned is what each of these cards must hold."
    yield ""
    yield from columns([row[:5] for row in claim_rows()])


def claim_rows() -> list[Sequence[str]]:
    """The table of claims as text: a head, then a row each."""
    stored = [f"planned, base in {name}" for name in STORED]
    rows: list[Sequence[str]] = [("model", "", "claimed", *stored)]
    for claim in check_claims():
        cards = {1: "one", 4: "four"}[claim.cards]
        planned = [
            f"{claim.needed[name] / GB:.1f} GB: {'yes' if claim.holds(name) else 'no'}"
            for name in STORED
        ]
        use = {"train": "trains on", "serve": "serves on"}[claim.use]
        rows.append((claim.model, use, f"{cards} {claim.card} of {claim.size} GB", *planned))
    return rows
