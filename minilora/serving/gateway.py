"""The gateway: one address before several servers; it loads no model.

    body in → the adapter's servers in order (upstreams.py) → the first that answers → bytes out

A request is tried on one server after another until the first byte of an answer is there
(relay.py). Only what may be done twice is tried again: reading, and asking for text; greedy and
seeded answers are the same on every server. Of another POST nobody knows whether it was done,
unless no connection came about. Where no server is up, a request waits for one to come back.

Adapters that are loaded by request are loaded on every server of their domain, and again on one
that comes back.

Left out: TLS, several machines (``scale/``), and bodies above 64 MB.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
from collections.abc import Sequence
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import Receive, Scope, Send

from .bodies import json_fields, read_body
from .refusals import Refused, wait_first
from .relay import OWN_HOP, Headers, Relay, Unanswered, kept_headers
from .upstreams import Upstream, candidates, of_domain

logger = logging.getLogger("minilora.serving")

PATIENCE = 30.0  # seconds that a request waits for a server to come back
GENERATION = ("/v1/chat/completions", "/v1/completions")
OWN = ("/health", "/ready", "/metrics")
LOAD, UNLOAD = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"


class Gateway:
    """An ASGI application; ``async with`` it for as long as it serves.

    >>> gateway = Gateway([Upstream("w0", "http://127.0.0.1:8001")], patience=0.0)
    >>> gateway.patience
    0.0
    """

    def __init__(self, upstreams: Sequence[Upstream], patience: float = PATIENCE):
        self.upstreams, self.patience = list(upstreams), patience
        self.loads: dict[str, tuple[Headers, bytes]] = {}  # by adapter: what loaded it
        self.tasks: list[asyncio.Task[None]] = []
        self.changing = asyncio.Lock()  # of what the servers have loaded: one change at a time

    async def __aenter__(self) -> Gateway:
        self.tasks = [asyncio.create_task(self.watch(each)) for each in self.upstreams]
        return self

    async def __aexit__(self, *_: Any) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        for upstream in self.upstreams:
            await upstream.client.aclose()

    async def watch(self, upstream: Upstream) -> None:
        """Ask a server again and again whether it is ready."""
        while True:
            await upstream.check(self.prepare)
            await asyncio.sleep(1.0 if upstream.up.is_set() else 0.2)

    async def prepare(self, upstream: Upstream) -> None:
        """Load on a server that comes back what the others have; it is up before that changes."""
        async with self.changing:
            for name, (headers, body) in list(self.loads.items()):
                if upstream in of_domain(self.upstreams, name):
                    url = f"{upstream.address}{LOAD}"
                    post = upstream.client.post
                    answer = await post(url, headers=headers, content=body, timeout=60.0)
                    if answer.status_code != 200:  # the key was revoked, or the folder is gone
                        logger.warning(
                            "%s came back without %s: %s", upstream.name, name, answer.text[:200]
                        )
            upstream.come_up()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        request = Request(scope, receive)
        try:
            body = await read_body(request)
            response = await self.answer(request, body, send)
        except ClientDisconnect:
            return
        except Refused as refused:
            response = JSONResponse(refused.body(), refused.status, refused.headers)
        if response is not None:
            await response(scope, receive, send)

    async def answer(self, request: Request, body: bytes, send: Send) -> Response | None:
        """A response, or None when it has been sent already. Raises ``Refused``."""
        path, well = request.url.path, [u for u in self.upstreams if u.up.is_set()]
        if path in OWN and request.method != "GET":
            raise Refused(405, "Method Not Allowed", headers={"allow": "GET"})
        if path in ("/health", "/ready"):
            if not well:
                raise wait_first(2, "no server is ready", 503, "no_server")
            return JSONResponse({"status": "ok" if path == "/health" else "ready"})
        if path == "/metrics":
            return await merged_metrics(well, forwarded_headers(request))
        fields = json_fields(body) if request.method == "POST" else {}
        if path in (LOAD, UNLOAD):
            async with self.changing:
                return await self.on_all(path, forwarded_headers(request), body, fields)
        model = fields.get("model") if path in GENERATION else None
        return await self.forward(request, body, send, model if isinstance(model, str) else None)

    async def forward(
        self, request: Request, body: bytes, send: Send, model: str | None
    ) -> Response | None:
        """Try the servers in turn until one begins to answer. Raises ``Refused``."""
        again = request.method in ("GET", "HEAD") or request.url.path in GENERATION
        loop, tried, last = asyncio.get_running_loop(), set[Upstream](), None
        end = loop.time() + self.patience
        headers = forwarded_headers(request)
        while True:
            left = [each for each in candidates(self.upstreams, model) if each not in tried]
            if not left:
                if last is not None or not await self.somebody(model, end - loop.time()):
                    break
                tried.clear()
                continue
            relay = Relay(left[0], request, headers, body, send)
            try:
                await relay.run()
                return None
            except Unanswered as failure:
                tried.add(left[0])
                last = failure.response
                if not (again or failure.sure):
                    message = "the server broke off; whether it did what was asked is not known"
                    raise Refused(502, message, code="server_lost") from failure
        if last is not None:
            return last
        raise wait_first(2, "no server is ready: ask again", 503, "no_server")

    async def somebody(self, model: str | None, seconds: float) -> bool:
        """Wait until a server is up that may answer; False after so many seconds."""
        pool = of_domain(self.upstreams, (model or "").partition("@")[0])
        if seconds <= 0:
            return False
        tasks = [asyncio.create_task(each.up.wait()) for each in pool]
        done, _ = await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        if done:
            await asyncio.sleep(0.05)  # one that answers nothing is not asked in a tight loop
        return bool(done)

    async def on_all(
        self, path: str, headers: Headers, body: bytes, fields: dict[str, Any]
    ) -> Response:
        """Load or unload on every server of the adapter's domain; the first refusal is the answer.

        Raises ``Refused``.
        """
        name = str(fields.get("lora_name"))
        pool = [each for each in of_domain(self.upstreams, name) if each.up.is_set()]
        answer: httpx.Response | None = None
        try:
            for each in pool:
                url = f"{each.address}{path}"
                answer = await each.client.post(url, headers=headers, content=body, timeout=60.0)
                if answer.status_code >= 400:
                    break
        except httpx.HTTPError as error:
            raise wait_first(2, f"not on every server: {error}", 503, "server_lost") from error
        if answer is None:
            raise wait_first(2, "no server is ready", 503, "no_server")
        if answer.status_code < 400:
            self.loads.pop(name, None)
            if path == LOAD:
                self.loads[name] = headers, body
        return Response(answer.content, answer.status_code, kept_headers(answer))


def forwarded_headers(request: Request) -> Headers:
    """The request's headers for a server; each try has the same ``x-request-id``."""
    headers = [(k, v) for k, v in request.headers.raw if k.decode("latin-1") not in OWN_HOP]
    if "x-request-id" not in request.headers:
        headers.append((b"x-request-id", secrets.token_hex(12).encode()))
    return headers


async def merged_metrics(upstreams: Sequence[Upstream], headers: Headers) -> Response:
    """Every server's metrics as one text, told apart by the label ``worker``."""
    lines: dict[str, list[str]] = {}
    for upstream in upstreams:
        answer = await upstream.client.get(f"{upstream.address}/metrics", headers=headers)
        if answer.status_code != 200:
            return Response(answer.content, answer.status_code, kept_headers(answer))
        for family in text_string_to_metric_families(answer.text):
            head = [f"# HELP {family.name} {family.documentation}"]
            head.append(f"# TYPE {family.name} {family.type}")
            block = lines.setdefault(family.name, head)
            for sample in family.samples:
                labels = {**sample.labels, "worker": upstream.name}
                text = ",".join(f"{key}={json.dumps(value)}" for key, value in labels.items())
                block.append(f"{sample.name}{{{text}}} {sample.value}")
    text = "".join(f"{line}\n" for block in lines.values() for line in block)
    return PlainTextResponse(text, media_type="text/plain; version=0.0.4; charset=utf-8")
