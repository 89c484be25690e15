"""The learner's folder: their file of answers, and the solutions that they have earned."""

from __future__ import annotations

import ast
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from ..files import write_text
from .cells import Lesson
from .pieces import gather_pieces, needed_pieces, own_machine

FOLDER = Path("minilora-lessons")
WORKING: ContextVar[Path] = ContextVar("WORKING", default=FOLDER)


def learners_folder() -> Path:
    """The folder of the learner who walks a lesson; ``minilora-lessons`` when it runs by itself."""
    return WORKING.get()


@contextmanager
def working_in(folder: Path) -> Iterator[None]:
    """A context in which a lesson's code finds this folder by ``learners_folder``."""
    token = WORKING.set(folder)
    try:
        yield
    finally:
        WORKING.reset(token)


def open_answer_file(lesson: Lesson, folder: Path) -> Path:
    """The learner's file of a lesson, made from its exercise cells.

    A file that lacks an exercise gets its stub, with the pieces of earlier lessons above that it
    asks for (pieces.py); its own lines stay.
    """
    file = folder / f"{lesson.slug}.py"
    text = file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""
    missing = [
        with_pieces(cell.text, text, folder)
        for name, cell in lesson.exercises.items()
        if f"def {name}(" not in text
    ]
    if not text:
        save = f"Save this file, then press Enter in `minilora learn {lesson.number}`."
        text = f'"""{lesson.title}: your answers. {save}"""\n'
    if missing:
        write_text(file, text.rstrip("\n") + "\n\n" + "\n\n\n".join(missing) + "\n")
    return file


def with_pieces(stub: str, text: str, folder: Path) -> str:
    """A stub, with the functions above it that it asks for and the file does not have."""
    names = [name for name in needed_pieces(stub) if f"def {name}(" not in text]
    return f"{gather_pieces(names, folder)}\n\n{stub}" if names else stub


def own_piece(name: str) -> Callable[..., Any]:
    """The learner's function of an earlier exercise, or the course's while it is to do.

    A notebook asks for it above an exercise that needs it.

    >>> own_piece("largest_rank")([(128, 64)], 1920)
    10
    """
    machine, _ = own_machine(name, learners_folder())
    return getattr(machine, name)  # type: ignore[no-any-return]


def write_solutions(lesson: Lesson, folder: Path, earned: Collection[str]) -> Path:
    """Write the solutions of the exercises that are passed or revealed to ``solutions/``.

    The lines that the solutions share come with them.
    """
    source = (lesson.path.parent / "solutions" / lesson.path.name).read_text(encoding="utf-8")
    lines = source.splitlines(keepends=True)
    unearned = set(lesson.exercises) - set(earned)
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef) and node.name in unearned:
            for line in range(node.lineno - 1, node.end_lineno or node.lineno):
                lines[line] = ""
    text = "".join(lines).rstrip("\n") + "\n"
    return write_text(folder / "solutions" / f"{lesson.slug}.py", text)
