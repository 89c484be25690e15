"""``minilora generate``: ask a base, with an adapter or without; or many rows, each with its own.

    minilora generate --adapter naval=folder --adapter legal=folder --mixed rows.jsonl

Each row of the file is an object ``{"adapter": "naval", "instruction": "…", "input": "…"}``. Its
adapter is a name, null for the base, or an object of names and weights. The answers come as one
object a line, in the order of the rows.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .hub_names import NAMED, adapter_folder, add_hub_option
from .options import (
    add_base_option,
    add_device_option,
    add_sampling_options,
    check_device,
    sampling_of,
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of ``minilora generate``."""
    add = parser.add_argument
    add("instruction", nargs="?", help="the question")
    add("--context", default="", help="what the question is about")
    add_base_option(parser)
    about = f"{NAMED} (default: the base answers); with --mixed NAME=FOLDER, once for each adapter"
    add("--adapter", action="append", default=[], metavar="FOLDER|NAME", help=about)
    add_hub_option(parser)
    add("--mixed", type=Path, metavar="FILE", help="rows that each name an adapter, in one batch")
    add("--max-rank", type=int, default=16, help="the bank's, with --mixed (default: %(default)s)")
    add("--qlora", action="store_true", help="the base in four bits, as in train --qlora")
    add("--max-new-tokens", type=int, default=64, help="(default: %(default)s)")
    add_sampling_options(parser)
    add_device_option(parser)


def run(options: argparse.Namespace) -> int:
    """``minilora generate``."""
    from ..formats.save_and_load import load_adapter
    from ..model.pretrained import load_base

    quantize, device = "nf4" if options.qlora else None, check_device(options.device)
    check_question(options)
    model = load_base(options.base, device=device, quantize=quantize)
    if options.mixed is not None:
        return answer_mixed(model, options)
    for adapter in options.adapter:
        load_adapter(model, adapter_folder(adapter, options.hub))
    question = (options.instruction, options.context, options.max_new_tokens)
    print(model.generate_text(*question, **sampling_of(options)))
    return 0


def check_question(options: argparse.Namespace) -> None:
    """Raise ``ValueError`` unless there is one question, or a file of them."""
    if (options.instruction is None) == (options.mixed is None):
        raise ValueError('expected one question, as "Status?", or --mixed FILE with many')
    if options.mixed is None and not (options.instruction + options.context).strip():
        raise ValueError('the question is empty: expected some words, as "Status?"')
    if options.mixed is None and len(options.adapter) > 1:
        given = len(options.adapter)
        raise ValueError(f"one question takes one --adapter, got {given}: give rows with --mixed")


def answer_mixed(model: Any, options: argparse.Namespace) -> int:
    """All rows of a file through a bank; prints an object a line."""
    from ..serving import AdapterBank

    bank = AdapterBank(model, options.max_rank)
    for each in options.adapter:
        name, _, folder = each.partition("=")
        if not folder:
            raise ValueError(f"with --mixed, expected --adapter NAME=FOLDER, got {each!r}")
        bank.load(name, adapter_folder(folder, options.hub))
    rows = read_rows(options.mixed)
    answers = bank.generate(rows, options.max_new_tokens, **sampling_of(options))
    for (adapter, instruction, _), answer in zip(rows, answers, strict=True):
        named = dict(adapter) if isinstance(adapter, list) else adapter
        line = {"adapter": named, "instruction": instruction, "answer": answer}
        print(json.dumps(line, ensure_ascii=False))
    return 0


def read_rows(file: Path) -> Sequence[tuple[Any, ...]]:
    """(adapter, instruction, context) of each row. Raises ``ValueError`` that names the bad row."""
    from ..training.data_files import rows_of

    rows = []
    for row in rows_of(file):
        value = row.value
        if row.problem or not isinstance(value, dict) or "instruction" not in value:
            problem = row.problem or f"expected an object with 'instruction', got {value!r:.80}"
            raise ValueError(f"{row.where}: {problem}")
        if unknown := sorted(value.keys() - {"adapter", "instruction", "input"}):
            known = "known are 'adapter', 'instruction', 'input'"
            raise ValueError(f"{row.where}: unknown field {unknown[0]!r}; {known}")
        adapter = value.get("adapter")
        adapter = None if adapter == "" else adapter  # a cell of a CSV file is empty, not null
        choice = list(adapter.items()) if isinstance(adapter, dict) else adapter
        rows.append((choice, value["instruction"], value.get("input") or ""))
    return rows
