"""One file of a learner's own pieces: functions of earlier lessons, gathered for a later exercise.

An exercise cell that says which it needs, in its first line,

    # pieces: init_factors, lora_gradients

gets them above its stub when the learner's file is made: from the learner's own files of those
lessons, with the imports of those files and whatever else of the file the function uses (helpers,
constants, classes), or from the course's solutions where a file or a function is missing or still
to do. An exercise that starts broken is to do as long as its code is as given. Left out: the
``from __future__`` of those files, which may stand at the top of a file only.
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

    ``folder`` is the learner's. Where two of their files have a helper of one name that is not the
    same, the course's function stands in for the second. Raises ``ValueError`` when no lesson has
    an exercise of a name.
    """
    imports: dict[str, None] = {}
    taken: dict[str, str] = {}
    functions = []
    for name in names:
        lesson = lesson_of(name)
        file, whose, why = folder / lesson.name, "yours", ""
        parts = parts_of(name, file, names)
        other = [part for part in parts if taken.get(part, parts[part]) != parts[part]]
        if other or not parts:
            file, whose = lesson.parent / "solutions" / lesson.name, "the course's"
            why = f" (yours needs another {other[0]} than the one above)" if other else ""
            parts = parts_of(name, file, names)
        imports |= dict.fromkeys(imports_of(file))
        new = [source for part, source in parts.items() if part not in taken]
        taken |= parts
        head = f"# {whose}, of lesson {lesson.name[:2]}{why}"
        functions.append(f"{head}\n" + "\n\n\n".join(new))
    return "\n".join(imports) + "\n\n\n" + "\n\n\n".join(functions) + "\n"


def parts_of(name: str, file: Path, apart: Sequence[str] = ()) -> dict[str, str]:
    """A function and what of its file it uses, by name, in the file's order.

    Empty when the function is missing, unreadable or still to do. ``apart`` are the names of
    functions that come from elsewhere.
    """
    text, tree = read_source(file)
    if source_of(name, file) is None:
        return {}
    there = {known: node for node in tree.body for known in names_of(node)}
    needed, waiting = {name}, [name]
    while waiting:
        each = there[waiting.pop()]
        used = {node.id for node in ast.walk(each) if isinstance(node, ast.Name)}
        new = (used & set(there)) - needed - set(apart)
        needed |= new
        waiting += new
    lines = text.splitlines()
    return {part: source_lines(lines, there[part]) for part in there if part in needed}


def names_of(node: ast.stmt) -> list[str]:
    """The names that a statement at the top level defines; imports have a place of their own."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    if not isinstance(node, ast.Assign | ast.AnnAssign):
        return []
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    within = (each for target in targets for each in ast.walk(target))
    return [each.id for each in within if isinstance(each, ast.Name)]


def source_lines(lines: Sequence[str], node: ast.stmt) -> str:
    """The lines of a statement, its decorators too."""
    decorators = getattr(node, "decorator_list", [])
    first = min(each.lineno for each in (node, *decorators))
    return "\n".join(lines[first - 1 : node.end_lineno])


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
    """The import statements at the top level of a file, without those from ``__future__``."""
    text, tree = read_source(file)
    imports = (node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom))
    return [
        ast.get_source_segment(text, node) or ""
        for node in imports
        if getattr(node, "module", "") != "__future__"
    ]


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
