"""A body to the byte, a name once, a number as JSON means it, and who is an admin."""

import asyncio
from decimal import Decimal

import pytest
from fastapi import HTTPException

from minilora.serving import access
from minilora.serving.refusals import Refused
from minilora.serving.tenants import LOCAL, Tenant


def request_of(*pieces):
    """A request whose body arrives in these pieces, once."""
    messages = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]
    messages.append({"type": "http.request", "body": b"", "more_body": False})
    arriving = iter(messages)

    async def receive():
        return next(arriving)

    return access.StrictRequest({"type": "http", "headers": []}, receive)


def test_a_body_may_have_just_so_many_bytes_and_is_read_once(monkeypatch):
    monkeypatch.setattr(access.StrictRequest, "most", 10)
    whole = request_of(b"01234", b"56789")
    assert asyncio.run(whole.body()) == b"0123456789"
    assert asyncio.run(whole.body()) == b"0123456789", "the second time it is remembered"
    with pytest.raises(HTTPException, match="at most 10 bytes") as refused:
        asyncio.run(request_of(b"01234", b"567890", b"never read").body())
    assert refused.value.status_code == 413


@pytest.mark.parametrize("text", ['{"a": 1, "a": 2}', '{"b": [{"a": 1, "c": 0, "a": 1}]}'])
def test_a_name_that_stands_twice_is_named(text):
    with pytest.raises(HTTPException, match="the name 'a' stands twice in one object") as refused:
        asyncio.run(request_of(text.encode()).json())
    assert refused.value.status_code == 400


NUMBERS = ["0.0", "-3.0", "1e3", "25e-1", "12.5e1", "4503599627370497.0", "9e18", "1e19", "-1e19"]


@pytest.mark.parametrize("text", NUMBERS)
def test_a_whole_number_is_an_integer_however_it_is_written_up_to_64_bits(text):
    exact, got = Decimal(text), access.number(text)
    assert got == float(exact)
    whole = exact == exact.to_integral_value() and abs(exact) < 2**63
    assert type(got) is (int if whole else float)
    assert asyncio.run(request_of(f"[{text}]".encode()).json()) == [got]


@pytest.mark.parametrize("text", ["1e400", "-1.5e309"])
def test_a_number_beyond_all_floats_is_no_infinity(text):
    with pytest.raises(HTTPException, match="beyond the largest float") as refused:
        asyncio.run(request_of(f"[{text}]".encode()).json())
    assert refused.value.status_code == 400


def test_only_an_admin_is_one_and_a_server_without_keys_has_no_others():
    for caller in (None, LOCAL, Tenant("boss", admin=True)):
        assert asyncio.run(access.admin_of(caller)) is caller
    with pytest.raises(Refused) as refused:
        asyncio.run(access.admin_of(Tenant("acme")))
    assert (refused.value.status, refused.value.code) == (403, "admin_only")
