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
from typing import Any

from .requests import TokenLogprob
from .streams import Part


def event(data: Any) -> str:
    """One server-sent event (html.spec.whatwg.org, section 9.2).

    >>> event({"a": 1})
    'data: {"a":1}\\n\\n'
    """
    return f"data: {json.dumps(data, separators=(',', ':'))}\n\n"


DONE = "data: [DONE]\n\n"


class Form:
    """What chats and completions share: the counts, and the texts of tokens."""

    whole_object = chunk_object = prefix = ""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer

    def token(self, id: int, logprob: float) -> dict[str, Any]:
        """A token as the API lists it; half a letter has no bytes of its own."""
        text = self.tokenizer.raw.decode([id], skip_special_tokens=False)
        whole = "\ufffd" not in text
        return {"token": text, "logprob": logprob, "bytes": list(text.encode()) if whole else None}

    def whole(self, index: int, parts: Sequence[Part], logprobs: bool) -> dict[str, Any]:
        """One of the choices of a whole answer."""
        raise NotImplementedError

    def chunk(self, part: Part, first: bool, logprobs: bool) -> dict[str, Any]:
        """The choice of a chunk."""
        raise NotImplementedError


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
