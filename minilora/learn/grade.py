"""Grade learners' folders: each exercise in a process of its own; results as a table and as CSV.

A folder holds the files of ``minilora learn``, or filled-in scripts or notebooks
(``submissions.py``). A missing file is "to do"; whatever a submission does (loops that never end,
``sys.exit``, broken imports) costs it its own mark and nothing else.
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
from .course import list_lessons, list_repairs
from .judge import LIMIT, Verdict, judge_file
from .submissions import answer_files, plain_file, stray_files
from .workspace import FOLDER

ACROSS = 16  # lessons in one table
LETTERS = {"passed": "P", "wrong": "W", "error": "E", "timeout": "T", "to do": "."}
KEY = "P passed, W wrong, E error, T out of time, . to do; two letters are two exercises"


@dataclass(frozen=True)
class Grade:
    """One learner's exercise: a ``Verdict``'s status and sentence, with whose and which it is."""

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

    ``say`` gets each learner's name before their files are graded, then each verdict other than
    passed or to do, and the files that have no lesson's name.
    """
    grades = []
    lessons = list_lessons() if lessons is None else lessons
    slugs = {lesson.slug for lesson in [*list_lessons(), *list_repairs(), *lessons]}
    exercises = [(lesson, name) for lesson in lessons for name in lesson.exercises]
    for number, (folder, learner) in enumerate(zip(folders, learner_names(folders), strict=True)):
        say(f"{learner} ({number + 1} of {len(folders)})")
        strays = ", ".join(stray_files(folder, slugs))
        if strays:
            say(f"  not graded, as no lesson has this name: {strays}")
        elif not any(answer_files(folder, lesson) for lesson in lessons):
            say("  none of the lessons' files is in this folder")
        for lesson, name in exercises:
            verdict = grade_exercise(lesson, name, folder, limit)
            message = verdict.message
            if verdict.status not in ("passed", "to do"):
                say(f"  {lesson.slug[:2]} {name}: {verdict.status}. {message}")
            if strays and verdict == absent(lesson):
                message += f"; there is {strays}"
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
    """The folders' names; whole paths where two names would be the same.

    A folder ``minilora-lessons`` has the name of the folder around it.

    >>> learner_names([Path("class/ada"), Path("class/bob/minilora-lessons")])
    ['ada', 'bob']
    """
    whole = [folder.resolve() for folder in folders]
    names = [path.parent.name if path.name == FOLDER.name else path.name for path in whole]
    return names if len(set(names)) == len(names) else [str(folder) for folder in folders]


def grade_tables(grades: Sequence[Grade]) -> list[Any]:
    """Rich tables of at most ``ACROSS`` lessons, so that 80 columns hold them: a row a learner, a
    column a lesson, a letter an exercise (``KEY``). The last one says what was passed in all.
    """
    from rich.table import Table

    rows: dict[str, dict[str, str]] = {}
    for grade in grades:
        marks = rows.setdefault(grade.learner, {})
        marks[grade.lesson] = marks.get(grade.lesson, "") + LETTERS.get(grade.status, "E")
    lessons = list(dict.fromkeys(grade.lesson for grade in grades))
    tables = []
    for start in range(0, len(lessons), ACROSS):
        shown, is_last = lessons[start : start + ACROSS], start + ACROSS >= len(lessons)
        table = Table(box=None, padding=(0, 1, 0, 0))
        table.add_column("learner", overflow="fold", min_width=8)
        for heading in [lesson[:2] for lesson in shown] + ["passed"] * is_last:
            table.add_column(heading, no_wrap=True)
        for learner, marks in rows.items():
            letters = "".join(marks.values())
            passed = [f"{letters.count('P')} of {len(letters)}"] * is_last
            table.add_row(learner, *(marks.get(lesson, "") for lesson in shown), *passed)
        tables.append(table)
    return tables


def write_grades(path: Path, grades: Sequence[Grade]) -> Path:
    """Write the grades as CSV: learner, lesson, exercise, status, message.

    The file begins with UTF-8's byte order mark: without it, Excel shows "∂W" as "âˆ‚W".
    """
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["learner", "lesson", "exercise", "status", "message"])
    for grade in grades:
        values = (grade.learner, grade.lesson, grade.exercise, grade.status, grade.message)
        rows.writerow(map(no_formula, values))
    return write_text(path, "\ufeff" + text.getvalue())


def no_formula(value: str) -> str:
    """The value, with a quote before it where a spreadsheet would read it as a formula."""
    return f"'{value}" if value.startswith(("=", "+", "-", "@", "\t", "\r")) else value
