"""Questions that people ask: docs/questions.md, and a page each on the site.

``lessons/questions.py`` is the only source: a cell of code computes, the prose after it is the
question, an answer in three sentences with numbers from that code, and an end that names where it
is shown: a lesson (or a file, where no lesson does) with words that stand there, then a file with
a line of it. All cells share one namespace, in order.

    Lesson 05, "sets how far" · minilora/lora/layer.py · `bound = 1 / math.sqrt(self.in_features)`

    python -m minilora.learn.questions docs/questions.md
"""

from __future__ import annotations

import contextlib
import functools
import io
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from ..files import write_text
from .cells import Lesson, fill_prose, split_cells
from .course import PACKAGE, find_lesson, lessons_folder
from .pages import cards, frame, render_code, render_prose, row, turn
from .search import with_anchors

FILE = "questions.py"
PLACE = re.compile(
    r'^(?:Lesson (?P<lesson>\d\d)|(?P<page>\S+)), "(?P<words>.+?)" · '
    r"(?P<file>\S+) · `(?P<line>.+)`$"
)
HEAD = """# Questions that people ask, answered by a run

Each has three sentences, the lesson that shows it (or a document or a module) with words
that stand there, a line of code and a number. The numbers were computed by
`python -m minilora.learn.questions docs/questions.md`, which wrote this page from
`lessons/questions.py`; a test computes them again. `minilora book` makes a page of each.
"""


@dataclass(frozen=True)
class Answer:
    """A question with its answer, and where it is shown; ``code`` computed its numbers.

    ``shown`` is a lesson's number, or a file of the repository; ``words`` stand there.
    """

    question: str
    text: str
    code: str
    shown: int | str
    words: str
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
    """One cell of prose as an answer. Raises ``ValueError`` without its end."""
    heading, _, rest = text.partition("\n")
    body, _, last = rest.strip().rpartition("\n\n")
    last = last.replace("\n", " ")
    place = PLACE.match(last)
    if place is None:
        raise ValueError(
            f"{name}: {heading!r} must end in 'Lesson NN, \"words\" · file · `line`', got {last!r}"
        )
    shown = int(place["lesson"]) if place["lesson"] else place["page"]
    question, body = heading.removeprefix("## "), body.replace("\n", " ").strip()
    return Answer(question, body, code, shown, place["words"], place["file"], place["line"])


def file_of(name: str, root: Path | None = None) -> Path:
    """A file of the repository; the lessons may lie in the package."""
    if name.startswith("lessons/"):
        return lessons_folder() / name.removeprefix("lessons/")
    return (root or PACKAGE.parent) / name


def line_number(answer: Answer, root: Path | None = None) -> int:
    """Where the answer's line stands in its file. Raises ``ValueError`` when it does not."""
    lines = file_of(answer.file, root).read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, 1):
        if answer.line in line:
            return number
    raise ValueError(f"{answer.question} names a line that {answer.file} lacks: {answer.line}")


def document(answers: Sequence[Answer]) -> str:
    """docs/questions.md: a list of links, then the answers."""
    links = "\n".join(f"- [{answer.question}](#{answer.slug})" for answer in answers)
    return "\n".join([HEAD, links, *(section(answer) for answer in answers)]) + "\n"


def section(answer: Answer) -> str:
    """A question in docs/questions.md."""
    shown = answer.shown
    if isinstance(shown, int):
        slug = find_lesson(shown).slug
        where = f"[Lesson {slug[:2]}](../lessons/{slug}.py)"
    else:
        where = f"[{shown}](../{shown})"
    place = f"[{answer.file}](../{answer.file}): `{answer.line}`"
    code = f"```python\n{answer.code}\n```"
    return (
        f"\n## {answer.question}\n\n{answer.text}\n\n{where}, “{answer.words}” · {place}\n\n{code}"
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
        page = question_page(answer, there)
        page += turn(places[index], places[index + 2])
        pages[answer.page] = with_anchors(frame(f"{answer.question} · minilora", page))
    return pages


def question_page(answer: Answer, there: Mapping[int, Lesson]) -> str:
    """One question: the answer and where it is shown, beside the code of its numbers."""
    if not isinstance(answer.shown, int):
        shown = f"`{answer.shown}`"
    elif lesson := there.get(answer.shown):
        shown = f"[{lesson.title}]({lesson.slug}.html)"
    else:
        shown = f"lesson {answer.shown:02}"
    place = f"`{answer.file}`, line {line_number(answer)}: `{answer.line}`"
    left = render_prose(
        f"# {answer.question}\n\n{answer.text}\n\nShown in {shown}, at “{answer.words}”.\n\n"
        f"The line: {place}"
    )
    return row(left, "<p>The numbers come from:</p>" + render_code(answer.code))


def main() -> None:
    """``python -m minilora.learn.questions FILE``: compute, and write the document."""
    answers = read_answers()
    write_text(Path(sys.argv[1]), document(answers))
    print(f"{len(answers)} questions: {sys.argv[1]}")


if __name__ == "__main__":
    main()
