"""``minilora notebook``: a lesson as a Jupyter notebook."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..learn.course import find_lessons


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of ``minilora notebook``."""
    add = parser.add_argument
    add("lesson", help="a lesson's number or name; 1-5 makes five notebooks")
    add("file", type=Path, nargs="?", help="where to (default: NN_slug.ipynb)")


def run(options: argparse.Namespace) -> int:
    """``minilora notebook``."""
    from ..learn.notebook import write_notebook

    lessons = find_lessons([options.lesson])
    if options.file is not None and (len(lessons) > 1 or options.file.suffix != ".ipynb"):
        raise ValueError(
            f"a file holds one lesson and ends in .ipynb, got {options.file}; "
            "several at once need no file: minilora notebook 1-5"
        )
    for lesson in lessons:
        print(f"Saved {write_notebook(lesson, options.file or Path(f'{lesson.slug}.ipynb'))}.")
    return 0
