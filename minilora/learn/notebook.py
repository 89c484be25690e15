"""A lesson as a notebook: nbformat 4.5 JSON, without outputs, for whoever runs cells in Jupyter.

Prose keeps its expressions: the reader runs the cells, and a number that no cell has computed yet
is shown as the code that computes it. Predictions and hints fold away.
"""

from __future__ import annotations

import ast
import base64
import hashlib
import re
from pathlib import Path
from typing import Any

from ..files import write_json
from .cells import NUMBER, Cell, Lesson
from .drawings import draw_lora
from .pieces import needed_pieces


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
    cells = [made for n, cell in enumerate(lesson.cells) for made in make_cells(lesson, n, cell)]
    return {
        "cells": cells,
        "metadata": {"kernelspec": kernel, "language_info": {"name": "python"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }


def make_cells(lesson: Lesson, index: int, cell: Cell) -> list[dict[str, Any]]:
    """A cell, or its parts where one only draws: that part's code is folded."""
    if cell.kind == "code":
        parts = enumerate(cell.segments)
        return [code_cell(lesson, f"{index} {n}", text, folds) for n, (text, folds) in parts]
    if cell.kind == "exercise":
        return [code_cell(lesson, f"{index}", with_own_pieces(cell.text))]
    return [prose_cell(lesson, index, cell)]


def with_own_pieces(stub: str) -> str:
    """A stub, and above it the functions of earlier lessons that it asks for.

    In the same cell, as of other cells a grader takes functions only (submissions.py).

    >>> print(with_own_pieces("# pieces: merge_once\\ndef adapter(x): ..."))
    # pieces: merge_once
    from minilora.learn.workspace import own_piece  # or the course's
    <BLANKLINE>
    merge_once = own_piece("merge_once")
    <BLANKLINE>
    <BLANKLINE>
    def adapter(x): ...
    """
    names = needed_pieces(stub)
    if not names:
        return stub
    line, _, rest = stub.partition("\n")
    source = "from minilora.learn.workspace import own_piece  # or the course's"
    pieces = "\n".join(f'{name} = own_piece("{name}")' for name in names)
    return f"{line}\n{source}\n\n{pieces}\n\n\n{rest}"


def cell_id(lesson: Lesson, place: str) -> str:
    """An id that is the same in every export."""
    return hashlib.sha256(f"{lesson.slug} {place}".encode()).hexdigest()[:12]


def code_cell(lesson: Lesson, place: str, text: str, folds: bool = False) -> dict[str, Any]:
    """A cell of code; JupyterLab shows a folded one as a line that opens."""
    return {
        "cell_type": "code",
        "id": cell_id(lesson, place),
        "metadata": {"jupyter": {"source_hidden": True}} if folds else {},
        "source": lines(text),
        "execution_count": None,
        "outputs": [],
    }


def prose_cell(lesson: Lesson, index: int, cell: Cell) -> dict[str, Any]:
    """Prose, a prediction or hints."""
    cell_text = cell.text.replace(
        "](lora.svg)", f"](data:image/svg+xml;base64,{encoded_drawing()})"
    )
    text = NUMBER.sub(uncomputed, cell_text)
    if cell.kind == "predict":
        question = NUMBER.sub(uncomputed, cell.question)
        answer = folded("the answer is computed by", f"`{cell.answer}`")
        text = f"**Predict.** {question}\n\n{answer}"
    if cell.kind == "hints":
        text = "\n".join(folded(f"hint {n}", hint) for n, hint in enumerate(cell.hints, 1))
    return {
        "cell_type": "markdown",
        "id": cell_id(lesson, f"{index}"),
        "metadata": {},
        "source": lines(text),
    }


def uncomputed(number: re.Match[str]) -> str:
    """A ``{{ number }}`` that nobody has computed: a literal as it is, else its code.

    >>> NUMBER.sub(uncomputed, "rate {{ 0.001 }}, {{ STEPS }} steps, {{ loss:.2f }} nats")
    'rate 0.001, `STEPS` steps, `loss:.2f` nats'
    """
    inside = number["inside"].strip()
    try:
        return str(ast.literal_eval(inside))
    except (ValueError, SyntaxError):
        return f"`{inside}`"


def encoded_drawing() -> str:
    """The drawing of LoRA, to stand in a notebook's own text."""
    return base64.b64encode(draw_lora().encode()).decode()


def folded(summary: str, text: str) -> str:
    """Markdown that unfolds under a summary."""
    return f"<details><summary>{summary}</summary>\n\n{text}\n\n</details>"


def lines(text: str) -> list[str]:
    """Text in nbformat's form: a list of lines with their ends."""
    return text.splitlines(keepends=True)
