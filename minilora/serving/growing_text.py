"""The text of an answer while its tokens arrive: what can be shown already, and where it ends.

A token is a few bytes, not letters: the text of the tokens so far may end in half a letter, which
decodes to U+FFFD, or with the beginning of a stop string. Both are held back until more is known.
So are spaces at the end, which an answer loses. What is shown is never taken back::

    shown + held back = text of the tokens so far

**A token costs the same wherever it stands.** Its text cannot be had alone: many decoders drop a
space where a text begins, and a letter may take several tokens. So a window of the last few tokens
is decoded, once without the new ones and once with them, and the difference is what they say::

    text += what decode(tokens[start:]) says beyond decode(tokens[start:read])

The window moves on when the text ends with a whole letter (the two offsets of huggingface/
text-generation-inference and of vLLM's detokenizer; ``DecodeStream`` in tokenizers does the same).
It begins in the prompt, which may end in half a letter where it came as token ids: the letter is
shown when the answer ends it.

Left out: decoders that change text already written, as WordPiece's clean-up of spaces does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..text import LETTER, beyond


class GrowingText:
    """The answer of a conversation, token by token; ``stops`` end it and are not part of it.

    ``raw``: no answer but what comes after a text, so it keeps its spaces at both ends.

    >>> import minilora
    >>> tokenizer = minilora.load_base().tokenizer
    >>> text = GrowingText(tokenizer, prompt=[2], stops=["90 per"])
    >>> [text.push(token) for token in tokenizer.encode("Hull 90 percent")]
    ['Hull', '', '']
    >>> text.stopped, text.finish()
    (True, 'Hull')
    """

    def __init__(
        self, tokenizer: Any, prompt: list[int], stops: Sequence[str] = (), raw: bool = False
    ):
        self.tokenizer, self.prompt, self.stops = tokenizer, prompt, tuple(stops)
        self.raw, self.lead = raw, "" if raw else tokenizer.lead
        self.ids: list[int] = []
        behind = raw or tokenizer.has_template
        self.tokens = prompt[-LETTER:] if behind else []  # without marks, with context
        self.start, self.read = 0, len(self.tokens)  # the window, and what of it is in ``text``
        self.text = self.shown = ""
        self.stopped = False

    def push(self, *ids: int) -> str:
        """Add tokens; returns the text that can be shown now, often a word, sometimes nothing."""
        self.ids += ids
        text = self.text + self.grow(ids)
        text = self.cut("" if self.lead.startswith(text) else text.removeprefix(self.lead))
        if not self.stopped:
            text = text.rstrip("\ufffd")
            text = text[: len(text) - may_begin(text, self.stops)]
        text = text if self.raw else text.rstrip()
        if not text.startswith(self.shown):
            return ""
        piece, self.shown = text[len(self.shown) :], text
        return piece

    def grow(self, ids: Sequence[int]) -> str:
        """The text that new tokens add; ``text`` keeps it unless it ends in half a letter."""
        marks, decode = self.tokenizer.marks.names, self.tokenizer.raw.decode
        self.tokens += [token for token in ids if token not in marks]
        before = decode(self.tokens[self.start : self.read], skip_special_tokens=False)
        after = decode(self.tokens[self.start :], skip_special_tokens=False)
        new = beyond(before, after)
        if new and not new.endswith("\ufffd"):
            self.text += new
            self.start, self.read = self.read, len(self.tokens)
        return new

    def finish(self) -> str:
        """The whole answer."""
        if self.raw:
            whole = GrowingText(self.tokenizer, self.prompt, raw=True)
            return self.cut(whole.grow(self.ids))
        return self.cut(self.tokenizer.answer_text(self.prompt, self.ids)).rstrip()

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
