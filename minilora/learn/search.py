"""The site's search: one page that holds the text of all others, and a few lines of script.

A place is a heading and the text up to the next one. A query's words must all occur in a place, as
the beginning of a word; a place whose heading has them comes first. Nothing leaves the page.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from .pages import frame

TEMPLATE = Path(__file__).parent / "search.html"
HEADING = re.compile(r"<h([1-3])(?: id=\"([^\"]*)\")?>(.*?)</h\1>", re.DOTALL)
LEFT_OUT = re.compile(r"<(style|script|svg|header|title|math)\b.*?</\1>|<nav\b.*?</nav>", re.DOTALL)


def search_page(pages: Mapping[str, str]) -> str:
    """The page that finds things in ``pages``, file names with their HTML."""
    places = [place for file, text in pages.items() for place in places_of(file, text)]
    data = json.dumps(places, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    body = TEMPLATE.read_text(encoding="utf-8").replace("{{PLACES}}", data)
    return frame("Search · minilora", body, "search.html")


def places_of(file: str, page: str) -> Iterator[tuple[str, str, str]]:
    """(link, title, text) for each heading of a page.

    >>> list(places_of("a.html", '<h1>One</h1><p>first</p><h2 id="b">Two</h2>second'))
    [('a.html', 'One', 'first'), ('a.html#b', 'One · Two', 'second')]
    """
    page = LEFT_OUT.sub(" ", page)
    headings = list(HEADING.finditer(page))
    ends = [*(heading.start() for heading in headings[1:]), len(page)]
    top = plain(headings[0][3]) if headings else ""
    for heading, end in zip(headings, ends, strict=True):
        name = plain(heading[3])
        link = f"{file}#{heading[2]}" if heading[2] else file
        yield link, name if name == top else f"{top} · {name}", plain(page[heading.end() : end])


def plain(text: str) -> str:
    """HTML without its tags; those inside a line leave no space."""
    text = re.sub(r"</?(?:span|code|b|i|a|em|strong)\b[^>]*>", "", text)
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", text)).split())


def with_anchors(page: str) -> str:
    """A page whose headings of the second level can be linked to.

    >>> with_anchors("<h2>Break it</h2><h2>Break it</h2>")
    '<h2 id="break-it">Break it</h2><h2 id="break-it-2">Break it</h2>'
    """
    seen: dict[str, int] = {}

    def name(heading: re.Match[str]) -> str:
        word = re.sub(r"\W+", "-", plain(heading[1]).lower()).strip("-") or "part"
        seen[word] = seen.get(word, 0) + 1
        word = word if seen[word] == 1 else f"{word}-{seen[word]}"
        return f'<h2 id="{word}">{heading[1]}</h2>'

    return re.sub(r"<h2>(.*?)</h2>", name, page, flags=re.DOTALL)
