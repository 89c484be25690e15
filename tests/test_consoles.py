"""Simulated consoles that are not ours: an old Windows code page, no terminal, forty columns."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # a process of its own, and a training
COMMANDS = [
    ["--help"],
    ["plan", "llama-3-8b", "--qlora", "--chart", "plan.svg"],
    ["chart", "share", "--out", "share.png"],
    ["zoo"],
    ["zoo", "merge twice"],
    ["learn"],
    ["learn", "1"],
    ["grade", "learner"],
    ["notebook", "1", "one.ipynb"],
    ["generate", "Status?", "--context", "Log: Hull 90%.", "--max-new-tokens", "4"],
    ["train", "--data", "ships.jsonl", "--out", "mine", "--steps", "2", "--batch", "2"],
    ["merge", "--adapter", "mine/adapter", "--out", "merged"],
]
DRIVER = """
import json, sys, warnings
warnings.filterwarnings("error", category=EncodingWarning, module="minilora")  # no encoding given
from minilora.commands.cli import main
for arguments in json.loads(sys.argv[1]):
    try:
        status = main(arguments)
    except SystemExit as end:
        status = end.code
    print("STATUS", status, *arguments, flush=True)
"""


@pytest.fixture(scope="module")
def console(tmp_path_factory):
    """The lines that the commands print in one such console, and the folder they ran in."""
    folder = tmp_path_factory.mktemp("console")
    (folder / "learner").mkdir()
    line = '{"instruction": "Größe des Schiffs?", "output": "Hull – 90%."}\n'
    (folder / "ships.jsonl").write_text(line * 20, encoding="utf-8")
    environment = {
        "PYTHONIOENCODING": "cp1252",
        "PYTHONUTF8": "0",
        "LC_ALL": "C",
        "COLUMNS": "40",
        "NO_COLOR": "1",
    }
    run = subprocess.run(
        [sys.executable, "-X", "warn_default_encoding", "-c", DRIVER, json.dumps(COMMANDS)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=folder,
        env={**os.environ, **environment, "PYTHONPATH": str(Path(__file__).parent.parent)},
    )
    return run.stdout.decode("cp1252").splitlines(), folder


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_the_command_comes_to_its_end(console, arguments):
    lines, _ = console
    assert f"STATUS 0 {' '.join(arguments)}" in lines, "\n".join(lines[-30:])


def test_what_it_wrote_is_whole_utf8(console):
    _, folder = console
    assert "Größe" in (folder / "ships.jsonl").read_text(encoding="utf-8")
    for name in ("plan.svg", "one.ipynb", "mine/metrics.jsonl", "merged/config.json"):
        assert (folder / name).read_text(encoding="utf-8").strip(), name


def test_no_escape_codes_where_there_is_no_terminal(console):
    lines, _ = console
    assert not any("\x1b" in line for line in lines)
