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
    for target, anchor in re.findall(
        r"\]\(([^)#\s]*)#?([^)\s]*)\)", file.read_text(encoding="utf-8")
    ):
        if not target.startswith("http"):
            there = file.parent / target if target else file
            assert there.exists(), target
            if anchor:
                heads = re.findall(r"(?m)^#+ (.+)$", there.read_text(encoding="utf-8"))
                assert anchor in [
                    re.sub(r"[^\w -]", "", head).lower().replace(" ", "-") for head in heads
                ], anchor


@pytest.mark.parametrize(
    "file", [*DOCUMENTS, *sorted(LESSONS.glob("*.py"))], ids=attrgetter("name")
)
def test_every_module_that_is_named_is_there(file):
    root = DOCS.parent
    rooms = [
        root,
        *(root / name for name in ("minilora", "minilora/learn", "tests", "benchmarks", "lessons")),
    ]
    for name in re.findall(r"`([a-z0-9_/]+\.py)\b", file.read_text(encoding="utf-8")):
        assert any((room / name).exists() for room in rooms), name


@pytest.mark.parametrize("name", ["claims.md"])
def test_the_sums_come_out_as_written(name):
    found = doctest.testfile(str(DOCS / name), module_relative=False)
    assert found.attempted > 20
    assert found.failed == 0
