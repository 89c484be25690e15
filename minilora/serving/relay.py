"""One request on its way to one server, and the answer on its way back.

**Another server may begin until the first byte.** As long as no byte of an answer's body has come,
the client has got nothing, and a failure is ``Unanswered``: the gateway tries another server. From
that byte on there is one answer. If its server dies, the client is told, with an ``error`` event in
a stream and a broken connection otherwise; never a quiet end that looks whole.

**Unbuffered.** Each piece is passed on when it comes, and the next one is read when the client has
taken it, so a slow client slows its own server's sending and nothing piles up here.

Three things are waited for at once: the next piece, the client's leaving, the server's going down.
Whichever comes first ends the others, and ending closes the connection to the server, which frees
the row there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import httpx
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Send

from .events import event
from .refusals import Refused
from .upstreams import Upstream

OWN_HOP = {  # of one connection, not of the message (RFC 9110, section 7.6.1)
    *("connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "te", "trailer"),
    *("transfer-encoding", "upgrade", "host", "content-length"),
}
Headers = list[tuple[bytes, bytes]]


class Unanswered(Exception):
    """A server did not begin an answer; another may. ``sure``: it did not get the request."""

    def __init__(self, reason: str, sure: bool = False, response: Response | None = None):
        super().__init__(reason)
        self.sure, self.response = sure, response


class Relay:
    """One request on its way to one server and back."""

    def __init__(
        self, upstream: Upstream, request: Request, headers: Headers, body: bytes, send: Send
    ):
        self.upstream, self.request, self.headers = upstream, request, headers
        self.body, self.client_send = body, send
        self.begun, self.events = False, False

    async def run(self) -> None:
        """Pass the answer on; returns early when the client leaves. Raises ``Unanswered``."""
        self.upstream.busy += 1
        ways: list[Coroutine[Any, Any, Any]] = [self.relay(), self.gone(), self.lost()]
        tasks = [asyncio.create_task(way) for way in ways]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()  # closes the connection to the server, if it is still open
            results = await asyncio.gather(*tasks, return_exceptions=True)
            self.upstream.busy -= 1
        relayed, left, _ = results
        if left is True or relayed is None:
            return
        failure = relayed if isinstance(relayed, Unanswered) else Unanswered("it went down")
        if not isinstance(relayed, Unanswered | asyncio.CancelledError):
            raise relayed
        if not self.begun:
            raise failure
        await self.break_off()

    async def relay(self) -> None:
        """Send the request, then pass on each piece as it comes. Raises ``Unanswered``."""
        url = f"{self.upstream.address}{self.request.url.path}"
        query = self.request.url.query
        client, method = self.upstream.client, self.request.method
        asked = client.build_request(
            method, f"{url}?{query}" if query else url, headers=self.headers, content=self.body
        )
        try:
            answer = await client.send(asked, stream=True)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            self.upstream.go_down()
            raise Unanswered(str(error), sure=True) from error
        except httpx.TransportError as error:
            raise Unanswered(str(error)) from error
        try:
            pieces = answer.aiter_raw()
            piece: bytes | None = await anext(pieces, b"")
            if answer.status_code == 503:
                whole = (piece or b"") + b"".join([rest async for rest in pieces])
                raise Unanswered("503", True, Response(whole, 503, kept_headers(answer)))
            self.begun = True
            await self.begin(answer)
            while piece is not None:
                await self.client_send(body_message(piece, more=True))
                piece = await anext(pieces, None)
            await self.client_send(body_message(b"", more=False))
        except httpx.TransportError as error:
            raise Unanswered(str(error)) from error
        finally:
            await answer.aclose()

    async def begin(self, answer: httpx.Response) -> None:
        """Status and headers."""
        self.events = answer.headers.get("content-type", "").startswith("text/event-stream")
        own = OWN_HOP - {"content-length"}
        headers = [(k.lower(), v) for k, v in answer.headers.raw if k.lower().decode() not in own]
        start = {"type": "http.response.start", "status": answer.status_code, "headers": headers}
        await self.client_send(start)

    async def gone(self) -> bool:
        """True when the client has left."""
        while (await self.request.receive())["type"] != "http.disconnect":
            pass
        return True

    async def lost(self) -> None:
        """Returns when the server goes down."""
        await self.upstream.down.wait()

    async def break_off(self) -> None:
        """Tell a client whose answer had begun that the rest will not come."""
        if not self.events:
            raise ConnectionError("the server broke off after the first byte")
        lost = Refused(502, "the server was lost in the middle of this answer", code="server_lost")
        await self.client_send(body_message(event(lost.body()).encode(), more=False))


def kept_headers(answer: httpx.Response) -> dict[str, str]:
    """The headers of an answer that is passed on whole: its length is counted anew."""
    return {name: value for name, value in answer.headers.items() if name not in OWN_HOP}


def body_message(piece: bytes, more: bool) -> Message:
    """A piece of a response's body."""
    return {"type": "http.response.body", "body": piece, "more_body": more}
