"""Parts of a source file: a function, and whatever else of the file it uses.

Everything is read from the syntax tree; nothing is run. A part is a statement at the top level of
the file, with the names that it binds (``x = …``) or changes (``x[0] = …``, ``x.add(…)``).
"""

from __future__ import annotations

import ast
import builtins
import symtable
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

CHANGES = (ast.Store, ast.Del)


@dataclass(frozen=True)
class Part:
    """A statement at the top level of a file, and the names that it binds or changes."""

    source: str
    binds: frozenset[str]


def by_name(parts: Sequence[Part]) -> dict[str, list[str]]:
    """The statements that bind or change each name."""
    names = {name for part in parts for name in part.binds}
    return {name: [part.source for part in parts if name in part.binds] for name in names}


def used_with(name: str, file: Path, apart: Sequence[str] = ()) -> list[Part]:
    """A function and what of its file it uses, in the file's order.

    That is every statement at the top level that binds or changes a name which is used, under
    ``if``, ``try``, ``for`` and ``with`` too. ``apart`` are the names of functions that come from
    elsewhere.
    """
    text, tree = read_source(file)
    lines, elsewhere = text.splitlines(), set(apart) - {name}
    binds = [set() if is_apart(node) else names_of(node) for node in tree.body]
    uses = [names_in(node) for node in tree.body]
    needed: set[str] = set()
    chosen: list[int] = []
    waiting = {name}
    while waiting:  # what a chosen statement uses is needed as well
        needed |= waiting
        chosen = [i for i, names in enumerate(binds) if names & needed]
        named = set().union(*(binds[i] | uses[i] for i in chosen))
        waiting = named - needed - elsewhere
    return [Part(source_lines(lines, tree.body[i]), frozenset(binds[i])) for i in chosen]


def names_in(node: ast.stmt) -> set[str]:
    """Every name that stands in a statement."""
    return {each.id for each in ast.walk(node) if isinstance(each, ast.Name)}


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


def function_of(name: str, tree: ast.Module) -> ast.FunctionDef | None:
    """The function of a name at the top level."""
    functions = (node for node in tree.body if isinstance(node, ast.FunctionDef))
    return next((node for node in functions if node.name == name), None)


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
