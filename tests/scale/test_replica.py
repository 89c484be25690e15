"""A replica's application, driven inside one process: answers, errors and streams of the server."""

import asyncio
import gc
import json
from collections import OrderedDict

import pytest

from minilora.scale import replica as module
from minilora.scale.replica import Deployment, ReplicaOf, adapters_named, scope_of, through
from minilora.serving.app import create_app

from ..serving.live import small_service
from ..serving.small import FOLDERS

JSON = [(b"content-type", b"application/json")]


def asked(model, **more):
    """The body of a question."""
    messages = [{"role": "user", "content": "Hull?"}]
    fields = {"model": model, "messages": messages, "temperature": 0, "max_tokens": 8, **more}
    return json.dumps(fields).encode()


async def collected(answer):
    """(status, headers) and the pieces of an answer."""
    start, *pieces = [each async for each in answer]
    return start, pieces


def ask(replica, *bodies, path="/v1/chat/completions"):
    """What a replica's application answers to these bodies, all at once."""

    async def run():
        await replica.open()
        scopes = [scope_of("POST", path, "", JSON) for _ in bodies]
        answers = [
            collected(through(replica.app, scope, body))
            for scope, body in zip(scopes, bodies, strict=True)
        ]
        try:
            return await asyncio.gather(*answers)
        finally:
            await replica.context.__aexit__(None, None, None)

    return asyncio.run(run())


@pytest.fixture
def replica(monkeypatch):
    """A replica of the small base."""
    service = small_service()
    monkeypatch.setattr(module, "service_of", lambda deployment: service)
    return ReplicaOf(Deployment({name: str(FOLDERS[name]) for name in "abcde"}))


def text_of(pieces):
    """The text in a whole answer."""
    return json.loads(b"".join(pieces))["choices"][0]["message"]["content"]


def test_a_replica_answers_all_at_once_as_the_single_server_does(replica):
    from fastapi.testclient import TestClient

    names = ["a", "b", "small", "c"] * 3
    found = ask(replica, *(asked(name) for name in names))
    with TestClient(create_app(small_service())) as client:
        for name, ((status, _), pieces) in zip(names, found, strict=True):
            alone = client.post("/v1/chat/completions", content=asked(name), headers=dict(JSON))
            assert status == alone.status_code == 200
            assert text_of(pieces) == alone.json()["choices"][0]["message"]["content"]


def test_errors_keep_their_shape_and_streams_their_pieces(replica):
    (unknown, broken, stream) = ask(replica, asked("nobody"), b"{", asked("a", stream=True))
    assert unknown[0][0] == 404
    assert json.loads(unknown[1][0])["error"]["code"] == "model_not_found"
    assert broken[0][0] == 400
    assert "error" in json.loads(broken[1][0])
    headers = dict(stream[0][1])
    assert headers[b"content-type"].startswith(b"text/event-stream")
    assert len(stream[1]) > 2
    assert stream[1][-1].endswith(b"data: [DONE]\n\n")


def test_an_application_that_fails_is_an_error_of_the_loop():
    async def broken(scope, receive, send):
        raise ZeroDivisionError("here")

    with pytest.raises(ZeroDivisionError, match="here"):
        asyncio.run(collected(through(broken, scope_of("GET", "/", "", []), b"")))


def test_leaving_the_loop_ends_the_application():
    ended = []

    async def endless(scope, receive, send):
        try:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            while True:
                await send({"type": "http.response.body", "body": b"x", "more_body": True})
        finally:
            ended.append(True)

    async def leave():
        answer = through(endless, scope_of("GET", "/", "", []), b"")
        async for piece in answer:
            if piece == b"x":
                break
        await answer.aclose()
        await asyncio.sleep(0)

    asyncio.run(leave())
    assert ended == [True]


def evicted(loaded):
    """What Ray does with the least recently used one: ``__del__`` by hand, if there is one."""
    model = loaded.popitem(last=False)[1]
    if hasattr(model, "__del__"):
        model.__del__()


def test_an_adapter_that_makes_room_is_forgotten_when_its_last_request_has_ended(replica):
    names, loaded = replica.service.bank.names, OrderedDict()
    before = set(names())
    for name in "ab":
        loaded[name] = replica.load(name)
    here = loaded["a"]  # a long stream
    evicted(loaded)
    loaded["c"] = replica.load("c")
    assert {"a", "b", "c"} <= set(names())
    del here
    evicted(loaded)  # b
    loaded["d"] = replica.load("d")
    assert set(names()) - before == {"c", "d"} - before
    assert "a" not in names()
    assert "b" not in names()


def test_the_end_of_an_older_load_does_not_take_the_newer_one_with_it(replica):
    loaded = OrderedDict(a=replica.load("a"))
    here = loaded["a"]  # a stream that outlives its adapter's eviction
    evicted(loaded)
    loaded["b"] = replica.load("b")
    loaded["a"] = replica.load("a")
    del here
    gc.collect()
    loaded["c"] = replica.load("c")
    assert "a" in replica.service.bank.names()
    assert replica.report()["loads"] == {"a": 2, "b": 1, "c": 1}
    ((status, _), _), *_ = ask(replica, asked("a"))
    assert status == 200


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"most_adapters": 0}, "most_adapters must be at least 1, got 0"),
        ({"replicas": 0}, "replicas must be at least 1, got 0"),
        ({"adapters": {"naval@1.0.0": "x"}}, "expected an adapter's name"),
        ({"adapters": {"minilora-base": "x"}}, "'minilora-base' is taken"),
        ({"adapters": {"auto": "x"}}, "'auto' is taken"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Deployment(**{"adapters": {}, **settings})


def test_adapters_are_named_with_their_folders():
    assert adapters_named(["a=x", "b=y=z"]) == {"a": "x", "b": "y=z"}
    for given in (["naval"], ["=x"], ["a="], ["a=x", "a=y"]):
        with pytest.raises(ValueError, match=f"expected NAME=FOLDER.*got {given[-1]!r}"):
            adapters_named(given)
