"""``/v1/chat/completions`` and ``/v1/completions``: whole, or in pieces.

Both are one path with two forms (reply_forms.py). A stream begins when its first token is there;
until then what goes wrong is an ordinary error with a status. What goes wrong later is an event
with ``error``, which the official client raises.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from .access import Caller, StrictRoute
from .events import DONE, event
from .generation import Generation
from .protocol import ChatRequest, CompletionRequest
from .refusals import Refused
from .replies import ERRORS, ChatReply, CompletionReply
from .reply_forms import ChatForm, Form, Pieces, TextForm
from .streams import Part

router = APIRouter(route_class=StrictRoute, tags=["generation"])
EVENT = {"type": "object", "properties": {"data": {"type": "string"}}, "required": ["data"]}
STREAM = {"text/event-stream": {"schema": EVENT}}


def described(reply: Any) -> dict[int | str, dict[str, Any]]:
    """The responses in ``/openapi.json``."""
    return {200: {"model": reply, "content": STREAM}, **ERRORS}


@router.post("/v1/chat/completions", responses=described(ChatReply))
async def chat(asked: ChatRequest, request: Request, caller: Caller) -> Response:
    """The next message of a conversation."""
    return await respond(asked, request, caller, ChatForm)


@router.post("/v1/completions", responses=described(CompletionReply))
async def complete(asked: CompletionRequest, request: Request, caller: Caller) -> Response:
    """What comes after a text."""
    return await respond(asked, request, caller, TextForm)


async def respond(
    asked: ChatRequest | CompletionRequest, request: Request, tenant: Any, form_of: type[Form]
) -> Response:
    """Generate, and write it down. Raises ``Refused``."""
    service = request.app.state.service
    generation = Generation(service, request, tenant, asked)
    sent = Sent(generation, form_of(service.engine.model.tokenizer))
    parts: AsyncGenerator[Part, None] = generation.parts()  # type: ignore[assignment]
    if asked.stream:
        first = await anext(parts)
        return EventStream(sent.events(first, parts), headers=sent.headers())
    async with aclosing(parts):
        every = [part async for part in parts]
    if any(part.end is not None and part.end.reason == "cancelled" for part in every):
        return Response(status_code=499)  # nobody reads it: the client has left
    return JSONResponse(sent.whole(every), headers=sent.headers())


class EventStream(StreamingResponse):
    """Server-sent events from an asynchronous generator, which is closed whatever happens.

    Starlette's own class waits for the client to leave; streams.py does that already, for answers
    in JSON too.
    """

    media_type = "text/event-stream"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        async with aclosing(self.body_iterator):  # type: ignore[type-var]
            await self.stream_response(send)


class Sent:
    """A generation as it is sent."""

    def __init__(self, generation: Generation, form: Form):
        self.generation, self.form = generation, form

    def head(self, object: str) -> dict[str, Any]:
        """What every chunk and every whole answer says."""
        generation, service = self.generation, self.generation.service
        target = generation.target
        digest = (target and target.digest) or "base"
        return {
            "id": f"{self.form.prefix}-{generation.id}",
            "object": object,
            "created": generation.created,
            "model": target.model if target else generation.asked.model,
            "system_fingerprint": f"fp_{service.bank.fingerprint.tensors[:12]}_{digest[:12]}",
        }

    def origin(self) -> dict[str, Any]:
        """Which adapter answered, and why."""
        target = self.generation.target
        assert target is not None
        return {"adapter": target.adapter, "digest": target.digest, "why": target.why}

    def headers(self) -> dict[str, str]:
        """The same for who reads no body."""
        target = self.generation.target
        assert target is not None
        return {
            "x-minilora-adapter": target.adapter or self.generation.service.base_name,
            "x-minilora-digest": target.digest or "",
            "x-minilora-cache": "hit" if self.generation.replayed else "miss",
            "cache-control": "no-store",
        }

    def usage(self) -> dict[str, int]:
        """Tokens so far."""
        prompt, generated = self.generation.prompt_tokens, self.generation.generated
        counts = {"prompt_tokens": prompt, "completion_tokens": generated}
        return {**counts, "total_tokens": prompt + generated}

    @property
    def logprobs(self) -> bool:
        """Whether they were asked for."""
        return self.generation.asked.top_logprobs_wanted is not None

    def whole(self, parts: list[Part]) -> dict[str, Any]:
        """The answers in one piece."""
        choices = []
        for index in range(len(self.generation.answers)):
            own = [part for part in parts if part.index == index]
            choices.append(self.form.whole(index, own, self.logprobs))
        head = self.head(self.form.whole_object)
        return {**head, "choices": choices, "usage": self.usage(), "minilora": self.origin()}

    async def events(self, first: Part, parts: AsyncGenerator[Part, None]) -> AsyncIterator[str]:
        """The answers as they come."""
        options = self.generation.asked.stream_options
        counted = options is not None and bool(options.include_usage)
        head: dict[str, Any] = self.head(self.form.chunk_object)
        if counted:
            head["usage"] = None
        written = Pieces(head, self.form)
        begun: set[int] = set()
        async with aclosing(parts):
            try:
                part: Part | None = first
                while part is not None:
                    if part.index in begun and part.end is None and not self.logprobs:
                        if part.text:
                            yield written.event(part)
                    else:
                        origin = {} if begun else {"minilora": self.origin()}
                        choice = self.form.chunk(part, part.index not in begun, self.logprobs)
                        if part.text or part.end is not None or choice.get("delta"):
                            begun.add(part.index)
                            yield event({**head, "choices": [choice], **origin})
                    part = await anext(parts, None)
            except Refused as refused:  # the status is gone: the client raises this event
                yield event(refused.body())
                return
        if counted:
            yield event({**head, "choices": [], "usage": self.usage()})
        yield DONE
