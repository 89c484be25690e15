"""Broken clients, disks and clocks: one request fails, in words; the others go on."""

import errno
import shutil
import socket
import threading
import time

import httpx
import openai
import pytest

from minilora.serving.app import create_app
from minilora.serving.assignment import Experiment
from minilora.serving.experiments import Experiments
from minilora.serving.tenants import Limits, Tenants

from .live import eventually, serving, small_service
from .small import FOLDERS, small_bank

ASKED = [{"role": "user", "content": "Hull status?"}]
BODY = {"messages": ASKED, "temperature": 0, "max_tokens": 8}


@pytest.fixture(scope="module")
def service():
    return small_service("ab")


@pytest.fixture(scope="module")
def address(service):
    with serving(service) as address:
        yield address


def ask(address, model="a", **more):
    return httpx.post(
        f"{address}/v1/chat/completions", json={"model": model, **BODY, **more}, timeout=20
    )


def still_answers(address, model="a"):
    expected = small_bank().generate([(model, ASKED)], max_new_tokens=8)[0]
    return ask(address, model).json()["choices"][0]["message"]["content"] == expected


def test_a_header_of_a_megabyte(address):
    try:
        got = httpx.get(f"{address}/v1/models", headers={"x-long": "x" * 1_000_000})
        assert got.status_code in (400, 431)
    except httpx.TransportError:
        pass  # it hung up before all was sent
    assert still_answers(address)


def test_a_method_that_a_path_has_not_is_405_and_says_which_it_has(service, address):
    paths = create_app(service).openapi()["paths"]
    allowed = {path: {method.upper() for method in methods} for path, methods in paths.items()}
    for path, methods in {**allowed, "/": {"GET"}}.items():
        for method in {"GET", "POST", "PUT", "DELETE", "PATCH"} - methods:
            got = httpx.request(method, f"{address}{path.replace('{', '').replace('}', '')}")
            assert got.status_code == 405, (method, path)
            assert set(got.headers["allow"].split(", ")) == methods, (method, path)
            assert got.json()["error"]["message"] == "Method Not Allowed"


def test_a_text_is_not_tokenized_for_a_tenant_whose_quota_is_used_up(tmp_path, monkeypatch):
    with Tenants(tmp_path / "keys.sqlite") as tenants:
        key, service = (
            tenants.add("acme", ["*"], Limits(requests=1)),
            small_service(tenants=tenants),
        )
        texts, headers = [], {"authorization": f"Bearer {key}"}
        tokenizer = type(service.engine.model.tokenizer)
        encode = tokenizer.encode_text
        spied = lambda self, text: (texts.append(text), encode(self, text))[1]  # noqa: E731
        monkeypatch.setattr(tokenizer, "encode_text", spied)
        body = {"model": "a", "prompt": "The hull", "max_tokens": 2}
        with serving(service) as address:
            statuses = [
                httpx.post(f"{address}/v1/completions", json=body, headers=headers).status_code
                for _ in range(3)
            ]
    assert statuses == [200, 429, 429]
    assert texts == ["The hull"]


def test_a_prompt_in_ids_is_one_prompt_for_the_quota_and_costs_its_tokens(tmp_path):
    with Tenants(tmp_path / "keys.sqlite") as tenants:
        service = small_service(tenants=tenants)
        token = {
            limit: tenants.add(f"acme{limit}", ["*"], Limits(tokens=limit)) for limit in (100, 20)
        }

        def status(limit, prompt):
            headers = {"authorization": f"Bearer {token[limit]}"}
            body = {"model": "a", "prompt": prompt, "max_tokens": 16}
            return httpx.post(f"{address}/v1/completions", json=body, headers=headers).status_code

        with serving(service) as address:
            assert status(100, [5] * 60) == 200  # 76, not 60 prompts with an answer each
            assert status(20, [5] * 60) == 400
            assert status(20, [[5, 6, 7], [5]]) == 400
            assert status(20, [5, 6, 7]) == 200


@pytest.mark.parametrize("refused", ["long", "quota"])
def test_what_is_refused_is_not_routed_and_is_no_part_of_an_experiment(tmp_path, refused):
    experiments = Experiments(tmp_path)
    experiments.start(Experiment("greeting", "a", {"old": "b", "new": "c"}))
    with Tenants(tmp_path / "keys.sqlite") as tenants:
        key, routed = tenants.add("acme", ["*"], Limits(tokens=10)), []
        service = small_service(
            tenants=tenants, experiments=experiments, router=lambda: routed.append(1) or 1 / 0
        )
        long = refused == "long"
        body = {"prompt": "hull " * 5000 if long else "Hull?", "max_tokens": 60, "user": "ann"}
        headers = {"authorization": f"Bearer {key}"}
        with serving(service) as address:
            for model in ("auto", "a"):
                body["model"] = model
                got = httpx.post(f"{address}/v1/completions", json=body, headers=headers)
                expected = "context_length_exceeded" if long else "beyond_the_quota"
                assert (got.status_code, got.json()["error"]["code"]) == (400, expected)
            admin = {"authorization": f"Bearer {tenants.add('boss', admin=True)}"}
            text = httpx.get(f"{address}/metrics", headers=admin).text
    assert 'minilora_requests_total{model="other",status="400"} 2.0' in text
    assert not routed
    assert [arm.users for arm in experiments.evidence("greeting")] == [(0, 0)]


def test_an_arm_that_cannot_answer_was_drawn_all_the_same(tmp_path):
    experiments = Experiments(tmp_path)
    plan = Experiment("greeting", "a", {"old": "b", "new": "gone"})
    experiments.start(plan)
    with serving(small_service(experiments=experiments)) as address:
        for number in range(6):
            body = {"model": "a", "prompt": "Hull?", "max_tokens": 2, "user": f"user {number}"}
            got = httpx.post(f"{address}/v1/completions", json=body)
            gone = plan.arm(plan.unit(f"user {number}")) == "new"
            assert got.status_code == (404 if gone else 200)
    (arm,) = experiments.evidence("greeting")
    assert sum(arm.users) == 6
    assert min(arm.users) > 0


def test_a_prompt_of_100_000_tokens_is_refused_soon_and_others_go_on(address):
    began, seconds = time.monotonic(), []

    def long():
        got = ask(address, messages=[{"role": "user", "content": "hull " * 100_000}])
        seconds.append(time.monotonic() - began)
        assert got.json()["error"]["code"] == "context_length_exceeded"

    thread = threading.Thread(target=long)
    thread.start()
    assert still_answers(address)
    thread.join()
    assert seconds[0] < 20


def test_a_body_of_ten_megabytes_is_a_413(address):
    got = httpx.post(
        f"{address}/v1/completions",
        content=b'{"prompt": "' + b"x" * 10_000_000,
        headers={"content-type": "application/json"},
    )
    assert got.status_code == 413
    assert got.json()["error"]["type"] == "invalid_request_error"


def test_a_hundred_half_open_connections(address):
    host, port = address.removeprefix("http://").split(":")
    half = [socket.create_connection((host, int(port))) for _ in range(100)]
    for number, connection in enumerate(half):
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\n"[: number % 40 + 1])
    assert still_answers(address)
    for connection in half:
        connection.close()


def test_a_damaged_adapter_is_its_own_requests_error(tmp_path):
    """Hot, it answers from memory; once it must be read again, its requests fail and say so."""
    folder = tmp_path / "hot"
    shutil.copytree(FOLDERS["c"], folder)
    service = small_service("b")
    service.bank.load("hot", folder)
    with serving(service) as address:
        healthy = ask(address, "hot").json()["choices"][0]["message"]["content"]
        file = folder / "adapter_model.safetensors"
        file.write_bytes(file.read_bytes()[:-7] + b"damaged")
        assert ask(address, "hot").json()["choices"][0]["message"]["content"] == healthy
        service.bank.cache.residents.clear()
        got = ask(address, "hot")
        assert (got.status_code, got.json()["error"]["code"]) == (500, "adapter_failed")
        assert still_answers(address, "b")
        streamed = ask(address, "hot", stream=True)  # before the first byte: a status
        assert streamed.status_code == 500
        shutil.rmtree(folder)
        shutil.copytree(FOLDERS["c"], folder)
        assert ask(address, "hot").json()["choices"][0]["message"]["content"] == healthy


def test_a_full_disk_refuses_a_pull_and_nothing_else(tmp_path, monkeypatch):
    from minilora.hub import Hub, store

    hub = Hub(tmp_path / "hub")
    hub.push("naval", FOLDERS["c"])
    service = small_service("a", hub=hub)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with serving(service) as address:
        monkeypatch.setattr(store, "write_durably", full)
        got = ask(address, "naval")
        assert (got.status_code, got.json()["error"]["code"]) == (500, "adapter_unavailable")
        assert still_answers(address)
        monkeypatch.undo()
        assert ask(address, "naval").status_code == 200


@pytest.mark.parametrize("step", [-86400, 86400], ids=["back", "forth"])
def test_a_clock_that_is_set_changes_no_answer(address, monkeypatch, step):
    true = time.time
    monkeypatch.setattr(time, "time", lambda: true() + step)
    assert still_answers(address)
    assert "minilora_request_seconds_sum" in httpx.get(f"{address}/metrics").text
    monkeypatch.undo()
    sums = [
        float(line.split()[-1])
        for line in httpx.get(f"{address}/metrics").text.splitlines()
        if "_seconds_sum" in line
    ]
    assert all(0 <= total < 3600 for total in sums)  # durations come from a clock that never jumps


def test_a_full_queue_is_a_503_that_the_client_tries_again(monkeypatch):
    service = small_service("a", slots=1)
    service.engine.most_waiting = 1
    gate, decode = threading.Event(), service.engine.batch.decode

    def slow():
        gate.wait(0.02)
        decode()

    service.engine.batch.decode = slow
    with (
        serving(service) as address,
        openai.OpenAI(base_url=f"{address}/v1", api_key="x") as client,
    ):
        streams = [client.chat.completions.create(model="a", stream=True, messages=ASKED, seed=1)]
        next(streams[0])
        waiting = threading.Thread(target=lambda: ask(address))
        waiting.start()
        eventually(lambda: len(service.engine.waiting))
        refused = ask(address)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        gate.set()
        again = client.with_options(max_retries=5).chat.completions.create(model="a", **BODY)
        assert again.choices[0].finish_reason == "length"
        waiting.join()


def test_the_engine_that_has_ended_is_unhealthy(service):
    ill = small_service("a")
    with serving(ill) as address:
        ill.engine.close()
        assert httpx.get(f"{address}/health").status_code == 503
        assert httpx.get(f"{address}/ready").status_code == 503
        assert ask(address).status_code == 503


def test_a_client_that_dies_in_the_middle_of_its_body(address, service):
    host, port = address.removeprefix("http://").split(":")
    for _ in range(5):
        connection = socket.create_connection((host, int(port)))
        head = "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        connection.sendall(head.encode() + b"content-length: 1000\r\n\r\n{")
        connection.close()
    assert still_answers(address)
    assert not service.engine.batch.in_use
