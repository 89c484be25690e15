"""When a worker is started again, and what it is given; the processes here only print."""

import asyncio
import itertools
import sys
from types import SimpleNamespace

import pytest

from minilora.serving import workers as module
from minilora.serving.workers import CALM, LONGEST_PAUSE, Workers


def kept(monkeypatch, lives):
    """The pauses between the starts of a worker that lives so many seconds each time."""
    now, pauses, left = [0.0], [], list(lives)
    workers = Workers(["serve"], 1)

    async def once(upstream, first):
        if not first.done():
            first.set_result(None)
        if not left:
            raise asyncio.CancelledError
        now[0] += left.pop(0)
        return 1

    async def sleep(seconds):
        pauses.append(seconds)

    async def main():
        first = asyncio.get_running_loop().create_future()
        with pytest.raises(asyncio.CancelledError):
            await workers.keep(workers.upstreams[0], first)

    monkeypatch.setattr(workers, "run_once", once)
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(module, "asyncio", SimpleNamespace(**{**vars(asyncio), "sleep": sleep}))
    asyncio.run(main())
    return pauses


def test_a_worker_that_keeps_dying_is_started_ever_later_and_a_calm_one_at_once(monkeypatch):
    dying = kept(monkeypatch, [1.0] * 12)
    assert dying[0] <= 0.5, "the first time at once, as good as"
    steep = [a for a in dying if a < LONGEST_PAUSE]
    assert all(b >= 2 * a for a, b in itertools.pairwise(steep))
    assert dying[len(steep) :] == [LONGEST_PAUSE] * (12 - len(steep))
    assert 3 <= len(steep) <= 8
    calm = kept(monkeypatch, [1.0, 1.0, CALM + 1, 1.0, CALM])
    assert calm[2] == 0.0
    assert calm[3:] == dying[:2], "and then from the beginning; just so long is not longer"


def test_a_worker_that_cannot_be_started_just_now_is_tried_again(monkeypatch):
    """Without memory for a process, say: whoever keeps it must not end of that."""
    workers, tried = Workers(["serve"], 1), []

    async def once(upstream, first):
        tried.append(upstream.name)
        if len(tried) == 1:
            first.set_result(None)
            return 1
        if len(tried) == 2:
            raise OSError(12, "no memory")
        await asyncio.Event().wait()

    async def main():
        async with workers:
            while len(tried) < 3:
                await asyncio.sleep(0.01)
            assert not workers.tasks[0].done()

    monkeypatch.setattr(workers, "run_once", once)
    asyncio.run(asyncio.wait_for(main(), 20))


def test_one_that_ends_before_it_was_ready_is_an_error(monkeypatch):
    workers, started = Workers(["serve"], 1), []

    async def once(upstream, first):
        started.append(upstream.name)
        return 2

    monkeypatch.setattr(workers, "run_once", once)

    async def main():
        with pytest.raises(ValueError, match="worker-0 ended with status 2"):
            async with workers:
                pass

    asyncio.run(asyncio.wait_for(main(), 5))
    assert started == ["worker-0"]


def test_leaving_ends_what_keeps_them(monkeypatch):
    workers = Workers(["serve"], 2)

    async def once(upstream, first):
        first.set_result(None)
        await asyncio.Event().wait()

    monkeypatch.setattr(workers, "run_once", once)

    async def main():
        async with workers:
            assert not any(task.done() for task in workers.tasks)
        assert all(task.cancelled() for task in workers.tasks)

    asyncio.run(asyncio.wait_for(main(), 5))


SAYS = """
import os, sys
print("note: threads", os.environ["OMP_NUM_THREADS"], flush=True)
print("note: alone", os.getsid(0) == os.getpid(), flush=True)
print("a line of no concern", flush=True)
print("ready at http://localhost:81   models: m", flush=True)
print("note: ready", flush=True)
sys.exit(3)
"""


@pytest.mark.parametrize(
    ("cpus", "count", "share"), [(8, 2, 4), (9, 4, 2), (2, 3, 1), (None, 1, 1)]
)
def test_a_worker_has_its_share_of_the_cores_and_a_session_of_its_own(
    monkeypatch, capsys, cpus, count, share
):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(module.os, "cpu_count", lambda: cpus)
    workers = Workers([], count)
    workers.command = [sys.executable, "-I", "-S", "-c", SAYS]
    seen = []

    async def main():
        for upstream in (workers.upstreams[0], workers.upstreams[-1]):
            upstream.come_up()
            first = asyncio.get_running_loop().create_future()
            first.add_done_callback(lambda _, upstream=upstream: seen.append(upstream.address))
            assert await workers.run_once(upstream, first) == 3
            assert first.result() is None
            assert upstream.address is None
            assert upstream.down.is_set()

    asyncio.run(asyncio.wait_for(main(), 20))
    assert seen == ["http://127.0.0.1:81"] * 2
    notes = [f"note: threads {share}", "note: alone True", "note: ready"]
    assert capsys.readouterr().out.splitlines() == notes * (1 if count > 1 else 2)
