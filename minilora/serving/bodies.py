"""The body of a request that is passed on to a server: read whole, and looked into.

The server itself reads its JSON strictly (access.py). Whoever passes a body on needs the model's
name from it and judges nothing else.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from .refusals import Refused

if TYPE_CHECKING:  # an extra
    from starlette.requests import Request

MOST_BYTES = 64_000_000


async def read_body(request: Request) -> bytes:
    """The whole body. Raises ``Refused`` (413) and ``ClientDisconnect``."""
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > MOST_BYTES:
            raise Refused(413, f"expected a body of at most {MOST_BYTES} bytes")
    return bytes(body)


def json_fields(body: bytes) -> dict[str, Any]:
    """A body's fields; none of what is not a JSON object: the server says what is wrong with it.

    >>> json_fields(b'{"model": "naval"}'), json_fields(b"[" * 100_000)
    ({'model': 'naval'}, {})
    """
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return fields if isinstance(fields, dict) else {}
