"""How the demo prints: headings, questions with their answers, sizes."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Mapping
from pathlib import Path

from ..text import size_text


def heading(text: str) -> None:
    """The line that opens a chapter."""
    print(f"\n{text}\n{'-' * len(text)}", flush=True)


def show_asked(log: str, question: str, answers: Mapping[str, str]) -> None:
    """A log, a question, and each answer behind its label; an answer that is too wide wraps.

    >>> answers = {"before  ": "Hull 9 percent.", "after   ": "Hull 9%."}
    >>> show_asked("Log: Hull 9%.", "Status?", answers)
    Log: Hull 9%.
      > Status?
      before  Hull 9 percent.
      after   Hull 9%.
    """
    width = shutil.get_terminal_size((80, 24)).columns - 1
    print(f"{log}\n  > {question}")
    for label, answer in answers.items():
        first, rest = f"  {label}", " " * (2 + len(label))
        wrapper = textwrap.TextWrapper(width, initial_indent=rest, subsequent_indent=rest)
        lines = [row for line in answer.splitlines() for row in wrapper.wrap(line)]
        print("\n".join([first + (lines or [rest])[0][len(rest) :], *lines[1:]]), flush=True)


def size_of(path: Path) -> str:
    """The bytes of a file or folder, in words."""
    size = sum(file.stat().st_size for file in [path, *path.rglob("*")] if file.is_file())
    return size_text(size)
