"""One file of a learner's own pieces: functions of earlier lessons, gathered for a later exercise.

An exercise cell that says which it needs, in its first line,

    # pieces: init_factors, lora_gradients

gets them above its stub when the learner's file is made: from the learner's own files of those
lessons, with the imports of those files, or from the course's solutions where a file or a function
is missing or still to do. An exercise that starts broken is to do as long as its code is as given.
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .cells import parse_lesson
from .course import find_exercise, load_module, load_solutions

NEEDS = re.compile(r"(?m)^# pieces: (?P<names>.+)$")


def needed_pieces(stub: str) -> list[str]:
    """The functions that a stub asks for.

    >>> needed_pieces("# pieces: init_factors, merge_once\\ndef adapter(x): ...")
    ['init_factors', 'merge_once']
    """
    asked = NEEDS.search(stub)
    return [name.strip() for name in asked["names"].split(",")] if asked else []


@functools.cache
def solution_of(name: str) -> Callable[..., Any]:
    """The course's solution of an exercise. Raises ``ValueError`` when no lesson has it.

    >>> solution_of("largest_rank")([(128, 64)], 1920)
    10
    """
    return getattr(load_solutions(lesson_of(name)), name)  # type: ignore[no-any-return]


def lesson_of(name: str) -> Path:
    """The file of the lesson with an exercise. Raises ``ValueError`` when no lesson has it."""
    lesson = find_exercise(name)
    if lesson is None:
        raise ValueError(f"no lesson has an exercise {name!r}")
    return lesson


def gather_pieces(names: Sequence[str], folder: Path) -> str:
    """Source of the functions, imports first, each with a line that says whose it is.

    ``folder`` is the learner's. Raises ``ValueError`` when no lesson has an exercise of a name.
    """
    imports: dict[str, None] = {}
    functions = []
    for name in names:
        lesson = lesson_of(name)
        own, course = folder / lesson.name, lesson.parent / "solutions" / lesson.name
        source, whose = source_of(name, own), f"# yours, of lesson {lesson.name[:2]}"
        if source is None:
            own, whose = course, f"# the course's, of lesson {lesson.name[:2]}"
            source = source_of(name, course) or ""
        imports |= dict.fromkeys(imports_of(own))
        functions.append(f"{whose}\n{source}")
    return "\n".join(imports) + "\n\n\n" + "\n\n\n".join(functions) + "\n"


def source_of(name: str, file: Path) -> str | None:
    """The source of a file's function; None when it is missing, unreadable or still to do."""
    text, tree = read_source(file)
    node = function_of(name, tree)
    if node is None or is_to_do(node):
        return None
    return ast.get_source_segment(text, node)


def function_of(name: str, tree: ast.Module) -> ast.FunctionDef | None:
    """The function of a name at the top level."""
    functions = (node for node in tree.body if isinstance(node, ast.FunctionDef))
    return next((node for node in functions if node.name == name), None)


def is_to_do(function: ast.FunctionDef) -> bool:
    """Whether it raises NotImplementedError, or its code is that of the lesson's broken start."""
    if any(
        isinstance(node, ast.Raise) and "NotImplementedError" in ast.dump(node)
        for node in ast.walk(function)
    ):
        return True
    stub = parse_lesson(lesson_of(function.name)).exercises[function.name].text
    start = function_of(function.name, ast.parse(stub))
    return start is not None and ast.dump(function) == ast.dump(start)


def imports_of(file: Path) -> list[str]:
    """The import statements at the top level of a file."""
    text, tree = read_source(file)
    found = (node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom))
    return [ast.get_source_segment(text, node) or "" for node in found]


def read_source(file: Path) -> tuple[str, ast.Module]:
    """A file's text and its syntax tree; both empty for one that is missing or unreadable."""
    try:
        text = file.read_text(encoding="utf-8")
        return text, ast.parse(text)
    except (OSError, ValueError, SyntaxError):
        return "", ast.Module(body=[], type_ignores=[])


def courses_machine(name: str) -> Any:
    """The module of the course's solution of an exercise."""
    return load_solutions(lesson_of(name))


def own_machine(name: str, folder: Path) -> tuple[Any, bool]:
    """The module of the learner's file that holds a finished exercise, or of the course's solution.

    With it comes whether it is the learner's. Raises whatever the learner's file raises.
    """
    own = folder / lesson_of(name).name
    if source_of(name, own) is None:
        return courses_machine(name), False
    return load_module(own), True
