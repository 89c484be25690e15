"""``minilora generate``: ask a base, with an adapter or without."""

from __future__ import annotations

import argparse

from .hub_names import adapter_folder, add_adapter_option
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
    add("instruction", help="the question")
    add("--context", default="", help="what the question is about")
    add_base_option(parser)
    add_adapter_option(parser, none="the base answers")
    add("--qlora", action="store_true", help="the base in four bits, as in train --qlora")
    add("--max-new-tokens", type=int, default=64, help="(default: %(default)s)")
    add_sampling_options(parser)
    add_device_option(parser)


def run(options: argparse.Namespace) -> int:
    """``minilora generate``."""
    from ..formats.save_and_load import load_adapter
    from ..model.pretrained import load_base

    quantize, device = "nf4" if options.qlora else None, check_device(options.device)
    model = load_base(options.base, device=device, quantize=quantize)
    if options.adapter is not None:
        load_adapter(model, adapter_folder(options.adapter, options.hub))
    question = (options.instruction, options.context, options.max_new_tokens)
    print(model.generate_text(*question, **sampling_of(options)))
    return 0
