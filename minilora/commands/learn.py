"""The commands ``minilora learn``, ``grade``, ``notebook`` and ``book``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..learn.course import find_lesson, find_lessons, list_lessons
from ..learn.judge import LIMIT
from ..learn.workspace import FOLDER

BOOK = Path("minilora-book")


def add_learn_options(made: argparse.ArgumentParser) -> None:
    """Options of ``minilora learn``."""
    made.add_argument(
        "lesson",
        nargs="?",
        help="a lesson's number or name (without it: the course and what is done)",
    )
    made.add_argument("--list", action="store_true", help="the course and what is done")
    made.add_argument(
        "--from",
        dest="start",
        type=int,
        metavar="N",
        help="begin at cell N instead of where you were",
    )
    made.add_argument(
        "--reset",
        action="store_true",
        help="forget the progress of this lesson; your own file stays",
    )
    made.add_argument(
        "--reveal", action="store_true", help="show the solutions of this lesson and write them out"
    )
    made.add_argument(
        "--folder", type=Path, default=FOLDER, help="your folder (default: %(default)s)"
    )
    made.add_argument(
        "--limit", type=float, default=LIMIT, help="seconds for a check (default: %(default)g)"
    )


def run_learn(options: argparse.Namespace) -> int:
    """``minilora learn``."""
    from ..learn.record import Record
    from ..learn.terminal import make_console
    from ..learn.walk import Walk, reveal

    if options.lesson is None or options.list:
        if options.start is not None or options.reset or options.reveal:
            raise ValueError("which lesson? For example: minilora learn 1 --reset")
        print_course(options.folder)
        return 0
    lesson = find_lesson(options.lesson)
    if options.reset or options.reveal or options.start is not None:
        record, console = Record(options.folder), make_console()
        if record.note:
            console.print(record.note)
        if options.reveal:
            for name in lesson.exercises:
                reveal(record, lesson, name, console)
            return 0
        if options.reset:
            record.reset(lesson.slug)
            console.print(
                f"Lesson {lesson.number} begins anew. Your file {options.folder / lesson.path.name} was not touched."
            )
            if options.start is None:
                return 0
        if not 1 <= options.start <= len(lesson.cells):
            raise ValueError(
                f"--from is a cell from 1 to {len(lesson.cells)} of lesson {lesson.number}, got {options.start}"
            )
        record.lesson(lesson.slug).update(cell=options.start - 1, finished=False)
        record.save()
    walk = Walk(lesson, options.folder, limit=options.limit)
    finished = walk.go()
    return 0 if finished or walk.asking else 1


def print_course(folder: Path) -> None:
    """The lessons, what they cost, and what of them is done."""
    from rich.table import Table

    from ..learn.record import Record
    from ..learn.terminal import make_console

    console, record = make_console(), Record(folder)
    if record.note:
        console.print(record.note)
    table = Table(box=None, padding=(0, 2, 0, 0))
    for title in ("", "question", "", "minutes", "done"):
        table.add_column(
            title,
            justify="right" if title == "minutes" else "left",
            no_wrap=title in ("minutes", "done"),
        )
    for lesson in list_lessons():
        entry = record.lessons.get(lesson.slug)
        table.add_row(
            lesson.slug[:2],
            lesson.question,
            lesson.difficulty,
            str(lesson.minutes),
            done_text(lesson, entry),
        )
    console.print(table)
    console.print("\nWalk one with, for example: [bold]minilora learn 1[/]")


def done_text(lesson: Any, entry: dict[str, Any] | None) -> str:
    """How far a learner is in a lesson."""
    if entry is None:
        return ""
    passed = sum(bool(e["passed"]) for e in entry["exercises"].values())
    where = "read" if entry["finished"] else f"{min(99, 100 * entry['cell'] // len(lesson.cells))}%"
    return f"{where}, built {passed} of {len(lesson.exercises)}"


def add_grade_options(made: argparse.ArgumentParser) -> None:
    """Options of ``minilora grade``."""
    made.add_argument(
        "folders", type=Path, nargs="+", metavar="DIR", help="learners' folders, one each"
    )
    made.add_argument(
        "--lesson",
        action="append",
        metavar="N",
        help="only this lesson or range, as 1-5, may come again",
    )
    made.add_argument(
        "--csv",
        type=Path,
        help="also write each status and sentence to this file, for a spreadsheet",
    )
    made.add_argument(
        "--limit", type=float, default=LIMIT, help="seconds for each check (default: %(default)g)"
    )


def run_grade(options: argparse.Namespace) -> int:
    """``minilora grade``."""
    from ..learn.grade import KEY, grade_folders, grade_table, write_grades
    from ..learn.submissions import find_folders
    from ..learn.terminal import make_console

    console = make_console()
    if options.csv is not None and options.csv.is_dir():
        raise ValueError(
            f"--csv {options.csv} is a folder; give a file's name, for example grades.csv"
        )
    lessons = find_lessons(options.lesson)
    folders, others = find_folders(options.folders)
    for path in others:
        console.print(f"{path} is no folder: left out", markup=False)
    grades = grade_folders(
        folders,
        lessons,
        options.limit,
        lambda line: console.print(line, markup=False, highlight=False),
    )
    console.print()
    console.print(grade_table(grades))
    console.print(f"\n{KEY}")
    if options.csv is not None:
        console.print(f"Saved {write_grades(options.csv, grades)}.")
    return 0


def add_notebook_options(made: argparse.ArgumentParser) -> None:
    """Options of ``minilora notebook``."""
    made.add_argument("lesson", help="a lesson's number or name; 1-5 makes five notebooks")
    made.add_argument("file", type=Path, nargs="?", help="where to (default: NN_slug.ipynb)")


def run_notebook(options: argparse.Namespace) -> int:
    """``minilora notebook``."""
    from ..learn.notebook import write_notebook

    lessons = find_lessons([options.lesson])
    if options.file is not None and (len(lessons) > 1 or options.file.suffix != ".ipynb"):
        raise ValueError(
            f"a file is one lesson's, and ends in .ipynb, got {options.file}; five at once: minilora notebook 1-5"
        )
    for lesson in lessons:
        print(f"Saved {write_notebook(lesson, options.file or Path(f'{lesson.slug}.ipynb'))}.")
    return 0


def add_book_options(made: argparse.ArgumentParser) -> None:
    """Options of ``minilora book``."""
    made.add_argument(
        "folder", type=Path, nargs="?", default=BOOK, metavar="DIR", help="(default: %(default)s)"
    )
    made.add_argument(
        "--lesson",
        action="append",
        metavar="N",
        help="only this lesson or range, as 1-5, may come again (default: all)",
    )
    made.add_argument(
        "--without-solutions",
        action="store_true",
        help="for a class: the exercises without their solutions",
    )


def run_book(options: argparse.Namespace) -> int:
    """``minilora book``."""
    from ..learn.book import write_book

    lessons, solved = find_lessons(options.lesson), not options.without_solutions
    home = write_book(
        options.folder, lessons, say=lambda message: print(message, flush=True), solved=solved
    )
    print(f"Saved {home}. Open it in a browser; it needs no network.")
    return 0
