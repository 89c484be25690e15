"""The parser: a lesson is a Python script in percent cells, and this finds the cells.

    # %% [markdown]            prose, every line behind "# "
    # %%                       code
    # %% [predict] name        a question; its last line is "answer: expression"
    # %% [exercise] function   imports and one stub that the learner fills in
    # %% [hints] function      three hints, numbered

The script stays plain Python: prose is comment, so ``python lessons/01_one_matmul.py`` runs. Numbers in prose come from the
run: ``{{ loss:.3f }}`` is evaluated in the lesson's namespace as an f-string would. Left out: nested cells, cell metadata.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

KINDS = ("code", "markdown", "predict", "exercise", "hints")
MARK = re.compile(r"^# %%(?:\s+\[(?P<kind>\w+)\])?(?:\s+(?P<name>\w+))?\s*$")
TITLE = re.compile(r"^# (?P<number>\d\d) · (?P<question>.+)$")
HEADER = re.compile(
    r"^Know first: (?P<first>.+) · Difficulty (?P<difficulty>[●○]{3}) · (?P<minutes>\d+) minutes? to read"
    r" · (?P<seconds>\d+) seconds? to run$"
)
NUMBER = re.compile(r"\{\{(?P<inside>.*?)\}\}")
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
AMOUNT = re.compile(r"[-+]?\d*\.?\d+(?:e[-+]?\d+)?|\b(?:" + "|".join(WORDS) + r")\b")
CHECK = re.compile(r"^check\((?P<name>\w+)\)$")


@dataclass(frozen=True)
class Cell:
    """One cell: its kind, its name if the mark gave one, its text (prose without ``# ``), its first line in the file."""

    kind: str
    text: str
    line: int
    name: str = ""

    @property
    def checks(self) -> str:
        """The exercise that a code cell of just ``check(name)`` checks, or an empty string."""
        found = CHECK.match(self.text) if self.kind == "code" else None
        return found["name"] if found else ""

    @property
    def question(self) -> str:
        """A prediction's question, without the answer."""
        return self.text[: self.text.rindex("answer:")].rstrip()

    @property
    def answer(self) -> str:
        """A prediction's answer, as a Python expression."""
        return self.text[self.text.rindex("answer:") + len("answer:") :].strip()

    @property
    def hints(self) -> list[str]:
        """The three hints, without their numbers."""
        return [
            " ".join(part.split()) for part in re.split(r"(?m)^\d\.\s+", self.text) if part.strip()
        ]


@dataclass(frozen=True)
class Lesson:
    """A parsed lesson: its header and its cells. ``slug`` is the file's name without ``.py``, as ``01_one_matmul``."""

    path: Path
    question: str
    first: str
    difficulty: str
    minutes: int
    seconds: int
    cells: tuple[Cell, ...]

    @property
    def slug(self) -> str:
        """``01_one_matmul``."""
        return self.path.stem

    @property
    def number(self) -> int:
        """The lesson's number in the course."""
        return int(self.slug[:2])

    @property
    def title(self) -> str:
        """``01 · What does a linear layer do?``."""
        return f"{self.slug[:2]} · {self.question}"

    @property
    def exercises(self) -> dict[str, Cell]:
        """The stubs by name."""
        return {cell.name: cell for cell in self.cells if cell.kind == "exercise"}

    @property
    def predictions(self) -> dict[str, Cell]:
        """The predictions by name."""
        return {cell.name: cell for cell in self.cells if cell.kind == "predict"}

    def hints(self, exercise: str) -> list[str]:
        """The hints of an exercise."""
        return next(
            (cell.hints for cell in self.cells if cell.kind == "hints" and cell.name == exercise),
            [],
        )


def parse_lesson(path: str | Path) -> Lesson:
    """Read a lesson. Raises ``ValueError`` with file and line when a cell or the header is not as the contract wants it."""
    path = Path(path)
    cells = split_cells(path.read_text(encoding="utf-8"), path.name)
    lines = cells[0].text.splitlines() if cells and cells[0].kind == "markdown" else []
    title = TITLE.match(lines[0]) if lines else None
    header = next((found for line in lines if (found := HEADER.match(line))), None)
    if title is None or header is None:
        raise ValueError(
            f"{path.name}: the first cell must be prose with '# NN · question' and 'Know first: lesson NN · Difficulty ●○○"
            " · N minutes to read · N seconds to run'"
        )
    if title["number"] != path.stem[:2]:
        raise ValueError(
            f"{path.name}: the title says {title['number']}, the file's name {path.stem[:2]}"
        )
    minutes, seconds = int(header["minutes"]), int(header["seconds"])
    return Lesson(
        path,
        title["question"],
        header["first"],
        header["difficulty"],
        minutes,
        seconds,
        tuple(cells),
    )


def split_cells(source: str, name: str = "lesson") -> list[Cell]:
    """The cells of a script; text before the first mark is left out. Raises as ``parse_lesson``.

    >>> [(cell.kind, cell.name, cell.text) for cell in split_cells("# %% [markdown]\\n# Hello.\\n# %%\\nx = 1\\n")]
    [('markdown', '', 'Hello.'), ('code', '', 'x = 1')]
    """
    cells: list[Cell] = []
    lines = source.splitlines()
    starts = [number for number, line in enumerate(lines) if line.startswith("# %%")]
    for start, end in zip(starts, [*starts[1:], len(lines)], strict=True):
        mark = MARK.match(lines[start])
        kind = (mark["kind"] or "code") if mark else ""
        if mark is None or kind not in KINDS:
            raise ValueError(
                f"{name}, line {start + 1}: a cell is one of {', '.join(KINDS)}, got {lines[start]!r}"
            )
        cells.append(make_cell(kind, mark["name"] or "", lines[start + 1 : end], start + 2, name))
    return cells


def make_cell(kind: str, name: str, lines: list[str], line: int, file: str) -> Cell:
    """One cell from its lines; checks what its kind promises."""
    prose = kind in ("markdown", "predict", "hints")
    if prose:
        stray = next(
            (line + n for n, text in enumerate(lines) if text.strip() and not text.startswith("#")),
            None,
        )
        if stray is not None:
            raise ValueError(f"{file}, line {stray}: every line of a {kind} cell starts with '#'")
        lines = [text[2:] if text.startswith("# ") else text[1:] for text in lines]
    while lines and not lines[0].strip():
        lines, line = lines[1:], line + 1
    cell = Cell(kind, "\n".join(lines).rstrip(), line, name)
    if kind in ("predict", "exercise", "hints") and not name:
        raise ValueError(f"{file}, line {line}: a {kind} cell has a name")
    if kind == "predict" and not re.search(r"(?m)^answer: \S", cell.text):
        raise ValueError(
            f"{file}, line {line}: the prediction {name} must end with 'answer: expression'"
        )
    if kind == "hints" and len(cell.hints) != 3:
        raise ValueError(f"{file}, line {line}: {name} has {len(cell.hints)} hints, needed 3")
    if kind == "exercise":
        found = [
            node.name for node in ast.parse(cell.text).body if isinstance(node, ast.FunctionDef)
        ]
        if found != [name]:
            raise ValueError(
                f"{file}, line {line}: the exercise {name} must hold one function of that name, got {found}"
            )
    return cell


def fill_prose(text: str, namespace: Mapping[str, Any]) -> str:
    """Prose with its numbers filled in. Raises ``ValueError`` that shows the expression when one fails.

    >>> fill_prose("The loss is {{ 2 * loss:.2f }}.", {"loss": 0.125})
    'The loss is 0.25.'
    """

    def fill(found: re.Match[str]) -> str:
        try:
            return str(eval('f"""{' + found["inside"].strip() + '}"""', dict(namespace)))
        except Exception as error:
            raise ValueError(
                f"{found[0]} in the prose fails: {type(error).__name__}: {error}"
            ) from error

    return NUMBER.sub(fill, text)


def read_choices(question: str) -> dict[str, str]:
    """A prediction's choices by letter; empty when it asks for a number or a word.

    >>> read_choices("Which?\\n\\n- a) it falls\\n- b) it grows")
    {'a': 'a) it falls', 'b': 'b) it grows'}
    """
    return {line[2]: line[2:] for line in question.splitlines() if re.match(r"- [a-z]\) ", line)}


def same_answer(said: str, answer: Any) -> bool:
    """Whether a typed prediction is right: numbers within 10%, text ignoring case and a closing bracket.

    Words beside a number do no harm, as long as it is the only one; up to ten it may be a word itself.

    >>> same_answer("1,000", 1050), same_answer("B)", "b"), same_answer("none", 3)
    (True, True, False)
    >>> same_answer("about 3, I think", 3), same_answer("three", 3), same_answer("3 or 4", 3)
    (True, True, False)
    """
    said = said.strip()
    if isinstance(answer, str):
        typed, right = said.lower().rstrip(".)"), answer.strip().lower()
        return typed == right or (
            len(right) == 1 and re.match(rf"{re.escape(right)}\)", said.lower()) is not None
        )
    plain = said.lower().replace(",", "").rstrip("%").strip()
    found = [str(WORDS.index(part)) if part in WORDS else part for part in AMOUNT.findall(plain)]
    try:
        number, right_number = float(found[0] if len(found) == 1 else plain), float(answer)
    except (TypeError, ValueError):
        return False
    return abs(number - right_number) <= 0.1 * abs(right_number)
