"""The parts of the book's pages: frame, prose, highlighted code. Strings in, HTML out."""

from __future__ import annotations

import html
import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .equations import math_block

CSS = Path(__file__).parent / "book.css"
PICTURE = "The picture's code"
PLACES = {
    "index.html": "minilora",
    "questions.html": "Questions",
    "package.html": "The package",
    "api.html": "API",
    "planner.html": "Planner",
    "search.html": "Search",
}


def frame(title: str, body: str, current: str = "") -> str:
    """A whole page with ``body`` in its main part; ``current`` is its file in the navigation.

    It has no script and loads nothing from outside the site.
    """
    links = "".join(
        f'<a href="{file}"{" aria-current=page" if file == current else ""}>{name}</a>'
        for file, name in PLACES.items()
    )
    return f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="book.css">
<a class="skip" href="#main">To the text</a>
<header><nav aria-label="site">{links}</nav></header>
<main id="main">
{body}
</main>
</html>
"""


def render_prose(text: str) -> str:
    """Markdown as HTML; HTML in the text is shown as text; the keyboard scrolls wide blocks.

    An indented block of equations becomes MathML (``equations.py``); others keep their columns.
    """
    from markdown_it import MarkdownIt

    markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
    markdown.add_render_rule("code_block", indented_block)
    page = markdown.render(text)
    page = page.replace("<pre>", '<pre class="plain" tabindex="0">')
    page = page.replace("<table>", '<div class="wide" tabindex="0"><table>')
    return page.replace("</table>", "</table></div>")


def indented_block(_: Any, tokens: Any, index: int, *__: Any) -> str:
    """An indented block of prose: equations, or text as it was typed."""
    text = tokens[index].content
    equation = None if text.lstrip().startswith(">>>") else math_block(text)
    if equation:
        return f'<div class="math" tabindex="0">{equation}</div>\n'
    return f"<pre><code>{html.escape(text, quote=False)}</code></pre>\n"


def render_code(text: str, lexer: str = "python") -> str:
    """Highlighted source.

    >>> render_code("x")
    '<pre tabindex="0"><code><span class="n">x</span>\\n</code></pre>'
    """
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import get_lexer_by_name

    code = highlight(text, get_lexer_by_name(lexer), HtmlFormatter(nowrap=True))
    return f'<pre tabindex="0"><code>{code}</code></pre>'


def render_docstring(text: str) -> str:
    """A docstring as HTML: double backquotes are code, underlined lines headings."""
    lines, doctest = [], False
    for line in textwrap.dedent(text).strip("\n").splitlines():
        doctest = bool(line.strip()) and (doctest or line.lstrip().startswith(">>>"))
        lines.append(f"    {line}" if doctest else line)
    markdown = "\n".join(lines).replace("``", "`")
    markdown = re.sub(r"(?m)^(\S.*)\n([-=])\2{2,}$", r"## \1\n", markdown)
    # an indented line after a paragraph is an equation in a docstring, a continuation in Markdown
    markdown = re.sub(r"(?m)^(\S.*)\n(?= {4}\S)", r"\1\n\n", markdown)
    return render_prose(markdown)


def row(left: str, right: str, section: bool = False) -> str:
    """Prose beside code; on a phone one after the other."""
    kind = "row section" if section else "row"
    return f'<div class="{kind}"><div>{left}</div><div>{right}</div></div>'


def details(summary: str, body: str) -> str:
    """Something that unfolds."""
    return f"<details><summary>{html.escape(summary)}</summary>{body}</details>"


def cards(links: Sequence[tuple[str, str, str]], pictures: Mapping[str, str] | None = None) -> str:
    """A list of (file, name, description) as cards, each with its picture where there is one."""
    pictures = pictures or {}
    items = (
        f'<li><a href="{file}">{pictures.get(file, "")}<b>{html.escape(name)}</b>'
        f"<span>{html.escape(text)}</span></a></li>"
        for file, name, text in links
    )
    return f'<ul class="cards">{"".join(items)}</ul>'


def turn(before: tuple[str, str] | None, after: tuple[str, str] | None) -> str:
    """Links to the page before and the page after, each given as (file, name)."""
    left = right = "<span></span>"
    if before:
        left = f'<a href="{before[0]}" rel="prev">← {html.escape(before[1])}</a>'
    if after:
        right = f'<a href="{after[0]}" rel="next">{html.escape(after[1])} →</a>'
    return f'<nav class="turn" aria-label="pages">{left}{right}</nav>'
