"""What a worker's verbs write: sums, results, events by level, and the times of a job's life."""

import pytest

from minilora.jobs import Queue
from minilora.jobs.claims import Lost, Stopped
from minilora.jobs.tables import JOBS, STEPS, check_quota, note, read_object

from ..clock import Clock

LEASE = 10.0


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def queue(tmp_path, clock):
    return Queue(tmp_path, lease=LEASE, tries=2, clock=clock, steady=clock)


def said(queue, id):
    """(level, message) of each event."""
    return [(event.level, event.message) for event in queue.events(id)]


def test_a_life_from_the_queue_to_the_end(queue, clock):
    id = queue.submit({"name": "naval"}).id
    waits = queue.job(id)
    assert (waits.created, waits.started, waits.ended, waits.seconds) == (1000.0, None, None, 0.0)
    assert (waits.step, waits.fence, waits.beats, waits.tries) == (STEPS[0], 0, 0, 0)
    clock.now = 1001.0
    claim = queue.claim("ann")
    assert (claim.started, claim.lease, claim.worker) == (1001.0, 1011.0, "ann")
    assert (claim.fence, claim.beats, claim.tries) == (1, 1, 1)
    clock.now = 1005.0
    queue.beat(claim, progress={"step": 3}, seconds=2.0)
    queue.beat(claim, seconds=1.5)
    queue.beat(claim)
    now = queue.job(id)
    assert (now.lease, now.beats, now.seconds, now.tries) == (1015.0, 4, 3.5, 1)
    assert now.progress == {"step": 3}, "what a beat does not tell stays"
    for number, step in enumerate(STEPS):
        took = {"seconds": 1.0} if number else {}
        claim = queue.finish(claim, lambda n=number: {f"n{n}": n}, **took)
        assert (claim.tries, claim.beats) == (0, 5 + number)
        assert said(queue, id)[-1] == ("info", f"{step} is done")
    assert (claim.status, claim.worker, claim.ended) == ("succeeded", "", 1005.0)
    assert claim.result == {"n0": 0, "n1": 1, "n2": 2, "n3": 3}
    assert (claim.seconds, claim.started) == (6.5, 1001.0)
    assert said(queue, id)[:2] == [
        ("info", "the job waits for a worker"),
        ("info", "ann begins with prepare"),
    ]


def test_events_are_told_behind_a_number_and_once_a_mark(queue, clock):
    id = queue.submit({"name": "naval"}).id
    claim = queue.claim("ann")
    metric = {"message": "loss", "type": "metrics", "data": {"loss": 0.5}, "mark": "step 1"}
    queue.beat(claim, events=(metric, metric))
    first, _, last = queue.events(id)
    assert (last.type, last.data, last.at, last.job) == ("metrics", {"loss": 0.5}, 1000.0, id)
    assert queue.events(id, first.number)[-1] == last
    assert queue.events(id, last.number) == []
    queue.beat(claim, events=({"message": "late", "at": 7.0, "level": "warn"},))
    assert (queue.events(id)[-1].at, queue.events(id)[-1].level) == (7.0, "warn")


def test_a_lost_worker_is_a_warning_and_too_many_are_an_error(queue, clock):
    id = queue.submit({"name": "naval"}).id
    first = queue.claim("ann")
    clock.now += LEASE
    assert queue.claim("bob") is None, "not yet over"
    clock.now += 0.1
    second = queue.claim("bob")
    assert (second.fence, second.started) == (first.fence + 2, 1000.0)
    assert ("warn", "ann was lost in prepare") in said(queue, id)
    for call in (lambda: queue.beat(first), lambda: queue.finish(first, dict)):
        with pytest.raises(Lost, match="with another worker"):
            call()
    assert queue.job(id).worker == "bob"
    clock.now += LEASE + 1
    assert queue.claim("eve") is None
    job = queue.job(id)
    assert (job.status, job.ended, job.worker, job.fence) == ("failed", clock.now, "", 4)
    assert said(queue, id)[-1] == ("error", job.error)
    assert job.error.startswith("bob was lost in prepare: it has cost 2 workers")


@pytest.mark.parametrize(("wish", "status"), [("cancel", "cancelled"), ("pause", "paused")])
def test_a_lost_worker_s_job_goes_where_it_was_wished_to(queue, clock, wish, status):
    id = queue.submit({"name": "naval"}).id
    claim = queue.claim("ann")
    getattr(queue, wish)(id)
    clock.now += LEASE + 1
    assert queue.claim("bob") is None
    job = queue.job(id)
    assert (job.status, job.wish, job.worker) == (status, "", "")
    assert job.ended == (clock.now if wish == "cancel" else None)
    assert said(queue, id)[-1] == ("info", f"the job is {status}")
    for call in (lambda: queue.beat(claim), lambda: queue.finish(claim, dict)):
        with pytest.raises(Lost, match="with another worker"):
            call()


def test_a_wish_ends_the_work_and_says_how(queue):
    queue.submit({"name": "naval"})
    claim = queue.claim("ann")
    queue.pause(claim.id)
    with pytest.raises(Stopped, match="the job is paused") as stopped:
        queue.finish(claim, lambda: pytest.fail("its output is placed"))
    assert stopped.value.status == "paused"
    queue.resume(claim.id)
    assert said(queue, claim.id)[-1] == ("info", "the job goes on")
    again = queue.claim("bob")
    queue.cancel(again.id)
    queue.fail(again, "it broke")
    assert queue.job(again.id).status == "cancelled"


def test_what_fails_keeps_its_error_and_is_tried_again_while_it_may_be(queue, clock):
    id = queue.submit({"name": "naval"}).id
    queue.fail(queue.claim("ann"), "the disk is full", again=True)
    job = queue.job(id)
    assert (job.status, job.error, job.worker, job.ended) == (
        "queued",
        "the disk is full",
        "",
        None,
    )
    assert said(queue, id)[-1] == ("error", "the disk is full")
    queue.fail(queue.claim("ann"), "the disk is full", again=True)
    assert (queue.job(id).status, queue.job(id).ended) == ("failed", 1000.0)
    other = queue.submit({"name": "naval"}).id
    queue.fail(queue.claim("ann"), "no such file")
    assert (queue.job(other).status, queue.job(other).error) == ("failed", "no such file")


def test_a_job_that_is_given_back_has_cost_no_try(queue):
    id = queue.submit({"name": "naval"}).id
    claim = queue.claim("ann")
    queue.release(claim)
    job = queue.job(id)
    assert (job.status, job.tries, job.worker) == ("queued", 0, "")
    assert said(queue, id)[-1] == ("info", "given back")
    queue.release(claim)
    assert queue.job(id).tries == 0, "a claim that was lost changes nothing"


def test_a_job_that_is_gone_is_lost(queue):
    claim = queue.submit({"name": "naval"}) and queue.claim("ann")
    with JOBS.writing(queue.folder) as db:
        db.execute("delete from event")
        db.execute("delete from job")
    with pytest.raises(Lost):
        queue.beat(claim)
    queue.fail(claim, "x")
    queue.release(claim)


def test_one_job_may_be_asked_for(queue):
    queue.submit({"name": "a"})
    second = queue.submit({"name": "b"})
    assert queue.claim("w", second.id).id == second.id
    assert queue.claim("w", second.id) is None


def test_equal_specs_of_a_tenant_are_one_job_while_it_is_open(queue):
    first = queue.submit({"name": "a", "data": 1})
    assert queue.submit({"data": 1, "name": "a"}).id == first.id
    assert queue.submit({"data": 1, "name": "a"}, tenant="x").id != first.id
    other = queue.submit({"name": "b"}, key="mine")
    assert queue.submit({"name": "c"}, key="mine").id == other.id
    queue.cancel(first.id)
    assert queue.submit({"name": "a", "data": 1}).id != first.id
    assert queue.job(other.id).name == "b"


def test_a_pause_does_not_undo_a_cancel_and_another_tenant_wishes_nothing(queue):
    claim = queue.submit({"name": "a"}, tenant="x") and queue.claim("w")
    queue.cancel(claim.id, "x")
    queue.pause(claim.id, "x")
    assert queue.job(claim.id).wish == "cancel"
    for call in (queue.cancel, queue.pause, queue.resume, queue.job):
        with pytest.raises(KeyError, match="no job"):
            call(claim.id, "y")
    assert queue.jobs("y") == []
    assert [job.id for job in queue.jobs("x")] == [claim.id]


@pytest.mark.parametrize(
    ("quota", "more", "told"),
    [
        ({"jobs": 2}, {"jobs": 1}, ""),
        ({"jobs": 2}, {"jobs": 2}, "is 2 unfinished jobs, and this would make it 3"),
        ({"seconds": 50}, {"seconds": 10.0}, ""),
        ({"seconds": 50}, {"seconds": 11.0}, "is 50 seconds of work, and this would make it 51"),
        ({"bytes": 8}, {"bytes": 8}, ""),
        ({"bytes": 8}, {"bytes": 9}, "is 8 bytes of files, and this would make it 9"),
        ({}, {"jobs": 99, "seconds": 1e9, "bytes": 10**12}, ""),
    ],
    ids=str,
)
def test_quotas_are_reached_and_not_passed(queue, quota, more, told):
    """One open job, whose forecast is 40 seconds; one that has ended after none."""
    queue.submit({"name": "b"}, tenant="x")
    queue.cancel(queue.jobs()[0].id)
    queue.submit({"name": "a"}, tenant="x")
    queue.finish(queue.claim("w"), lambda: {"forecast": {"seconds": 40}}, seconds=3.0)
    queue.set_quota("x", **quota)
    with JOBS.writing(queue.folder) as db:
        check_quota(db, "y", jobs=9)
        if not told:
            check_quota(db, "x", **more)
            return
        with pytest.raises(ValueError, match=f"the quota of 'x' {told}"):
            check_quota(db, "x", **more)


def test_what_is_not_asked_for_passes_a_quota_that_is_reached(queue):
    queue.submit({"name": "a"}, tenant="x")
    queue.beat(queue.claim("w"), seconds=40.0)
    queue.set_quota("x", jobs=2, seconds=40, bytes=0)
    with JOBS.writing(queue.folder) as db:
        check_quota(db, "x", jobs=1)
        db.execute("update quota set jobs = 1")
        check_quota(db, "x", seconds=0.0)


def test_a_row_that_is_no_object_is_an_empty_one(queue):
    assert [read_object(text) for text in ("[1]", "3", '{"a": 1}')] == [{}, {}, {"a": 1}]
    id = queue.submit({"name": "naval"}).id
    with JOBS.writing(queue.folder) as db:
        note(db, id, 5.0, "plain")
    assert queue.events(id)[-1][2:] == (5.0, "info", "message", "plain", {})
