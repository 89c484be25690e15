"""The book: a site of plain pages from a real run, with prose beside its code, output and figures.

The pages need no network, and none but the search and the planner a script. Every lesson runs in a
fresh process, and its page is written when it is done. Figures have a light and a dark face, and
the browser chooses. Beside the lessons: the core modules (``api_pages.py``) and the planner.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..files import text_writer, write_text, write_together
from ..plots.planner_page import planner_page
from . import api_pages
from .cells import Cell, Lesson
from .course_map import draw_map
from .drawings import draw_lora
from .kept_runs import kept_run, run_and_keep
from .pages import CSS, PICTURE, cards, details, frame, render_code, render_prose, row, turn
from .questions import question_pages, read_answers
from .search import search_page, with_anchors

MODULES = "Each module with its equation, its source and its code side by side."
WHAT_LORA_IS = "x goes through the frozen W0 and through the thin A and B; the results are added"
PLANNER = "Bytes, parameters and cards, for your model and your settings."
QUESTIONS = "What people ask about LoRA, each with a lesson, a line of code and a number."
BESIDE = (
    ("questions.html", "Questions that people ask", QUESTIONS),
    ("package.html", "The package, to be read", MODULES),
    ("api.html", "API", "Every public name, from its docstring."),
    ("planner.html", "What will this fine-tune cost?", PLANNER),
)


@dataclass(frozen=True)
class Book:
    """A site: its home page, and for each lesson that did not end, what went wrong."""

    home: Path
    failed: dict[str, str]


def write_book(
    folder: Path,
    lessons: Sequence[Lesson],
    say: Callable[[str], None] = print,
    solved: bool = True,
    limit: float | None = None,
) -> Book:
    """Run the lessons and write the site, each page when its lesson is done.

    Finished runs are kept in ``folder`` and used again while neither lesson nor package changes. A
    lesson that fails, or takes more than ``limit`` seconds of processor time (None: ten times its
    budget, at least two minutes), gets a page that says so, and the others go on. ``say`` gets a
    line before each lesson; ``solved`` adds the solutions.
    """
    pages: dict[str, str] = {}
    pictures: dict[str, str] = {}
    failed: dict[str, str] = {}
    write_text(folder / "book.css", CSS.read_text(encoding="utf-8"))
    write_text(folder / "lora.svg", draw_lora())
    neighbours = [None, *lessons, None]
    for index, lesson in enumerate(lessons):
        before, after = neighbours[index], neighbours[index + 2]
        run = kept_run(lesson, folder)
        took = "run before" if run else f"about {lesson.seconds} s …"
        say(f"lesson {lesson.slug} ({index + 1} of {len(lessons)}), {took}")
        try:
            run = run or run_and_keep(lesson, folder, limit or max(120, 10 * lesson.seconds))
        except ValueError as error:
            failed[lesson.slug] = str(error)
            say(f"lesson {lesson.slug} did not end: {str(error).splitlines()[-1]}")
            page = failed_page(lesson, str(error), before, after)
        else:
            page = lesson_page(lesson, run, folder / "figures", before, after, solved)
            pictures |= card_picture(lesson, run, folder / "figures")
        pages[page_name(lesson)] = page
        write_text(folder / page_name(lesson), page)
    say("the package …")
    pages |= {f"module-{name}.html": api_pages.module_page(name) for name in api_pages.CORE}
    pages["package.html"], pages["api.html"] = api_pages.package_page(), api_pages.api_page()
    say("the questions …")
    pages |= question_pages(read_answers(), lessons)
    pages["search.html"] = search_page(pages)
    pages["planner.html"] = planner_page("index.html")
    pages["index.html"] = home_page(lessons, pictures)  # last, as it links to the others
    write_together(folder, {name: text_writer(text) for name, text in pages.items()})
    return Book(folder / "index.html", failed)


def card_picture(lesson: Lesson, run: dict[str, Any], figures: Path) -> dict[str, str]:
    """A lesson's first figure for its card; nothing where it has none."""
    shown = [figure for cell in run["cells"] for figure in cell["figures"]]
    return {page_name(lesson): picture(shown[0], figures, small=True)} if shown else {}


def failed_page(lesson: Lesson, error: str, before: Lesson | None, after: Lesson | None) -> str:
    """The page of a lesson that did not run to its end: what happened, and what to do."""
    body = (
        f"<h1>{html.escape(lesson.title)}</h1><p class=lead>This lesson did not run to its end "
        f"when the book was made.</p><pre>{html.escape(error)}</pre><p>Walk it with <code>minilora "
        f"learn {lesson.number}</code>. Make the book again with <code>minilora book --limit 3600"
        "</code>: lessons that ended are not run again.</p>"
    )
    return with_turn(lesson, body, before, after)


def with_turn(lesson: Lesson, body: str, before: Lesson | None, after: Lesson | None) -> str:
    """A lesson's page, with the ways to the page before and after."""
    ways = [(page_name(each), each.title) if each else None for each in (before, after)]
    return with_anchors(frame(f"{lesson.title} · minilora", body + turn(*ways)))


def page_name(lesson: Lesson) -> str:
    """A lesson's file in the site."""
    return f"{lesson.slug}.html"


def home_page(lessons: Sequence[Lesson], pictures: Mapping[str, str] | None = None) -> str:
    """The map of the course, and the ways into the package."""
    course = [(page_name(lesson), lesson.title, summary(lesson)) for lesson in lessons]
    body = (
        "<h1>LoRA and QLoRA, from one matrix multiply on</h1>"
        "<p class=lead>Each lesson asks one question and answers it with one experiment. "
        "Guess first, then read the run. Every number on these pages was computed by the code "
        "beside it.</p><p>To run them yourself, with guesses that are kept and exercises that are "
        "checked: <code>minilora learn</code>.</p>"
        '<figure class="drawing">'
        f'<img src="lora.svg" alt="{html.escape(WHAT_LORA_IS)}" width="620"></figure>'
        f"<h2>The course</h2>{draw_map(lessons)}{cards(course, pictures)}"
        f"<h2>Beside the course</h2>{cards(BESIDE)}"
    )
    return frame("minilora: LoRA and QLoRA, to be read", body, "index.html")


def summary(lesson: Lesson) -> str:
    """A lesson's header in one line."""
    minutes = f"{lesson.minutes} minutes to read"
    return f"Know first: {lesson.first} · {lesson.difficulty} · {minutes}"


def lesson_page(
    lesson: Lesson,
    run: dict[str, Any],
    figures: Path,
    before: Lesson | None,
    after: Lesson | None,
    solved: bool = True,
) -> str:
    """One lesson: rows of prose, each beside the code that follows, its output and its figures."""
    rows: list[tuple[str, str, bool]] = []
    left = right = ""
    section = False
    for cell, ran in zip(lesson.cells, run["cells"], strict=True):
        if cell.kind in ("markdown", "predict", "hints"):
            if right:
                rows.append((left, right, section))
                left = right = ""
                section = False
            section = section or cell.text.startswith("## ")
            left += prose_part(cell, ran, run)
        else:
            right += code_part(lesson, cell, ran, figures, solved)
    rows.append((left, right, section))
    return with_turn(lesson, "\n".join(row(*each) for each in rows), before, after)


def prose_part(cell: Cell, ran: dict[str, Any], run: dict[str, Any]) -> str:
    """Prose, a prediction that unfolds to its answer, or three hints that unfold one by one."""
    if cell.kind == "hints":
        hints = enumerate(cell.hints, 1)
        return "".join(details(f"Hint {number}", render_prose(hint)) for number, hint in hints)
    text = render_prose(ran["prose"])
    if cell.kind == "predict":
        answer = run["predictions"].get(cell.name)
        shown = f"{answer:.4g}" if isinstance(answer, float) else str(answer)
        fold = details("What the run says", f"<p>{html.escape(shown)}</p>")
        return f'<div class="predict"><b>Your guess first</b>{text}{fold}</div>'
    return text


def code_part(
    lesson: Lesson, cell: Cell, ran: dict[str, Any], figures: Path, solved: bool = True
) -> str:
    """Code, its output, its figures.

    In place of an exercise's check stands the solution, folded, or how to have an answer checked.
    """
    if cell.checks and not solved:
        return f"<p>Write it, and have it checked: <code>minilora learn {lesson.number}</code></p>"
    if cell.checks:
        solution = lesson.path.parent / "solutions" / lesson.path.name
        title = f"A solution of {cell.checks}, when you have one of your own"
        return details(title, render_code(solution.read_text(encoding="utf-8")))
    output = html.escape(ran["output"].rstrip())
    parts = [
        details(PICTURE, render_code(text)) if drawing else render_code(text)
        for text, drawing in cell.segments
    ]
    parts += [f'<pre class="output" tabindex="0">{output}</pre>'] if output.strip() else []
    return "".join([*parts, *(figure_part(figure, figures) for figure in ran["figures"])])


def figure_part(figure: dict[str, Any], figures: Path) -> str:
    """A figure with both its faces and its text for who cannot see it."""
    link = f"figures/{figure['light']}"
    return f'<figure><a href="{link}">{picture(figure, figures)}</a></figure>'


def picture(figure: dict[str, Any], figures: Path, small: bool = False) -> str:
    """A figure's faces, the light and the dark one, at half their pixels or as wide as a card."""
    light, alt = f"figures/{figure['light']}", html.escape(figure["alt"], quote=True)
    width, height = png_size(figures / figure["light"])
    size = 'loading="lazy"' if small else f'width="{width // 2}" height="{height // 2}"'
    drawn = f'<img src="{light}" alt="{alt}" {size}>'
    if figure["dark"]:
        media = 'media="(prefers-color-scheme: dark)"'
        drawn = f'<source srcset="figures/{figure["dark"]}" {media}>{drawn}'
    return f"<picture>{drawn}</picture>"


def png_size(file: Path) -> tuple[int, int]:
    """Width and height of a PNG, from its header."""
    head = file.read_bytes()[16:24]
    return int.from_bytes(head[:4], "big"), int.from_bytes(head[4:], "big")
