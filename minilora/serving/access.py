"""Who asks, and whether the JSON is sound: what every endpoint checks first.

A key comes as ``Authorization: Bearer …``. Without any key in the database everybody is the tenant
``local`` and may do everything, which is right on loopback and nowhere else.

**One JSON, one meaning.** ``{"model": "a", "model": "b"}`` is ``a`` to one parser and ``b`` to
another; a proxy that checks the first and a server that takes the second disagree about who may do
what (RFC 8259, section 4: names "SHOULD be unique"). Here it is an error, and so are ``NaN`` and
``Infinity``, which are not JSON.
"""

from __future__ import annotations

import json
import math
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Annotated, Any, TypeVar

from fastapi import Depends, HTTPException
from fastapi.routing import APIRoute
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from .refusals import Refused

MOST_BYTES = 8_000_000  # of a body, where the endpoint does not say
Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])


class StrictRequest(Request):
    """A request whose JSON has each name once, and whose body is not too long."""

    most = MOST_BYTES

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """The body's pieces, which all else reads; ``HTTPException`` (413) once it is too long."""
        size = 0
        async for piece in super().stream():
            size += len(piece)
            if size > self.most:
                raise HTTPException(413, f"expected a body of at most {self.most:,} bytes")
            yield piece

    async def json(self) -> Any:
        """The body. Raises ``json.JSONDecodeError`` and ``HTTPException``, which FastAPI knows."""
        try:
            text = (await self.body()).decode("utf-8")  # RFC 8259, section 8.1
            value = json.loads(
                text,
                object_pairs_hook=each_name_once,
                parse_constant=refuse_constant,
                parse_float=number,
            )
            if "\\ud" in text.lower():  # half a letter can be written, and never sent on
                json.dumps(value, ensure_ascii=False).encode("utf-8")
            return value
        except json.JSONDecodeError:
            raise
        except RecursionError as error:
            raise HTTPException(400, "the JSON is nested too deeply") from error
        except ValueError as error:  # half a letter, a name twice, a number of 5,000 digits
            raise HTTPException(400, f"the body is not sound JSON: {error}") from error


def each_name_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON. Raises ``ValueError`` when a name comes twice."""
    whole = dict(pairs)
    if len(whole) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the name {twice!r:.80} stands twice in one object")
    return whole


def number(text: str) -> float:
    """A number with a point or an exponent; 2.0 is the 2 that 2 is, as JSON has one kind.

    >>> number("2.0"), number("0.5")
    (2, 0.5)
    """
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text:.40} is beyond the largest float")
    return int(value) if value.is_integer() and abs(value) < 2**63 else value


def refuse_constant(name: str) -> float:
    """Python's ``json`` would take them."""
    raise ValueError(f"{name} is not a number of JSON")


class StrictRoute(APIRoute):
    """A route that reads its body so."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's handler, given a ``StrictRequest``."""
        handle = super().get_route_handler()
        most = getattr(self.endpoint, "most_bytes", MOST_BYTES)

        async def strictly(request: Request) -> Response:
            strict = StrictRequest(request.scope, request.receive)
            strict.most = most
            return await handle(strict)

        return strictly


def body_of_at_most(most: int) -> Callable[[Endpoint], Endpoint]:
    """Say of an endpoint how many bytes it takes, below ``@router.post``.

    >>> body_of_at_most(100)(lambda: None).most_bytes
    100
    """

    def say(endpoint: Endpoint) -> Endpoint:
        endpoint.most_bytes = most  # type: ignore[attr-defined]
        return endpoint

    return say


async def caller_of(request: Request) -> Any:
    """The tenant of a request's key. Raises ``Refused`` (401)."""
    tenants = request.app.state.service.tenants
    if tenants is None:
        return None
    given = request.headers.getlist("authorization")
    if len(given) > 1:  # a proxy may have checked the other one
        raise Refused(400, "expected one authorization header, got several")
    kind, _, token = "".join(given).partition(" ")
    return await run_in_threadpool(tenants.who, token.strip() if kind.lower() == "bearer" else None)


Caller = Annotated[Any, Depends(caller_of)]


async def admin_of(caller: Caller) -> Any:
    """The same, of an admin. Raises ``Refused`` (401, 403)."""
    if caller is not None and not caller.admin:
        raise Refused(403, "this needs an admin's key", code="admin_only")
    return caller


Admin = Annotated[Any, Depends(admin_of)]
