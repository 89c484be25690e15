"""The text of an answer while its tokens arrive: what can be shown already, and where it ends.

A token is a few bytes, not letters: the text of the tokens so far may end in half a letter, which
decodes to U+FFFD, or with the beginning of a stop string. Both are held back until more is known.
So are spaces at the end, which an answer loses. What is shown is never taken back::

    shown + held back = text of the tokens so far
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class GrowingText:
    """The answer of a conversation, token by token; ``stops`` end it and are not part of it.

    >>> import minilora
    >>> tokenizer = minilora.load_base().tokenizer
    >>> text = GrowingText(tokenizer, prompt=[2], stops=["90 per"])
    >>> [text.push(token) for token in tokenizer.encode("Hull 90 percent")]
    ['Hull', '', '']
    >>> text.stopped, text.finish()
    (True, 'Hull')
    """

    def __init__(self, tokenizer: Any, prompt: list[int], stops: Sequence[str] = ()):
        self.tokenizer, self.prompt, self.stops = tokenizer, prompt, tuple(stops)
        self.ids: list[int] = []
        self.shown = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """Add a token; returns the text that can be shown now, often a word, sometimes nothing."""
        self.ids.append(token)
        text = self.cut(self.tokenizer.answer_text(self.prompt, self.ids, complete=False))
        if not self.stopped:
            text = text.rstrip("\ufffd")
            text = text[: len(text) - may_begin(text, self.stops)]
        text = text.rstrip()
        if not text.startswith(self.shown) or text == self.shown:
            return ""
        piece, self.shown = text[len(self.shown) :], text
        return piece

    def finish(self) -> str:
        """The whole answer."""
        text = self.cut(self.tokenizer.answer_text(self.prompt, self.ids))
        return text.rstrip()

    def cut(self, text: str) -> str:
        """The text before the stop that is complete first (of several, the first to begin)."""
        places = [place for stop in self.stops if (place := text.find(stop)) >= 0]
        self.stopped = self.stopped or bool(places)
        return text[: min(places)] if places else text


def may_begin(text: str, stops: Sequence[str]) -> int:
    """How many letters at the end of a text may be the beginning of a stop string.

    >>> may_begin("one\\n", ["\\n\\n"]), may_begin("one", ["\\n\\n"])
    (1, 0)
    """
    longest = max(map(len, stops), default=1) - 1
    lengths = range(min(longest, len(text)), 0, -1)
    ends = (n for n in lengths if any(stop.startswith(text[-n:]) for stop in stops))
    return next(ends, 0)
