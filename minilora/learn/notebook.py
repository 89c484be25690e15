"""A lesson as a notebook: nbformat 4.5 JSON, without outputs, for whoever likes to run the cells in Jupyter.

Prose keeps its expressions: in a notebook the reader runs the cells, and a number that the run has not yet made is shown as
the code that makes it. Predictions and hints fold away.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from ..files import write_json
from .cells import NUMBER, Cell, Lesson


def write_notebook(lesson: Lesson, path: Path) -> Path:
    """Write a lesson's notebook; returns its path."""
    return write_json(path, make_notebook(lesson))


def make_notebook(lesson: Lesson) -> dict[str, Any]:
    """A lesson as nbformat data.

    >>> from minilora.learn.course import find_lesson
    >>> make_notebook(find_lesson(1))["nbformat"]
    4
    """
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    cells = [make_cell(lesson, index, cell) for index, cell in enumerate(lesson.cells)]
    return {
        "cells": cells,
        "metadata": {"kernelspec": kernel, "language_info": {"name": "python"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }


def make_cell(lesson: Lesson, index: int, cell: Cell) -> dict[str, Any]:
    """One cell; its id is the same in every export."""
    name = hashlib.sha256(f"{lesson.slug} {index}".encode()).hexdigest()[:12]
    if cell.kind in ("code", "exercise"):
        code: dict[str, Any] = {"execution_count": None, "outputs": []}
        return {"cell_type": "code", "id": name, "metadata": {}, "source": lines(cell.text), **code}
    text = NUMBER.sub(lambda found: f"`{found['inside'].strip()}`", cell.text)
    if cell.kind == "predict":
        text = f"**Predict.** {NUMBER.sub('', cell.question)}\n\n<details><summary>the answer is computed by</summary>\n\n"
        text += f"`{cell.answer}`\n\n</details>"
    if cell.kind == "hints":
        folded = (
            f"<details><summary>hint {n}</summary>\n\n{hint}\n\n</details>"
            for n, hint in enumerate(cell.hints, 1)
        )
        text = "\n".join(folded)
    return {"cell_type": "markdown", "id": name, "metadata": {}, "source": lines(text)}


def lines(text: str) -> list[str]:
    """Text as nbformat likes it: a list of lines with their ends."""
    return text.splitlines(keepends=True)
