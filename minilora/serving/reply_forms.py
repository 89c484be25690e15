"""How an answer is written down: whole or in chunks, as a chat or as a completion.

    whole     {"id", "object", "created", "model", "choices": [{"index", "message" or "text", …}],
               "usage"}
    stream    data: {…, "choices": [{"index", "delta" or "text", …}]}        one event a piece
              data: {…, "choices": [], "usage": {…}}                         with include_usage
              data: [DONE]

``finish_reason`` is the truth: ``length`` where the answer was cut, although
``client.chat.completions.stream()`` raises ``LengthFinishReasonError`` for it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from .events import event
from .requests import TokenLogprob
from .streams import Part

BLANK = "\0"  # where a text will stand


class Form:
    """What chats and completions share: the counts, and the texts of tokens."""

    whole_object = chunk_object = prefix = ""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer

    @cached_property
    def before(self) -> list[int]:
        """A token that ends in a letter."""
        return self.tokenizer.encode("a")[-1:]

    def token(self, id: int, logprob: float) -> dict[str, Any]:
        """A token as the API lists it; half a letter has no bytes of its own.

        Read behind another token: many decoders drop a space where a text begins.
        """
        decode = self.tokenizer.raw.decode
        before = decode(self.before, skip_special_tokens=False)
        text = decode([*self.before, id], skip_special_tokens=False)[len(before) :]
        whole = "\ufffd" not in text
        return {"token": text, "logprob": logprob, "bytes": list(text.encode()) if whole else None}

    def whole(self, index: int, parts: Sequence[Part], logprobs: bool) -> dict[str, Any]:
        """One of the choices of a whole answer."""
        raise NotImplementedError

    def chunk(self, part: Part, first: bool, logprobs: bool) -> dict[str, Any]:
        """The choice of a chunk."""
        raise NotImplementedError


class Pieces:
    """The events of a stream's pieces of text: they differ in their text alone, so the rest is
    written once.

    >>> pieces = Pieces({"id": "chatcmpl-1"}, ChatForm(tokenizer=None))
    >>> print(pieces.event(Part(0, "Hull", (), None)).strip())
    data: {"id":"chatcmpl-1","choices":[{"index":0,"delta":{"content":"Hull"},"logprobs":null,"fin\
ish_reason":null}]}
    """

    def __init__(self, head: dict[str, Any], form: Form):
        self.head, self.form = head, form
        self.around: dict[int, list[str]] = {}  # of each choice: before and after the text

    def event(self, part: Part) -> str:
        """The event of a part that is neither the first of its choice nor the last."""
        if part.index not in self.around:
            choice = self.form.chunk(replace(part, text=BLANK), False, False)
            whole = event({**self.head, "choices": [choice]})
            self.around[part.index] = whole.rsplit(json.dumps(BLANK), 1)
        before, after = self.around[part.index]
        return f"{before}{json.dumps(part.text)}{after}"


def text_of(parts: Sequence[Part]) -> str:
    """The text of one answer's parts."""
    return "".join(part.text for part in parts)


def logprobs_of(parts: Sequence[Part]) -> list[TokenLogprob]:
    """The log probabilities of one answer's parts."""
    return [each for part in parts for each in part.logprobs]


def reason_of(parts: Sequence[Part]) -> str | None:
    """Why the answer ended; None: it has not."""
    end = parts[-1].end
    return None if end is None else end.reason


class ChatForm(Form):
    """``chat.completion`` and ``chat.completion.chunk``."""

    whole_object, chunk_object = "chat.completion", "chat.completion.chunk"
    prefix = "chatcmpl"

    def listed(self, logprobs: Sequence[TokenLogprob]) -> dict[str, Any]:
        """Log probabilities, token by token."""
        content = []
        for each in logprobs:
            top = [self.token(*pair) for pair in each.top]
            content.append({**self.token(each.id, each.logprob), "top_logprobs": top})
        return {"content": content}

    def whole(self, index: int, parts: Sequence[Part], logprobs: bool) -> dict[str, Any]:
        """One of the choices of a whole answer."""
        return {
            "index": index,
            "message": {"role": "assistant", "content": text_of(parts)},
            "logprobs": self.listed(logprobs_of(parts)) if logprobs else None,
            "finish_reason": reason_of(parts),
        }

    def chunk(self, part: Part, first: bool, logprobs: bool) -> dict[str, Any]:
        """The choice of a chunk; the first one says who speaks."""
        delta = {"role": "assistant"} if first else {}
        return {
            "index": part.index,
            "delta": {**delta, "content": part.text} if part.text or first else delta,
            "logprobs": self.listed(part.logprobs) if logprobs else None,
            "finish_reason": reason_of([part]),
        }


class TextForm(Form):
    """``text_completion``, whole and in chunks."""

    whole_object = chunk_object = "text_completion"
    prefix = "cmpl"

    def listed(self, logprobs: Sequence[TokenLogprob], offset: int) -> dict[str, Any]:
        """Log probabilities as lists side by side; ``offset``: where the text begins."""
        tokens = [self.token(each.id, each.logprob) for each in logprobs]
        texts, offsets = [token["token"] for token in tokens], []
        for text in texts:
            offsets.append(offset)
            offset += len(text)
        top = [{self.token(*pair)["token"]: pair[1] for pair in each.top} for each in logprobs]
        values = [each.logprob for each in logprobs]
        lists = {"tokens": texts, "token_logprobs": values, "top_logprobs": top}
        return {**lists, "text_offset": offsets}

    def whole(self, index: int, parts: Sequence[Part], logprobs: bool) -> dict[str, Any]:
        """One of the choices of a whole answer."""
        return {
            "index": index,
            "text": text_of(parts),
            "logprobs": self.listed(logprobs_of(parts), 0) if logprobs else None,
            "finish_reason": reason_of(parts),
        }

    def chunk(self, part: Part, first: bool, logprobs: bool) -> dict[str, Any]:
        """The choice of a chunk; its offsets count from its own beginning."""
        return self.whole(part.index, [part], logprobs)
