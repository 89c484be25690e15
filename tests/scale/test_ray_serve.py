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
from minilora.scale.ray_serve import Ingress, adapter_asked, pieces_of, running
from minilora.scale.replica import Deployment
from minilora.serving import AdapterBank, Engine, Service
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


class Replicas:
    """Handles whose calls come to what ``fates`` says: None answers, a number dies after pieces."""

    def __init__(self, fates):
        self.fates, self.models = list(fates), []

    def options(self, multiplexed_model_id, stream):
        assert stream
        self.models.append(multiplexed_model_id)
        return types.SimpleNamespace(ask=types.SimpleNamespace(remote=self.remote))

    async def remote(self, *request):
        fate = self.fates.pop(0) if self.fates else None
        for number, piece in enumerate([(200, JSON), b"one ", b"two"]):
            if fate == number:
                raise Died
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
    for fates in ([], [0], [1], [0, 1, 1, 0]):
        status, body, ingress = begun(fates)
        assert (status, body) == (200, b"one two")
        assert ingress.retries == len(fates)
        assert ingress.replicas.models == ["naval"] * (len(fates) + 1)


def test_after_the_first_byte_nobody_begins_anew_and_the_client_is_told(ray):
    status, body, ingress = begun([2])
    assert status == 200
    assert body.startswith(b"one data: ")
    assert json.loads(body.split(b"data: ")[1])["error"]["code"] == "server_lost"
    assert ingress.retries == 0


def test_patience_ends(ray):
    status, _, ingress = begun([0] * 1000, patience=0.3)
    assert status is None
    assert ingress.retries >= 1


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
        with urllib.request.urlopen(f"{url}/replicas", timeout=120) as answer:
            told = json.loads(answer.read())
        found[told["replica"]["pid"]] = told["replica"]
        if len(found) == 2:
            break
    return found


def ray_processes():
    """Processes of Ray that are there."""
    listed = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True).stdout
    marks = ("ray::", "raylet", "gcs_server")
    return {line.split()[0] for line in listed.splitlines() if any(m in line for m in marks)}


@pytest.mark.scale
@pytest.mark.long
@needs_ray
def test_two_replicas_share_the_adapters_answer_alike_and_lose_nothing_when_one_is_killed(tmp_path):
    from fastapi.testclient import TestClient

    folders = {f"a{n}": str(make_adapter(tmp_path / f"a{n}", n)) for n in range(12)}
    bank = AdapterBank(minilora.load_base())
    for name, folder in folders.items():
        bank.load(name, folder)
    with TestClient(create_app(Service(Engine(bank), bank))) as client:
        alone = {
            name: client.post("/v1/chat/completions", content=asked(name)).json()["choices"]
            for name in folders
        }
    home = {entry.name for entry in os.scandir(os.path.expanduser("~"))}
    before = ray_processes()
    deployment = Deployment(folders, most_adapters=8, processors=0.5, patience=240.0)
    names = list(folders)
    with running(deployment, port=8798) as url:
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda n: post(url, asked(names[n % 12])), range(48)))
        assert Counter(status for status, _ in answers) == {200: 48}
        texts = {names[n % 12]: text for n, (_, text) in enumerate(answers)}
        assert {name: json.loads(text)["choices"] for name, text in texts.items()} == alone
        seen = reports(url)
        assert sum(sum(each["loads"].values()) for each in seen.values()) <= 16  # 12, or few more
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
        for n, (status, text) in enumerate(killed):
            if status == 200:
                assert json.loads(text)["choices"] == alone[names[n % 12]]
    for _ in range(100):
        if not ray_processes() - before:
            break
        time.sleep(0.2)
    assert not ray_processes() - before
    assert {entry.name for entry in os.scandir(os.path.expanduser("~"))} == home
