"""The watch: a learner's file is checked on every save, while an editor is open beside it.

    minilora learn 5 --watch     the exercises of one lesson
    minilora learn --watch       whichever lesson's file is saved

A file counts as saved when its content is another one and has been the same for two looks, so that
half a save is not judged. Of a file with two exercises those are checked whose function is another
one than before. Left out: the system's own notices of changes, which differ from one to the next.
"""

from __future__ import annotations

import ast
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .cells import Lesson
from .exercise import judge_and_record
from .judge import LIMIT
from .record import Record

PAUSE = 0.3  # seconds between two looks


class Watch:
    """Looks at the learner's files of some lessons; ``go`` ends when all is built, or on Ctrl-C.

    ``file_of`` gives a lesson's file, which need not be there yet.
    """

    def __init__(
        self,
        lessons: Sequence[Lesson],
        record: Record,
        console: Any,
        file_of: Callable[[Lesson], Path],
        limit: float = LIMIT,
    ):
        self.lessons, self.record, self.console, self.limit = lessons, record, console, limit
        self.files = {lesson: file_of(lesson) for lesson in lessons}
        self.judged = {lesson: read(file) for lesson, file in self.files.items()}
        self.seen = dict(self.judged)

    def go(self, sleep: Callable[[float], None] = time.sleep) -> bool:
        """Check each save until every exercise has passed; False when the learner ends it."""
        names = ", ".join(str(file) for file in self.files.values() if file.is_file())
        where = names if len(self.files) == 1 else str(self.record.folder)
        self.console.print(f"Watching [bold]{where}[/]: save to check, Ctrl-C ends it.")
        try:
            for lesson in self.lessons if len(self.lessons) == 1 else ():
                self.check(lesson, [*lesson.exercises])
            while not self.all_passed():
                sleep(PAUSE)
                self.look()
        except KeyboardInterrupt:
            self.console.print("\nNo longer watching.")
            return False
        self.console.print("[bold green]Everything here has passed.[/]")
        return True

    def look(self) -> None:
        """One look at each file; a save that has settled is judged."""
        for lesson, file in self.files.items():
            text = read(file)
            settled, self.seen[lesson] = text == self.seen[lesson], text
            if settled and text and text != self.judged[lesson]:
                changed = changed_functions(self.judged[lesson], text, [*lesson.exercises])
                self.judged[lesson] = text
                self.check(lesson, changed)

    def check(self, lesson: Lesson, names: Sequence[str]) -> None:
        """Judge some exercises of a lesson's file."""
        for name in names:
            clock = time.strftime("%H:%M:%S")
            self.console.print(f"\n[dim]{clock}[/] [bold]{name}[/] in {self.files[lesson].name}")
            file = self.files[lesson]
            judge_and_record(self.record, lesson, name, file, self.console, self.limit)

    def all_passed(self) -> bool:
        """Whether every exercise of the watched lessons has passed."""
        return all(
            self.record.exercise(lesson.slug, name)["passed"]
            for lesson in self.lessons
            for name in lesson.exercises
        )


def read(file: Path) -> str:
    """A file's text, or an empty string where there is none yet."""
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def changed_functions(before: str, after: str, names: Sequence[str]) -> list[str]:
    """Which of the functions to check again: those that changed, or all when other lines did.

    >>> changed_functions("def f(): 1\\ndef g(): 1\\n", "def f(): 1\\ndef g(): 2\\n", ["f", "g"])
    ['g']
    >>> changed_functions("import os\\ndef f(): 1\\n", "def f(): 1\\n", ["f"])
    ['f']
    """
    try:
        old, new = functions(before, names), functions(after, names)
    except SyntaxError:
        return list(names)
    return [name for name in names if old.get(name) != new.get(name)] or list(names)


def functions(text: str, names: Sequence[str]) -> dict[str, str]:
    """The named functions of a source, each as its syntax tree, written out."""
    body = ast.parse(text).body
    named = (node for node in body if isinstance(node, ast.FunctionDef) and node.name in names)
    return {node.name: ast.dump(node) for node in named}
