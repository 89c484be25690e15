"""Examples: what a model is trained on, read from a file and split into two sides.

A file holds one JSON object a line, ``{"instruction": …, "input"?: …, "output": …}``. A bad line is
an error that names the line, because a file that is read half trains something else.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REQUIRED = ("instruction", "output")
FORM = '{"instruction": "…", "output": "…"}'


@dataclass(frozen=True)
class Example:
    """One thing to learn: an instruction, its context (``input``, may be empty), and the answer.

    >>> Example("Status?", "Hull 90%.", input="Log: Hull 90%.").output
    'Hull 90%.'
    """

    instruction: str
    output: str
    input: str = ""


@dataclass(frozen=True)
class Task:
    """Examples to train on, and held-out ones to be judged by.

    >>> task = Task("mine", train=(Example("Hi", "Ahoy!"),), valid=())
    >>> len(task.train)
    1
    """

    name: str
    train: tuple[Example, ...]
    valid: tuple[Example, ...]


def load_jsonl(path: str | Path) -> tuple[Example, ...]:
    """Read examples from a file with one JSON object a line.

    Raises ``ValueError`` on the first bad line, naming the file, the line and what it should hold.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder, "my.jsonl")
    ...     _ = file.write_text('{"instruction": "Greet.", "output": "Ahoy!"}', encoding="utf-8")
    ...     load_jsonl(file)
    (Example(instruction='Greet.', output='Ahoy!', input=''),)
    """
    path = Path(path)
    try:
        # not splitlines: JSON text may hold U+2028
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist: expected one JSON object a line") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as UTF-8 text: {error}") from error
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    examples = tuple(parse_line(line, f"{path}, line {number}") for number, line in numbered)
    if not examples:
        raise ValueError(f"{path} holds no example: write one JSON object a line, {FORM}")
    return examples


def parse_line(line: str, where: str) -> Example:
    """One line of JSON as an ``Example``; ``where`` stands at the front of every error."""
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        hint = "; a list over many lines? write one object a line" if line.strip() == "[" else ""
        raise ValueError(f"{where}: not valid JSON ({error}): {line[:60]!r}{hint}") from error
    if not isinstance(fields, dict):
        raise ValueError(f"{where}: expected an object {FORM}, got {type(fields).__name__}")
    if missing := [name for name in REQUIRED if name not in fields]:
        hint = ": rename the fields, one question and one answer a line"
        raise ValueError(
            f"{where}: {' and '.join(map(repr, missing))} missing, got {sorted(fields)}"
            + hint * (len(missing) == 2)
        )
    if fields.get("input") is None:
        fields["input"] = ""
    for name in (*REQUIRED, "input"):
        check_text(fields[name], f"{where}: {name!r}")
    if empty := [name for name in REQUIRED if not fields[name].strip()]:
        raise ValueError(f"{where}: {empty[0]!r} is empty")
    if unknown := sorted(fields.keys() - {*REQUIRED, "input"}):
        raise ValueError(
            f"{where}: unknown field {unknown[0]!r}; known are 'instruction', 'input', 'output'"
        )
    return Example(**fields)


def check_text(value: Any, what: str) -> None:
    """Raise ``ValueError`` unless a field is text that can be encoded."""
    if not isinstance(value, str):
        raise ValueError(f"{what} must be text, got {type(value).__name__}")
    if any("\ud800" <= letter <= "\udfff" for letter in value):
        raise ValueError(f"{what} holds half of a surrogate pair, which is not text: {value!r:.60}")


def split_examples(
    examples: Sequence[Example], name: str = "jsonl", share: float = 0.1, seed: int = 0
) -> Task:
    """Shuffle the examples and hold out a share for validation; by default none of fewer than ten.

    Raises ``ValueError`` for a share outside [0, 1).

    >>> task = split_examples([Example("Count.", str(i)) for i in range(20)])
    >>> len(task.train), len(task.valid)
    (18, 2)
    """
    if not 0 <= share < 1:
        raise ValueError(f"share must be in [0, 1), got {share}")
    shuffled = random.Random(seed).sample(list(examples), len(examples))
    held = int(share * len(examples))
    return Task(name, train=tuple(shuffled[held:]), valid=tuple(shuffled[:held]))
