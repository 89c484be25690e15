"""What a learner hands in: the walk's file, the lesson's script or the lesson's notebook, in their folder or just below it.

Of a script or a notebook only the exercises count, with the imports and functions of the other cells: grading never runs a
whole lesson, so an answer must not use a variable that another cell has made. Left out: archives (unpack them), and renamed
files (listed, not guessed).
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
    """The learners' folders, and what else stood among them; a pattern as ``class/*`` is opened where the shell did not.

    Raises ``ValueError`` that names what is not there, or when there is no folder at all.
    """
    found: list[Path] = []
    for path in given:
        matches = [] if path.exists() else sorted(glob.glob(str(path)))
        found += [Path(match) for match in matches] or [path]
    missing = [str(path) for path in found if not path.exists()]
    if missing:
        raise ValueError(f"there is no folder {', '.join(missing)}; nothing was graded")
    folders = [path for path in found if path.is_dir()]
    if not folders:
        raise ValueError(
            f"{', '.join(map(str, found))} is no folder: unpack what was handed in, one folder a learner"
        )
    return folders, [path for path in found if not path.is_dir()]


def desks(folder: Path) -> list[Path]:
    """Where a learner's files may stand: the folder, ``minilora-lessons`` in it, or in a folder of it."""
    return [folder, folder / FOLDER.name, *sorted(folder.glob(f"*/{FOLDER.name}"))]


def answer_files(folder: Path, lesson: Lesson) -> list[Path]:
    """A learner's files of one lesson, in the order in which they are tried."""
    files = (desk / f"{lesson.slug}{ending}" for desk in desks(folder) for ending in ENDINGS)
    return [file for file in files if file.is_file()]


def stray_files(folder: Path, slugs: Collection[str]) -> list[str]:
    """Scripts and notebooks that no lesson has the name of: renamed, or renamed by a browser."""
    files = (file for desk in desks(folder) if desk.is_dir() for file in sorted(desk.iterdir()))
    return [file.name for file in files if file.suffix in ENDINGS and file.stem not in slugs]


def plain_file(file: Path, lesson: Lesson, folder: Path) -> Path:
    """The file itself; of a notebook or a filled-in lesson a script of what its exercises need, written to ``folder``.

    Raises ``ValueError`` for a notebook that cannot be read.
    """
    text = file.read_text(encoding="utf-8-sig", errors="replace")
    if file.suffix == ".ipynb":
        cells = notebook_cells(text)
    elif MARK in text:
        cells = re.split(r"(?m)^(?=# %%)", text)
    else:
        return file
    return write_text(
        folder / f"{lesson.slug}.py", "".join(keep_needed(cell, lesson.exercises) for cell in cells)
    )


def keep_needed(cell: str, exercises: Collection[str]) -> str:
    """A cell that defines an exercise; of another its imports and functions, the rest blank, so that lines keep their numbers.

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
    kept = {
        number
        for node in body
        if isinstance(node, (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef))
        for number in range(
            min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))]),
            (node.end_lineno or 0) + 1,
        )
    }
    return "".join(line if number in kept else "\n" for number, line in enumerate(lines, 1))


def notebook_cells(text: str) -> list[str]:
    """The code cells of a notebook, each with a line end. Raises ``ValueError`` for what is no notebook."""
    try:
        cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
        return ["".join(cell["source"]) + "\n" for cell in cells]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError("it is no notebook as Jupyter saves it") from error
