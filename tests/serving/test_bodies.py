"""A body that is passed on: whole up to its limit, and read for the model's name alone."""

import asyncio

import pytest
from starlette.requests import Request

from minilora.serving import bodies
from minilora.serving.bodies import json_fields, read_body
from minilora.serving.refusals import Refused


def request_of(*pieces):
    """A request whose body comes in pieces."""
    left = [
        {"type": "http.request", "body": piece, "more_body": number < len(pieces)}
        for number, piece in enumerate(pieces, 1)
    ]

    async def receive():
        return left.pop(0)

    return Request({"type": "http", "method": "POST", "headers": []}, receive)


def test_a_body_may_have_as_many_bytes_as_its_limit(monkeypatch):
    monkeypatch.setattr(bodies, "MOST_BYTES", 10)
    assert asyncio.run(read_body(request_of(b"01234", b"56789"))) == b"0123456789"
    with pytest.raises(Refused, match="at most 10 bytes") as refused:
        asyncio.run(read_body(request_of(b"01234", b"567890")))
    assert refused.value.status == 413


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b"3", b"\xff", b"[" * 100_000], ids=range(6))
def test_what_is_no_object_has_no_fields(body):
    assert json_fields(body) == {}
