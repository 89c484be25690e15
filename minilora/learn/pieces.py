"""One file of a learner's own pieces: functions of earlier lessons, gathered for a later exercise.

An exercise cell that says which it needs, in its first line,

    # pieces: init_factors, lora_gradients

gets them above its stub when the learner's file is made. A function comes from the learner's own
file of its lesson, with that file's imports and whatever else of it the function uses (helpers,
constants, classes). Where the file or the function is missing or still to do, the course's solution
stands in. An exercise that starts broken is to do as long as its code is as given. Left out: the
``from __future__`` of those files, which may stand at the top of a file only.
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from .cells import is_unwritten, parse_lesson
from .course import find_exercise, load_module, load_solutions
from .source_parts import (
    Part,
    by_name,
    function_of,
    imports_of,
    read_source,
    unknown_names,
    used_with,
)

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
    same, or a file does not define what its function uses, the course's function stands in. Raises
    ``ValueError`` when no lesson has an exercise of a name.
    """
    gathered = Gathered(names)
    for name in names:
        gathered.add(name, folder)
    return gathered.text


@dataclass
class Gathered:
    """The file as it grows. ``names``: all functions that are asked for.

    ``taken`` has, by name, the statements above that bind or change it.
    """

    names: Sequence[str]
    imports: dict[str, None] = field(default_factory=dict)  # in order, each once
    functions: list[str] = field(default_factory=list)
    taken: dict[str, list[str]] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """The file's text."""
        return "\n".join(self.imports) + "\n\n\n" + "\n\n\n".join(self.functions) + "\n"

    def add(self, name: str, folder: Path) -> None:
        """The learner's function, or else the course's, with the reason."""
        lesson = lesson_of(name)
        own, ours = folder / lesson.name, lesson.parent / "solutions" / lesson.name
        number = lesson.name[:2]
        parts = parts_of(name, own, self.names)
        why = self.reason_against(parts, own)
        if parts and not why:
            self.take(f"# yours, of lesson {number}", parts, own)
            return
        head = f"# the course's, of lesson {number}" + (f" ({why})" if why else "")
        parts = parts_of(name, ours, self.names)
        if self.reason_against(parts, ours):  # its helpers clash, too
            self.refer_to(name, head)
        else:
            self.take(head, parts, ours)

    def take(self, head: str, parts: Sequence[Part], file: Path) -> None:
        """Copy the parts of a file that are not here yet, and its imports."""
        new = [part.source for part in parts if not part.binds & set(self.taken)]
        self.functions.append(f"{head}\n" + "\n\n\n".join(new))
        self.imports |= dict.fromkeys(imports_of(file))
        self.taken |= by_name(parts)

    def refer_to(self, name: str, head: str) -> None:
        """Let the course's own module give the function, so that its helpers stay there."""
        self.imports["from minilora.learn.pieces import solution_of"] = None
        self.functions.append(f'{head}\n{name} = solution_of("{name}")')
        self.taken[name] = self.functions[-1:]

    def reason_against(self, parts: Sequence[Part], file: Path) -> str:
        """Why the parts of a file cannot stand beside those above; empty when they can."""
        for name, sources in sorted(by_name(parts).items()):
            if self.taken.get(name, sources) != sources:
                return f"yours needs another {name} than the one above"
        text = "\n".join([*imports_of(file), *(part.source for part in parts)])
        missing = sorted(unknown_names(text) - set(self.names))
        return f"yours uses {missing[0]}, which its file does not define" if missing else ""


def parts_of(name: str, file: Path, apart: Sequence[str] = ()) -> list[Part]:
    """A function and what of its file it uses; empty when it is missing, unreadable or to do."""
    return [] if source_of(name, file) is None else used_with(name, file, apart)


def source_of(name: str, file: Path) -> str | None:
    """The source of a file's function; None when it is missing, unreadable or still to do."""
    text, tree = read_source(file)
    node = function_of(name, tree)
    if node is None or is_to_do(node):
        return None
    return ast.get_source_segment(text, node)


def is_to_do(function: ast.FunctionDef) -> bool:
    """Whether it raises NotImplementedError, or its code is that of the lesson's broken start."""
    if is_unwritten(function):
        return True
    stub = parse_lesson(lesson_of(function.name)).exercises[function.name].text
    start = function_of(function.name, ast.parse(stub))
    return start is not None and ast.dump(function) == ast.dump(start)


def courses_machine(name: str) -> Any:
    """The module of the course's solution of an exercise."""
    return load_solutions(lesson_of(name))


def own_machine(name: str, folder: Path, here: Mapping[str, Any] | None = None) -> tuple[Any, bool]:
    """The module of the learner's file that holds a finished exercise, or of the course's solution.

    With it comes whether it is the learner's. ``here``: the names of a notebook, which come first
    where the exercise is finished in it. Raises whatever the learner's file raises.
    """
    built = getattr((here or {}).get(name), "__code__", None)
    # a notebook's function has no source to parse, as is_unwritten does
    if here and built is not None and "NotImplementedError" not in built.co_names:
        return SimpleNamespace(**here), True
    own = folder / lesson_of(name).name
    if source_of(name, own) is None:
        return courses_machine(name), False
    return load_module(own), True
