"""``minilora export``: a model or an adapter in the form that another program reads.

    --gguf    one file for llama.cpp, Ollama, LM Studio: a model folder, or an adapter alone
    --plain   an adapter with one rank and one alpha, for vLLM and others that know no patterns

What the folder holds decides which of the two it is. An adapter needs the ``--base`` that it was
made on.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from shlex import quote
from typing import Any

from ..text import size_text
from .hub_names import adapter_folder, add_hub_option
from .options import add_base_option, check_out, check_out_file

KINDS = ("f32", "f16", "q8_0")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of ``minilora export``."""
    add = parser.add_argument
    what = "a model folder, as merge writes it, or an adapter: its folder or its name in the hub"
    add("folder", metavar="FOLDER|NAME", help=what)
    form = parser.add_mutually_exclusive_group(required=True)
    form.add_argument("--gguf", action="store_true", help="one GGUF file, for llama.cpp and others")
    one = "the adapter with one rank and one alpha, for vLLM and others without patterns"
    form.add_argument("--plain", action="store_true", help=one)
    add_base_option(parser)
    add_hub_option(parser)
    add("--qlora", action="store_true", help="an adapter of train --qlora: its base in four bits")
    add("--out", type=Path, help="file, or folder for --plain (default: beside the input)")
    halves = "of the GGUF's matrices: q8_0 takes half the room of f16 (default: %(default)s)"
    add("--type", choices=KINDS, default="f16", help=halves)
    nearest = "llama.cpp's pre-tokenizer, for a tokenizer that it does not have, such as gpt-2"
    add("--pre", help=nearest)


def run(options: argparse.Namespace) -> int:
    """``minilora export``."""
    from ..formats.peft_files import TENSORS

    named = not Path(options.folder).is_dir()
    options.folder = adapter_folder(options.folder, options.hub)
    if named and options.out is None:
        raise ValueError("a name of the hub has no folder of yours to write beside: give --out")
    is_adapter = (options.folder / TENSORS).exists()
    if is_adapter:
        return export_adapter(options)
    if not (options.folder / "config.json").exists():
        inner = [
            name for name in ("adapter", "merged", "model") if (options.folder / name).is_dir()
        ]
        hint = f": did you mean {options.folder / inner[0]}?" if inner else ""
        raise ValueError(f"{options.folder} holds neither a model nor an adapter{hint}")
    if options.plain:
        raise ValueError(f"--plain is for adapters, and {options.folder} holds a model")
    if options.base is not None or options.qlora:
        which = "--qlora" if options.base is None else "--base"
        raise ValueError(f"{which} belongs to an adapter, and {options.folder} holds a model")
    return export_model(options)


def export_model(options: argparse.Namespace) -> int:
    """A model folder as one GGUF file."""
    from ..model.gguf_export import export_gguf
    from ..model.pretrained import load_base

    path = options.out or options.folder / f"model-{options.type}.gguf"
    check_out_file(path)
    model = load_base(options.folder, dtype=stored_dtype(options.folder))
    export_gguf(model, path, options.type, pre=options.pre)
    print(f"Saved {path}, {size_text(path.stat().st_size)}. Next:")
    print(f"  llama-cli -m {quote(str(path))}")
    return 0


def export_adapter(options: argparse.Namespace) -> int:
    """An adapter as a GGUF file, or in plain form."""
    from ..formats.save_and_load import load_adapter, save_adapter
    from ..model.gguf_export import export_adapter_gguf
    from ..model.pretrained import SHIPPED, load_base

    if options.pre is not None:
        raise ValueError("--pre belongs to a model: an adapter's file holds no tokenizer")
    if options.plain:
        path = options.out or options.folder.with_name(f"{options.folder.name}-plain")
        if path.resolve() == options.folder.resolve():
            raise ValueError(f"--out is the adapter itself, {path}: choose another folder")
        check_out(path)
    else:
        path = options.out or options.folder / f"adapter-{options.type}.gguf"
        check_out_file(path)
    base = load_base(options.base, quantize="nf4" if options.qlora else None)
    model = load_adapter(base, options.folder)
    if options.plain:
        print(f"Saved {save_adapter(model, path, plain=True)}: one rank, one alpha.")
        return 0
    export_adapter_gguf(model, path, options.type)
    print(f"Saved {path}, {size_text(path.stat().st_size)}. Next, the base, and both together:")
    source, gguf = quote(str(options.base or SHIPPED)), quote(str(path.parent / "base.gguf"))
    nearest = "" if options.base else " --pre gpt-2"  # the shipped tokenizer is not llama.cpp's
    print(f"  minilora export {source} --gguf --out {gguf}{nearest}")
    print(f"  llama-cli -m {gguf} --lora {quote(str(path))}")
    return 0


def stored_dtype(folder: Path) -> Any:
    """The dtype of a model's weights on the disk, so that half precision needs half the memory."""
    import torch

    from ..model.weights import read_weights

    tensors = read_weights(folder)
    dtype = tensors["model.norm.weight"].dtype if "model.norm.weight" in tensors else torch.float32
    return dtype if dtype in (torch.float16, torch.bfloat16) else torch.float32
