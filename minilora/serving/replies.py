"""What is answered over HTTP, field by field: the types behind ``/openapi.json``.

Beyond OpenAI's fields a response has ``minilora``: which adapter answered, the sha256 of its
content, and why it was this one. ``system_fingerprint`` is made of the base's and the adapter's, so
that two answers with one fingerprint came from the same numbers.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel


class ErrorDetail(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorReply(BaseModel):
    """Every error has this shape."""

    error: ErrorDetail


class Origin(BaseModel):
    """Who answered: ``adapter`` is None for the base, ``digest`` is of its tensors and config."""

    adapter: str | None
    digest: str | None
    why: str


class Usage(BaseModel):
    """Tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Reply(BaseModel):
    """What all answers have."""

    id: str
    created: int
    model: str
    system_fingerprint: str
    usage: Usage | None = None
    minilora: Origin | None = None


class TopLogprob(BaseModel):
    """A token and its log probability; ``bytes`` is None where its text is half a letter."""

    token: str
    logprob: float
    bytes: list[int] | None


class ChatLogprob(TopLogprob):
    """A token of the answer, and the likeliest in its place."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    """Of an answer's tokens."""

    content: list[ChatLogprob]


class AnswerMessage(BaseModel):
    """The answer."""

    role: Literal["assistant"]
    content: str


class ChatChoice(BaseModel):
    """One of the ``n`` answers."""

    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length"]


class ChatReply(Reply):
    """``chat.completion``."""

    object: Literal["chat.completion"]
    choices: list[ChatChoice]


class TextLogprobs(BaseModel):
    """Of an answer's tokens, as lists side by side."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class TextChoice(BaseModel):
    """One answer."""

    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: Literal["stop", "length"]


class CompletionReply(Reply):
    """``text_completion``."""

    object: Literal["text_completion"]
    choices: list[TextChoice]


class ModelCard(BaseModel):
    """A model that this key may use; an adapter has the base as its ``parent``."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "minilora"
    root: str | None = None
    parent: str | None = None


class ModelList(BaseModel):
    """All of them."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class Status(BaseModel):
    """``/health`` and ``/ready``."""

    status: str


PLAIN: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/plain": {"schema": {"type": "string"}}}}
}
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorReply} for status in (400, 401, 403, 404, 413, 429, 500, 503)
}
