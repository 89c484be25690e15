"""Run a lesson: cell by cell in one namespace (``Session``), or whole, in a fresh process (``run_apart``).

A whole run gives plain JSON: for each cell its prose with the numbers filled in, its output, its figures and its seconds;
for each prediction the answer. The page, the notebook and the lesson's tests are made of it.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import ModuleType
from typing import Any

from ..files import read_json, write_json
from .cells import Cell, Lesson, fill_prose, parse_lesson
from .figures import Stage, on_stage


class Session:
    """The namespace of one lesson, as ``__main__`` would be for its script.

    ``run`` executes a code or exercise cell, ``prose`` fills in a text's numbers, ``answer`` evaluates a prediction's answer.
    """

    def __init__(self, lesson: Lesson):
        self.lesson = lesson
        module = ModuleType("minilora_lesson")
        module.__file__ = str(lesson.path)
        sys.modules[module.__name__] = module  # dataclasses of a lesson look themselves up there
        self.namespace: dict[str, Any] = module.__dict__

    def run(self, cell: Cell) -> None:
        """Execute a cell; a traceback shows the lesson's own lines. Whatever the code raises goes through."""
        code = compile("\n" * (cell.line - 1) + cell.text, str(self.lesson.path), "exec")
        exec(code, self.namespace)

    def prose(self, cell: Cell) -> str:
        """The text with its numbers. Raises ``ValueError`` with the line when one cannot be computed."""
        try:
            return fill_prose(
                cell.question if cell.kind == "predict" else cell.text, self.namespace
            )
        except ValueError as error:
            raise ValueError(
                f"{self.lesson.path.name}, cell of line {cell.line}: {error}"
            ) from error

    def answer(self, cell: Cell) -> Any:
        """A prediction's answer as a plain string, whole number or float. Raises ``ValueError`` when it is something else."""
        value = eval(cell.answer, self.namespace)
        value = value.item() if hasattr(value, "item") else value
        if not isinstance(value, str | int | float):
            raise ValueError(
                f"the answer to {cell.name} must be a number or a string, got {type(value).__name__}"
            )
        return value


def run_lesson(lesson: Lesson, folder: Path, dark: bool = False) -> dict[str, Any]:
    """Run a lesson from start to end; figures go to ``folder``. Returns the run as JSON-ready data."""
    session, stage = Session(lesson), Stage(folder, lesson.slug, dark, quiet=True)
    cells: list[dict[str, Any]] = []
    predictions: dict[str, Any] = {}
    waiting: list[Cell] = []
    began = time.perf_counter()
    with on_stage(stage):
        for cell in lesson.cells:
            start, seen, said = time.perf_counter(), len(stage.shown), io.StringIO()
            prose = session.prose(cell) if cell.kind in ("markdown", "predict", "hints") else ""
            if cell.kind in ("code", "exercise"):
                with contextlib.redirect_stdout(said):
                    session.run(cell)
            if cell.kind == "predict":
                waiting.append(cell)
            if cell.kind == "code":
                predictions |= {asked.name: session.answer(asked) for asked in waiting}
                waiting = []
            figures = [
                {
                    "light": shown.light.name,
                    "dark": shown.dark.name if shown.dark else None,
                    "alt": shown.alt,
                }
                for shown in stage.shown[seen:]
            ]
            seconds = round(time.perf_counter() - start, 3)
            cells.append(
                {"prose": prose, "output": said.getvalue(), "figures": figures, "seconds": seconds}
            )
    return {
        "slug": lesson.slug,
        "seconds": round(time.perf_counter() - began, 3),
        "processor": round(time.process_time(), 3),
        "cells": cells,
        "predictions": predictions,
    }


def run_apart(
    lesson: Lesson, folder: Path, dark: bool = False, limit: float = 600
) -> dict[str, Any]:
    """``run_lesson`` in a fresh process and an empty working folder; ``wall`` has its seconds with the imports, and
    ``processor`` those of its threads, which do not grow when others use the machine.

    Raises ``ValueError`` with the end of the traceback when the lesson fails, or when it takes more than ``limit`` seconds.
    """
    folder.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable,
        "-m",
        "minilora.learn.run",
        str(lesson.path.resolve()),
        str(folder.resolve()),
    ]
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as empty:
        try:
            done = subprocess.run(
                command + ["--dark"] * dark,
                cwd=empty,
                env=child_environment(),
                capture_output=True,
                text=True,
                encoding="utf-8",
                errors="replace",
                timeout=limit,
            )
        except subprocess.TimeoutExpired:
            raise ValueError(
                f"{lesson.slug} took more than {limit:.0f} seconds; its budget is {lesson.seconds}"
            ) from None
    if done.returncode:
        raise ValueError(f"{lesson.slug} fails:\n{done.stderr[-3000:]}")
    return read_json(folder / "run.json") | {"wall": time.perf_counter() - began}


def child_environment() -> dict[str, str]:
    """The environment of a process of ours: it finds this very package, speaks UTF-8, and its idle threads sleep."""
    package = str(Path(__file__).resolve().parents[2])
    paths = os.pathsep.join(path for path in (package, os.environ.get("PYTHONPATH", "")) if path)
    return {
        "OMP_WAIT_POLICY": "PASSIVE",
        **os.environ,
        "PYTHONPATH": paths,
        "PYTHONUTF8": "1",
        "PYTHONIOENCODING": "utf-8",
    }


def main() -> None:
    """``python -m minilora.learn.run LESSON FOLDER [--dark]``: run a lesson and leave run.json and the figures in a folder."""
    options = argparse.ArgumentParser(prog="minilora.learn.run")
    options.add_argument("lesson", type=Path)
    options.add_argument("folder", type=Path)
    options.add_argument("--dark", action="store_true")
    chosen = options.parse_args()
    write_json(
        chosen.folder / "run.json",
        run_lesson(parse_lesson(chosen.lesson), chosen.folder, chosen.dark),
    )


if __name__ == "__main__":
    main()
