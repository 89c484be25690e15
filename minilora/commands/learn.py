"""``minilora learn``: the course, a lesson walked cell by cell, and a quiz of old questions."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..learn.course import find_lesson, list_lessons, list_repairs
from ..learn.workspace import FOLDER
from .options import check_folder, check_limit

LIMIT = 60.0  # seconds for a check


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of ``minilora learn``."""
    add = parser.add_argument
    add("lesson", nargs="?", help="a lesson's number or name, or quiz (without it: the course)")
    add("--list", action="store_true", help="the course, and how far you are")
    begin = "begin at cell N (default: where you were)"
    add("--from", dest="start", type=int, metavar="N", help=begin)
    add("--reset", action="store_true", help="forget your progress; your own file stays")
    add("--reveal", action="store_true", help="show this lesson's solutions and write them out")
    add("--watch", action="store_true", help="check your file on every save")
    add("--folder", type=Path, default=FOLDER, help="your folder (default: %(default)s)")
    add("--limit", type=float, default=LIMIT, help="seconds for a check (default: %(default)g)")


def run(options: argparse.Namespace) -> int:
    """``minilora learn``."""
    check_limit(options.limit)
    check_folder(options.folder, "--folder")
    if options.watch:
        return watch(options)
    if options.lesson is None or options.list:
        if options.start is not None or options.reset or options.reveal:
            raise ValueError("which lesson? For example: minilora learn 1 --reset")
        print_course(options.folder)
        return 0
    from ..learn.exercise import reveal
    from ..learn.quiz import quiz, quiz_before
    from ..learn.record import Record
    from ..learn.terminal import make_console
    from ..learn.walk import Walk

    if options.lesson == "quiz":
        if options.start is not None or options.reset or options.reveal:
            raise ValueError(
                "the quiz takes none of --from, --reset, --reveal: minilora learn quiz"
            )
        quiz(options.folder)
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
            file = options.folder / lesson.path.name
            console.print(f"Lesson {lesson.number} begins anew. Your file {file} was not touched.")
            if options.start is None:
                return 0
        if not 1 <= options.start <= len(lesson.cells):
            raise ValueError(
                f"--from expected a cell from 1 to {len(lesson.cells)} of lesson {lesson.number}, "
                f"got {options.start}"
            )
        record.lesson(lesson.slug).update(cell=options.start - 1, finished=False)
        record.save()
    quiz_before(lesson.number, options.folder)
    walk = Walk(lesson, options.folder, limit=options.limit)
    finished = walk.go()
    return 0 if finished or walk.asking else 1


def watch(options: argparse.Namespace) -> int:
    """``minilora learn [lesson] --watch``: 0 when all has passed, 1 when it was left before."""
    if options.reset or options.reveal or options.start is not None or options.list:
        raise ValueError("--watch goes with a lesson and nothing else: minilora learn 5 --watch")
    from ..learn.record import Record
    from ..learn.terminal import make_console
    from ..learn.watch import Watch
    from ..learn.workspace import open_answer_file

    record, console = Record(options.folder), make_console()
    if record.note:
        console.print(record.note)
    if options.lesson is None:
        lessons = [*list_lessons(), *list_repairs()]
        files = {lesson: options.folder / lesson.path.name for lesson in lessons}
    else:
        lessons = [find_lesson(options.lesson)]
        files = {lesson: open_answer_file(lesson, options.folder) for lesson in lessons}
    watching = Watch(lessons, record, console, files.__getitem__, options.limit)
    return 0 if watching.go() else 1


def print_course(folder: Path) -> None:
    """The lessons, what they cost, and how much of each is done."""
    from rich.table import Table

    from ..learn.record import Record
    from ..learn.terminal import make_console

    console, record = make_console(), Record(folder)
    if record.note:
        console.print(record.note)
    for heading, lessons in (("question", list_lessons()), ("repair these", list_repairs())):
        table = Table(box=None, padding=(0, 2, 0, 0))
        for title in ("", heading, ""):
            table.add_column(title)
        table.add_column("minutes", justify="right", no_wrap=True)
        table.add_column("done", no_wrap=True)
        for lesson in lessons:
            done = done_text(lesson, record.lessons.get(lesson.slug))
            minutes, question = str(lesson.minutes), lesson.question.removeprefix("Repair: ")
            table.add_row(lesson.slug[:2], question, lesson.difficulty, minutes, done)
        console.print(table)
        console.print()
    begun = {lesson: record.lessons.get(lesson.slug) for lesson in list_lessons()}
    left = [lesson for lesson, entry in begun.items() if entry is None or not entry["finished"]]
    if left:
        following = next((lesson for lesson in left if begun[lesson]), left[0])
        verb = "Go on with" if any(begun.values()) else "Begin with"
        console.print(f"{verb}: [bold]minilora learn {following.number}[/]")
    about = "from lessons behind you" if len(left) < len(begun) else "about the whole course"
    console.print(f"A quiz {about}: [bold]minilora learn quiz[/]")


def done_text(lesson: Any, entry: dict[str, Any] | None) -> str:
    """How far a learner is in a lesson."""
    if entry is None:
        return ""
    passed = sum(bool(e["passed"]) for e in entry["exercises"].values())
    share = 100 * len(entry["seen"]) // len(lesson.cells)  # cells that --from skipped do not count
    reading = "read" if share == 100 else f"{share}%"
    return f"{reading}, built {passed} of {len(lesson.exercises)}"
