"""A request that does not arrive ends its connection, and an answer that takes long does not."""

import socket
import time

import httpx
import pytest

from minilora.serving import slow_clients
from minilora.serving.slow_clients import ImpatientProtocol

from .live import serving, small_service

PARTS = {
    "nothing": b"",
    "half a header": b"GET /health HTTP/1.1\r\nHo",
    "half a body": b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n{",
    "another half": b"GET /health HTTP/1.1\r\nHost: x\r\n\r\nGET /he",
}


@pytest.fixture
def address(monkeypatch):
    monkeypatch.setattr(slow_clients, "ARRIVES_IN", 0.4)
    service = small_service()
    submit = service.engine.submit

    def slowly(*values, **named):
        time.sleep(0.8)
        return submit(*values, **named)

    service.engine.submit = slowly
    with serving(service, http=ImpatientProtocol, timeout_keep_alive=1) as address:
        yield address


def seconds_until_closed(address, text, trickle=b""):
    host, port = address.removeprefix("http://").split(":")
    began = time.monotonic()
    with socket.create_connection((host, int(port)), timeout=0.1) as connection:
        connection.sendall(text)
        while time.monotonic() - began < 4:
            try:
                if trickle:
                    connection.sendall(trickle)
                if connection.recv(65536) == b"":
                    break
            except TimeoutError:
                continue
            except ConnectionError:
                break
    return time.monotonic() - began


@pytest.mark.parametrize("case", PARTS)
def test_a_request_that_does_not_arrive_ends_its_connection(address, case):
    assert seconds_until_closed(address, PARTS[case]) < 3


def test_a_byte_now_and_then_gives_no_more_time(address):
    start = b"GET /health HTTP/1.1\r\nHost: x\r\nX: "
    assert seconds_until_closed(address, start, trickle=b"a") < 3


def test_an_answer_may_take_longer_and_the_connection_goes_on(address):
    body = {"model": "a", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
    with httpx.Client(base_url=address, timeout=30) as http:
        for _ in range(2):
            assert http.post("/v1/chat/completions", json=body).status_code == 200
