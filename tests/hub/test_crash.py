"""Killed with -9 at any moment, several processes at once: what was acknowledged is there, whole.

The processes are forked from one that has torch loaded already (``forkserver``), so each lives
until it is killed and not for the seconds of an import. What is acknowledged is appended to a file,
one line in one write.
"""

import multiprocessing
import os
import random
import time
import warnings

import pytest

from minilora.hub import Hub

from ..profiles import of
from .adapters import make_adapter

KILLS = of(4, 8, 200)
pytestmark = pytest.mark.skipif(os.name == "nt", reason="forkserver and kill -9")


def push_until_killed(hub_folder, work, log, seed):
    """Push, promote, sweep; each push is acknowledged after it returned."""
    warnings.simplefilter("ignore")
    hub = Hub(hub_folder)
    handle = os.open(log, os.O_APPEND | os.O_CREAT | os.O_WRONLY)
    while True:
        seed += 1
        spec = hub.push("naval", make_adapter(work, seed)).spec
        os.write(handle, f"{spec}\n".encode())
        if seed % 3 == 0:
            hub.alias(spec, "champion")
            hub.gc()


@pytest.fixture(scope="module")
def processes():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["minilora.hub", "minilora.nf4", "tests.hub.test_crash"])
    return context


@pytest.mark.slow
def test_what_was_acknowledged_survives_kill_9(processes, tmp_path):
    """Three processes at a time, killed one by one: nothing acknowledged is lost or given twice."""
    rng, hub, log, running = random.Random(7), Hub(tmp_path / "hub"), tmp_path / "log", []
    hub.push("naval", make_adapter(tmp_path / "first"))
    for number in range(KILLS):
        while len(running) < min(3, KILLS - number):
            work = tmp_path / f"work{number}{len(running)}"
            seed = 1000 * (3 * number + len(running))
            arguments = hub.folder, work, log, seed
            running.append(processes.Process(target=push_until_killed, args=arguments))
            running[-1].start()
        time.sleep(rng.uniform(0.05, 0.3))
        running[0].kill()
        running.pop(0).join()
    acknowledged = log.read_text().split()
    assert len(acknowledged) >= KILLS / 2
    assert len(set(acknowledged)) == len(acknowledged)
    assert hub.verify() == []
    for spec in acknowledged:
        assert hub.read(spec).content_id == hub.show(spec).manifest.content
    numbers = [each.version for each in hub.list("naval")]
    assert numbers == [f"1.0.{patch}" for patch in range(len(numbers))]
    hub.gc()
    assert hub.verify() == []
    assert hub.gc().files == 0
    print(f"{KILLS} kills, {len(acknowledged)} acknowledged, {len(numbers)} there")
