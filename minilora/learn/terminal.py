"""A lesson in the terminal: rich draws prose, code and tables.

A console without UTF-8 gets plain letters (``SPELLED``).
"""

from __future__ import annotations

import codecs
import contextlib
import io
import itertools
import os
import re
import shutil
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SPELLED = {
    "●": "*", "○": ".", "·": "*", "−": "-", "–": "-", "×": "x", "→": "->", "≤": "<=", "≥": ">=",
    "≠": "!=", "≈": "~", "∞": "inf", "∈": "in",
    "α": "alpha", "β": "beta", "σ": "sigma", "μ": "mu", "ε": "eps", "Φ": "Phi", "Δ": "Delta ",
    "∂": "d", "Σ": "sum", "√": "sqrt ", "ŵ": "w^",
    "ᵀ": "^T", "²": "^2", "⁻": "^-", "¹": "1", "₀": "0", "₁": "1", "‖": "||", "½": "1/2",
    "…": "...",
    "“": '"', "”": '"', "’": "'", "‘": "'", "•": "*", "─": "-", "│": "|", "✓": "ok",
}  # fmt: skip
WIDEST = 100
THEME = "ansi_dark"  # of the terminal's own colours
HANG = 4  # columns further right, where a line of code goes on
BAR = "  │ "  # before each line of a cell's output


def spell(error: UnicodeError) -> tuple[str | bytes, int]:
    """An error handler for ``str.encode``: characters that a console lacks, in plain letters.

    >>> "α ≤ 1 ●○".encode("ascii", errors="minilora.spell").decode()
    'alpha <= 1 *.'
    """
    if not isinstance(error, UnicodeEncodeError):
        raise error
    missing = error.object[error.start : error.end]
    return "".join(SPELLED.get(letter, "?") for letter in missing), error.end


codecs.register_error("minilora.spell", spell)


def make_console(**settings: Any) -> Any:
    """A rich console on standard output, at most 100 columns wide; it respects ``NO_COLOR``."""
    from rich.console import Console

    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="minilora.spell")
    width = min(WIDEST, shutil.get_terminal_size((80, 24)).columns)
    return Console(width=width, highlight=False, soft_wrap=False, **settings)


def prose(text: str) -> Any:
    """Markdown, headings to the left, equations unframed, pictures in words."""
    from rich.markdown import Heading, Markdown

    class LeftHeading(Heading):
        """A heading that stays on the left."""

        def __rich_console__(self, console: Any, options: Any) -> Any:
            self.text.justify = "left"
            self.text.stylize("bold cyan" if self.tag == "h2" else "bold")
            yield ""
            yield self.text

    class Prose(Markdown):
        """Markdown with those headings."""

        elements = {**Markdown.elements, "heading_open": LeftHeading}  # noqa: RUF012

    themes: Any = {"code_theme": THEME, "inline_code_theme": THEME}
    text = re.sub(r"!\[([^]]*)\]\([^)]*\)", r"*Picture: \1.*", text)
    return Prose(text, **themes, inline_code_lexer="text")


def code(text: str) -> Any:
    """Highlighted Python in the terminal's own colours, indented; ``hung`` wraps long lines."""
    from rich.padding import Padding
    from rich.syntax import Syntax

    class Code:
        """Lines that know the width only when they are drawn."""

        def __rich_console__(self, console: Any, options: Any) -> Any:
            drawn = Syntax("", "python", theme=THEME, background_color="default")
            in_docstring = False
            for line in drawn.highlight(text.rstrip("\n")).split("\n"):
                quotes = line.plain.count('"""')
                yield from hung(line, options.max_width, 0 if in_docstring or quotes else HANG)
                in_docstring ^= quotes % 2 == 1

    return Padding(Code(), (0, 0, 0, 2))


def hung(line: Any, width: int, further: int = HANG) -> list[Any]:
    """A line of code as rows of at most ``width``; those after the first stand ``further`` right.

    >>> from rich.text import Text
    >>> for row in hung(Text("    history = train(model, task, steps=72)"), 30):
    ...     print(row)
        history = train(model,
            task, steps=72)
    """
    from rich.text import Text

    start = len(line.plain) - len(line.plain.lstrip())
    hang = " " * (start + further)
    settings: Any = dict.fromkeys(("drop_whitespace", "replace_whitespace"), False)
    settings |= {"expand_tabs": False, "break_on_hyphens": False, "subsequent_indent": hang}
    pieces = textwrap.wrap(line.plain, width, **settings) or [""]
    lengths = [len(pieces[0]), *(len(piece) - len(hang) for piece in pieces[1:])]
    first, *rest = line.divide(list(itertools.accumulate(lengths))[:-1])
    first.rstrip()
    return [first, *(Text(hang) + part[len(part) - len(part.plain.lstrip()) :] for part in rest)]


def folded(text: str) -> str:
    """A line in place of code that only draws.

    >>> folded("a\\nb")
    "[dim]  (the picture's code: 2 lines of the script)[/]"
    """
    return f"[dim]  (the picture's code: {len(text.splitlines())} lines of the script)[/]"


def open_file(path: Path) -> bool:
    """Open a file with the system's viewer; False when none is available (over SSH, say)."""
    if sys.platform == "win32":
        os.startfile(path)
        return True
    opener = "open" if sys.platform == "darwin" else "xdg-open"
    screen = any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))
    if not (screen or sys.platform == "darwin") or shutil.which(opener) is None:
        return False
    silence: Any = dict.fromkeys(("stdout", "stderr"), subprocess.DEVNULL)
    subprocess.Popen([opener, str(path)], **silence, start_new_session=True)
    return True


class Counted(io.TextIOBase):
    """Passes a cell's output on line by line, with a bar before each, and counts the lines.

    In ``alive()`` a cell that says nothing shows its seconds, which the next line takes away.

    A line that is too wide continues on the next one.
    """

    def __init__(self, stream: Any, width: int):
        self.stream, self.width, self.lines, self.open = stream, width, 0, ""
        self.sign, self.lock = "", threading.RLock()

    def write(self, text: str) -> int:
        """Pass on the lines that are whole."""
        wrap = textwrap.TextWrapper(self.width, drop_whitespace=False, subsequent_indent="  ").wrap
        *whole, self.open = (self.open + text).split("\n")
        with self.lock:
            if whole:
                self.show("")
            for part in (part for line in whole for part in wrap(line) or [""]):
                self.stream.write(f"{BAR}{part}\n")
                self.lines += 1
        return len(text)

    def show(self, sign: str) -> None:
        """Put a sign of life on the line that is to be written next, in place of the last one."""
        with self.lock:
            if sign or self.sign:
                blank = " " * len(self.sign)
                self.stream.write(f"\r{blank}\r{sign}")
                self.stream.flush()
            self.sign = sign

    @contextlib.contextmanager
    def alive(self, every: float = 1.0) -> Iterator[None]:
        """While the block runs, say every so many seconds that it does: ``  │ … 12 s``."""
        over, start = threading.Event(), time.monotonic()

        def tick() -> None:
            while not over.wait(every):
                self.show(f"{BAR}… {time.monotonic() - start:.0f} s")

        ticker = threading.Thread(target=tick, daemon=True)
        ticker.start()
        try:
            yield
        finally:
            over.set()
            ticker.join()
            self.show("")

    def close_line(self) -> None:
        """Pass on a last line that has no end."""
        if self.open:
            self.write("\n")

    def flush(self) -> None:
        """Flush the stream below."""
        self.stream.flush()
