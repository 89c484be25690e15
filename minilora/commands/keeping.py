"""Trained weights outlive a full disk: they go to another folder, or wait in memory for space.

on a terminal               ask: Enter tries again, a path is tried instead
elsewhere (nohup, a pipe)   the current folder, the home folder, the temporary folder;
                            then the first again, every minute for a day
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from shlex import quote

WAIT, TRIES = 60.0, 24 * 60  # seconds between two tries, and how many
ASK = "The trained weights are still in memory. Free some space and press Enter to save again, "
ASK += "or type another folder (Ctrl-C gives them up): "


def save_somewhere(save: Callable[[Path], Path], folder: Path) -> Path:
    """``save(folder)``, or where that fails ``save`` into another folder; returns what was written.

    Says where the weights are. Raises the last ``OSError`` when nothing takes them.
    """
    failed: OSError | None = None
    for place in places(folder):
        try:
            saved = save(place)
        except OSError as error:
            say(str(error))
            failed = error
            continue
        if place != folder:
            then = f"mv {quote(str(saved))} {quote(str(folder))}"
            say(f"The trained weights are in {saved}. Once there is space: {then}")
        return saved
    assert failed is not None
    raise failed


def places(folder: Path) -> Iterator[Path]:
    """Where to save, one after the other, for as long as saving fails."""
    yield folder
    if sys.stdin.isatty():
        while True:
            print(ASK, end="", file=sys.stderr, flush=True)
            answer = sys.stdin.readline()
            if not answer:  # the terminal is gone
                break
            yield Path(answer.strip()).expanduser() if answer.strip() else folder
    for other in (Path.cwd(), Path.home(), Path(tempfile.gettempdir())):
        yield other / f"minilora-{folder.name}-{os.getpid()}"
    for _ in range(TRIES):
        say(f"The trained weights are in the memory of process {os.getpid()}: free some space, ")
        say(f"the next try is in {WAIT:.0f} seconds")
        time.sleep(WAIT)
        yield folder


def say(message: str) -> None:
    """A line on standard error."""
    print(message, file=sys.stderr, flush=True)
