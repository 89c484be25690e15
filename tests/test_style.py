"""Style and types are part of the suite, so that every way of running it checks them."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


TOOLS = [
    ["ruff", "check", "."],
    ["ruff", "format", "--check", "."],
    pytest.param(["mypy"], marks=pytest.mark.slow),
]


@pytest.mark.parametrize("tool", TOOLS, ids=" ".join)
def test_the_tool_finds_nothing(tool):
    found = subprocess.run([sys.executable, "-m", *tool], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr


def test_no_file_holds_a_path_of_one_machine():
    """Built from parts, or this file would find itself. A source archive has no list of files."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a checkout")
    places = ["/" + place + "/" for place in ("root", "home", "work", "tmp")]
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert "tests/test_style.py" in listed
    for name in listed:
        file = ROOT / name
        if (
            file.suffix in (".py", ".md", ".toml", ".txt", ".json", ".jsonl")
            and file.exists()
            and file.name != "tokenizer.json"
        ):
            text = file.read_text(encoding="utf-8")
            assert not [place for place in places if place in text], name
