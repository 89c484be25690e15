"""A job of the queue, as the API shows it."""

import pytest

from minilora.jobs.api_forms import job_object
from minilora.jobs.tables import Job


def shown(**fields):
    texts = dict.fromkeys(("key", "spec", "wish", "worker", "error"), "")
    job = {**texts, "number": 1, "id": "ftjob-1", "tenant": "acme", "request": {}, "result": {}}
    job |= {"status": "running", "step": "train", "tries": 1, "fence": 1, "beats": 1}
    job |= {"lease": 1000.0, "created": 900.9, "started": 901.0, "ended": None, "seconds": 12.34}
    return job_object(Job(**{**job, "progress": {"left": 50.0}, **fields}))


@pytest.mark.parametrize(
    ("status", "step", "told"),
    [
        ("running", "prepare", "validating_files"),
        ("running", "train", "running"),
        ("queued", "prepare", "queued"),
        ("paused", "prepare", "paused"),
    ],
)
def test_only_a_job_whose_data_are_read_is_validating(status, step, told):
    assert shown(status=status, step=step)["status"] == told


def test_the_end_is_foreseen_while_it_runs():
    assert shown()["estimated_finish"] == 1050
    assert shown(progress={})["estimated_finish"] is None
    assert shown(progress={"left": 0.0})["estimated_finish"] == 1000, "and not in 1970"
    assert shown(status="paused")["estimated_finish"] is None
    ended = shown(status="succeeded", ended=1040.7)
    assert (ended["estimated_finish"], ended["finished_at"]) == (None, 1040)
    assert (shown()["finished_at"], shown()["created_at"]) == (None, 900)


def test_an_error_is_that_of_a_failed_job():
    failed = shown(status="failed", error="/srv/jobs/blobs/2c: 3 rows")
    assert failed["error"]["message"] == "…/2c: 3 rows"
    assert shown(error="it was tried again")["error"] is None


def test_what_was_not_asked_for_is_as_openai_says_it():
    assert (shown()["seed"], shown(request={"seed": 7})["seed"]) == (0, 7)
    assert (shown()["model"], shown()["validation_file"], shown()["metadata"]) == ("", None, None)
    assert shown()["seconds"] == 12.3
