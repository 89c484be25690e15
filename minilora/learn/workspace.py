"""The learner's folder: the file they write their answers in, and the solutions they have earned."""

from __future__ import annotations

import ast
from collections.abc import Collection
from pathlib import Path

from ..files import write_text
from .cells import Lesson

FOLDER = Path("minilora-lessons")


def open_desk(lesson: Lesson, folder: Path) -> Path:
    """The learner's file of a lesson, made from its exercise cells, or completed where one is missing. What is there stays."""
    file = folder / f"{lesson.slug}.py"
    there = file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""
    missing = [cell.text for name, cell in lesson.exercises.items() if f"def {name}(" not in there]
    if not there:
        there = f'"""{lesson.title}: your answers. Save this file, then press Enter in `minilora learn {lesson.number}`."""\n'
    if missing:
        write_text(file, there.rstrip("\n") + "\n\n" + "\n\n\n".join(missing) + "\n")
    return file


def write_solutions(lesson: Lesson, folder: Path, earned: Collection[str]) -> Path:
    """Write the solutions of the exercises that were passed or revealed, and what they share, to ``solutions/``."""
    source = (lesson.path.parent / "solutions" / lesson.path.name).read_text(encoding="utf-8")
    kept = source.splitlines(keepends=True)
    for node in ast.parse(source).body:
        if (
            isinstance(node, ast.FunctionDef)
            and node.name in lesson.exercises
            and node.name not in earned
        ):
            for line in range(node.lineno - 1, node.end_lineno or node.lineno):
                kept[line] = ""
    return write_text(folder / "solutions" / f"{lesson.slug}.py", "".join(kept).rstrip("\n") + "\n")
