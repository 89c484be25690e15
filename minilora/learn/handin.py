"""What a learner hands in: the walk's file, the lesson's script or the lesson's notebook, in their folder or just below it.

Of a script or a notebook only the exercise cells count, so grading never runs a whole lesson. A cell must therefore stand on
its own: it brings its imports, as every stub does. Left out: archives (unpack them), and renamed files (listed, not guessed).
"""

from __future__ import annotations

import glob
import json
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from ..files import write_text
from .cells import Lesson
from .desk import FOLDER

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
        raise ValueError(f"{', '.join(map(str, found))} is no folder: unpack what was handed in, one folder a learner")
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
    """The file itself; of a notebook or a filled-in lesson a script of its exercise cells, written to ``folder``.

    Raises ``ValueError`` for a notebook that cannot be read.
    """
    text = file.read_text(encoding="utf-8-sig", errors="replace")
    if file.suffix == ".ipynb":
        text = "\n\n\n".join(notebook_cells(text, lesson))
    elif MARK in text:
        text = "\n".join(script_cells(text))
    else:
        return file
    return write_text(folder / f"{lesson.slug}.py", text + "\n")


def script_cells(text: str) -> Iterator[str]:
    """The lines of a script with all but its exercise cells blank, so that each line keeps its number.

    >>> list(script_cells("# %%\\nx = 1\\n# %% [exercise] f\\ndef f(): ...\\n# %%\\ncheck(f)"))
    ['', '', '# %% [exercise] f', 'def f(): ...', '', '']
    """
    kept = False
    for line in text.splitlines():
        kept = line.startswith(MARK) if line.startswith("# %%") else kept
        yield line if kept else ""


def notebook_cells(text: str, lesson: Lesson) -> list[str]:
    """The code cells of a notebook that define an exercise of the lesson. Raises ``ValueError`` for what is no notebook."""
    try:
        cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
        sources = ["".join(cell["source"]) for cell in cells]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError("it is no notebook as Jupyter saves it") from error
    stub = re.compile(rf"(?m)^def ({'|'.join(lesson.exercises)})\(")
    return [source for source in sources if stub.search(source)]
