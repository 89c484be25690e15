"""The application: endpoints, one shape for every error, an id for every request.

    create_app(service, routers=…)      an ASGI application, for uvicorn or a test

Errors come from four places, and leave in one shape, OpenAI's ``{"error": {message, type, param,
code}}``: what we refuse (``Refused``), what pydantic finds wrong (FastAPI would say 422 and a list;
the API says 400 and a sentence), what Starlette refuses (404, 405 with its ``Allow``: headers are
kept), and what is our own fault, which is logged with the request's id and told without details.

Left out: CORS, so no web page of another origin can call it; TLS, which a proxy in front does.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from . import audit_routes, completions, health, model_routes, page_routes, traffic_routes
from .refusals import Refused
from .service import Service
from .streams import Doorbells

METHODS = ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT")
SANE_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
logger = logging.getLogger("minilora.serving")


def create_app(service: Service, *, routers: Sequence[APIRouter] = ()) -> FastAPI:
    """The server of a service. ``routers``: what other parts add, such as the fine-tuning API.

    The engine starts and ends with the application.

    >>> import minilora
    >>> from minilora.serving import AdapterBank, Engine, Service
    >>> bank = AdapterBank(minilora.load_base())
    >>> app = create_app(Service(Engine(bank), bank))
    >>> sorted(path for path in app.openapi()["paths"] if "completions" in path)
    ['/v1/chat/completions', '/v1/completions']
    """
    app = Application(
        title="minilora",
        docs_url=None,  # Swagger's page would load scripts from elsewhere
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.service = service
    own = (completions.router, model_routes.router, traffic_routes.router)
    for router in (*own, audit_routes.router, page_routes.router, health.router, *routers):
        app.include_router(router)
    app.add_exception_handler(Refused, on_refused)
    app.add_exception_handler(RequestValidationError, on_invalid)
    app.add_exception_handler(HTTPException, on_http_error)
    app.add_exception_handler(Exception, on_our_fault)
    return app


class Application(FastAPI):
    """FastAPI, with ``RequestIds`` around all of it, its own refusals too."""

    def build_middleware_stack(self) -> ASGIApp:
        """What stands between the socket and the endpoints."""
        return RequestIds(super().build_middleware_stack())


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """The engine's thread, as long as the application runs."""
    service: Service = app.state.service
    app.state.bells = Doorbells(asyncio.get_running_loop())
    service.metrics.watch(service.engine)
    with service.engine:
        yield
        service.draining = True


def refusal(refused: Refused) -> JSONResponse:
    """A refusal as a response."""
    return JSONResponse(refused.body(), refused.status, refused.headers)


async def on_refused(request: Request, error: Any) -> JSONResponse:
    """What the server's parts raise."""
    return refusal(error)


async def on_invalid(request: Request, error: Any) -> JSONResponse:
    """The first thing that pydantic found, as a sentence."""
    return refusal(invalid(error.errors()[0]))


def invalid(found: dict[str, Any]) -> Refused:
    """One of pydantic's findings.

    >>> found = {"type": "int_type", "loc": ("body", "n"), "msg": "Input should be …", "input": "x"}
    >>> invalid(found).message
    "n: Input should be …, got 'x'"
    """
    if found["type"] == "json_invalid":
        return Refused(400, f"the body is not sound JSON: {found['ctx']['error']}")
    place = [str(part) for part in found["loc"][1:]]
    if found["type"] == "extra_forbidden":
        return Refused(
            400,
            f"unknown field {'.'.join(place)!r:.200}: this server would have to ignore it",
            param=".".join(place)[:200],
            code="unknown_parameter",
        )
    got = f", got {found['input']!r:.80}" if found["type"] != "missing" and place else ""
    name = ".".join(place) or "the body"
    return Refused(400, f"{name}: {found['msg']}{got}", param=".".join(place) or None)


async def on_http_error(request: Request, error: Any) -> JSONResponse:
    """What Starlette refuses; its headers are kept, and ``Allow`` is of all the path's routes."""
    headers = dict(error.headers or {})
    if error.status_code == 405:
        headers["Allow"] = ", ".join(methods_of(request.app, request.scope))
    return refusal(Refused(error.status_code, str(error.detail), headers=headers))


def methods_of(app: FastAPI, scope: Scope) -> list[str]:
    """What can be done with a path; Starlette knows its first route's methods only."""
    return sorted(
        method
        for method in METHODS
        if any(
            route.matches({**scope, "method": method})[0] is Match.FULL
            for route in app.router.routes
        )
    )


async def on_our_fault(request: Request, error: Exception) -> JSONResponse:
    """A bug: whose it is stands in the log, under the id that the client gets."""
    name = getattr(request.state, "request_id", "?")
    logger.error("request %s failed", name, exc_info=error)
    message = f"something went wrong in the server; request {name} in its log"
    headers = {"x-request-id": name}  # this one passes by RequestIds
    return refusal(Refused(500, message, code="internal_error", headers=headers))


class RequestIds:
    """Each request has an id, the client's own ``x-request-id`` or a new one, and is told it.

    Before anything reads it: a request with both ``Content-Length`` and ``Transfer-Encoding`` may
    be one to a proxy and two to us (RFC 9112, section 6.3), so it is refused.
    """

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Name one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        name = given if SANE_ID.fullmatch(given) else secrets.token_hex(12)
        scope.setdefault("state", {})["request_id"] = name

        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["x-request-id"] = name
            await send(message)

        if "content-length" in headers and "transfer-encoding" in headers:
            words = "expected Content-Length or Transfer-Encoding, got both"
            closing = {"connection": "close"}
            await refusal(Refused(400, words, headers=closing))(scope, receive, named)
            return
        await self.app(scope, receive, named)
