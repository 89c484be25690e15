"""Workers killed with -9, at every step and at any moment: every job ends once, in the same bits.

The oracle is a run that nobody kills. Workers are forked from a process that has torch loaded
already (``forkserver``), so each lives until it is killed and not for the seconds of an import.
"""

import multiprocessing
import os
import random
import signal
import time
import warnings

import pytest
import torch

from minilora.hub import Hub
from minilora.jobs import Queue, Worker
from minilora.jobs import worker as worker_module

from ..profiles import of
from .test_steps import by_hand, same, weights

LEASE, TRIES = 1.5, 100_000
pytestmark = pytest.mark.skipif(os.name == "nt", reason="forkserver and kill -9")


def opened(folder):
    return Queue(folder, lease=LEASE, tries=TRIES)


def work(folder, hub, id=None):
    """A worker until the queue is empty, or until a job has ended."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    Worker(opened(folder), hub).run(id, until_idle=True)


POINTS = [
    f"{when} {step}"
    for step in ("prepare", "train", "evaluate", "register")
    for when in ("after", "renamed", "committed")
] + ["before prepare", "step 3"]  # the other steps begin where the last one is committed


def die_once(marks, point):
    """Kill this process the first time that it comes to a point."""
    mark = marks / point
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)


def work_and_die(folder, hub, marks, id):
    """The same, killed once at each of ``POINTS``."""
    finish, steps = Queue.finish, dict(worker_module.STEP)

    def step_of(name):
        def step(work):
            if f"before {name}" in POINTS:
                die_once(marks, f"before {name}")
            if name == "train":
                say = work.pulse.say

                def tell(message, mark=None, **more):
                    say(message, mark, **more)
                    if mark in POINTS:
                        die_once(marks, mark)

                work.pulse.say = tell
            place = steps[name](work)
            die_once(marks, f"after {name}")
            return place

        return step

    def finish_and_die(queue, claim, place, **more):
        def place_and_die():
            result = place()
            die_once(marks, f"renamed {claim.step}")
            return result

        done = finish(queue, claim, place_and_die, **more)
        die_once(marks, f"committed {claim.step}")
        return done

    worker_module.STEP.update({name: step_of(name) for name in steps})
    Queue.finish = finish_and_die
    work(folder, hub, id)


@pytest.fixture(scope="module")
def processes():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["minilora.jobs.worker", "tests.jobs.test_kills"])
    return context


def check(queue, hub, ids, expected):
    """Every job ended once, and its weights are the oracle's."""
    for id in ids:
        job = queue.job(id)
        assert job.status == "succeeded", (job.error, queue.events(id)[-5:])
        done = [event.message for event in queue.events(id) if event.message.endswith("is done")]
        assert done == [f"{step} is done" for step in ("prepare", "train", "evaluate", "register")]
        versions = hub.list(job.name)
        assert [version.spec for version in versions] == [f"{job.name}@1.0.0"]
        assert same(weights(hub, job.name), expected)
    assert hub.verify() == []


@pytest.mark.slow
def test_killed_once_at_every_step(processes, spec, tmp_path):
    queue, hub, marks = opened(tmp_path / "jobs"), Hub(tmp_path / "hub"), tmp_path / "marks"
    marks.mkdir()
    job = queue.submit(spec)
    arguments = queue.folder, hub.folder, marks, job.id
    kills = 0
    while queue.job(job.id).is_open:
        process = processes.Process(target=work_and_die, args=arguments)
        process.start()
        process.join()
        kills += process.exitcode == -signal.SIGKILL
    assert kills == len(POINTS)
    check(queue, hub, [job.id], by_hand(spec, tmp_path / "by hand"))


def killed_at_random(processes, spec, tmp_path, kills, seed):
    """Two workers at a time, killed one after the other, as long as jobs go in."""
    rng, queue, hub = random.Random(seed), opened(tmp_path / "jobs"), Hub(tmp_path / "hub")
    ids, running, killed = [], [], 0
    while killed < kills or any(queue.job(id).is_open for id in ids):
        if killed < kills and sum(queue.job(id).is_open for id in ids) < 2:
            ids.append(queue.submit({**spec, "name": f"naval-{len(ids)}"}).id)
        running = [process for process in running if process.is_alive()]
        while len(running) < 2:
            running.append(processes.Process(target=work, args=(queue.folder, hub.folder)))
            running[-1].start()
        time.sleep(rng.uniform(0.2, 3.0))
        if killed < kills:
            victim = running.pop(rng.randrange(2))
            killed += victim.is_alive()
            victim.kill()
            victim.join()
    for process in running:
        process.join()
    check(queue, hub, ids, by_hand(spec, tmp_path / "by hand"))
    claims = sum(queue.job(id).fence for id in ids)
    print(f"{killed} kills, {len(ids)} jobs, {claims} fences")
    return ids


@pytest.mark.slow
def test_killed_a_few_times_at_random(processes, spec, tmp_path):
    killed_at_random(processes, spec, tmp_path, of(2, 3, 10), seed=1)


@pytest.mark.long
def test_killed_a_hundred_times_at_random(processes, spec, tmp_path):
    killed_at_random(processes, spec, tmp_path, 100, seed=7)
