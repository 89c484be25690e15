"""Grade learners' folders: every exercise of the course, each in a process of its own, as a table and as CSV.

A folder is what ``minilora learn`` makes: ``NN_slug.py`` files. A missing file is "to do"; whatever a submission does (loops
that never end, ``sys.exit``, broken imports) costs it its own mark and nothing else.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..files import write_text
from .course import list_lessons
from .judge import LIMIT, judge_file

SHORT = {"passed": "passed", "to do": "", "wrong": "wrong", "error": "error", "timeout": "time"}


@dataclass(frozen=True)
class Grade:
    """One learner's exercise: its status ("passed", "to do", "wrong", "error", "timeout") and the checker's sentence."""

    learner: str
    lesson: str
    exercise: str
    status: str
    message: str


def grade_folders(
    folders: Sequence[Path], limit: float = LIMIT, say: Callable[[str], None] = lambda name: None, course: Path | None = None
) -> list[Grade]:
    """Grade every exercise of the course in every folder; ``say`` hears each learner's name as it is begun."""
    grades = []
    lessons = list_lessons(course)
    for folder, learner in zip(folders, learner_names(folders), strict=True):
        say(learner)
        for lesson in lessons:
            for name in lesson.exercises:
                verdict = judge_file(lesson, name, folder / lesson.path.name, limit)
                grades.append(Grade(learner, lesson.slug, name, verdict.status, verdict.message))
    return grades


def learner_names(folders: Sequence[Path]) -> list[str]:
    """The folders' names; whole paths where two would be the same.

    >>> learner_names([Path("class/ada"), Path("class/bob")])
    ['ada', 'bob']
    """
    names = [folder.resolve().name for folder in folders]
    return names if len(set(names)) == len(names) else [str(folder) for folder in folders]


def grade_table(grades: Sequence[Grade]) -> Any:
    """A rich table: exercises down, learners across, the number passed below."""
    from rich.table import Table

    learners = list(dict.fromkeys(grade.learner for grade in grades))
    exercises = list(dict.fromkeys((grade.lesson[:2], grade.exercise) for grade in grades))
    status = {(grade.learner, grade.exercise): grade.status for grade in grades}
    table = Table(box=None, padding=(0, 2, 0, 0), show_footer=True)
    table.add_column("")
    table.add_column("exercise", footer="passed")
    for learner in learners:
        passed = sum(status[learner, name] == "passed" for _, name in exercises)
        table.add_column(learner, footer=f"{passed} of {len(exercises)}")
    for number, name in exercises:
        table.add_row(number, name, *(SHORT.get(status[learner, name], "error") for learner in learners))
    return table


def write_grades(path: Path, grades: Sequence[Grade]) -> Path:
    """Write the grades as CSV: learner, lesson, exercise, status, message; a cell never begins a spreadsheet's formula."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["learner", "lesson", "exercise", "status", "message"])
    for grade in grades:
        values = (grade.learner, grade.lesson, grade.exercise, grade.status, grade.message)
        rows.writerow(["'" + value if value[:1] in "=+-@\t\r" and value else value for value in values])
    return write_text(path, text.getvalue())
