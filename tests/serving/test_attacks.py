"""What a hostile client may send: nobody else notices, and it is told what is wrong."""

import json
import socket
import time

import httpx
import pytest

from minilora.serving.tenants import Tenants

from .live import serving, small_service

CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    tenants = Tenants(tmp_path_factory.mktemp("keys") / "keys")
    return tenants, tenants.add("boss", admin=True), tenants.add("acme", ["a"])


@pytest.fixture(scope="module")
def address(keys):
    with serving(small_service(tenants=keys[0])) as address:
        yield address


@pytest.fixture
def http(address, keys):
    headers = {"authorization": f"Bearer {keys[2]}", "content-type": "application/json"}
    with httpx.Client(base_url=address, headers=headers, timeout=30) as client:
        yield client
        assert client.get("/health").status_code == 200, "it goes on"


def body(**fields):
    message = {"role": "user", "content": "hi"}
    return {"model": "a", "messages": [message], **fields}


def raw(address, text, seconds=3.0):
    """What comes back for bytes on the wire, until the server closes or says no more."""
    host, port = address.removeprefix("http://").split(":")
    told = b""
    with socket.create_connection((host, int(port)), timeout=seconds) as connection:
        connection.sendall(text)
        try:
            while piece := connection.recv(65536):
                told += piece
        except (TimeoutError, ConnectionError):
            pass
    return told


SURROGATES = {
    "a user": '"user": "\\ud800"',
    "a stop": '"stop": "\\uD83D"',
    "a field": '"\\ud800": 1',
    "a message": '"messages": [{"role": "user", "content": "\\udfff"}]',
}


@pytest.mark.parametrize("case", SURROGATES)
def test_half_a_letter_is_a_400(http, case):
    start = '{"model": "a", "max_tokens": 2, '
    rest = "" if case == "a message" else ', "messages": [{"role": "user", "content": "x"}]'
    got = http.post(CHAT, content=start + SURROGATES[case] + rest + "}")
    assert (got.status_code, "not sound JSON" in got.text) == (400, True)
    whole = start + '"user": "\\ud83d\\ude00"' + rest.replace("x", "\\ud83d\\ude00") + "}"
    if rest:
        assert http.post(CHAT, content=whole).status_code == 200


@pytest.mark.parametrize(
    "content", [b'{"model": "\xed\xa0\x80"}', '{"model": "a"}'.encode("utf-16"), b"\xff\xfe"]
)
def test_json_is_utf_8(http, content):
    assert http.post(CHAT, content=content).status_code == 400


NUMBERS = [
    {"top_p": 1e-320, "temperature": 1},
    {"temperature": 1e-300},
    {"temperature": 2, "top_p": 5e-324, "top_k": 1},
    {"seed": -(2**63), "temperature": 1},
    {"max_tokens": 2**31},
    {"n": 16, "max_tokens": 1},
]


@pytest.mark.parametrize("fields", NUMBERS, ids=range(len(NUMBERS)))
def test_numbers_at_the_edge_are_answered(http, fields):
    got = http.post(CHAT, json=body(**{"max_tokens": 3, **fields}))
    assert got.status_code == 200, got.text


BAD_NUMBERS = ['"temperature": NaN', '"temperature": 1e999', '"n": 1000000000', '"top_p": -0.0']


@pytest.mark.parametrize("field", BAD_NUMBERS)
def test_numbers_beyond_it_are_refused(http, field):
    text = json.dumps(body())[:-1] + f", {field}" + "}"
    assert http.post(CHAT, content=text).status_code == 400


def test_a_text_that_cannot_fit_is_refused_before_its_tokens_are_counted(http, monkeypatch):
    def never(*_, **__):
        raise AssertionError("it was read")

    from minilora.model.tokenizer import Tokenizer

    monkeypatch.setattr(Tokenizer, "apply_chat_template", never)
    long = [{"role": "user", "content": "x " * 1_000_000}]
    many = [{"role": "user", "content": "x"}] * 50_000
    for messages in (long, many):
        got = http.post(CHAT, json=body(messages=messages))
        assert (got.status_code, got.json()["error"]["code"]) == (400, "context_length_exceeded")


def test_a_body_that_is_too_large_is_an_error_in_the_usual_shape(http):
    got = http.post(CHAT, json=body(user="x" * 9_000_000))
    assert (got.status_code, "at most 8,000,000 bytes" in got.text) == (413, True)
    assert got.headers["x-request-id"]


def test_two_authorizations_are_refused_in_either_order(address, keys):
    _, boss, acme = keys
    for pair in ((boss, acme), (acme, boss)):
        lines = "".join(f"Authorization: Bearer {key}\r\n" for key in pair)
        told = raw(address, f"GET /metrics HTTP/1.1\r\nHost: x\r\n{lines}\r\n".encode(), 1)
        assert told.startswith(b"HTTP/1.1 400")


SMUGGLED = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"
FRAMES = {
    "both": b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "two lengths": b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef" + SMUGGLED,
    "a negative one": b"Content-Length: -5\r\n\r\n" + SMUGGLED,
    "a space": b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
}


@pytest.mark.parametrize("case", FRAMES)
def test_no_request_hides_in_another(address, case):
    told = raw(address, f"POST {CHAT} HTTP/1.1\r\nHost: x\r\n".encode() + FRAMES[case])
    assert told.startswith(b"HTTP/1.1 400")
    assert told.count(b"HTTP/1.1") == 1


def test_headers_of_a_megabyte_are_refused(address, http):
    told = raw(address, b"GET /health HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 10**6 + b"\r\n\r\n")
    assert told.startswith(b"HTTP/1.1 4") or told == b""


def test_two_hundred_half_requests_hold_nobody_up(address, http):
    host, port = address.removeprefix("http://").split(":")
    half = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n".encode()
    open_ones = [socket.create_connection((host, int(port))) for _ in range(200)]
    try:
        for connection in open_ones:
            connection.sendall(half)
        began = time.monotonic()
        assert http.post(CHAT, json=body(max_tokens=2)).status_code == 200
        assert time.monotonic() - began < 5
    finally:
        for connection in open_ones:
            connection.close()
