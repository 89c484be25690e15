"""A worker's pulse: how often it renews, what it tells once, and when it gives up."""

import threading
from types import SimpleNamespace

import pytest

from minilora.jobs import pulse as pulse_module
from minilora.jobs.claims import Lost, Stopped
from minilora.jobs.pulse import Pulse


class Told:
    """A queue that keeps what it is told; ``fails``: what the next renewals raise."""

    def __init__(self, lease=8.0, fails=()):
        self.lease, self.fails, self.beats = lease, list(fails), []

    def clock(self):
        return 1e9

    def beat(self, job, **more):
        if self.fails:
            raise self.fails.pop(0)
        self.beats.append(more)


class Over:
    """An event that ends the thread after so many waits, each as long on the clock as it says."""

    def __init__(self, waits):
        self.left, self.pauses, self.now = waits, [], 0.0

    def wait(self, pause):
        self.pauses.append(pause)
        self.now += pause
        return len(self.pauses) > self.left


def pulse_of(queue, waits=1):
    pulse = Pulse(queue, None)
    pulse.over = Over(waits)
    return pulse


@pytest.mark.parametrize("lease", [0.2, 1.0, 30.0])
def test_it_renews_several_times_a_lease_and_every_second_at_least(lease):
    pulse = pulse_of(Told(lease), waits=3)
    pulse.run()
    assert len(pulse.queue.beats) == 3
    assert max(pulse.over.pauses) <= min(1.0, lease / 3)


def test_news_are_told_once_and_again_only_where_they_were_not_written():
    pulse = pulse_of(Told(fails=[OSError("the disk is full")]))
    pulse.say("step 1", "step 1", type="metrics")
    with pytest.raises(OSError, match="full"):
        pulse.beat()
    pulse.say("step 2")
    pulse.beat()
    pulse.beat()
    told = [[event["message"] for event in beat["events"]] for beat in pulse.queue.beats]
    assert told == [["step 1", "step 2"], []]
    first = {"at": 1e9, "message": "step 1", "mark": "step 1", "type": "metrics"}
    assert pulse.queue.beats[0]["events"][0] == first


def test_what_was_kept_is_told_once():
    pulse = pulse_of(Told())
    pulse.beat()
    pulse.kept = True
    pulse.beat()
    pulse.beat()
    assert [beat["kept"] for beat in pulse.queue.beats] == [False, True, False]


@pytest.mark.parametrize(("failures", "lost"), [(8, False), (9, True)])
def test_a_claim_is_lost_when_nothing_was_written_for_a_lease(monkeypatch, failures, lost):
    """A lease of 8 seconds, a renewal a second, and a disk that is full meanwhile."""
    over = Over(20)
    monkeypatch.setattr(pulse_module, "time", SimpleNamespace(monotonic=lambda: over.now))
    pulse = Pulse(Told(fails=[OSError("full")] * failures), None)
    pulse.over = over
    pulse.run()
    if lost:
        with pytest.raises(Lost):
            pulse.check()
    else:
        pulse.check()
    worked = [beat["seconds"] for beat in pulse.queue.beats]
    assert worked == ([] if lost else [9.0] + [1.0] * 11), "none is counted twice, none is left out"


def test_a_wish_ends_the_thread_and_the_work_learns_of_it():
    pulse = pulse_of(Told(fails=[Stopped("paused")]), waits=9)
    pulse.run()
    assert len(pulse.over.pauses) == 1
    with pytest.raises(Stopped, match="paused"):
        pulse.check()


def test_a_worker_that_ends_gives_its_job_back():
    stop = threading.Event()
    pulse = Pulse(Told(), None, stop)
    pulse.check()
    stop.set()
    with pytest.raises(Stopped) as stopped:
        pulse.check()
    assert stopped.value.status == "queued"
