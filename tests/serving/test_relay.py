"""The gateway before servers in this process: what is tried again, what is told, what is kept."""

import asyncio
import contextlib
import json

import httpx
import pytest

from minilora.serving.gateway import Gateway
from minilora.serving.upstreams import Upstream

ASK, JOB = "/v1/completions", "/v1/fine_tuning/jobs"
LOAD, UNLOAD = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"


class Server:
    """Answers each request with the next of its answers, and keeps what came."""

    def __init__(self, name, *answers, models=()):
        self.upstream = Upstream(name, f"http://{name}", models)
        self.upstream.client = httpx.AsyncClient(transport=httpx.MockTransport(self.answer))
        self.upstream.come_up()
        self.answers, self.asked = list(answers), []

    async def answer(self, request):
        self.asked.append(request)
        if isinstance(answer := self.answers.pop(0), Exception):
            raise answer
        return answer


async def pieces(*texts, then=None):
    """A body that comes in pieces, and perhaps breaks off."""
    for text in texts:
        yield text
    if then is not None:
        raise then


def good(text="good"):
    return httpx.Response(200, content=pieces(text.encode()))


@contextlib.asynccontextmanager
async def before(*servers, patience=0.0):
    """A client of a gateway before these servers, which are well as long as they answer."""
    gateway = Gateway([each.upstream for each in servers], patience)
    transport = httpx.ASGITransport(app=gateway)
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        client.gateway = gateway
        yield client


def run(scenario):
    return asyncio.run(asyncio.wait_for(scenario, 10))


def ask(servers, method, path, **request):
    """One request through the gateway; its response."""

    async def scenario():
        async with before(*servers) as client:
            return await client.request(method, path, **request)

    return run(scenario())


@pytest.mark.parametrize("path", [ASK, JOB])
@pytest.mark.parametrize("error", [httpx.ConnectError, httpx.ConnectTimeout])
def test_a_server_that_is_not_there_got_nothing_so_the_next_is_asked(path, error):
    gone, next_one = Server("gone", error("nobody")), Server("next", good())
    assert ask([gone, next_one], "POST", path, json={"n": 1}).text == "good"
    assert gone.upstream.down.is_set()
    first, second = gone.asked[0], next_one.asked[0]
    assert first.content == second.content == b'{"n":1}'
    assert first.headers["x-request-id"] == second.headers["x-request-id"] != ""


@pytest.mark.parametrize(
    ("method", "path", "again"), [("POST", ASK, True), ("GET", JOB, True), ("POST", JOB, False)]
)
def test_what_may_be_done_twice_is_asked_again_when_a_server_breaks_off(method, path, again):
    broken, next_one = Server("broken", httpx.ReadError("cut")), Server("next", good())
    got = ask([broken, next_one], method, path)
    assert len(next_one.asked) == again
    if again:
        assert got.text == "good"
    else:
        assert (got.status_code, got.json()["error"]["code"]) == (502, "server_lost")
    assert broken.upstream.busy == next_one.upstream.busy == 0


def busy():
    told = {"retry-after": "7", "connection": "close"}
    return httpx.Response(503, headers=told, content=pieces(b"wait ", b"first"))


def test_503_of_all_is_passed_on_whole_with_one_length_and_nobody_is_asked_twice():
    servers = [Server("one", busy()), Server("two", busy())]
    got = ask(servers, "POST", JOB)
    assert (got.status_code, got.text, got.headers["retry-after"]) == (503, "wait first", "7")
    assert got.headers["content-length"] == "10"
    assert not {"transfer-encoding", "connection"} & got.headers.keys()
    assert [len(each.asked) for each in servers] == [1, 1]
    assert ask([Server("one", busy()), Server("two", good())], "POST", JOB).text == "good"


def test_an_answer_passes_with_its_status_its_headers_and_every_piece():
    headers = {"x-a": "b", "connection": "close", "content-length": "6"}
    created = httpx.Response(201, headers=headers, content=pieces(b"ab", b"", b"cd", b"ef"))
    server = Server("one", created)
    got = ask([server], "GET", "/v1/models?after=3", headers={"te": "trailers"})
    assert (got.status_code, got.content) == (201, b"abcdef")
    assert (got.headers["x-a"], got.headers["content-length"]) == ("b", "6")
    assert "connection" not in got.headers
    assert str(server.asked[0].url) == "http://one/v1/models?after=3"
    assert "te" not in server.asked[0].headers


def test_an_answer_that_breaks_off_is_never_a_quiet_end_and_nobody_else_begins():
    cut = httpx.ReadError("cut")
    stream = {"content-type": "text/event-stream; charset=utf-8"}
    events = httpx.Response(200, headers=stream, content=pieces(b"data: a\n\n", then=cut))
    next_one = Server("next")
    said, error = ask([Server("one", events), next_one], "POST", ASK).text.split("\n\n")[:2]
    assert said == "data: a"
    assert json.loads(error.removeprefix("data: "))["error"]["code"] == "server_lost"
    whole = httpx.Response(200, content=pieces(b"{", then=cut))
    with pytest.raises(ConnectionError, match="broke off after the first byte"):
        ask([Server("one", whole), next_one], "POST", ASK)
    assert next_one.asked == []


@pytest.mark.parametrize("begun", [True, False], ids=["in the middle", "before the first byte"])
def test_who_leaves_ends_it_and_is_sent_nothing_more_and_no_other_server_is_asked(begun):
    async def scenario():
        reached, left, closed, sent = asyncio.Event(), asyncio.Event(), [], []

        async def endless():
            try:
                if begun:
                    yield b"data: a\n\n"
                reached.set()
                await asyncio.Event().wait()
                yield b"never"
            finally:
                closed.append(True)

        stream = {"content-type": "text/event-stream"}
        one = Server("one", httpx.Response(200, headers=stream, content=endless()))
        two, bodies = Server("two", good()), [b'{"prompt": "x"}']

        async def receive():
            if bodies:
                return {"type": "http.request", "body": bodies.pop(), "more_body": False}
            await left.wait()
            return {"type": "http.disconnect"}

        async def send(message):
            sent.append(message)

        scope = {"type": "http", "method": "POST", "path": ASK, "headers": [], "query_string": b""}
        gateway = Gateway([one.upstream, two.upstream], 0.0)
        asking = asyncio.create_task(gateway(scope, receive, send))
        await reached.wait()
        assert one.upstream.busy == 1
        before_leaving = len(sent)
        left.set()
        await asking
        assert (closed, one.upstream.busy, two.asked) == ([True], 0, [])
        assert len(sent) == before_leaving == 2 * begun

    run(scenario())


def test_a_request_waits_for_a_server_to_come_back_and_not_longer_than_its_patience():
    async def scenario(comes):
        server = Server("one", good())
        server.upstream.go_down()
        async with before(server, patience=5 if comes else 0.1) as client:
            if comes:
                asyncio.get_running_loop().call_later(0.05, server.upstream.come_up)
            got = await client.post(ASK)
            return got.status_code, got.headers.get("retry-after"), len(server.asked)

    assert run(scenario(True)) == (200, None, 1)
    assert run(scenario(False)) == (503, "2", 0)


BODIES = {
    b'{"model": "legal@1.0.0"}': "l",
    b'{"model": 5}': "p",
    b"{": "p",
    b"[]": "p",
    b"\xff": "p",
}


@pytest.mark.parametrize("body", BODIES, ids=range(len(BODIES)))
def test_a_model_is_asked_of_its_own_domain_and_what_is_no_name_of_anybody(body):
    servers = Server("legal", good("l"), models=["legal"]), Server("plain", good("p"))
    assert ask(servers, "POST", ASK, content=body).text == BODIES[body]


def test_its_own_pages_are_answered_as_long_as_a_server_is_up():
    server = Server("one", httpx.Response(401, text="a key is needed"))

    async def scenario():
        async with before(server) as client:
            assert (await client.get("/health")).json() == {"status": "ok"}
            assert (await client.get("/ready")).json() == {"status": "ready"}
            refused = await client.post("/health")
            assert (refused.status_code, refused.headers["allow"]) == (405, "GET")
            assert server.asked == []
            got = await client.get("/metrics", headers={"authorization": "none"})
            assert (got.status_code, got.text) == (401, "a key is needed")
            assert server.asked[0].headers["authorization"] == "none"

    run(scenario())


def test_what_all_loaded_is_loaded_on_who_comes_back_until_it_is_unloaded():
    async def scenario():
        no = httpx.Response(400, text="no", headers={"transfer-encoding": "chunked"})
        one, two = Server("one", good(), good(), good()), Server("two", no, good(), good(), good())
        async with before(one, two) as client:
            load = {"lora_name": "naval", "lora_path": "naval"}
            refused = await client.post(LOAD, json=load)
            assert (refused.status_code, refused.text) == (400, "no")
            assert "transfer-encoding" not in refused.headers
            await client.gateway.prepare(two.upstream)
            assert len(two.asked) == 1, "what one refused is not there"
            assert (await client.post(LOAD, json=load)).text == "good"
            await client.gateway.prepare(two.upstream)
            assert [each.content for each in two.asked[1:]] == [one.asked[1].content] * 2
            assert (await client.post(UNLOAD, json=load)).status_code == 200
            await client.gateway.prepare(two.upstream)
            assert len(two.asked) == 4
            one.answers.append(httpx.ReadError("cut"))
            lost = await client.post(UNLOAD, json=load)
            assert (lost.status_code, lost.json()["error"]["code"]) == (503, "server_lost")
            one.upstream.go_down()
            two.upstream.go_down()
            nobody = await client.post(LOAD, json=load)
            assert (nobody.status_code, nobody.json()["error"]["code"]) == (503, "no_server")

    run(scenario())


def test_it_watches_as_long_as_it_serves():
    async def scenario():
        server = Server("one", good(), httpx.ReadError("cut"))
        server.upstream.go_down()
        async with Gateway([server.upstream]) as gateway:
            await asyncio.wait_for(server.upstream.up.wait(), 5)
            (task,) = gateway.tasks
        assert task.cancelled()
        assert server.upstream.client.is_closed

    run(scenario())
