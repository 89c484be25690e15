"""Runs of lessons that are kept beside the site, so that a book which was stopped goes on.

A run is kept under what it depends on: the lesson's source and the package's. When either changes,
the lesson runs again.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from ..files import read_json, write_atomically, write_json
from .cells import Lesson
from .course import PACKAGE
from .run import run_apart


def key_of(lesson: Lesson) -> str:
    """The sha256 of a lesson's source and of the package's."""
    sources = sorted(file for end in ("py", "c", "h") for file in PACKAGE.rglob(f"*.{end}"))
    digest = hashlib.sha256(lesson.path.read_bytes())
    for file in sources:
        digest.update(file.relative_to(PACKAGE).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


def kept_run(lesson: Lesson, site: Path) -> dict[str, Any] | None:
    """A lesson's finished run, if it is there with its figures and nothing has changed since."""
    try:
        run = read_json(site / "runs" / f"{lesson.slug}.json")
    except (OSError, ValueError):
        return None
    figures = (figure for cell in run.get("cells", []) for figure in cell["figures"])
    faces = (figure[face] for figure in figures for face in ("light", "dark"))
    files = [site / "figures" / face for face in faces if face]
    same = run.get("key") == key_of(lesson) and all(file.is_file() for file in files)
    return run if same else None


def run_and_keep(lesson: Lesson, site: Path, limit: float) -> dict[str, Any]:
    """Run a lesson, copy its figures into the site, then keep the run. Raises as ``run_apart``."""
    with tempfile.TemporaryDirectory() as temporary:
        run = run_apart(lesson, Path(temporary), dark=True, limit=limit)
        for file in sorted(Path(temporary).glob("*.png")):
            write_atomically(site / "figures" / file.name, partial(shutil.copyfile, file))
    run["key"] = key_of(lesson)
    write_json(site / "runs" / f"{lesson.slug}.json", run)
    return run
