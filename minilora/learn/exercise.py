"""One exercise: the learner's file is judged, the verdict told and recorded, the solution earned.

The walk, the watch and the repairs share it.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from .cells import Lesson
from .judge import LIMIT, Verdict, judge_file
from .record import Record
from .terminal import code
from .workspace import write_solutions

SHOWN = 10  # lines that the learner's code printed
TITLES = {"to do": "Still to do:", "wrong": "Not yet.", "timeout": "Stopped:"}


def judge_and_record(
    record: Record, lesson: Lesson, name: str, file: Path, console: Any, limit: float = LIMIT
) -> bool:
    """Check an exercise in the learner's file and say the verdict; True when it passed.

    The try is recorded, and a solution that was earned is written beside the learner's file.
    """
    from rich.markup import escape

    with console.status("checking …") if console.is_terminal else contextlib.nullcontext():
        verdict = judge_file(lesson, name, file, limit)
    passed = verdict.status == "passed"
    entry = record.exercise(lesson.slug, name)
    entry["tries"] += 1
    entry["passed"] = entry["passed"] or passed
    record.save()
    tell(verdict, console, missing=f"fill in {name} in {file}.")
    if passed:
        saved = write_earned(record, lesson)
        note = f"{escape(verdict.message)}. " if verdict.message else ""
        console.print(f"[green]Passed.[/] {note}A solution to compare with yours: {saved}")
    return passed


def tell(verdict: Verdict, console: Any, missing: str) -> None:
    """What the learner's code printed, and why it did not pass; ``missing``: what a stub needs."""
    from rich.text import Text

    if verdict.printed:
        lines = verdict.printed.rstrip().splitlines()
        where = f", at the end ({SHOWN} lines)" if len(lines) > SHOWN else ""
        text = "\n".join([f"your code printed{where}:", *lines[-SHOWN:]])
        console.print(text, style="dim", markup=False)
    if verdict.status != "passed":
        title = TITLES.get(verdict.status, "It does not run:")
        message = " ".join((verdict.message or missing).split())
        console.print(Text.assemble((f"{title} ", "yellow"), message))


def write_earned(record: Record, lesson: Lesson) -> Path:
    """Write the solutions of the exercises that the learner has passed or revealed."""
    exercises = record.lesson(lesson.slug)["exercises"].items()
    earned = [name for name, entry in exercises if entry["passed"] or entry["revealed"]]
    return write_solutions(lesson, record.folder, earned)


def reveal(record: Record, lesson: Lesson, name: str, console: Any) -> None:
    """Show a solution, write it out, and record that it was shown."""
    record.exercise(lesson.slug, name)["revealed"] = True
    record.save()
    saved = write_earned(record, lesson)
    console.print(code(saved.read_text(encoding="utf-8")))
    console.print(f"Saved as {saved}.")
