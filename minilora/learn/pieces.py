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
import builtins
import functools
import re
import symtable
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .cells import parse_lesson
from .course import find_exercise, load_module, load_solutions

NEEDS = re.compile(r"(?m)^# pieces: (?P<names>.+)$")
CHANGES = (ast.Store, ast.Del)


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
    same, or a file does not define what its function uses, the course's function stands in. Raises
    ``ValueError`` when no lesson has an exercise of a name.
    """
    imports: dict[str, None] = {}
    taken: dict[str, list[str]] = {}  # by name, the statements that bind or change it
    functions = []
    for name in names:
        lesson = lesson_of(name)
        file, whose = folder / lesson.name, "yours"
        parts = parts_of(name, file, names)
        why = reason_against(parts, file, names, taken)
        if why or not parts:
            file, whose = lesson.parent / "solutions" / lesson.name, "the course's"
            parts = parts_of(name, file, names)
        head = f"# {whose}, of lesson {lesson.name[:2]}" + f" ({why})" * bool(why)
        if whose != "yours" and reason_against(parts, file, names, taken):  # its helpers clash, too
            imports["from minilora.learn.pieces import solution_of"] = None
            functions.append(f'{head}\n{name} = solution_of("{name}")')
            taken[name] = functions[-1:]
            continue
        imports |= dict.fromkeys(imports_of(file))
        new = [part.source for part in parts if not part.binds & set(taken)]
        taken |= by_name(parts)
        functions.append(f"{head}\n" + "\n\n\n".join(new))
    return "\n".join(imports) + "\n\n\n" + "\n\n\n".join(functions) + "\n"


@dataclass(frozen=True)
class Part:
    """A statement at the top level of a file, and the names that it binds or changes."""

    source: str
    binds: frozenset[str]


def by_name(parts: Sequence[Part]) -> dict[str, list[str]]:
    """The statements that bind or change each name."""
    names = {name for part in parts for name in part.binds}
    return {name: [part.source for part in parts if name in part.binds] for name in names}


def reason_against(
    parts: Sequence[Part], file: Path, apart: Sequence[str], taken: dict[str, list[str]]
) -> str:
    """Why the parts of a file cannot be used beside those that are taken; empty when they can."""
    for name, sources in sorted(by_name(parts).items()):
        if taken.get(name, sources) != sources:
            return f"yours needs another {name} than the one above"
    text = "\n".join([*imports_of(file), *(part.source for part in parts)])
    missing = sorted(unknown_names(text) - set(apart))
    return f"yours uses {missing[0]}, which its file does not define" if missing else ""


def unknown_names(text: str) -> set[str]:
    """The global names that a text reads, and that neither it nor Python defines."""
    tables, known, read = [symtable.symtable(text, "pieces", "exec")], set(dir(builtins)), set()
    known |= {"__name__", "__file__"}
    for table in tables:
        tables += table.get_children()
        for symbol in table.get_symbols():
            top = table.get_type() == "module"
            if (top or symbol.is_global()) and symbol.is_referenced():
                read.add(symbol.get_name())
            if (top or symbol.is_global()) and (symbol.is_assigned() or symbol.is_imported()):
                known.add(symbol.get_name())
    return set() if "import *" in text else read - known


def parts_of(name: str, file: Path, apart: Sequence[str] = ()) -> list[Part]:
    """A function and what of its file it uses, in the file's order.

    That is every statement at the top level that binds or changes a name which is used, under
    ``if``, ``try``, ``for`` and ``with`` too. Empty when the function is missing, unreadable or
    still to do. ``apart`` are the names of functions that come from elsewhere.
    """
    text, tree = read_source(file)
    if source_of(name, file) is None:
        return []
    binds = [set() if is_apart(node) else names_of(node) for node in tree.body]
    uses = [
        {each.id for each in ast.walk(node) if isinstance(each, ast.Name)} for node in tree.body
    ]
    needed: set[str] = set()
    waiting = {name}
    while waiting:
        needed |= waiting
        found = [i for i, names in enumerate(binds) if names & needed]
        waiting = set().union(*(binds[i] | uses[i] for i in found)) - needed - (set(apart) - {name})
    lines = text.splitlines()
    return [Part(source_lines(lines, tree.body[i]), frozenset(binds[i])) for i in found]


def is_apart(node: ast.stmt) -> bool:
    """Whether it is an import, which has a place of its own, or runs in a script only."""
    script = isinstance(node, ast.If) and "'__main__'" in ast.dump(node.test)
    return script or isinstance(node, ast.Import | ast.ImportFrom)


def names_of(node: ast.AST) -> set[str]:
    """The names that a statement binds, or changes by an item, an attribute or a method's call."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {node.name}
    if isinstance(node, ast.Import | ast.ImportFrom):
        return {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
    if isinstance(node, ast.comprehension):  # its variable is its own
        return names_of(node.iter)
    names = set().union(*(names_of(child) for child in ast.iter_child_nodes(node)))
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        called = node.value.func
        return names | (root_of(called) if isinstance(called, ast.Attribute) else set())
    return names | (root_of(node) if isinstance(getattr(node, "ctx", None), CHANGES) else set())


def root_of(node: ast.AST) -> set[str]:
    """The name that an item or an attribute belongs to, in a set; empty without one."""
    while isinstance(node, ast.Attribute | ast.Subscript):
        node = node.value
    return {node.id} if isinstance(node, ast.Name) else set()


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
