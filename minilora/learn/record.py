"""The learner's progress: ``progress.json`` in their own folder, readable, whole at any moment.

    {"lessons": {"01_one_matmul": {"cell": 7, "finished": false, "seconds": 212.0,
        "predictions": {"rows_that_light_up": {"said": "1", "answer": 1, "right": true}},
        "exercises": {"weight_gradient": {"passed": true, "tries": 2, "hints": 1, "revealed": false}}}}}

``cell`` is the next cell to be shown. The file is written under another name, then renamed, after each thing that happens.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ..files import read_json, write_json

FILE = "progress.json"


class Record:
    """Progress in a folder; ``lesson(slug)`` gives one lesson's entry to read and change, ``save`` writes all.

    >>> import tempfile
    >>> record = Record(Path(tempfile.mkdtemp()))
    >>> record.lesson("01_one_matmul")["cell"] = 3
    >>> record.save(); Record(record.folder).lesson("01_one_matmul")["cell"]
    3
    """

    def __init__(self, folder: Path):
        self.folder, self.note = folder, ""
        self.lessons: dict[str, dict[str, Any]] = {}
        path = folder / FILE
        if path.exists():
            try:
                self.lessons = checked(read_json(path))
            except ValueError as error:
                aside = free_name(folder)
                os.replace(path, aside)
                self.note = f"{path} could not be read ({str(error).splitlines()[0]}). It was set aside as {aside.name}."

    def lesson(self, slug: str) -> dict[str, Any]:
        """One lesson's entry; a new one begins at cell 0."""
        fresh: dict[str, Any] = {
            "cell": 0,
            "finished": False,
            "seconds": 0.0,
            "predictions": {},
            "exercises": {},
        }
        return self.lessons.setdefault(slug, fresh)

    def exercise(self, slug: str, name: str) -> dict[str, Any]:
        """One exercise's entry."""
        fresh: dict[str, Any] = {"passed": False, "tries": 0, "hints": 0, "revealed": False}
        return self.lesson(slug)["exercises"].setdefault(name, fresh)

    def reset(self, slug: str) -> None:
        """Forget one lesson; the learner's file stays."""
        self.lessons.pop(slug, None)
        self.save()

    def save(self) -> None:
        """Write the file. Raises ``OSError`` that names it when that fails; the old one is then still whole."""
        write_json(self.folder / FILE, {"lessons": self.lessons})


def checked(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The lessons of a progress file. Raises ``ValueError`` when something has another type than it should."""
    lessons = found.get("lessons")
    if not isinstance(lessons, dict):
        raise ValueError("'lessons' must be an object")
    kinds: dict[str, Any] = {
        "cell": int,
        "finished": bool,
        "seconds": int | float,
        "predictions": dict,
        "exercises": dict,
    }
    inner: dict[str, Any] = {"passed": bool, "tries": int, "hints": int, "revealed": bool}
    for slug, entry in lessons.items():
        if not isinstance(entry, dict) or not all(
            isinstance(entry.get(key), kind) for key, kind in kinds.items()
        ):
            raise ValueError(f"the entry {slug!r} must have {', '.join(kinds)}")
        for name, exercise in entry["exercises"].items():
            if not isinstance(exercise, dict) or not all(
                isinstance(exercise.get(k), kind) for k, kind in inner.items()
            ):
                raise ValueError(f"the exercise {name!r} must have {', '.join(inner)}")
        if not all(isinstance(prediction, dict) for prediction in entry["predictions"].values()):
            raise ValueError(f"the predictions of {slug!r} must be objects")
    return lessons


def free_name(folder: Path) -> Path:
    """A name for a broken file that does not stand there yet."""
    number = 1
    while (folder / f"progress-broken-{number}.json").exists():
        number += 1
    return folder / f"progress-broken-{number}.json"
