"""Grade learners' folders: the exercises of the course, each in a process of its own, as a table and as CSV.

A folder holds what ``minilora learn`` made, or filled-in scripts or notebooks (``submissions.py``). A missing file is "to do";
whatever a submission does (loops that never end, ``sys.exit``, broken imports) costs it its own mark and nothing else.
"""

from __future__ import annotations

import csv
import io
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..files import write_text
from .cells import Lesson
from .course import list_lessons
from .judge import LIMIT, Verdict, judge_file
from .submissions import answer_files, plain_file, stray_files
from .workspace import FOLDER

LETTERS = {"passed": "P", "wrong": "W", "error": "E", "timeout": "T", "to do": "."}
KEY = "P passed, W wrong, E error, T out of time, . to do; two letters are two exercises"


@dataclass(frozen=True)
class Grade:
    """One learner's exercise: its status ("passed", "to do", "wrong", "error", "timeout") and the checker's sentence."""

    learner: str
    lesson: str
    exercise: str
    status: str
    message: str


def grade_folders(
    folders: Sequence[Path],
    lessons: Sequence[Lesson] | None = None,
    limit: float = LIMIT,
    say: Callable[[str], None] = lambda line: None,
) -> list[Grade]:
    """Grade every exercise of the lessons (default: the course) in every folder.

    ``say`` hears each learner's name as it is begun, what was wrong, and files that no lesson has the name of.
    """
    grades = []
    lessons = list_lessons() if lessons is None else lessons
    slugs = {lesson.slug for lesson in [*list_lessons(), *lessons]}
    for number, (folder, learner) in enumerate(
        zip(folders, learner_names(folders), strict=True), 1
    ):
        say(f"{learner} ({number} of {len(folders)})")
        strays = stray_files(folder, slugs)
        if strays:
            say(f"  not graded, as no lesson is called so: {', '.join(strays)}")
        elif not any(answer_files(folder, lesson) for lesson in lessons):
            say("  none of the lessons' files is here")
        for lesson in lessons:
            for name in lesson.exercises:
                verdict = grade_exercise(lesson, name, folder, limit)
                if verdict.status not in ("passed", "to do"):
                    say(f"  {lesson.slug[:2]} {name}: {verdict.status}. {verdict.message}")
                message = (
                    f"{verdict.message}; there is {', '.join(strays)}"
                    if strays and verdict == absent(lesson)
                    else verdict.message
                )
                grades.append(Grade(learner, lesson.slug, name, verdict.status, message))
    return grades


def grade_exercise(lesson: Lesson, name: str, folder: Path, limit: float = LIMIT) -> Verdict:
    """The verdict on the first file of a learner in which the exercise is more than a stub."""
    verdict = absent(lesson)
    with tempfile.TemporaryDirectory() as scratch:
        for file in answer_files(folder, lesson):
            try:
                verdict = judge_file(lesson, name, plain_file(file, lesson, Path(scratch)), limit)
            except (OSError, ValueError) as error:
                verdict = Verdict("error", f"{file.name} could not be read: {error}")
            if verdict.status != "to do":
                break
    return verdict


def absent(lesson: Lesson) -> Verdict:
    """The verdict where a learner has no file of a lesson."""
    return Verdict("to do", f"there is no file {lesson.path.name}")


def learner_names(folders: Sequence[Path]) -> list[str]:
    """The folders' names, of ``minilora-lessons`` the name of the folder around it; whole paths where two would be the same.

    >>> learner_names([Path("class/ada"), Path("class/bob/minilora-lessons")])
    ['ada', 'bob']
    """
    whole = [folder.resolve() for folder in folders]
    names = [path.parent.name if path.name == FOLDER.name else path.name for path in whole]
    return names if len(set(names)) == len(names) else [str(folder) for folder in folders]


def grade_table(grades: Sequence[Grade]) -> Any:
    """A rich table: a row for each learner, a column for each lesson, a letter for each exercise (``KEY``)."""
    from rich.table import Table

    rows: dict[str, dict[str, str]] = {}
    for grade in grades:
        marks = rows.setdefault(grade.learner, {})
        marks[grade.lesson] = marks.get(grade.lesson, "") + LETTERS.get(grade.status, "E")
    table = Table(box=None, padding=(0, 1, 0, 0))
    table.add_column("learner", overflow="fold", min_width=8)
    for lesson in dict.fromkeys(grade.lesson for grade in grades):
        table.add_column(lesson[:2], no_wrap=True)
    table.add_column("passed", no_wrap=True)
    for learner, marks in rows.items():
        letters = "".join(marks.values())
        table.add_row(learner, *marks.values(), f"{letters.count('P')} of {len(letters)}")
    return table


def write_grades(path: Path, grades: Sequence[Grade]) -> Path:
    """Write the grades as CSV: learner, lesson, exercise, status, message; a cell never begins a spreadsheet's formula.

    The file begins with UTF-8's byte order mark: without it, Excel shows "∂W" as "âˆ‚W".
    """
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["learner", "lesson", "exercise", "status", "message"])
    for grade in grades:
        values = (grade.learner, grade.lesson, grade.exercise, grade.status, grade.message)
        rows.writerow(
            ["'" + value if value[:1] in "=+-@\t\r" and value else value for value in values]
        )
    return write_text(path, "\ufeff" + text.getvalue())
