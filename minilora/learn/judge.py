"""Judge a learner's file in a process of its own, with a time limit, so that it stops nothing else.

A syntax error, an exception at import, ``sys.exit``, an infinite loop and a crash each become a
sentence. It is no sandbox: the learner's code runs with the rights of whoever runs the command.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib.util
import io
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..files import write_json
from .answers import describe_error, judge_exercise
from .cells import Lesson
from .course import load_module
from .run import child_environment, limit_processor

LIMIT = 60.0
COUNTS_PROCESSOR = importlib.util.find_spec("resource") is not None  # Windows does not
KEPT = 2000  # characters of the learner's own prints


@dataclass(frozen=True)
class Verdict:
    """A checker's answer: a status, a sentence, and the end of the output of the learner's code."""

    status: str  # passed, to do, wrong, error or timeout
    message: str = ""
    printed: str = ""


def judge_file(lesson: Lesson, name: str, file: Path, limit: float = LIMIT) -> Verdict:
    """Check an exercise in a learner's file, in a fresh process of at most ``limit`` seconds.

    These are processor seconds where the system can count them, as a busy machine is no loop; the
    clock may then show ten times as many.
    """
    if not file.is_file():
        return Verdict("to do", f"there is no file {file.name}")
    if (unreadable := check_syntax(file)) is not None:
        return unreadable  # at once: the process takes seconds to start
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "verdict.json"
        command = [sys.executable, "-m", "minilora.learn.judge", str(lesson.path.resolve()), name]
        command += [str(file.resolve()), str(answer), "--limit", str(math.ceil(limit))]
        clock_limit = 10 * limit if COUNTS_PROCESSOR else limit
        silence: Any = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
        process = subprocess.Popen(
            command, cwd=folder, env=child_environment(), **silence, start_new_session=True
        )
        try:
            process.wait(clock_limit)
        except subprocess.TimeoutExpired:
            return too_long(clock_limit, limit)
        finally:
            end_group(process)
        if process.returncode == -getattr(signal, "SIGXCPU", 0):
            return too_long(limit, limit)
        try:
            verdict = json.loads(answer.read_text(encoding="utf-8"))
            return Verdict(*(str(verdict[part]) for part in ("status", "message", "printed")))
        except (OSError, ValueError, KeyError, TypeError):
            code = process.returncode
            message = f"the process ended before an answer came (exit status {code})"
            return Verdict("error", message)


def too_long(seconds: float, limit: float) -> Verdict:
    """The verdict on code that took so many seconds, and the limit that may be what it needs."""
    message = f"it was still running after {seconds:.0f} seconds"
    longer = f"If the machine is busy, give it longer: --limit {5 * limit:.0f}"
    return Verdict("timeout", f"{message}: is there a loop that never ends? {longer}")


def check_syntax(file: Path) -> Verdict | None:
    """The verdict on a file that Python cannot read; None for all others, which need to be run."""
    try:
        ast.parse(file.read_bytes())
    except SyntaxError as error:
        return describe_syntax(error, file)
    except (ValueError, RecursionError, MemoryError):
        return None
    return None


def describe_syntax(error: SyntaxError, file: Path) -> Verdict:
    """The verdict on a file that Python cannot read."""
    where = f"line {error.lineno}" + (f", `{error.text.strip()}`" if error.text else "")
    return Verdict("error", f"Python cannot read {file.name}: {where}: {error.msg}")


def end_group(process: subprocess.Popen[bytes]) -> None:
    """End a process and what it started."""
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.wait()


class LastPart(io.StringIO):
    """A text stream that keeps its last ``KEPT`` characters.

    The end counts, as a failing case is the last that a checker tries.
    """

    def write(self, text: str) -> int:
        """Keep the end."""
        kept = (self.getvalue() + text[-KEPT:])[-KEPT:]
        self.seek(0)
        self.truncate()
        super().write(kept)
        return len(text)


def import_and_judge(lesson: Path, name: str, file: Path) -> Verdict:
    """Import a learner's file and check one exercise, in the process that ``judge_file`` starts."""
    printed = LastPart()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        try:
            answer = getattr(load_module(file), name, None)
            if not callable(answer):
                return Verdict("error", f"{file.name} has no function {name}")
            status, message = judge_exercise(lesson, name, answer)
        except SyntaxError as error:
            return describe_syntax(error, file)
        except SystemExit:
            status = "error"
            message = f"{file.name} ends the program (sys.exit) where it should return"
        except BaseException as error:
            status, message = "error", describe_error(error, file)
    return Verdict(status, message, printed.getvalue())


def main() -> None:
    """``python -m minilora.learn.judge LESSON EXERCISE FILE VERDICT``."""
    options = argparse.ArgumentParser(prog="minilora.learn.judge")
    for name in ("lesson", "exercise", "file", "verdict"):
        options.add_argument(name)
    options.add_argument("--limit", type=int)
    chosen = options.parse_args()
    if chosen.limit:
        limit_processor(chosen.limit)
    verdict = import_and_judge(Path(chosen.lesson), chosen.exercise, Path(chosen.file))
    write_json(chosen.verdict, asdict(verdict))


if __name__ == "__main__":
    main()
