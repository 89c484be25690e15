"""Every number in the documents is what the code prints."""

import doctest
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent / "docs"


@pytest.mark.parametrize("name", ["claims.md"])
def test_the_sums_come_out_as_written(name):
    found = doctest.testfile(str(DOCS / name), module_relative=False)
    assert found.attempted > 20
    assert found.failed == 0
