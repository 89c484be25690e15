"""The verdict on an answer: a lesson's ``check``, and a checker's words on a function.

A wrong answer whose numbers are those of a wrong answer that the checker knows (its ``WRONG``) is
told which. So "the largest error is 0.0842" says what was computed instead.
"""

from __future__ import annotations

import inspect
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from .cells import parse_lesson
from .checking import Wrong
from .course import find_exercise, load_checks

QUICK = 1.0  # processor seconds of a checker that is asked for the wrong answers that it knows
PATIENCE = 3.0  # and for all of these: they count towards the limit of the learner's process


def check(function: Callable[..., Any]) -> None:
    """Print the verdict of its exercise's checker on the learner's function; never raises.

    >>> def fly(): ...
    >>> check(fly)
    fly: no exercise of the course has this name
    """
    name = function.__name__
    file = file_of(function)
    lesson = find_exercise(name)
    if lesson is None and file is not None:  # a lesson of your own
        lesson = find_exercise(name, file.parent)
    if lesson is None:
        print(f"{name}: no exercise of the course has this name")
        return
    status, message = judge_exercise(lesson, name, function)
    print(f"{name}: {status}" + (f". {message}" if message else ""))


def judge_exercise(lesson: Path, name: str, answer: Callable[..., Any]) -> tuple[str, str]:
    """``judge_answer`` by a lesson's checker; numbers of a mistake that it knows are named.

    Not where the exercise is to find the mistakes of a function that is there, nor where the answer
    took more than ``QUICK`` seconds: the mistakes could take longer than the process may run.
    """
    checks, is_stub = load_checks(lesson), parse_lesson(lesson).exercises[name].is_stub
    started = time.process_time()

    def mistake(error: Wrong) -> str:
        is_quick = time.process_time() - started <= QUICK
        may_be_known = error.has_numbers and is_stub and is_quick
        return known_mistake(checks, name, str(error)) if may_be_known else ""

    return judge_answer(getattr(checks, f"check_{name}"), answer, mistake)


def known_mistake(checks: ModuleType, name: str, message: str) -> str:
    """The end of a message: the one of the checker's wrong answers that gives the same message.

    Nothing where none or several do, or where trying them takes more than ``PATIENCE`` seconds.
    """
    checker, started, alike = getattr(checks, f"check_{name}"), time.process_time(), []
    for label, wrong in getattr(checks, "WRONG", {}).get(name, {}).items():
        if judge_answer(checker, wrong)[1] == message:
            anonymous = getattr(wrong, "__name__", "<lambda>") == "<lambda>"
            story = "" if anonymous else inspect.getdoc(wrong)
            alike.append(f'"{label}"' + (f": {story}" if story else ""))
        if time.process_time() - started > PATIENCE:
            return ""
    return f". These are the numbers of a known mistake, {alike[0]}" if len(alike) == 1 else ""


def judge_answer(
    checker: Callable[[Any], Any],
    answer: Callable[..., Any],
    mistake: Callable[[Wrong], str] = lambda _: "",
) -> tuple[str, str]:
    """A checker's verdict on an answer: ("passed", "to do", "wrong" or "error", message).

    A checker that has something to say of an answer that passes returns it; ``mistake`` says what
    the message about a wrong one ends in.
    """
    try:
        note = checker(answer)
    except NotImplementedError:
        return "to do", ""
    except Wrong as error:
        return "wrong", str(error) + mistake(error)
    except Exception as error:
        return "error", describe_error(error, file_of(answer))
    return "passed", note or ""


def file_of(function: Callable[..., Any]) -> Path | None:
    """The file that a function was written in; None for one that Python did not compile."""
    code = getattr(function, "__code__", None)
    return Path(code.co_filename) if code else None


def describe_error(error: BaseException, file: Path | None) -> str:
    """An exception in a learner's terms: its kind, its message and the line of their file."""
    raised = f"raised {type(error).__name__}" + (f": {error}" if str(error) else "")
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if file is not None and Path(frame.filename) == file]
    if own:
        return f"your line {own[-1].lineno}, `{own[-1].line}`, {raised}"
    return f"your function {raised}"
