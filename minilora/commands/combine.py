"""``minilora combine``: several adapters of one base as one adapter.

    --how cat   Σ wᵢ ΔWᵢ, exactly; the ranks add up        --how svd   the nearest of a given rank

The others are PEFT's; lora/combining.py says what each does, and what it loses.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from shlex import quote

from ..lora.combining import HOWS, SIGNS
from .hub_names import NAMED, adapter_folder, add_hub_option
from .options import add_seed_option, check_out


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of ``minilora combine``."""
    add = parser.add_argument
    add("adapters", nargs="+", metavar="FOLDER|NAME", help=f"adapters of one base: {NAMED}")
    add_hub_option(parser)
    add("--out", type=Path, required=True, help="folder for the combined adapter")
    add("--weights", nargs="+", type=float, help="one for each adapter (default: all 1)")
    add("--how", choices=HOWS, default="cat", help="(default: %(default)s, the exact sum)")
    add("--svd-rank", type=int, help="rank of svd and …_svd (default: the largest of theirs)")
    add("--density", type=float, help="share of entries that ties, dare_… and magnitude_prune keep")
    add("--majority-sign-method", choices=SIGNS, default="total", help="(default: %(default)s)")
    add_seed_option(parser)


def run(options: argparse.Namespace) -> int:
    """``minilora combine``."""
    from ..formats.combined_files import combine_folders, load_low_rank

    check_out(options.out)
    folder = combine_folders(
        [adapter_folder(name, options.hub) for name in options.adapters],
        options.out,
        options.weights,
        options.how,
        svd_rank=options.svd_rank,
        density=options.density,
        majority_sign_method=options.majority_sign_method,
        seed=options.seed,
    )
    parts = load_low_rank(folder)
    ranks = sorted({len(part.A) for part in parts.values()})
    shown = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]}"
    print(f"{len(options.adapters)} adapters as one: {len(parts)} modules, {shown}.")
    if options.how not in ("cat", "svd"):
        print("This is not the sum of the adapters (--how cat is): measure it before you use it.")
    words = f"{base_words(folder)}--adapter {quote(str(folder))}"
    print(f'Saved {folder}. Next:\n  minilora generate {words} "your question"')
    return 0


def base_words(folder: Path) -> str:
    """``--base`` and the base that an adapter names; empty for the shipped one."""
    from ..files import read_json
    from ..formats.peft_files import CONFIG
    from ..model.pretrained import SHIPPED

    base = read_json(folder / CONFIG).get("base_model_name_or_path")
    if not base or Path(base).resolve() == SHIPPED.resolve():
        return ""
    return f"--base {quote(base)} "
