"""The version, the sums of docs/claims.md, and every link in every document."""

import doctest
import re
from operator import attrgetter
from pathlib import Path

import pytest

import minilora

DOCS = Path(__file__).parent.parent / "docs"
LESSONS = DOCS.parent / "lessons"
DOCUMENTS = sorted({*DOCS.parent.glob("*.md"), *DOCS.rglob("*.md"), *LESSONS.glob("*.md")})


def test_the_version_is_the_same_wherever_it_stands():
    for name in ("CITATION.cff", "CHANGELOG.md"):
        assert minilora.__version__ in (DOCS.parent / name).read_text(encoding="utf-8"), name


@pytest.mark.parametrize("file", DOCUMENTS, ids=attrgetter("name"))
def test_every_link_leads_somewhere(file):
    text = file.read_text(encoding="utf-8")
    for target, anchor in re.findall(r"\]\(([^)#\s]*)#?([^)\s]*)\)", text):
        if target.startswith("http"):
            continue
        linked = file.parent / target if target else file
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), anchor


def anchors(file):
    """The names that a document's headings can be linked by."""
    headings = re.findall(r"(?m)^#+ (.+)$", file.read_text(encoding="utf-8"))
    return [re.sub(r"[^\w -]", "", head).lower().replace(" ", "-") for head in headings]


@pytest.mark.parametrize(
    "file", [*DOCUMENTS, *sorted(LESSONS.glob("*.py"))], ids=attrgetter("name")
)
def test_every_module_that_is_named_is_there(file):
    inside = ("", "minilora", "minilora/learn", "tests", "benchmarks", "lessons")
    for name in re.findall(r"`([a-z0-9_/]+\.py)\b", file.read_text(encoding="utf-8")):
        assert any((DOCS.parent / folder / name).exists() for folder in inside), name


@pytest.mark.parametrize("name", ["claims.md"])
def test_the_sums_come_out_as_written(name):
    results = doctest.testfile(str(DOCS / name), module_relative=False)
    assert results.attempted > 20
    assert results.failed == 0
