"""The learner's progress: ``progress.json`` in their own folder, readable, whole at any moment.

    {"lessons": {"01_one_matmul": {"cell": 7, "seen": [0, 1, 2, 3, 4, 5, 6],
        "finished": false, "seconds": 212.0,
        "predictions": {"rows_that_light_up": {"said": "1", "answer": 1, "right": true}},
        "exercises": {"weight_gradient":
            {"passed": true, "tries": 2, "hints": 1, "revealed": false}}}}}

``cell`` is the next cell to be shown; ``seen`` are the cells that were shown, as some may have been
skipped. After each step the file is written under another name, then renamed.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ..files import read_json, write_json

FILE = "progress.json"
ENTRY: dict[str, Any] = {"cell": int, "seen": list, "finished": bool, "seconds": int | float}
ENTRY |= {"predictions": dict, "exercises": dict}
EXERCISE: dict[str, Any] = {"passed": bool, "tries": int, "hints": int, "revealed": bool}
QUIZ: dict[str, Any] = {"asked": int, "box": int}


class Record:
    """Progress in a folder; ``lesson(slug)`` is an entry to read and change, ``save`` writes all.

    >>> import tempfile
    >>> record = Record(Path(tempfile.mkdtemp()))
    >>> record.lesson("01_one_matmul")["cell"] = 3
    >>> record.save(); Record(record.folder).lesson("01_one_matmul")["cell"]
    3
    """

    def __init__(self, folder: Path):
        self.folder, self.note = folder, ""
        self.lessons: dict[str, dict[str, Any]] = {}
        self.quiz: dict[str, dict[str, int]] = {}
        path = folder / FILE
        if path.exists():
            try:
                progress = read_json(path)
                self.lessons, self.quiz = check_progress(progress), check_quiz(progress)
            except ValueError as error:
                aside, reason = free_name(folder), str(error).splitlines()[0]
                os.replace(path, aside)
                self.note = (
                    f"{path} could not be read ({reason}). It was set aside as {aside.name}."
                )

    def lesson(self, slug: str) -> dict[str, Any]:
        """One lesson's entry; a new one begins at cell 0."""
        fresh: dict[str, Any] = {"cell": 0, "seen": [], "finished": False, "seconds": 0.0}
        return self.lessons.setdefault(slug, {**fresh, "predictions": {}, "exercises": {}})

    def exercise(self, slug: str, name: str) -> dict[str, Any]:
        """One exercise's entry."""
        fresh: dict[str, Any] = {"passed": False, "tries": 0, "hints": 0, "revealed": False}
        return self.lesson(slug)["exercises"].setdefault(name, fresh)

    def reset(self, slug: str) -> None:
        """Forget one lesson; the learner's file stays."""
        self.lessons.pop(slug, None)
        self.save()

    def save(self) -> None:
        """Write the file. Raises ``OSError`` that names it when that fails; the old file stays."""
        quiz = {"quiz": self.quiz} if self.quiz else {}
        write_json(self.folder / FILE, {"lessons": self.lessons, **quiz})


def check_progress(progress: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The lessons of a progress file. Raises ``ValueError`` where a value has the wrong type."""
    lessons = progress.get("lessons")
    if not isinstance(lessons, dict):
        raise ValueError(f"'lessons' must be an object, got {type(lessons).__name__}")
    for slug, entry in lessons.items():
        if isinstance(entry, dict) and isinstance(entry.get("cell"), int):
            entry.setdefault("seen", list(range(entry["cell"])))  # files of version 0.1 lack it
        check_types(entry, ENTRY, f"the entry {slug!r}")
        for name, exercise in entry["exercises"].items():
            check_types(exercise, EXERCISE, f"the exercise {name!r}")
        if not all(isinstance(prediction, dict) for prediction in entry["predictions"].values()):
            raise ValueError(f"the predictions of {slug!r} must be objects")
    return lessons


def check_quiz(progress: dict[str, Any]) -> dict[str, dict[str, int]]:
    """The quiz of a progress file, empty in an older one. Raises as ``check_progress``."""
    quiz = progress.get("quiz", {})
    if not isinstance(quiz, dict):
        raise ValueError(f"'quiz' must be an object, got {type(quiz).__name__}")
    for name, entry in quiz.items():
        check_types(entry, QUIZ, f"the question {name!r}")
    return quiz


def check_types(entry: Any, types: dict[str, Any], name: str) -> None:
    """Raise ``ValueError`` unless an entry is an object with a value of each type."""
    whole = isinstance(entry, dict)
    if not whole or not all(isinstance(entry.get(key), kind) for key, kind in types.items()):
        raise ValueError(f"{name} must have {', '.join(types)}")


def free_name(folder: Path) -> Path:
    """A name for a broken file that no other file in the folder has."""
    number = 1
    while (folder / f"progress-broken-{number}.json").exists():
        number += 1
    return folder / f"progress-broken-{number}.json"
