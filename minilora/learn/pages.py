"""The pieces that the book's pages are made of: the frame, prose, highlighted code, docstrings. Strings in, HTML out."""

from __future__ import annotations

import html
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path

CSS = Path(__file__).parent / "book.css"
PLACES = {
    "index.html": "minilora",
    "package.html": "The package",
    "api.html": "API",
    "planner.html": "Planner",
}


def frame(title: str, body: str, here: str = "") -> str:
    """A whole page: language, title, style sheet, navigation, ``body`` in its main part. No script, nothing from outside."""
    links = "".join(
        f'<a href="{file}"{" aria-current=page" if file == here else ""}>{name}</a>'
        for file, name in PLACES.items()
    )
    return (
        f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{html.escape(title)}</title>\n'
        f'<link rel="icon" href="data:,">\n<link rel="stylesheet" href="book.css">\n'
        f'<a class="skip" href="#main">To the text</a>\n'
        f'<header><nav aria-label="site">{links}</nav></header>\n<main id="main">\n{body}\n</main>\n</html>\n'
    )


def render_prose(text: str) -> str:
    """Markdown as HTML; raw HTML in it is shown, not obeyed; wide blocks can be scrolled with the keyboard."""
    from markdown_it import MarkdownIt

    made = MarkdownIt("commonmark", {"html": False}).enable("table").render(text)
    made = made.replace("<pre>", '<pre class="plain" tabindex="0">')  # equations keep their columns
    return made.replace("<table>", '<div class="wide" tabindex="0"><table>').replace(
        "</table>", "</table></div>"
    )


def render_code(text: str, lexer: str = "python") -> str:
    """Highlighted source.

    >>> render_code("x = 1")
    '<pre><code><span class="n">x</span> <span class="o">=</span> <span class="mi">1</span>\\n</code></pre>'
    """
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import get_lexer_by_name

    return f"<pre><code>{highlight(text, get_lexer_by_name(lexer), HtmlFormatter(nowrap=True))}</code></pre>"


def render_docstring(text: str) -> str:
    """A docstring as HTML: double backquotes are code, underlined lines are headings, doctests are code blocks."""
    lines, doctest = [], False
    for line in textwrap.dedent(text).strip("\n").splitlines():
        doctest = bool(line.strip()) and (doctest or line.lstrip().startswith(">>>"))
        lines.append(f"    {line}" if doctest else line)
    joined = re.sub(r"(?m)^(\S.*)\n([-=])\2{2,}$", r"## \1\n", "\n".join(lines)).replace("``", "`")
    # an indented line right after a paragraph is an equation in a docstring, but a continuation in Markdown
    joined = re.sub(r"(?m)^(\S.*)\n(?= {4}\S)", r"\1\n\n", joined)
    return render_prose(joined)


def row(left: str, right: str, section: bool = False) -> str:
    """Prose beside code; on a phone one after the other."""
    return (
        f'<div class="row{" section" if section else ""}"><div>{left}</div><div>{right}</div></div>'
    )


def details(summary: str, body: str) -> str:
    """Something that unfolds."""
    return f"<details><summary>{html.escape(summary)}</summary>{body}</details>"


def cards(links: Sequence[tuple[str, str, str]]) -> str:
    """A list of (file, name, what it is) as cards."""
    items = (
        f'<li><a href="{file}"><b>{html.escape(name)}</b><span>{html.escape(what)}</span></a></li>'
        for file, name, what in links
    )
    return f'<ul class="cards">{"".join(items)}</ul>'


def turn(before: tuple[str, str] | None, after: tuple[str, str] | None) -> str:
    """Links to the page before and the page after."""
    left = (
        f'<a href="{before[0]}" rel="prev">← {html.escape(before[1])}</a>'
        if before
        else "<span></span>"
    )
    right = (
        f'<a href="{after[0]}" rel="next">{html.escape(after[1])} →</a>'
        if after
        else "<span></span>"
    )
    return f'<nav class="turn" aria-label="pages">{left}{right}</nav>'
