"""The files that a learner hands in: the walk's, the lesson's script or the lesson's notebook.

They stand in the learner's folder or just below it. Of a script or a notebook only the exercises
count, with the imports and functions of the other cells: grading never runs a whole lesson, so an
answer must not use a variable of another cell. Left out: archives (unpack them), and renamed files
(listed, not guessed).
"""

from __future__ import annotations

import ast
import glob
import json
import re
from collections.abc import Collection, Sequence
from pathlib import Path

from ..files import write_text
from .cells import Lesson
from .workspace import FOLDER

ENDINGS = (".py", ".ipynb")
MARK = "# %% [exercise]"


def find_folders(given: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """The learners' folders, and the files among them.

    A pattern such as ``class/*`` is expanded where the shell did not. Raises ``ValueError`` that
    names the paths that are missing, or when no path is a folder.
    """
    paths: list[Path] = []
    for path in given:
        matches = [] if path.exists() else sorted(glob.glob(str(path)))
        paths += [Path(match) for match in matches] or [path]
    missing = ", ".join(str(path) for path in paths if not path.exists())
    if missing:
        raise ValueError(f"there is no folder {missing}; nothing was graded")
    folders = [path for path in paths if path.is_dir()]
    if not folders:
        names, hint = ", ".join(map(str, paths)), "unpack what was handed in, one folder a learner"
        raise ValueError(f"expected learners' folders, got {names}: {hint}")
    return folders, [path for path in paths if not path.is_dir()]


def answer_folders(folder: Path) -> list[Path]:
    """A learner's folder, ``minilora-lessons`` in it, and the same one folder deeper."""
    return [folder, folder / FOLDER.name, *sorted(folder.glob(f"*/{FOLDER.name}"))]


def answer_files(folder: Path, lesson: Lesson) -> list[Path]:
    """A learner's files of one lesson, in the order in which they are tried."""
    names = [f"{lesson.slug}{ending}" for ending in ENDINGS]
    files = (place / name for place in answer_folders(folder) for name in names)
    return [file for file in files if file.is_file()]


def stray_files(folder: Path, slugs: Collection[str]) -> list[str]:
    """Scripts and notebooks without a lesson's name: renamed by the learner or by a browser."""
    places = [place for place in answer_folders(folder) if place.is_dir()]
    files = (file for place in places for file in sorted(place.iterdir()))
    return [file.name for file in files if file.suffix in ENDINGS and file.stem not in slugs]


def plain_file(file: Path, lesson: Lesson, folder: Path) -> Path:
    """The file itself; for a notebook or a filled-in lesson, a script of its exercises.

    The script holds the exercises and all that they need, and is written to ``folder``. Raises
    ``ValueError`` for a notebook that cannot be read.
    """
    text = file.read_text(encoding="utf-8-sig", errors="replace")
    if file.suffix == ".ipynb":
        cells = notebook_cells(text)
    elif MARK in text:
        cells = re.split(r"(?m)^(?=# %%)", text)
    else:
        return file
    script = "".join(keep_needed(cell, lesson.exercises) for cell in cells)
    return write_text(folder / f"{lesson.slug}.py", script)


def keep_needed(cell: str, exercises: Collection[str]) -> str:
    """A cell that defines an exercise; of another cell its imports, functions and classes.

    Its other lines become blank, so that all lines keep their numbers.

    >>> keep_needed("import math\\nprint(1)\\ndef twice(x):\\n    return 2 * x\\n", ["f"])
    'import math\\n\\ndef twice(x):\\n    return 2 * x\\n'
    """
    if any(re.search(rf"(?m)^def {name}\(", cell) for name in exercises):
        return cell
    lines = cell.splitlines(keepends=True)
    try:
        body = ast.parse(cell).body
    except SyntaxError:  # a magic of IPython, or a slip beside the exercise
        body = []
    kept: set[int] = set()
    for node in body:
        if isinstance(node, ast.Import | ast.ImportFrom | ast.FunctionDef | ast.ClassDef):
            decorators = getattr(node, "decorator_list", [])
            first = min(part.lineno for part in [node, *decorators])
            kept.update(range(first, (node.end_lineno or 0) + 1))
    return "".join(line if number in kept else "\n" for number, line in enumerate(lines, 1))


def notebook_cells(text: str) -> list[str]:
    """The code cells of a notebook, each with a line end; ``ValueError`` for another file."""
    try:
        cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
        return ["".join(cell["source"]) + "\n" for cell in cells]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError("it is not a notebook as Jupyter saves it") from error
