"""``minilora grade``: check the exercises in learners' folders."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..learn.course import find_lessons
from .learn import LIMIT
from .options import check_limit, check_out_file


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of ``minilora grade``."""
    add = parser.add_argument
    add("folders", type=Path, nargs="+", metavar="DIR", help="learners' folders, one each")
    only = "only this lesson or range, as 1-5; may be given several times (default: all)"
    add("--lesson", action="append", metavar="N", help=only)
    add("--csv", type=Path, help="also write each status and sentence to this spreadsheet file")
    add("--limit", type=float, default=LIMIT, help="seconds for a check (default: %(default)g)")


def run(options: argparse.Namespace) -> int:
    """``minilora grade``."""
    from ..learn.grade import KEY, grade_folders, grade_tables, write_grades
    from ..learn.submissions import find_folders
    from ..learn.terminal import make_console

    check_limit(options.limit)
    console = make_console()

    def report(line: str) -> None:
        console.print(line, markup=False, highlight=False)

    if options.csv is not None:
        check_out_file(options.csv, "--csv")
    lessons = find_lessons(options.lesson)
    folders, others = find_folders(options.folders)
    for path in others:
        report(f"{path} is not a folder: left out")
    grades = grade_folders(folders, lessons, options.limit, report)
    console.print()
    for table in grade_tables(grades):
        console.print(table)
    console.print(f"\n{KEY}")
    if options.csv is not None:
        console.print(f"Saved {write_grades(options.csv, grades)}.")
    return 0
