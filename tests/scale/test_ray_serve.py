"""Ray Serve: retries against replicas that die where the test says; then Ray itself.

The last tests start Ray (a minute on two quiet cores) and are run by ``make test-scale``. They are
skipped where Ray is not installed.
"""

import asyncio
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
import types
import urllib.error
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

import minilora
from minilora.scale.ray_serve import (
    TAKEN,
    Ingress,
    adapter_asked,
    is_passed_on,
    main,
    pieces_of,
    running,
)
from minilora.scale.replica import Deployment, scope_of
from minilora.serving import AdapterBank, Engine, Service, bodies
from minilora.serving.app import create_app

from ..serving.adapters import make_adapter
from .test_replica import JSON, asked


class Died(Exception):
    """Stands for Ray's ``RayActorError``."""


@pytest.fixture
def ray(monkeypatch):
    """As much of Ray as the ingress looks at."""
    errors = types.ModuleType("ray.exceptions")
    errors.RayActorError = Died
    monkeypatch.setitem(sys.modules, "ray", types.ModuleType("ray"))
    monkeypatch.setitem(sys.modules, "ray.exceptions", errors)


class Answer:
    """Stands for Ray's generator of an answer, which can be cancelled."""

    def __init__(self, pieces):
        self.pieces, self.cancelled = pieces, False

    def __aiter__(self):
        return self

    async def __anext__(self):
        return await anext(self.pieces)

    def cancel(self):
        self.cancelled = True


class Replicas:
    """Handles whose calls come to what ``fates`` says.

    None answers, a number dies after so many pieces, a text waits before or after it is taken.
    """

    def __init__(self, fates):
        self.fates, self.models, self.answers = list(fates), [], []

    def options(self, multiplexed_model_id, stream):
        assert stream
        self.models.append(multiplexed_model_id)
        return types.SimpleNamespace(ask=types.SimpleNamespace(remote=self.remote))

    def remote(self, *request):
        self.answers.append(Answer(self.pieces()))
        return self.answers[-1]

    async def pieces(self):
        fate = self.fates.pop(0) if self.fates else None
        for number, piece in enumerate([TAKEN, (200, JSON), b"one ", b"two"]):
            if fate == number:
                raise Died
            if fate == ("nobody", "busy")[min(number, 1)]:
                await asyncio.sleep(30 if number == 0 else 0.3)
            yield piece


def begun(fates, patience=5.0, model="naval"):
    """What the ingress makes of these fates: (begun, whole body, ingress)."""
    ingress = Ingress(Replicas(fates), ["naval"], patience)

    async def run():
        found = await ingress.begin(model, ("POST", "/", "", [], b""))
        if found is None:
            return None, None
        (status, _), first, rest = found
        return status, b"".join([piece async for piece in pieces_of(first, rest, events=True)])

    return *asyncio.run(run()), ingress


def test_before_the_first_byte_another_replica_answers(ray):
    for fates in ([], [0], [1], [2], [0, 1, 2, 1, 0]):
        status, body, ingress = begun(fates)
        assert (status, body) == (200, b"one two")
        assert ingress.retries == len(fates)
        assert ingress.replicas.models == ["naval"] * (len(fates) + 1)


def test_after_the_first_byte_nobody_begins_anew_and_the_client_is_told(ray):
    status, body, ingress = begun([3])
    assert status == 200
    assert body.startswith(b"one data: ")
    assert json.loads(body.split(b"data: ")[1])["error"]["code"] == "server_lost"
    assert ingress.retries == 0


def test_patience_ends(ray):
    status, _, ingress = begun([0] * 1000, patience=0.3)
    assert status is None
    assert ingress.retries >= 1


def test_where_no_replica_lives_patience_ends_too_and_the_call_is_taken_back(ray):
    start = time.monotonic()
    status, _, ingress = begun(["nobody"], patience=0.2)
    assert status is None
    assert time.monotonic() - start < 10
    assert [answer.cancelled for answer in ingress.replicas.answers] == [True]


def test_a_replica_that_has_taken_a_request_may_compute_longer_than_patience(ray):
    assert begun(["busy"], patience=0.2)[:2] == (200, b"one two")


def test_what_changes_one_replica_or_speaks_of_one_is_not_passed_on(ray):
    for path in ("/v1/completions", "/v1/models", "/v1/models/naval", "/health", "/ready", "/"):
        assert is_passed_on(path)
    kept = ("load_lora_adapter", "unload_lora_adapter", "feedback", "experiments", "audit")
    for path in (*(f"/v1/{each}" for each in kept), "/metrics"):
        ingress = Ingress(Replicas([]), ["naval"])
        answer = asyncio.run(ingress(asking(path)))
        assert answer.status_code == 404
        assert json.loads(answer.body)["error"]["code"] == "not_passed_on"
        assert ingress.replicas.answers == []


def asking(path, body=b'{"lora_name": "naval"}'):
    """A Starlette request for a path."""
    from starlette.requests import Request

    async def receive():
        return {"type": "http.request", "body": body, "more_body": False}

    return Request(scope_of("POST", path, "", JSON), receive)


def test_json_that_is_nested_too_deeply_is_left_to_the_application(ray):
    """``json.loads`` raises ``RecursionError``, which is no ``ValueError``."""
    ingress = Ingress(Replicas([]), ["naval"])
    answer = asyncio.run(ingress(asking("/v1/completions", b"[" * 100_000)))
    assert answer.status_code == 200, "the stand-in for a replica takes anything"
    assert ingress.replicas.models == [""]


def test_a_body_that_is_too_long_is_refused_before_a_replica_is_asked(ray, monkeypatch):
    monkeypatch.setattr(bodies, "MOST_BYTES", 100)
    ingress = Ingress(Replicas([]), ["naval"])
    answer = asyncio.run(ingress(asking("/v1/completions", b" " * 101)))
    assert answer.status_code == 413
    assert json.loads(answer.body)["error"]["message"] == "expected a body of at most 100 bytes"
    assert ingress.replicas.answers == []
    assert asyncio.run(ingress(asking("/v1/completions", b" " * 100))).status_code == 200


def test_the_model_s_name_is_read_and_anything_else_is_left_to_the_application():
    for body in (b"", b"{", b"[1]", b'{"model": 3}', b'{"model": "other"}', b'{"model": null}'):
        assert adapter_asked("/v1/completions", body, ["naval"]) == ""
    assert adapter_asked("/v1/models", b'{"model": "naval"}', ["naval"]) == ""
    assert adapter_asked("/v1/chat/completions", b'{"model": "naval"}', ["naval"]) == "naval"


def test_without_the_extra_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with (
        pytest.raises(ValueError, match=r"pip install 'minilora\[scale\]'"),
        running(Deployment({})),
    ):
        pass


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--adapter", "naval"], "expected NAME=FOLDER, each name once, got 'naval'"),
        (["--adapter", "naval=nowhere"], "naval: expected an adapter's folder, got 'nowhere'"),
        (["--replicas", "0"], "replicas must be at least 1, got 0"),
    ],
)
def test_the_command_says_what_is_wrong(words, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["ray_serve", *words])
    with pytest.raises(SystemExit):
        main()
    assert message in capsys.readouterr().err


needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is not installed: make test-scale"
)


def post(url, body):
    """(status, text) of a question."""
    request = urllib.request.Request(f"{url}/v1/chat/completions", body, dict_of(JSON))
    try:
        with urllib.request.urlopen(request, timeout=300) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError as error:
        return 0, repr(error)


def dict_of(headers):
    """Headers as text."""
    return {key.decode(): value.decode() for key, value in headers}


def reports(url, tries=30):
    """What each replica says of itself, by its process."""
    found = {}
    for _ in range(tries):
        told = report(url)
        found[told["replica"]["pid"]] = told["replica"]
        if len(found) == 2:
            break
    return found


def report(url):
    """How often the ingress asked another replica, and what one of them says of itself."""
    with urllib.request.urlopen(f"{url}/replicas", timeout=120) as answer:
        return json.loads(answer.read())


def ray_processes():
    """Processes of Ray that are there."""
    listed = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True).stdout
    marks = ("ray::", "raylet", "gcs_server")
    return {line.split()[0] for line in listed.splitlines() if any(m in line for m in marks)}


def evicted_and_asked_again(url, names, alone, deployment):
    """More adapters than places, again and again: each answer is right, and some are read anew."""
    asks = [*names, *names, *reversed(names)]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda name: post(url, asked(name)), asks))
    assert Counter(status for status, _ in answers) == {200: len(asks)}
    for name, (_, text) in zip(asks, answers, strict=True):
        assert json.loads(text)["choices"] == alone[name]
    seen = reports(url)
    loads = Counter()
    for each in seen.values():
        loads.update(each["loads"])
        # a name that nobody holds is forgotten at the next load
        assert len(each["names"]) <= deployment.most_adapters + 8 + 1
    assert max(loads.values()) > 1
    assert loads.total() > len(names) + 8
    print(
        f"{loads.total()} loads of {len(names)} adapters on 2 x {deployment.most_adapters} places"
    )


@pytest.mark.scale
@pytest.mark.long
@needs_ray
def test_a_second_replica_comes_while_requests_wait(tmp_path):
    """Autoscaling from one to two: both have answered in the end, and no request was lost."""
    folders = {f"a{n}": str(make_adapter(tmp_path / f"a{n}", n)) for n in range(2)}
    scaling = {"min_replicas": 1, "max_replicas": 2, "target_ongoing_requests": 1}
    scaling |= {"upscale_delay_s": 1.0, "look_back_period_s": 2.0}
    deployment = Deployment(folders, replicas=scaling, processors=0.5, patience=240.0)
    seen, answers, end = set(), Counter(), time.monotonic() + 400
    with running(deployment, port=8799) as url:
        with ThreadPoolExecutor(8) as pool:
            while len(seen) < 2 and time.monotonic() < end:
                answers.update(status for status, _ in pool.map(
                    lambda n: post(url, asked(f"a{n % 2}")), range(40)
                ))  # fmt: skip
                seen |= reports(url, tries=4).keys()
        assert set(answers) == {200}
        print(f"{len(seen)} replicas after {answers.total()} requests")
        assert len(seen) == 2


@pytest.mark.scale
@pytest.mark.long
@needs_ray
def test_two_replicas_share_the_adapters_answer_alike_and_lose_nothing_when_one_is_killed(tmp_path):
    from fastapi.testclient import TestClient

    folders = {f"a{n}": str(make_adapter(tmp_path / f"a{n}", n)) for n in range(24)}
    bank = AdapterBank(minilora.load_base())
    for name, folder in folders.items():
        bank.load(name, folder)
    with TestClient(create_app(Service(Engine(bank), bank))) as client:
        given = {
            name: client.post("/v1/chat/completions", content=asked(name), headers=dict(JSON))
            for name in folders
        }
    alone = {name: answer.json()["choices"] for name, answer in given.items()}
    home = {entry.name for entry in os.scandir(os.path.expanduser("~"))}
    before = ray_processes()
    deployment = Deployment(folders, most_adapters=8, processors=0.5, patience=240.0)
    names = list(folders)  # of which 12 fit into the replicas' memory, and all 24 do not
    with running(deployment, port=8798) as url:
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda n: post(url, asked(names[n % 12])), range(48)))
        assert Counter(status for status, _ in answers) == {200: 48}
        texts = {names[n % 12]: text for n, (_, text) in enumerate(answers)}
        few = names[:12]
        assert {n: json.loads(t)["choices"] for n, t in texts.items()} == {n: alone[n] for n in few}
        seen = reports(url)
        assert len(seen) == 2
        loads = Counter()
        for each in seen.values():
            loads.update(each["loads"])
        assert set(loads) == set(few)  # who answered is here
        assert loads.total() <= 16  # 12, or few more
        evicted_and_asked_again(url, names, alone, deployment)
        done = []

        def one(n):
            found = post(url, asked(names[n % 12]))
            done.append(n)
            if len(done) == 20:
                os.kill(next(iter(seen)), signal.SIGKILL)
            return found

        with ThreadPoolExecutor(16) as pool:
            killed = list(pool.map(one, range(100)))
        assert sum(status != 200 for status, _ in killed) <= 1
        assert report(url)["retries"] >= 1
        for n, (status, text) in enumerate(killed):
            if status == 200:
                assert json.loads(text)["choices"] == alone[names[n % 12]]
    for _ in range(100):
        if not ray_processes() - before:
            break
        time.sleep(0.2)
    assert not ray_processes() - before
    assert {entry.name for entry in os.scandir(os.path.expanduser("~"))} == home
