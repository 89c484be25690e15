"""Questions that people ask: docs/questions.md, and a page each on the site.

``lessons/questions.py`` is the only source: a cell of code computes, the prose after it is the
question, an answer in three sentences with numbers from that code, and a last line that names the
lesson, a file and a line of it. All cells share one namespace, in order.

    python -m minilora.learn.questions docs/questions.md
"""

from __future__ import annotations

import contextlib
import functools
import io
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from ..files import write_text
from .cells import Lesson, fill_prose, split_cells
from .course import PACKAGE, find_lesson, lessons_folder
from .pages import cards, frame, render_code, render_prose, row, turn
from .search import with_anchors

FILE = "questions.py"
PLACE = re.compile(r"^Lesson (?P<lesson>\d\d) · (?P<file>\S+) · `(?P<line>.+)`$")
HEAD = """# Questions that people ask, answered by a run

Each has three sentences, the lesson that shows it, a line of code and a number. The numbers were
computed by `python -m minilora.learn.questions docs/questions.md`, which wrote this page from
`lessons/questions.py`; a test computes them again. `minilora book` makes a page of each.
"""


@dataclass(frozen=True)
class Answer:
    """A question with its answer, and where it is shown; ``code`` computed its numbers."""

    question: str
    text: str
    code: str
    lesson: int
    file: str
    line: str

    @property
    def slug(self) -> str:
        """The question as part of a file's name, as a heading's anchor."""
        return re.sub(r"[^\w -]", "", self.question).lower().replace(" ", "-")

    @property
    def page(self) -> str:
        """Its file in the site."""
        return f"question-{re.sub('-+', '-', re.sub('[^a-z0-9_-]', '', self.slug))}.html"


@functools.cache
def read_answers(file: Path | None = None) -> list[Answer]:
    """Run the cells and fill in the numbers, once in a process.

    Raises ``ValueError`` where a question lacks its last line or a number cannot be filled in;
    whatever a cell of code raises goes through.
    """
    file = file or lessons_folder() / FILE
    module = ModuleType("minilora_questions")
    answers, code = [], ""
    for cell in split_cells(file.read_text(encoding="utf-8"), file.name):
        if cell.kind == "code":
            code = cell.text
            with contextlib.redirect_stdout(io.StringIO()):
                lines = "\n" * (cell.line - 1)
                exec(compile(lines + code, str(file), "exec"), module.__dict__)
        elif cell.text.startswith("## "):
            answers.append(read_answer(fill_prose(cell.text, module.__dict__), code, file.name))
    return answers


def read_answer(text: str, code: str, name: str) -> Answer:
    """One cell of prose as an answer. Raises ``ValueError`` without its last line."""
    heading, _, rest = text.partition("\n")
    body, _, last = rest.strip().rpartition("\n\n")
    place = PLACE.match(last)
    if place is None:
        raise ValueError(
            f"{name}: {heading!r} must end in 'Lesson NN · file · `line`', got {last!r}"
        )
    body = body.replace("\n", " ").strip()
    number, file, line = int(place["lesson"]), place["file"], place["line"]
    return Answer(heading.removeprefix("## "), body, code, number, file, line)


def line_number(answer: Answer, root: Path | None = None) -> int:
    """Where the answer's line stands in its file. Raises ``ValueError`` when it does not."""
    file = (root or PACKAGE.parent) / answer.file
    if answer.file.startswith("lessons/"):
        file = lessons_folder() / answer.file.removeprefix("lessons/")
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        if answer.line in line:
            return number
    raise ValueError(f"{answer.question} names a line that {answer.file} lacks: {answer.line}")


def document(answers: Sequence[Answer]) -> str:
    """docs/questions.md: a list of links, then the answers."""
    links = "\n".join(f"- [{answer.question}](#{answer.slug})" for answer in answers)
    return "\n".join([HEAD, links, *(section(answer) for answer in answers)]) + "\n"


def section(answer: Answer) -> str:
    """A question in docs/questions.md."""
    slug = find_lesson(answer.lesson).slug
    lesson = f"[Lesson {slug[:2]}](../lessons/{slug}.py)"
    place = f"[{answer.file}](../{answer.file})"
    code = f"```python\n{answer.code}\n```"
    return (
        f"\n## {answer.question}\n\n{answer.text}\n\n{lesson} · {place}: `{answer.line}`\n\n{code}"
    )


def question_pages(answers: Sequence[Answer], lessons: Sequence[Lesson]) -> dict[str, str]:
    """The site's pages by file name: the list, and one for each question."""
    there = {lesson.number: lesson for lesson in lessons}
    links = [
        (one.page, one.question, one.text.split(". ")[0].replace("`", "") + ".") for one in answers
    ]
    lead = "<p class=lead>Each with a lesson, a line of code and a number that a run computed.</p>"
    body = f"<h1>Questions that people ask</h1>{lead}{cards(links)}"
    pages = {"questions.html": frame("Questions · minilora", body, "questions.html")}
    places: list[tuple[str, str] | None] = [None, *((a.page, a.question) for a in answers), None]
    for index, answer in enumerate(answers):
        page = question_page(answer, there.get(answer.lesson))
        page += turn(places[index], places[index + 2])
        pages[answer.page] = with_anchors(frame(f"{answer.question} · minilora", page))
    return pages


def question_page(answer: Answer, lesson: Lesson | None) -> str:
    """One question: the answer and where it is shown, beside the code of its numbers."""
    number = f"{answer.lesson:02}"
    title = f"[{lesson.title}]({lesson.slug}.html)" if lesson else f"lesson {number}"
    place = f"`{answer.file}`, line {line_number(answer)}: `{answer.line}`"
    left = render_prose(
        f"# {answer.question}\n\n{answer.text}\n\nThe lesson: {title}.\n\nThe line: {place}"
    )
    return row(left, "<p>The numbers come from:</p>" + render_code(answer.code))


def main() -> None:
    """``python -m minilora.learn.questions FILE``: compute, and write the document."""
    answers = read_answers()
    write_text(Path(sys.argv[1]), document(answers))
    print(f"{len(answers)} questions: {sys.argv[1]}")


if __name__ == "__main__":
    main()
