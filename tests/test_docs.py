"""Every number in the documents is what the code prints."""

import doctest
from pathlib import Path

import pytest

import minilora

DOCS = Path(__file__).parent.parent / "docs"


def test_the_version_is_the_same_wherever_it_stands():
    for name in ("CITATION.cff", "CHANGELOG.md"):
        assert minilora.__version__ in (DOCS.parent / name).read_text(encoding="utf-8"), name


@pytest.mark.parametrize("name", ["claims.md"])
def test_the_sums_come_out_as_written(name):
    found = doctest.testfile(str(DOCS / name), module_relative=False)
    assert found.attempted > 20
    assert found.failed == 0
