"""A quiz of old questions: ``minilora learn quiz``, and three before each new lesson.

The questions stand in ``lessons/quiz.py``: a cell of code, then a question whose answer that code
computes. A question comes back after 2, 4, 8 … others when it was answered right, and after 2 when
it was not: reviews that are spaced out keep more than one long one (Leitner's boxes). What is known
so far lies in the learner's ``progress.json``:

    "quiz": {"l04_first_step": {"asked": 7, "box": 2}}     asked: the number of the question
"""

from __future__ import annotations

import itertools
import sys
import zlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from .cells import Cell, read_choices, same_answer, split_cells
from .course import lessons_folder
from .record import Record
from .terminal import make_console, prose

FILE = "quiz.py"
BEFORE_A_LESSON = 3
LAST_BOX = 6


@dataclass(frozen=True)
class Question:
    """A question of a lesson, and the code cells that its answer needs."""

    cell: Cell
    code: tuple[Cell, ...]

    @property
    def name(self) -> str:
        """Its name in the file and in the progress, such as ``l04_first_step``."""
        return self.cell.name

    @property
    def lesson(self) -> int:
        """The number of the lesson that it asks about."""
        return int(self.name[1:3])

    def answer(self) -> Any:
        """The answer, a plain string or number, computed."""
        module = ModuleType("minilora_quiz")
        for cell in self.code:
            exec(compile(cell.text, FILE, "exec"), module.__dict__)
        value = eval(self.cell.answer, module.__dict__)
        return value.item() if hasattr(value, "item") else value


def read_questions(file: Path | None = None) -> list[Question]:
    """All questions; each has the first cell of code, which imports, and the one before it.

    >>> questions = read_questions()
    >>> len(questions), questions[0].lesson, questions[0].answer()
    (20, 0, 384)
    """
    file = file or lessons_folder() / FILE
    cells = split_cells(file.read_text(encoding="utf-8"), file.name)
    first = next(cell for cell in cells if cell.kind == "code")
    questions = []
    for before, cell in itertools.pairwise(cells):
        if cell.kind == "predict":
            questions.append(Question(cell, tuple(dict.fromkeys((first, before)))))
    return questions


def choose_questions(
    questions: Sequence[Question], known: dict[str, dict[str, int]], count: int
) -> list[Question]:
    """At most so many questions, new ones first, then by their turns, mixed by lesson."""

    def order(question: Question) -> tuple[int, int]:
        mixed = zlib.crc32(question.name.encode())  # no two neighbours of one lesson
        return turn_of(question, known), mixed

    return sorted(questions, key=order)[:count]


def due_questions(
    questions: Sequence[Question], known: dict[str, dict[str, int]], count: int
) -> list[Question]:
    """Those of ``choose_questions`` whose turn has come; fewer than ``count``, perhaps none."""
    chosen = choose_questions(questions, known, count)
    now = next_turn(known)
    return [each for place, each in enumerate(chosen) if turn_of(each, known) <= now + place]


def turn_of(question: Question, known: dict[str, dict[str, int]]) -> int:
    """The number of the question as which it comes back; 0 for one that was never asked."""
    entry = known.get(question.name)
    return entry["asked"] + 2 ** max(1, entry["box"]) if entry else 0


def next_turn(known: dict[str, dict[str, int]]) -> int:
    """The number that the next question will have."""
    return 1 + max((entry["asked"] for entry in known.values()), default=0)


def finished_lessons(record: Record) -> set[int]:
    """The numbers of the lessons that a learner has read to the end."""
    return {int(slug[:2]) for slug, entry in record.lessons.items() if entry["finished"]}


def questions_of(lessons: Collection[int]) -> list[Question]:
    """The questions about these lessons."""
    return [question for question in read_questions() if question.lesson in lessons]


def quiz(folder: Path, asking: bool | None = None) -> None:
    """Ask about all lessons that are finished, or about the whole course when none is.

    Without a terminal it prints the questions with their answers.
    """
    record, console = Record(folder), make_console()
    if record.note:
        console.print(record.note)
    questions = questions_of(finished_lessons(record))
    if not questions:
        console.print("No lesson is finished yet: these are questions of the whole course.\n")
        questions = read_questions()
    ask(choose_questions(questions, record.quiz, len(questions)), record, console, asking)


def quiz_before(number: int, folder: Path, asking: bool | None = None) -> None:
    """Old questions before a lesson that is new to the learner, in a terminal only.

    Three, or fewer where not so many are due: one that was known yesterday need not come today.
    """
    record = Record(folder)
    begun = any(slug[:2] == f"{number:02}" for slug in record.lessons)
    questions = questions_of(finished_lessons(record) - {number})
    chosen = due_questions(questions, record.quiz, BEFORE_A_LESSON)
    if begun or not chosen or not is_asking(asking):
        return
    console = make_console()
    amount = "one question" if len(chosen) == 1 else f"{len(chosen)} questions"
    console.print(f"[bold]First {amount} from lessons behind you[/] (s skips them).\n")
    ask(chosen, record, console, asking)


def is_asking(asking: bool | None) -> bool:
    """Whether somebody sits at a terminal, unless the caller knows."""
    return sys.stdin.isatty() and sys.stdout.isatty() if asking is None else asking


def ask(
    questions: Sequence[Question], record: Record, console: Any, asking: bool | None = None
) -> None:
    """Put the questions, one after the other, and keep what was right; q or s ends it."""
    right = put = 0
    for place, question in enumerate(questions, 1):
        title = f"**{place} of {len(questions)}, lesson {question.lesson:02}.** "
        console.print(prose(title + question.cell.question))
        if not is_asking(asking):
            console.print(f"[cyan]The answer:[/] {shown(question, question.answer())}\n")
            continue
        guess = read_guess(question, console)
        if guess is None:
            break
        answer = question.answer()
        put, good = put + 1, same_answer(guess, answer)
        right += good
        keep(question, record, good)
        verdict = "[green]Right:[/]" if good else "[yellow]No, it is[/]"
        again = "" if good else f" (again: [bold]minilora learn {question.lesson}[/])"
        console.print(f"{verdict} {shown(question, answer)}{again}\n")
    if put:
        console.print(f"[bold]{right} of {put} right.[/]\n")


def read_guess(question: Question, console: Any) -> str | None:
    """What the learner typed, a letter where letters are offered; None when they leave."""
    letters = list(read_choices(question.cell.question))
    while True:
        console.print("[dim]Your answer (Enter: I do not know · q leaves)[/] [bold]>[/] ", end="")
        try:
            guess = input().strip().lower()
        except (EOFError, KeyboardInterrupt):
            console.print()
            return None
        if guess in ("q", "quit", "s"):
            return None
        if not guess or not letters or guess.rstrip(".)") in letters:
            return guess
        console.print(f"{', '.join(letters[:-1])} or {letters[-1]}?")


def keep(question: Question, record: Record, good: bool) -> None:
    """Record an answer: a box up, or back to the first."""
    turn = next_turn(record.quiz)
    box = record.quiz.get(question.name, {"box": 0})["box"]
    box = min(LAST_BOX, box + 1) if good else 0
    record.quiz[question.name] = {"asked": turn, "box": box}
    record.save()


def shown(question: Question, answer: Any) -> str:
    """An answer as text: the whole choice, or the number."""
    from rich.markup import escape

    number = f"{answer:.4g}" if isinstance(answer, float) else str(answer)
    return escape(read_choices(question.cell.question).get(number, number))
