"""The gateway before real processes: kill -9 under load, streams, leaving clients, restarts."""

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
import time

import httpx
import pytest
import uvicorn

from minilora.serving.gateway import Gateway
from minilora.serving.upstreams import Upstream, candidates, ranked
from minilora.serving.workers import Workers

from .fake_worker import answer_to

FAKE = [sys.executable, "-m", "tests.serving.fake_worker"]


class Served:
    """A gateway that listens, its workers, and a client."""

    def __init__(self, workers, gateway, client):
        self.workers, self.gateway, self.client = workers, gateway, client

    async def ask(self, prompt, model="m", **fields):
        body = {"model": model, "prompt": prompt, **fields}
        return await self.client.post("/v1/completions", json=body)

    async def pid_of(self, model):
        """The process that answers for a model."""
        return int((await self.ask("x", model)).headers["x-pid"])


@contextlib.asynccontextmanager
async def served(count=2, patience=20.0, command=FAKE):
    """Real processes behind a real socket."""
    workers = Workers([], count, grace=2.0)
    workers.command = command
    async with workers, Gateway(workers.upstreams, patience) as gateway:
        server = uvicorn.Server(uvicorn.Config(gateway, port=0, log_level="error", lifespan="off"))
        task = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.01)
        address = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=address, timeout=60.0, limits=limits) as client:
            for upstream in workers.upstreams:
                await asyncio.wait_for(upstream.up.wait(), 20)
            try:
                yield Served(workers, gateway, client)
            finally:
                server.should_exit = True
        await task


def run(scenario):
    asyncio.run(asyncio.wait_for(scenario, 100))


def test_only_what_a_lost_server_had_moves():
    names = [f"w{n}" for n in range(5)]
    adapters = [f"adapter-{n}" for n in range(500)]
    before = {adapter: ranked(adapter, names)[0] for adapter in adapters}
    after = {adapter: ranked(adapter, names[1:])[0] for adapter in adapters}
    assert all(after[a] == before[a] for a in adapters if before[a] != "w0")
    for name in names:
        assert 60 <= list(before.values()).count(name) <= 140  # 100, give or take four deviations
    heirs = {after[a] for a in adapters if before[a] == "w0"}
    assert heirs == set(names[1:])  # each its own next one


def test_a_domain_has_its_own_service_and_versions_stay_together():
    async def scenario():
        plain = [Upstream(f"w{n}") for n in range(4)]
        legal = Upstream("legal", models=["legal", "brief"])
        everyone = [*plain, legal]
        for upstream in everyone:
            upstream.come_up()
        assert candidates(everyone, "legal@2.0.0") == [legal]
        assert legal not in candidates(everyone, "naval")
        assert legal not in candidates(everyone, None)
        first = candidates(everyone, "naval")
        assert candidates(everyone, "naval@1.0.0") == first
        first[0].busy = 1
        assert candidates(everyone, "naval")[:2] == [first[1], first[0]]  # two places, no third
        first[0].go_down()
        assert first[0] not in candidates(everyone, "naval")
        for upstream in everyone:
            await upstream.client.aclose()

    run(scenario())


def test_kill_9_under_load_loses_nothing_before_the_first_byte():
    async def scenario():
        async with served(2) as it:
            victim = await it.pid_of("m")
            prompts = [f"prompt number {n}" for n in range(60)]
            seconds = [0.2 + 0.02 * (n % 20) for n in range(60)]
            asked = [it.ask(p, seconds=s) for p, s in zip(prompts, seconds, strict=True)]
            tasks = [asyncio.create_task(each) for each in asked]
            await asyncio.sleep(0.15)
            os.kill(victim, signal.SIGKILL)
            answers = await asyncio.gather(*tasks)
            assert [a.status_code for a in answers] == [200] * 60
            assert [a.json()["text"] for a in answers] == [answer_to(p) for p in prompts]
            ids = [a.json()["id"] for a in answers]
            assert len(set(ids)) == 60  # a second try has the first one's id, nobody else's
            for upstream in it.workers.upstreams:
                await asyncio.wait_for(upstream.up.wait(), 20)
            pids = {process.pid for process in it.workers.processes.values()}
            assert victim not in pids  # it is back, as another process
            assert (await it.pid_of("m")) in pids

    run(scenario())


def test_the_only_worker_is_killed_and_the_request_waits_for_the_next():
    async def scenario():
        async with served(1) as it:
            victim = await it.pid_of("m")
            task = asyncio.create_task(it.ask("patience", seconds=0.5))
            await asyncio.sleep(0.2)
            os.kill(victim, signal.SIGKILL)
            answer = await task
            assert answer.json()["text"] == answer_to("patience")
            assert int(answer.headers["x-pid"]) != victim

    run(scenario())


def test_a_stream_passes_piece_by_piece_and_its_lost_server_is_told():
    async def scenario():
        async with served(2) as it:
            body = {"model": "m", "prompt": "abcdef", "stream": True, "pause": 0.2}
            times, lines = [], []
            async with it.client.stream("POST", "/v1/completions", json=body) as answer:
                async for line in answer.aiter_lines():
                    if line:
                        lines.append(line)
                        times.append(time.monotonic())
            assert lines == [*(f"data: {c}" for c in "fedcba"), "data: [DONE]"]
            assert times[-1] - times[0] > 0.8  # they came one by one, not together at the end

            lines = []
            async with it.client.stream("POST", "/v1/completions", json=body) as answer:
                async for line in answer.aiter_lines():
                    lines += [line] if line else []
                    if line and len(lines) == 2:
                        os.kill(int(answer.headers["x-pid"]), signal.SIGKILL)
            assert lines[:2] == ["data: f", "data: e"]
            assert "data: [DONE]" not in lines
            assert json.loads(lines[-1].removeprefix("data: "))["error"]["code"] == "server_lost"

    run(scenario())


def test_a_client_that_leaves_closes_the_way_to_the_server():
    async def scenario():
        async with served(1) as it:
            body = {"model": "m", "prompt": "x" * 500, "stream": True, "pause": 0.05}
            async with it.client.stream("POST", "/v1/completions", json=body) as answer:
                async for _ in answer.aiter_lines():
                    break
            for _ in range(100):
                if (await it.client.get("/state")).json()["left"]:
                    break
                await asyncio.sleep(0.05)
            assert (await it.client.get("/state")).json()["left"] == ["x" * 500]
            await asyncio.sleep(0.1)
            assert it.workers.upstreams[0].busy == 0

    run(scenario())


def test_a_hung_worker_is_noticed_and_its_requests_go_elsewhere():
    async def scenario():
        async with served(2) as it:
            victim = await it.pid_of("m")
            processes = it.workers.processes
            first = next(u for u in it.workers.upstreams if processes[u.name].pid == victim)
            task = asyncio.create_task(it.ask("stuck", seconds=0.3))
            await asyncio.sleep(0.1)
            os.kill(victim, signal.SIGSTOP)
            first.go_down()  # what three missed checks do, without 15 seconds' wait
            answer = await task
            assert answer.json()["text"] == answer_to("stuck")
            assert int(answer.headers["x-pid"]) != victim
            first.kill()  # what thirty missed checks do
            await asyncio.wait_for(first.up.wait(), 20)

    run(scenario())


def test_what_may_not_be_done_twice_is_not_tried_again():
    async def scenario():
        async with served(1) as it:
            victim = await it.pid_of("m")
            task = asyncio.create_task(it.client.post("/v1/fine_tuning/jobs", json={}))
            await asyncio.sleep(0.3)
            os.kill(victim, signal.SIGKILL)
            answer = await task
            assert answer.status_code == 502
            assert answer.json()["error"]["code"] == "server_lost"

    run(scenario())


def test_every_worker_loads_and_one_that_comes_back_too():
    async def scenario():
        async with served(2) as it:
            fields = {"lora_name": "naval", "lora_path": "naval"}
            answer = await it.client.post("/v1/load_lora_adapter", json=fields)
            assert answer.text == "loaded"
            for upstream in it.workers.upstreams:
                state = (await it.client.get(f"{upstream.address}/state")).json()
                assert state["loaded"] == {"naval": "naval"}
            upstream = it.workers.upstreams[0]
            it.workers.processes[upstream.name].kill()
            await asyncio.wait_for(upstream.down.wait(), 5)
            await asyncio.wait_for(upstream.up.wait(), 20)
            state = (await it.client.get(f"{upstream.address}/state")).json()
            assert state["loaded"] == {"naval": "naval"}

            text = (await it.client.get("/metrics")).text
            assert text.count("# TYPE") == 1
            assert text.count('worker="worker-0"') == text.count('worker="worker-1"') == 1
            assert (await it.client.get("/health")).json() == {"status": "ok"}

    run(scenario())


class Slow:
    """Servers that keep what was loaded last, each in a time of its own."""

    def __init__(self, seconds):
        self.seconds, self.has = seconds, {}

    def client(self, name):
        async def answer(request):
            if request.url.path == "/v1/load_lora_adapter":
                fields = json.loads(request.content)
                await asyncio.sleep(self.seconds[name, fields["lora_path"]])
                self.has[name] = fields["lora_path"]
            return httpx.Response(200, text="ok")

        return httpx.AsyncClient(transport=httpx.MockTransport(answer))

    def gateway(self, *names):
        upstreams = [Upstream(name, f"http://{name}") for name in names]
        for each in upstreams:
            each.client = self.client(each.name)
            each.come_up()
        return Gateway(upstreams)

    async def load(self, gateway, path):
        fields = {"lora_name": "naval", "lora_path": path, "load_inplace": True}
        transport = httpx.ASGITransport(app=gateway)
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
            answer = await client.post("/v1/load_lora_adapter", json=fields)
        assert answer.status_code == 200


def test_two_who_load_at_once_leave_the_same_on_every_server():
    async def scenario():
        servers = Slow({("w0", "a"): 0.0, ("w1", "a"): 0.3, ("w0", "b"): 0.1, ("w1", "b"): 0.0})
        gateway = servers.gateway("w0", "w1")
        await asyncio.gather(servers.load(gateway, "a"), servers.load(gateway, "b"))
        assert servers.has["w0"] == servers.has["w1"]

    run(scenario())


def test_a_server_that_comes_back_while_others_load_has_what_they_have():
    async def scenario():
        servers = Slow({("w0", "a"): 0.0, ("w1", "a"): 0.1, ("w0", "b"): 0.4, ("w1", "b"): 0.0})
        gateway = servers.gateway("w0", "w1")
        await servers.load(gateway, "a")
        back = gateway.upstreams[1]
        back.go_down()
        loading = asyncio.create_task(servers.load(gateway, "b"))
        await asyncio.sleep(0.1)
        await back.check(gateway.prepare)
        await loading
        assert back.up.is_set()
        assert servers.has == {"w0": "b", "w1": "b"}

    run(scenario())


def test_a_server_that_comes_back_and_cannot_load_is_told_of(caplog):
    async def scenario():
        servers = Slow({("w0", "a"): 0.0, ("w1", "a"): 0.0})
        gateway = servers.gateway("w0", "w1")
        await servers.load(gateway, "a")
        back = gateway.upstreams[1]
        back.go_down()
        revoked = httpx.MockTransport(
            lambda request: httpx.Response(401 if "load" in request.url.path else 200, text="who?")
        )
        back.client = httpx.AsyncClient(transport=revoked)
        await back.check(gateway.prepare)
        assert back.up.is_set(), "it answers for what else it has"

    with caplog.at_level(logging.WARNING, "minilora.serving"):
        run(scenario())
    assert "w1 came back without naval: who?" in caplog.text


def test_503_of_every_server_is_passed_on_and_nobody_waits():
    async def scenario():
        async with served(2) as it:
            answer = await it.ask("x", refuse=True)
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
            broken = await it.client.post("/v1/completions", content=b"{", timeout=10)
            assert broken.status_code == 500  # the server's own word

    run(scenario())


def test_without_any_server_it_says_so():
    async def scenario():
        gateway = Gateway([Upstream("w0", "http://127.0.0.1:9")], patience=0.2)
        async with gateway, httpx.AsyncClient(
            transport=httpx.ASGITransport(app=gateway), base_url="http://gateway"
        ) as client:  # fmt: skip
            for path in ("/health", "/v1/models"):
                answer = await client.get(path)
                assert answer.status_code == 503
                assert answer.json()["error"]["code"] == "no_server"
                assert "retry-after" in answer.headers

    run(scenario())


def test_a_worker_that_cannot_start_is_an_error_at_once():
    async def scenario():
        with pytest.raises(ValueError, match="ended with status 2"):
            async with served(2, command=[*FAKE, "--broken"]):
                pass

    run(scenario())


def test_workers_end_with_the_gateway():
    async def scenario():
        async with served(2) as it:
            pids = [process.pid for process in it.workers.processes.values()]
        for pid in pids:
            with pytest.raises(ProcessLookupError):
                os.kill(pid, 0)

    run(scenario())
