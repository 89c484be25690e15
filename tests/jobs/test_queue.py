"""The queue against a model of it: any calls in any order, on clocks that jump."""

import sqlite3
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, multiple, rule

from minilora.jobs import Queue
from minilora.jobs.claims import Lost, Stopped
from minilora.jobs.tables import JOBS, STEPS

from ..profiles import of

LEASE, TRIES = 10.0, 3


class Clock:
    """Two clocks: ``wall`` may jump, ``steady`` never does."""

    def __init__(self):
        self.wall, self.steady = 1e9, 0.0

    def wait(self, seconds):
        self.wall += seconds
        self.steady += seconds


def queue_of(folder, clock, **settings):
    clocks = {"clock": lambda: clock.wall, "steady": lambda: clock.steady}
    return Queue(folder, lease=LEASE, tries=TRIES, **clocks, **settings)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def queue(tmp_path, clock):
    return queue_of(tmp_path, clock)


class Life(RuleBasedStateMachine):
    """Jobs as a model knows them: status, step, wish, tries, fence, and when the lease ends.

    The model is told which claim is taken by nobody else: only the last one may write.
    """

    jobs = Bundle("jobs")
    claims = Bundle("claims")

    def __init__(self):
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.clock = Clock()
        self.queue = queue_of(Path(self.folder.name), self.clock)
        self.model = {}  # id: a dict
        self.order = []
        self.placed = {}  # id: the steps whose output was put in place

    def teardown(self):
        self.folder.cleanup()

    def tries_left(self, job):
        return job["tries"] < TRIES

    def settle(self, job):
        job["status"] = {"cancel": "cancelled", "pause": "paused"}[job["wish"]]
        job["wish"] = ""

    @rule(target=jobs, name=st.sampled_from("abc"), tenant=st.sampled_from(["x", "y"]))
    def submit(self, name, tenant):
        job = self.queue.submit({"name": name}, tenant=tenant)
        open_ones = [
            id
            for id in self.order
            if self.model[id]["key"] == (tenant, name)
            and self.model[id]["status"] in ("queued", "running", "paused")
        ]
        if open_ones:
            assert job.id == open_ones[0]
            return multiple()
        assert job.id not in self.model
        fresh = {"status": "queued", "step": 0, "wish": "", "tries": 0, "holder": None}
        self.model[job.id] = fresh | {"key": (tenant, name), "lease": 0.0, "beat": 0.0}
        self.placed[job.id] = []
        self.order.append(job.id)
        return job.id

    @rule(target=claims)
    def claim(self):
        for job in (self.model[id] for id in self.order):
            if job["status"] == "running":
                watched = job.setdefault("watched", self.clock.steady)
                over = self.clock.wall > job["lease"] or self.clock.steady - watched > LEASE
                if over:
                    job["holder"] = None
                    if job["wish"]:
                        self.settle(job)
                    else:
                        job["status"] = "queued" if self.tries_left(job) else "failed"
        busy = {tenant: 0 for tenant in "xy"}
        for job in self.model.values():
            busy[job["key"][0]] += job["status"] == "running"
        waiting = [id for id in self.order if self.model[id]["status"] == "queued"]
        expected = min(waiting, key=lambda id: busy[self.model[id]["key"][0]], default=None)
        claim = self.queue.claim("worker")
        assert (claim and claim.id) == expected
        if claim is None:
            return multiple()
        job = self.model[claim.id]
        assert claim.step == STEPS[job["step"]]
        job |= {"status": "running", "holder": claim.fence, "tries": job["tries"] + 1}
        self.renewed(job)
        return claim

    def renewed(self, job):
        job["lease"] = self.clock.wall + LEASE
        job.pop("watched", None)

    def holds(self, claim):
        job = self.model[claim.id]
        return job["status"] == "running" and job["holder"] == claim.fence

    @rule(claim=claims, kept=st.booleans())
    def beat(self, claim, kept):
        job = self.model[claim.id]
        if not self.holds(claim):
            with pytest.raises(Lost):
                self.queue.beat(claim, kept=kept)
            return
        job["tries"] = 0 if kept else job["tries"]
        if job["wish"]:
            with pytest.raises(Stopped) as stopped:
                self.queue.beat(claim, kept=kept)
            self.settle(job)
            assert stopped.value.status == job["status"]
            return
        self.queue.beat(claim, kept=kept)
        self.renewed(job)

    @rule(claim=claims, dies=st.booleans())
    def finish(self, claim, dies):
        """``dies``: a kill between the output's rename and the commit."""
        job = self.model[claim.id]
        step = STEPS[job["step"]]

        def place():
            if dies:
                raise KeyboardInterrupt
            self.placed[claim.id].append(step)
            return {step: "placed"}

        if not self.holds(claim):
            with pytest.raises(Lost):
                self.queue.finish(claim, place)
        elif job["wish"]:
            with pytest.raises(Stopped):
                self.queue.finish(claim, place)
            self.settle(job)
        elif dies:
            with pytest.raises(KeyboardInterrupt):
                self.queue.finish(claim, place)
        else:
            after = self.queue.finish(claim, place)
            job["step"] += 1
            job["tries"] = 0
            self.renewed(job)
            if job["step"] == len(STEPS):
                job |= {"status": "succeeded", "step": len(STEPS) - 1}
            assert after.status == job["status"]

    @rule(claim=claims, again=st.booleans())
    def fail(self, claim, again):
        job, held = self.model[claim.id], self.holds(claim)
        self.queue.fail(claim, "it broke", again=again)
        if held and job["wish"]:
            self.settle(job)
        elif held:
            job["status"] = "queued" if again and self.tries_left(job) else "failed"

    @rule(claim=claims)
    def release(self, claim):
        job, held = self.model[claim.id], self.holds(claim)
        self.queue.release(claim)
        if held and job["wish"]:
            self.settle(job)
        elif held:
            job |= {"status": "queued", "tries": max(0, job["tries"] - 1)}

    @rule(id=jobs, verb=st.sampled_from(["cancel", "pause"]))
    def wish(self, id, verb):
        job = self.model[id]
        allowed = {"cancel": ("queued", "running", "paused"), "pause": ("queued", "running")}[verb]
        if job["status"] not in allowed:
            with pytest.raises(ValueError, match=f"is {job['status']}"):
                getattr(self.queue, verb)(id)
            return
        getattr(self.queue, verb)(id)
        job["wish"] = "cancel" if job["wish"] == "cancel" else verb
        if job["status"] != "running":
            self.settle(job)

    @rule(id=jobs)
    def resume(self, id):
        job = self.model[id]
        if job["status"] == "running" and job["wish"] == "pause":
            job["wish"] = ""
        elif job["status"] == "paused":
            job |= {"status": "queued", "tries": 0}
        else:
            with pytest.raises(ValueError, match="expected a job that is paused"):
                self.queue.resume(id)
            return
        self.queue.resume(id)

    @rule(seconds=st.sampled_from([1.0, LEASE / 2, LEASE + 1]))
    def time_passes(self, seconds):
        self.clock.wait(seconds)

    @rule(seconds=st.sampled_from([-86_400.0, -5.0, 5.0, 86_400.0]))
    def the_wall_clock_jumps(self, seconds):
        self.clock.wall += seconds

    @rule()
    def another_process_opens_it(self):
        """What a process watched is its own: a new one has to watch anew."""
        self.queue = queue_of(Path(self.folder.name), self.clock)
        for job in self.model.values():
            job.pop("watched", None)

    @invariant()
    def it_is_as_the_model_says(self):
        there = {job.id: job for job in self.queue.jobs()}
        assert there.keys() == self.model.keys()
        for id, job in self.model.items():
            row = there[id]
            seen = row.status, row.step, row.wish, row.tries
            assert seen == (job["status"], STEPS[job["step"]], job["wish"], job["tries"]), id
            assert (row.ended is not None) == (not row.is_open)
            placed = self.placed[id]
            assert placed == list(STEPS[: len(placed)]), "each output once, in order"
            done = [e.message for e in self.queue.events(id) if e.message.endswith("is done")]
            assert done == [f"{step} is done" for step in placed]


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=of(10, 25, 400), stateful_step_count=30, deadline=None)


def test_a_lease_that_runs_out_fences_the_old_worker(queue, clock):
    queue.submit({"name": "naval"})
    old = queue.claim("old")
    assert queue.claim("new") is None
    clock.wait(LEASE - 1)
    queue.beat(old)
    clock.wait(LEASE - 1)
    assert queue.claim("new") is None
    clock.wait(2)
    new = queue.claim("new")
    assert new.fence > old.fence
    for write in (lambda: queue.beat(old), lambda: queue.finish(old, dict)):
        with pytest.raises(Lost):
            write()
    queue.fail(old, "too late")
    assert queue.finish(new, dict).step == "train"


def test_a_clock_that_jumps_back_keeps_nobody_waiting(queue, clock):
    """The dead worker's lease is a day in the future; a watcher's own clock says it is over."""
    queue.submit({"name": "naval"})
    queue.claim("dead")
    clock.wall -= 86_400
    assert queue.claim("new") is None
    clock.wait(LEASE + 1)
    assert queue.claim("new").worker == "new"


def test_a_clock_that_jumps_forward_costs_a_claim_and_no_work(queue, clock):
    queue.submit({"name": "naval"})
    old = queue.claim("old")
    clock.wall += 86_400
    new = queue.claim("new")
    with pytest.raises(Lost):
        queue.finish(old, dict)
    assert queue.finish(new, dict).step == "train"


def test_a_job_that_kills_its_workers_ends(queue, clock):
    queue.submit({"name": "poison"})
    queue.submit({"name": "naval"})
    for _ in range(TRIES):
        assert queue.claim("w").name == "poison"
        clock.wait(LEASE + 1)
    assert queue.claim("w").name == "naval"
    poison = queue.jobs()[1]
    assert poison.status == "failed"
    assert "3 workers in a row without any progress" in poison.error


def test_a_checkpoint_is_progress(queue, clock):
    queue.submit({"name": "naval"})
    for _ in range(3 * TRIES):
        claim = queue.claim("w")
        queue.beat(claim, kept=True)
        clock.wait(LEASE + 1)
    assert queue.claim("w").status == "running"


@pytest.mark.parametrize("column", ["spec", "request", "progress", "result"])
def test_a_damaged_row_stops_nobody(queue, column):
    bad, good = queue.submit({"name": "a"}), queue.submit({"name": "b"})
    with JOBS.writing(queue.folder) as db:
        db.execute(f"update job set {column} = '{{' where id = ?", (bad.id,))
    assert queue.claim("w").id == bad.id
    assert queue.claim("w").id == good.id
    assert [job.id for job in queue.jobs()] == [good.id, bad.id]


def test_the_quota_of_unfinished_jobs_counts_where_the_row_goes_in(queue):
    queue.set_quota("x", jobs=2, seconds=100)
    queue.submit({"name": "a"}, tenant="x")
    job = queue.submit({"name": "b"}, tenant="x")
    with pytest.raises(ValueError, match="'x' is 2 unfinished jobs, and this would make it 3"):
        queue.submit({"name": "c"}, tenant="x")
    queue.submit({"name": "c"}, tenant="y")
    queue.cancel(job.id)
    claim = queue.claim("w")
    queue.beat(claim, seconds=101.0)
    with pytest.raises(ValueError, match="100 seconds of work"):
        queue.submit({"name": "c"}, tenant="x")


def test_a_full_disk_is_a_sentence_and_loses_nothing(queue):
    job = queue.submit({"name": "naval"})
    claim = queue.claim("w")

    def place():
        raise sqlite3.OperationalError("database or disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        queue.finish(claim, place)
    assert queue.job(job.id).step == "prepare"
    assert queue.finish(claim, dict).step == "train"


def test_tenants_take_turns(queue):
    for name in "abc":
        queue.submit({"name": name}, tenant="x")
    queue.submit({"name": "d"}, tenant="y")
    assert [queue.claim("w").name for _ in range(4)] == ["a", "d", "b", "c"]


def test_a_spec_is_the_same_wish_in_whatever_order_its_fields_come(queue):
    one = queue.submit({"name": "naval", "train": {"lr": 1e-3, "steps": 4}})
    other = queue.submit({"train": {"steps": 4, "lr": 1e-3}, "name": "naval"})
    assert other.id == one.id


def test_only_a_job_that_pauses_or_is_to_pause_can_be_resumed(queue):
    job = queue.submit({"name": "naval"})
    with pytest.raises(ValueError, match="queued: expected a job that is paused"):
        queue.resume(job.id)
    queue.claim("w")
    with pytest.raises(ValueError, match="running: expected a job that is paused"):
        queue.resume(job.id)
    assert queue.pause(job.id).wish == "pause"
    resumed = queue.resume(job.id)  # before the worker has noticed
    assert (resumed.status, resumed.wish) == ("running", "")


def test_a_quota_may_be_nothing_and_not_less(queue):
    queue.set_quota("x", jobs=0)
    assert queue.quota("x") == {"jobs": 0, "seconds": None, "bytes": None}
    with pytest.raises(ValueError, match="0 unfinished jobs"):
        queue.submit({"name": "a"}, tenant="x")
    with pytest.raises(ValueError, match="jobs: expected at least 0, or None, got -1"):
        queue.set_quota("x", jobs=-1)
    assert queue.quota("x")["jobs"] == 0
