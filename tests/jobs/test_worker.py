"""A worker: wishes in every state, data that are poisoned, disks that are full."""

import contextlib
import errno
import threading
import time

import pytest

from minilora.hub import Hub
from minilora.jobs import Queue, Worker
from minilora.jobs import worker as worker_module
from minilora.jobs.forecast import Limits
from minilora.jobs.tables import JOBS

from ..disks import mounted
from .test_steps import by_hand, same, weights

STEPS = ("prepare", "train", "evaluate", "register")


def run(queue, tmp_path, **more):
    Worker(queue, tmp_path / "hub", **more).run(until_idle=True)


@pytest.fixture
def steps(monkeypatch):
    """Steps that do nothing, so that what is around them is seen; a test replaces single ones."""
    nothing = {name: lambda work: dict for name in STEPS}
    monkeypatch.setattr(worker_module, "STEP", nothing)
    return nothing


@pytest.mark.parametrize("wish", ["cancel", "pause"])
@pytest.mark.parametrize("step", STEPS)
def test_a_wish_is_heeded_in_every_step(queue, tmp_path, steps, step, wish):
    after = []

    def wait_for_it(work):
        getattr(queue, wish)(work.job.id)
        while True:
            work.pulse.check()

    steps[step] = wait_for_it
    for name in STEPS[STEPS.index(step) + 1 :]:
        steps[name] = lambda work: after.append(work.job.step) or dict
    job = queue.submit({"name": "naval"})
    run(queue, tmp_path)
    job = queue.job(job.id)
    assert job.status == {"cancel": "cancelled", "pause": "paused"}[wish]
    assert (job.step, after) == (step, [])
    if wish == "pause":
        steps[step] = lambda work: dict
        queue.resume(job.id)
        run(queue, tmp_path)
        assert queue.job(job.id).status == "succeeded"
        assert after == list(STEPS[STEPS.index(step) + 1 :])


def test_a_wish_in_the_middle_of_training_and_the_way_back(queue, spec, tmp_path):
    """Paused at step 2, resumed: it goes on from there."""
    spec = spec | {"train": spec["train"] | {"steps": 8, "lr": 1e-3}}
    job = queue.submit(spec)
    say = worker_module.Pulse.say

    def pause_at_step_2(pulse, message, mark=None, **more):
        say(pulse, message, mark, **more)
        if mark == "step 2" and not paused:
            paused.append(queue.pause(job.id))
            pulse.over.wait(3)  # the pulse learns of it

    paused = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker_module.Pulse, "say", pause_at_step_2)
        run(queue, tmp_path)
    assert queue.job(job.id).status == "paused"
    queue.resume(job.id)
    run(queue, tmp_path)
    job = queue.job(job.id)
    assert job.status == "succeeded", job.error
    steps = [e.message for e in queue.events(job.id) if e.message.startswith("step 1/")]
    assert len(steps) == 1, "the first steps are not done again"


def test_a_worker_that_is_told_to_stop_gives_its_job_back(queue, tmp_path, steps):
    worker = Worker(queue, tmp_path / "hub")

    def stop(work):
        worker.stop.set()
        work.pulse.check()

    steps["train"] = stop
    job = queue.submit({"name": "naval"})
    assert worker.run() == 1
    job = queue.job(job.id)
    assert (job.status, job.step, job.tries) == ("queued", "train", 0)


class Impatient(threading.Event):
    """Whoever waits ``looks`` times is told to stop; meanwhile something may happen."""

    def __init__(self, looks, meanwhile=lambda: None):
        super().__init__()
        self.looks, self.meanwhile = looks, meanwhile

    def wait(self, timeout=None):
        self.looks -= 1
        self.meanwhile()
        if self.looks == 0:
            self.set()
        return self.is_set()


def test_a_worker_waits_for_jobs_until_it_is_told_to_stop(queue, tmp_path, steps):
    stop = Impatient(3, lambda: queue.submit({"name": str(stop.looks)}))
    assert Worker(queue, tmp_path / "hub", name="ann", stop=stop).run() == 2
    assert [job.status for job in queue.jobs()] == ["queued", "succeeded", "succeeded"]
    taken = [e.message for e in queue.events(queue.jobs()[-1].id) if " begins " in e.message]
    assert taken == ["ann begins with prepare"]


def test_a_worker_of_one_job_waits_while_it_is_with_another_and_ends_with_it(
    queue, tmp_path, steps
):
    job, other = queue.submit({"name": "a"}), queue.submit({"name": "b"})
    queue.claim("another worker", job.id)
    stop = Impatient(3, lambda: stop.looks or queue.cancel(job.id))
    assert Worker(queue, tmp_path / "hub", stop=stop).run(job.id) == 0
    assert stop.looks == 0, "the other worker may die"
    assert Worker(queue, tmp_path / "hub").run(other.id) == 1
    assert queue.job(other.id).status == "succeeded"


def test_an_error_is_told_in_its_own_words_and_a_bug_with_its_name(queue, tmp_path, steps):
    def broken(work):
        raise {"a": ValueError("lr must be positive"), "b": KeyError("loss")}[work.job.name]

    steps["train"] = broken
    ids = [queue.submit({"name": name}).id for name in "ab"]
    run(queue, tmp_path)
    assert [queue.job(id).error for id in ids] == ["lr must be positive", "KeyError('loss')"]


def test_the_seconds_of_a_job_are_those_that_passed(queue, tmp_path, steps):
    begin = time.monotonic()
    steps["train"] = lambda work: time.sleep(0.05) or dict
    job = queue.submit({"name": "naval"})
    run(queue, tmp_path)
    assert 0.05 <= queue.job(job.id).seconds <= time.monotonic() - begin


def test_a_poisoned_row_of_data_fails_its_job_with_its_line(queue, spec, naval, tmp_path):
    with naval.open("a") as file:
        file.write('{"instruction": "Hi"}\n')
    bad = queue.submit(spec)
    run(queue, tmp_path)
    assert "naval.jsonl, line 41" in queue.job(bad.id).error


def test_a_damaged_spec_fails_its_job_and_no_worker(queue, steps, tmp_path):
    steps["prepare"] = lambda work: work.spec and dict
    bad, good = queue.submit({"name": "a"}), queue.submit({"name": "b"})
    with JOBS.writing(queue.folder) as db:
        db.execute("update job set spec = '{' where id = ?", (bad.id,))
        sound = '{"name": "b", "data": {"train": "x"}}'
        db.execute("update job set spec = ? where id = ?", (sound, good.id))
    run(queue, tmp_path)
    assert "name is missing" in queue.job(bad.id).error
    assert queue.job(good.id).status == "succeeded"


def test_a_full_disk_is_tried_again_and_then_told(tmp_path, steps):
    queue, full = Queue(tmp_path / "jobs", lease=0.05, tries=3), []

    def no_space(work):
        full.append(work.job.tries)
        raise OSError(errno.ENOSPC, "could not write: No space left on device")

    steps["train"] = no_space
    job = queue.submit({"name": "naval"})
    run(queue, tmp_path)
    assert full == [0, 1, 2, 3], "then its tries are used up"
    assert "No space left" in queue.job(job.id).error
    assert queue.job(job.id).status == "failed"
    steps["train"] = lambda work: dict
    other = queue.submit({"name": "other"})
    run(queue, tmp_path)
    assert queue.job(other.id).status == "succeeded"


def test_a_queue_that_cannot_be_written_stops_no_worker(queue, tmp_path, steps, monkeypatch):
    """The disk of the queue itself is full for a while."""
    job, claim, refused = queue.submit({"name": "naval"}), queue.claim, []
    queue.lease = 0.05

    def full_twice(*words):
        if len(refused) < 2:
            refused.append(1)
            raise OSError(errno.ENOSPC, "the disk is full")
        return claim(*words)

    monkeypatch.setattr(queue, "claim", full_twice)
    run(queue, tmp_path)
    assert queue.job(job.id).status == "succeeded"


def test_a_job_that_will_not_fit_is_refused_with_settings_that_would(queue, spec, tmp_path):
    job = queue.submit(spec)
    run(queue, tmp_path, limits=Limits(memory=7_000_000))
    error = queue.job(job.id).error
    assert "measured, and there are 7.0 MB" in error
    assert "would fit" in error


def test_a_job_that_takes_too_long_is_refused_with_the_steps_that_would_fit(queue, spec, tmp_path):
    job = queue.submit(spec | {"train": {"steps": 10_000, "batch_size": 4}})
    run(queue, tmp_path, limits=Limits(seconds=60))
    assert "10,000 steps take about" in (error := queue.job(job.id).error)
    assert "train.steps = " in error


def test_a_forecast_over_the_tenants_seconds_is_refused(queue, spec, tmp_path):
    queue.set_quota("default", seconds=5)
    job = queue.submit(spec | {"train": {"steps": 10_000, "batch_size": 4}})
    run(queue, tmp_path)
    assert "quota of 'default' is 5 seconds of work" in queue.job(job.id).error


def test_two_workers_share_a_queue(queue, tmp_path, steps):
    seen = {}

    def step(work):
        seen.setdefault(work.job.id, set()).add(work.job.worker)
        return dict

    steps.update(dict.fromkeys(STEPS, step))
    ids = [queue.submit({"name": name}).id for name in "abcdef"]
    workers = [Worker(queue, tmp_path / "hub", name=name) for name in ("one", "two")]
    threads = [threading.Thread(target=w.run, kwargs={"until_idle": True}) for w in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {queue.job(id).status for id in ids} == {"succeeded"}
    assert all(len(names) == 1 for names in seen.values())


def test_the_hub_has_the_tenants_adapters_apart(queue, spec, tmp_path):
    queue.submit(spec, tenant="acme")
    run(queue, tmp_path)
    assert [v.name for v in Hub(tmp_path / "hub", "acme").list()] == ["naval"]
    assert Hub(tmp_path / "hub").list() == ()


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 3 MB of its own."""
    with mounted(tmp_path / "disk", "3m") as disk:
        yield disk


@pytest.mark.slow
def test_a_disk_that_is_full_for_a_while_costs_time_and_no_bit(small_disk, spec, tmp_path):
    """The disk of queue, work and hub fills up as training begins, and is empty again later."""
    queue = Queue(small_disk / "jobs", lease=0.5, tries=1000)
    job, filler = queue.submit(spec), small_disk / "filler"

    def fill(work):
        if not tried:
            with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
                while file.write(bytes(4096)):
                    pass
            threading.Timer(2.0, filler.unlink).start()
        tried.append(work.job.fence)
        return train(work)

    tried, train = [], worker_module.STEP["train"]
    worker = Worker(queue, small_disk / "hub")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(worker_module.STEP, "train", fill)
        worker.run(job.id)
    job = queue.job(job.id)
    assert job.status == "succeeded", job.error
    assert len(tried) > 1
    assert same(weights(Hub(small_disk / "hub"), "naval"), by_hand(spec, tmp_path / "by hand"))
