"""Run a lesson: cell by cell in one namespace (``Session``), or whole in a fresh process.

A whole run gives plain JSON: for each cell its prose with the numbers filled in, its output, its
figures and its seconds; for each prediction the answer. The page, the notebook and the lesson's
tests are made of it.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import ModuleType
from typing import Any

from ..files import read_json, write_json
from .cells import Cell, Lesson, fill_prose, parse_lesson
from .figures import Shown, Stage, on_stage


class Session:
    """The namespace of one lesson, as ``__main__`` would be for its script.

    ``run`` executes a code or exercise cell, ``prose`` fills in a text's numbers, ``answer``
    evaluates a prediction's answer.
    """

    def __init__(self, lesson: Lesson):
        self.lesson = lesson
        module = ModuleType("minilora_lesson")
        module.__file__ = str(lesson.path)
        sys.modules[module.__name__] = module  # dataclasses of a lesson look themselves up there
        self.namespace: dict[str, Any] = module.__dict__

    def run(self, cell: Cell) -> None:
        """Execute a cell; tracebacks show the lesson's own lines. Errors of its code go through."""
        code = compile("\n" * (cell.line - 1) + cell.text, str(self.lesson.path), "exec")
        exec(code, self.namespace)

    def prose(self, cell: Cell) -> str:
        """The text with its numbers. Raises ``ValueError`` with the line of one that fails."""
        text = cell.question if cell.kind == "predict" else cell.text
        try:
            return fill_prose(text, self.namespace)
        except ValueError as error:
            place = f"{self.lesson.path.name}, cell of line {cell.line}"
            raise ValueError(f"{place}: {error}") from error

    def answer(self, cell: Cell) -> Any:
        """A prediction's answer, a plain string or number. Raises ``ValueError`` for others."""
        value = eval(cell.answer, self.namespace)
        value = value.item() if hasattr(value, "item") else value  # of NumPy or torch
        if not isinstance(value, str | int | float):
            kind = type(value).__name__
            raise ValueError(f"the answer to {cell.name} must be a number or a string, got {kind}")
        return value


def run_lesson(lesson: Lesson, folder: Path, dark: bool = False) -> dict[str, Any]:
    """Run a lesson from start to end; figures go to ``folder``. Returns the run as plain data."""
    session, stage = Session(lesson), Stage(folder, lesson.slug, dark, quiet=True)
    cells: list[dict[str, Any]] = []
    predictions: dict[str, Any] = {}
    waiting: list[Cell] = []
    began = time.perf_counter()
    with on_stage(stage):
        for cell in lesson.cells:
            start, drawn, output = time.perf_counter(), len(stage.shown), io.StringIO()
            prose = session.prose(cell) if cell.kind in ("markdown", "predict", "hints") else ""
            if cell.kind in ("code", "exercise"):
                with contextlib.redirect_stdout(output):
                    session.run(cell)
            if cell.kind == "predict":
                waiting.append(cell)
            if cell.kind == "code":
                predictions |= {asked.name: session.answer(asked) for asked in waiting}
                waiting = []
            figures = [figure_data(shown) for shown in stage.shown[drawn:]]
            seconds = round(time.perf_counter() - start, 3)
            data = {"prose": prose, "output": output.getvalue(), "figures": figures}
            cells.append({**data, "seconds": seconds})
    return {
        "slug": lesson.slug,
        "seconds": round(time.perf_counter() - began, 3),
        "processor": round(time.process_time(), 3),
        "cells": cells,
        "predictions": predictions,
    }


def figure_data(shown: Shown) -> dict[str, str | None]:
    """A figure's files and its text."""
    dark = shown.dark.name if shown.dark else None
    return {"light": shown.light.name, "dark": dark, "alt": shown.alt}


def run_apart(
    lesson: Lesson, folder: Path, dark: bool = False, limit: float = 600
) -> dict[str, Any]:
    """``run_lesson`` in a fresh process and an empty working folder.

    ``wall`` has its seconds with the imports, ``processor`` those of its threads, which do not grow
    when others use the machine. ``limit`` counts processor seconds where the system can (Windows
    cannot), and the clock may show ten times as many. Raises ``ValueError`` with the end of the
    traceback when the lesson fails, and when it takes longer.
    """
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "minilora.learn.run"]
    command += [str(lesson.path.resolve()), str(folder.resolve())] + ["--dark"] * dark
    command += ["--limit", f"{limit:.0f}"]
    settings: Any = {"env": child_environment(), "timeout": 10 * limit, "capture_output": True}
    slow = f"{lesson.slug} took more than {limit:.0f} seconds; its budget is {lesson.seconds}"
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as empty:
        try:
            process = subprocess.run(
                command, cwd=empty, encoding="utf-8", errors="replace", **settings
            )
        except subprocess.TimeoutExpired:
            raise ValueError(slow) from None
    if process.returncode == -getattr(signal, "SIGXCPU", 0):
        raise ValueError(slow)
    if process.returncode:
        raise ValueError(f"{lesson.slug} fails:\n{process.stderr[-3000:]}")
    return read_json(folder / "run.json") | {"wall": time.perf_counter() - began}


def child_environment() -> dict[str, str]:
    """The environment of a child: it finds this package and speaks UTF-8; idle threads sleep."""
    package = str(Path(__file__).resolve().parents[2])
    paths = os.pathsep.join(path for path in (package, os.environ.get("PYTHONPATH", "")) if path)
    return {
        "OMP_WAIT_POLICY": "PASSIVE",
        **os.environ,
        "PYTHONPATH": paths,
        "PYTHONUTF8": "1",
        "PYTHONIOENCODING": "utf-8",
    }


def limit_processor(seconds: int) -> None:
    """End this process after so many seconds of processor time, where the system can do that."""
    with contextlib.suppress(ImportError):
        import resource

        hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, hard))


def main() -> None:
    """``python -m minilora.learn.run LESSON FOLDER``: run.json and figures in a folder."""
    options = argparse.ArgumentParser(prog="minilora.learn.run")
    options.add_argument("lesson", type=Path)
    options.add_argument("folder", type=Path)
    options.add_argument("--dark", action="store_true")
    options.add_argument("--limit", type=int)
    chosen = options.parse_args()
    if chosen.limit:
        limit_processor(chosen.limit)
    run = run_lesson(parse_lesson(chosen.lesson), chosen.folder, chosen.dark)
    write_json(chosen.folder / "run.json", run)


if __name__ == "__main__":
    main()
