"""``minilora analyze``: what an adapter changed, and where.

by kind of module   the size of ΔW, how many directions it uses
by block            the size, what the block adds, and the similarity so far
with --data         the loss without each layer's and each kind's adapters
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..files import read_text
from .hub_names import NAMED, adapter_folder, add_hub_option
from .options import add_base_option, check_picture

LOOKED_AT = 2048  # tokens for the blocks; more change the second digit


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of ``minilora analyze``."""
    add = parser.add_argument
    add("adapter", metavar="FOLDER|NAME", help=NAMED)
    add_base_option(parser)
    add_hub_option(parser)
    add("--qlora", action="store_true", help="for train --qlora: its base, rounded to four bits")
    add("--out", type=Path, default=Path("analysis.png"), help=".png or .svg (%(default)s)")
    add("--text", type=Path, help="text to look at the blocks with (default: the base's own prose)")
    add("--data", type=Path, help="examples: also the loss without each part (base in floats)")
    add("--intruders", action="store_true", help="count intruder directions; slow on large bases")
    add("--dark", action="store_true", help="the picture for dark pages")


def run(options: argparse.Namespace) -> int:
    """``minilora analyze``."""
    from ..analysis.report import analyze
    from ..formats.save_and_load import load_adapter
    from ..model.pretrained import load_base
    from ..nf4.linear import dequantize_base
    from ..plots.style import save_figure

    check_picture(options.out)
    adapter = adapter_folder(options.adapter, options.hub)
    base = load_base(options.base, quantize="nf4" if options.qlora else None)
    model = dequantize_base(load_adapter(base, adapter)).eval()
    measure = None if options.data is None else loss_on(model, options.data)
    ids = tokens_of(model, options.text)
    report = analyze(model, ids, count_intruders=options.intruders, measure=measure)
    print(report)
    print(f"Saved {save_figure(report.figure(dark=options.dark), options.out)}.")
    return 0


def tokens_of(model: Any, file: Path | None) -> Any:
    """Rows of 128 tokens of a text."""
    import torch

    from ..training.evaluation import PROSE

    text = read_text(PROSE if file is None else file)
    ids = model.tokenizer.encode(text[: 8 * LOOKED_AT])[:LOOKED_AT]
    width = min(128, len(ids))
    if width < 2:
        raise ValueError(f"{file} has {len(ids)} tokens: expected two at least")
    return torch.tensor(ids[: len(ids) // width * width]).view(-1, width)


def loss_on(model: Any, file: Path) -> Callable[[Any], float]:
    """A measure: the loss on a file's examples, nats an answer token."""
    import torch

    from ..training.batches import encode_all, pad
    from ..training.objective import summed_loss
    from ..training.readers import read_examples

    rows = encode_all(model.tokenizer, read_examples(file), 512)
    parts = [pad(rows[start : start + 16]) for start in range(0, len(rows), 16)]

    @torch.no_grad()
    def measure(adapted: Any) -> float:
        nats = sum(summed_loss(adapted, part).item() for part in parts)
        return nats / sum(part.answer_tokens for part in parts)

    return measure
