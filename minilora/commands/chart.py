"""``minilora chart``: draw one of the ledger's charts, or all of them."""

from __future__ import annotations

import argparse
from pathlib import Path

from .options import check_out, check_picture


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of ``minilora chart``."""
    add = parser.add_argument
    add("name", nargs="?", help="which chart (without a name: lists them)")
    add("--out", type=Path, help=".png or .svg (default: NAME.png)")
    add("--dark", action="store_true", help="for dark pages")
    add("--all", type=Path, metavar="DIR", help="every chart, light and dark, and index.html")


def run(options: argparse.Namespace) -> int:
    """``minilora chart``."""
    from ..plots import gallery
    from ..plots.style import save_figure

    if options.all is not None:
        check_out(options.all, "--all")
        print("Two of the charts train the shipped base for a moment …", flush=True)
        print(f"Saved {gallery.write_gallery(options.all)} and a PNG and an SVG of each chart.")
    elif options.name is None:
        for name, chart in gallery.CHARTS.items():
            print(f"{name:12}{(chart.__doc__ or '').splitlines()[0]}")
    else:
        file = options.out or Path(f"{options.name}.png")
        check_picture(file)
        print(f"Saved {save_figure(gallery.draw(options.name, options.dark), file)}.")
    return 0
