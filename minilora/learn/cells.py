"""The parser: a lesson is a Python script in percent cells, and this file finds the cells.

    # %% [markdown]            prose, every line behind "# "
    # %%                       code
    # %% [predict] name        a question; its last line is "answer: expression"
    # %% [exercise] function   imports and one stub that the learner fills in
    # %% [hints] function      three hints, numbered

The script stays plain Python: prose is comment, so ``python lessons/01_one_matmul.py`` runs.
Numbers in prose come from the run: ``{{ loss:.3f }}`` is evaluated in the lesson's namespace as an
f-string would be. Left out: nested cells, cell metadata.
"""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

KINDS = ("code", "markdown", "predict", "exercise", "hints")
MARK = re.compile(r"^# %%(?:\s+\[(?P<kind>\w+)\])?(?:\s+(?P<name>\w+))?\s*$")
TITLE = re.compile(r"^# (?P<number>\d\d) · (?P<question>.+)$")
HEADER = re.compile(
    r"^Know first: (?P<first>.+) · Difficulty (?P<difficulty>[●○]{3})"
    r" · (?P<minutes>\d+) minutes? to read · (?P<seconds>\d+) seconds? to run$"
)
NUMBER = re.compile(r"\{\{(?P<inside>.*?)\}\}")
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
AMOUNT = re.compile(r"[-+]?\d*\.?\d+(?:e[-+]?\d+)?|\b(?:" + "|".join(WORDS) + r")\b")
CHECK = re.compile(r"^check\((?P<name>\w+)\)$")


@dataclass(frozen=True)
class Cell:
    """One cell: its kind, its text (prose without ``# ``), its first line in the file, its name.

    The name is empty where the mark has none.
    """

    kind: str
    text: str
    line: int
    name: str = ""

    @property
    def checks(self) -> str:
        """The exercise that a code cell of just ``check(name)`` checks, or an empty string."""
        call = CHECK.match(self.text) if self.kind == "code" else None
        return call["name"] if call else ""

    @property
    def is_stub(self) -> bool:
        """Whether an exercise is to be written; else it is a broken function, to be repaired."""
        return is_unwritten(ast.parse(self.text))

    @property
    def segments(self) -> list[tuple[str, bool]]:
        """The code in parts, each with whether it only draws the picture.

        Drawing are functions behind ``@in_house_style`` and the calls of ``show``.
        """
        lines, parts, start = self.text.splitlines(), [], 0
        for node in ast.parse(self.text).body:
            end = node.end_lineno or start
            parts.append(("\n".join(lines[start:end]), draws(node)))
            start = end
        if lines[start:]:
            parts.append(("\n".join(lines[start:]), parts[-1][1] if parts else False))
        groups = itertools.groupby(parts, lambda part: part[1])
        joined = (("\n".join(text for text, _ in group), drawing) for drawing, group in groups)
        return [(text.strip("\n"), drawing) for text, drawing in joined]

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
        parts = re.split(r"(?m)^\d\.\s+", self.text)
        return [" ".join(part.split()) for part in parts if part.strip()]


@dataclass(frozen=True)
class Lesson:
    """A parsed lesson: its header and its cells."""

    path: Path
    question: str
    first: str
    difficulty: str
    minutes: int
    seconds: int
    cells: tuple[Cell, ...]

    @property
    def slug(self) -> str:
        """The file's name without ``.py``: ``01_one_matmul``."""
        return self.path.stem

    @property
    def number(self) -> int:
        """The lesson's number in the course."""
        return int(self.slug[:2])

    @property
    def title(self) -> str:
        """Number and question: ``01 · What does a linear layer do?``."""
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
        cells = (cell for cell in self.cells if cell.kind == "hints" and cell.name == exercise)
        return next((cell.hints for cell in cells), [])


def is_unwritten(code: ast.AST) -> bool:
    """Whether code raises NotImplementedError, as a stub does.

    >>> is_unwritten(ast.parse("def scale(alpha, r):\\n    raise NotImplementedError"))
    True
    """
    return any(
        isinstance(node, ast.Raise) and "NotImplementedError" in ast.dump(node)
        for node in ast.walk(code)
    )


def draws(node: ast.stmt) -> bool:
    """Whether a statement only draws: a function in house style, or ``show(…)``."""
    if isinstance(node, ast.FunctionDef):
        return any(getattr(each, "id", "") == "in_house_style" for each in node.decorator_list)
    call = node.value if isinstance(node, ast.Expr) else None
    return isinstance(call, ast.Call) and getattr(call.func, "id", "") == "show"


def parse_lesson(path: str | Path) -> Lesson:
    """Read a lesson.

    Raises ``ValueError`` with file and line when the header or a cell does not follow the contract.
    """
    path = Path(path)
    cells = split_cells(path.read_text(encoding="utf-8"), path.name)
    lines = cells[0].text.splitlines() if cells and cells[0].kind == "markdown" else []
    title = TITLE.match(lines[0]) if lines else None
    header = next(filter(None, map(HEADER.match, lines)), None)
    if title is None or header is None:
        raise ValueError(
            f"{path.name}: the first cell must be prose with '# NN · question' and 'Know first: "
            "lesson NN · Difficulty ●○○ · N minutes to read · N seconds to run'"
        )
    number = path.stem[:2]
    if title["number"] != number:
        given = title["number"]
        raise ValueError(
            f"{path.name}: expected the file's number {number} in the title, got {given}"
        )
    return Lesson(
        path,
        title["question"],
        header["first"],
        header["difficulty"],
        minutes=int(header["minutes"]),
        seconds=int(header["seconds"]),
        cells=tuple(cells),
    )


def split_cells(source: str, name: str = "lesson") -> list[Cell]:
    """The cells of a script; text before the first mark is left out. Raises as ``parse_lesson``.

    >>> cells = split_cells("# %% [markdown]\\n# Hello.\\n# %%\\nx = 1\\n")
    >>> [(cell.kind, cell.name, cell.text) for cell in cells]
    [('markdown', '', 'Hello.'), ('code', '', 'x = 1')]
    """
    cells: list[Cell] = []
    lines = source.splitlines()
    starts = [number for number, line in enumerate(lines) if line.startswith("# %%")]
    for start, end in zip(starts, [*starts[1:], len(lines)], strict=True):
        mark = MARK.match(lines[start])
        kind = (mark["kind"] or "code") if mark else ""
        if mark is None or kind not in KINDS:
            kinds, line = ", ".join(KINDS), f"{name}, line {start + 1}"
            raise ValueError(f"{line}: a cell is one of {kinds}, got {lines[start]!r}")
        cells.append(make_cell(kind, mark["name"] or "", lines[start + 1 : end], start + 2, name))
    return cells


def make_cell(kind: str, name: str, lines: list[str], line: int, file: str) -> Cell:
    """One cell from its lines. Raises ``ValueError`` when it does not hold what its kind needs."""
    if kind in ("markdown", "predict", "hints"):
        for number, text in enumerate(lines, line):
            if text.strip() and not text.startswith("#"):
                problem = f"every line of a {kind} cell starts with '#'"
                raise ValueError(f"{file}, line {number}: {problem}")
        lines = [text[2:] if text.startswith("# ") else text[1:] for text in lines]
    while lines and not lines[0].strip():
        lines, line = lines[1:], line + 1
    cell = Cell(kind, "\n".join(lines).rstrip(), line, name)
    if problem := problem_of(cell):
        raise ValueError(f"{file}, line {line}: {problem}")
    return cell


def problem_of(cell: Cell) -> str:
    """What a cell lacks that its kind needs, or an empty string."""
    kind, name = cell.kind, cell.name
    if kind in ("predict", "exercise", "hints") and not name:
        return f"a {kind} cell has a name"
    if kind == "predict" and not re.search(r"(?m)^answer: \S", cell.text):
        return f"the prediction {name} must end with 'answer: expression'"
    if kind == "hints" and len(cell.hints) != 3:
        return f"{name} has {len(cell.hints)} hints, expected 3"
    if kind == "exercise":
        nodes = ast.parse(cell.text).body
        functions = [node.name for node in nodes if isinstance(node, ast.FunctionDef)]
        if functions != [name]:
            return f"the exercise {name} must hold one function of that name, got {functions}"
    return ""


def fill_prose(text: str, namespace: Mapping[str, Any]) -> str:
    """Prose with its numbers filled in. Raises ``ValueError`` that shows the expression that fails.

    >>> fill_prose("The loss is {{ 2 * loss:.2f }}.", {"loss": 0.125})
    'The loss is 0.25.'
    """

    def fill(number: re.Match[str]) -> str:
        try:
            return str(eval('f"""{' + number["inside"].strip() + '}"""', dict(namespace)))
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            raise ValueError(f"{number[0]} in the prose fails: {reason}") from error

    return NUMBER.sub(fill, text)


def read_choices(question: str) -> dict[str, str]:
    """A prediction's choices by letter; empty when it asks for a number or a word.

    >>> read_choices("Which?\\n\\n- a) it falls\\n- b) it grows")
    {'a': 'a) it falls', 'b': 'b) it grows'}
    """
    return {line[2]: line[2:] for line in question.splitlines() if re.match(r"- [a-z]\) ", line)}


def is_guess(typed: str, answer: Any) -> bool:
    """Whether something typed is a guess at all: not empty, with a number where one is asked for.

    >>> is_guess("no idea", 16.2), is_guess("three", 16.2), is_guess("", "b"), is_guess("c", "b")
    (False, True, False, True)
    """
    spoken = AMOUNT.search(typed.lower()) is not None
    return bool(typed) and (isinstance(answer, str) or spoken)


def same_answer(typed: str, answer: Any) -> bool:
    """Whether a typed prediction is right: a number within 10%, or the same text.

    In text, case and a closing bracket do not count. Words beside a number do no harm as long as it
    is the only one; a number up to ten may be spelled out.

    >>> same_answer("1,000", 1050), same_answer("B)", "b"), same_answer("none", 3)
    (True, True, False)
    >>> same_answer("about 3, I think", 3), same_answer("three", 3), same_answer("3 or 4", 3)
    (True, True, False)
    """
    typed = typed.strip().lower()
    if isinstance(answer, str):
        right = answer.strip().lower()
        lettered = len(right) == 1 and typed.startswith(f"{right})")
        return lettered or typed.rstrip(".)") == right
    plain = typed.replace(",", "").rstrip("%").strip()
    amounts = [str(WORDS.index(part)) if part in WORDS else part for part in AMOUNT.findall(plain)]
    try:
        guess, right_number = float(amounts[0] if len(amounts) == 1 else plain), float(answer)
    except (TypeError, ValueError):
        return False
    return abs(guess - right_number) <= 0.1 * abs(right_number)
