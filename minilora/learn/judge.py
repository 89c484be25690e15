"""Judge a learner's file in a process of its own, with a time limit: nothing that it does can stop the walk or the grading.

A syntax error, an exception at import, ``sys.exit``, an infinite loop and a crash each become a sentence. It is no sandbox:
the learner's code runs with the rights of whoever runs the command.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from ..files import write_json
from .cells import Lesson
from .checking import describe_error, judge_answer
from .course import load_checks, load_module
from .run import child_environment

LIMIT = 60.0
SAID = 2000  # characters of the learner's own prints that are kept


@dataclass(frozen=True)
class Verdict:
    """What a checker says: a status (passed, to do, wrong, error, timeout), a sentence, and what the learner's code printed."""

    status: str
    message: str = ""
    said: str = ""


def judge_file(lesson: Lesson, name: str, file: Path, limit: float = LIMIT) -> Verdict:
    """Check the exercise ``name`` in a learner's file, in a fresh process of at most ``limit`` seconds."""
    if not file.is_file():
        return Verdict("to do", f"there is no file {file.name}")
    if (unreadable := read_syntax(file)) is not None:
        return unreadable  # at once: the process takes seconds to start
    with tempfile.TemporaryDirectory() as folder:
        verdict = Path(folder) / "verdict.json"
        command = [
            sys.executable,
            "-m",
            "minilora.learn.judge",
            str(lesson.path.resolve()),
            name,
            str(file.resolve()),
        ]
        quiet = subprocess.DEVNULL
        process = subprocess.Popen(
            [*command, str(verdict)],
            cwd=folder,
            env=child_environment(),
            stdin=quiet,
            stdout=quiet,
            stderr=quiet,
            start_new_session=True,
        )
        try:
            process.wait(limit)
        except subprocess.TimeoutExpired:
            return Verdict(
                "timeout",
                f"it was still running after {limit:.0f} seconds: is there a loop that never ends?",
            )
        finally:
            end_group(process)
        try:
            found = json.loads(verdict.read_text(encoding="utf-8"))
            return Verdict(str(found["status"]), str(found["message"]), str(found["said"]))
        except (OSError, ValueError, KeyError, TypeError):
            return Verdict(
                "error",
                f"the process ended before an answer came (exit status {process.returncode})",
            )


def read_syntax(file: Path) -> Verdict | None:
    """What Python says of a file that it cannot read; None for all others, which need to be run."""
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
    """A text stream that keeps its last ``SAID`` characters: a failing case is the last that a checker tries."""

    def write(self, text: str) -> int:
        """Keep the end."""
        kept = (self.getvalue() + text[-SAID:])[-SAID:]
        self.seek(0)
        self.truncate()
        super().write(kept)
        return len(text)


def judge_here(lesson: Path, name: str, file: Path) -> Verdict:
    """Import a learner's file into this process and check one exercise. For the process that ``judge_file`` starts."""
    checker = getattr(load_checks(lesson), f"check_{name}")
    said = LastPart()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            answer = getattr(load_module(file), name, None)
            if not callable(answer):
                return Verdict("error", f"{file.name} has no function {name}")
            status, message = judge_answer(checker, answer)
        except SyntaxError as error:
            return describe_syntax(error, file)
        except SystemExit:
            return Verdict(
                "error",
                f"{file.name} ends the program (sys.exit) where it should return",
                said.getvalue(),
            )
        except BaseException as error:
            return Verdict("error", describe_error(error, file), said.getvalue())
    return Verdict(status, message, said.getvalue())


def main() -> None:
    """``python -m minilora.learn.judge LESSON EXERCISE FILE VERDICT``."""
    options = argparse.ArgumentParser(prog="minilora.learn.judge")
    for name in ("lesson", "exercise", "file", "verdict"):
        options.add_argument(name)
    chosen = options.parse_args()
    write_json(
        chosen.verdict, judge_here(Path(chosen.lesson), chosen.exercise, Path(chosen.file)).__dict__
    )


if __name__ == "__main__":
    main()
