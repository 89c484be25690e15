"""``minilora book``: lessons and package as a site of plain pages."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..learn.course import find_lessons
from .options import check_out

FOLDER = Path("minilora-book")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of ``minilora book``."""
    add = parser.add_argument
    add(
        "folder", type=Path, nargs="?", default=FOLDER, metavar="DIR", help="(default: %(default)s)"
    )
    only = "only this lesson or range, as 1-5; may be given several times (default: all)"
    add("--lesson", action="append", metavar="N", help=only)
    without = "for a class: the exercises without their solutions"
    limit = "seconds of processor time for a lesson (default: ten times its budget)"
    add("--limit", type=float, metavar="S", help=limit)
    add("--without-solutions", action="store_true", help=without)


def run(options: argparse.Namespace) -> int:
    """``minilora book``."""
    from ..learn.book import write_book

    def report(message: str) -> None:
        print(message, flush=True)

    if options.limit is not None and not options.limit >= 1:
        raise ValueError(f"--limit expected at least one second, got {options.limit}")
    check_out(options.folder, "DIR")
    lessons, solved = find_lessons(options.lesson), not options.without_solutions
    book = write_book(options.folder, lessons, report, solved, options.limit)
    print(f"Saved {book.home}. Open it in a browser; it needs no network.")
    if book.failed:
        names = ", ".join(book.failed)
        print(f"Did not end: {names}; their pages say why. The same command runs only these again.")
    return 1 if book.failed else 0
