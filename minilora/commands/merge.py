"""``minilora merge``: fold an adapter into its base; one plain model folder comes out.

    base + adapter  ->  W0 + ΔW in one folder

An adapter that was trained on a base in four bits belongs to those four bits: ``--qlora``.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from shlex import quote

from .hub_names import adapter_folder, add_adapter_option
from .options import add_base_option, check_out

DTYPES = ("float32", "float16", "bfloat16")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of ``minilora merge``."""
    add = parser.add_argument
    add_base_option(parser)
    add_adapter_option(parser)
    add("--out", type=Path, required=True, help="folder for the merged model")
    add("--qlora", action="store_true", help="the base in four bits, as in train --qlora")
    onto = "for a base in four bits: dequantized (the default with --qlora), or the folder of "
    add("--onto", help=onto + "the float model that was quantized")
    add("--dtype", choices=DTYPES, default="float16", help="(default: %(default)s)")
    add("--shard", help="weights in several files of at most this size, such as 2GB (default: one)")


def run(options: argparse.Namespace) -> int:
    """``minilora merge``."""
    import torch

    from ..formats.save_and_load import load_adapter
    from ..lora.merging import merge_and_unload
    from ..model.pretrained import load_base, save_model
    from ..model.weights import size_in_bytes

    check_out(options.out)
    for option in ("base", "adapter", "onto"):
        folder = getattr(options, option)
        if folder is not None and Path(folder).resolve() == options.out.resolve():
            raise ValueError(
                f"--out and --{option} are both {folder}, and a merge would write over it: "
                "choose another --out"
            )
    if options.shard is not None:
        size_in_bytes(options.shard)  # a wrong one is refused before anything is computed
    base = load_base(options.base, quantize="nf4" if options.qlora else None)
    model = load_adapter(base, adapter_folder(options.adapter, options.hub))
    onto = options.onto or ("dequantized" if options.qlora else None)
    onto = onto if onto in (None, "dequantized") else load_base(onto)
    merged, dtype = merge_and_unload(model, onto=onto), getattr(torch, options.dtype)
    folder = save_model(merged, options.out, dtype=dtype, shard=options.shard)
    print(f'Saved {folder}. Next:\n  minilora generate --base {quote(str(folder))} "your question"')
    return 0
