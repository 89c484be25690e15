"""A job of the queue, as the API shows it."""

import pytest

from minilora.jobs.api_forms import CreateJob, checkpoint_objects, job_object
from minilora.jobs.tables import Job


def job_of(**fields):
    texts = dict.fromkeys(("key", "spec", "wish", "worker", "error"), "")
    job = {**texts, "number": 1, "id": "ftjob-1", "tenant": "acme", "request": {}, "result": {}}
    job |= {"status": "running", "step": "train", "tries": 1, "fence": 1, "beats": 1}
    job |= {"lease": 1000.0, "created": 900.9, "started": 901.0, "ended": None, "seconds": 12.34}
    return Job(**{**job, "progress": {"left": 50.0, "finish": 1020.5}, **fields})


def shown(**fields):
    return job_object(job_of(**fields))


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
    assert shown()["estimated_finish"] == 1020, "and not after the lease, which ends at 1000"
    assert shown(progress={})["estimated_finish"] is None
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


def test_hyperparameters_are_heeded_in_either_place_the_newer_first():
    asked = {"model": "base", "training_file": "file-1"}
    assert CreateJob(**asked).settings.n_epochs == "auto"
    asked["hyperparameters"] = {"n_epochs": 2}
    assert CreateJob(**asked).settings.n_epochs == 2
    asked["method"] = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 3}}}
    assert CreateJob(**asked).settings.n_epochs == 3


def test_what_a_job_made_is_the_adapter_and_then_those_of_earlier_steps():
    training = {"steps": 80, "loss": 0.5, "valid_loss": 0.75}
    earlier = {"version": "naval@1.0.0-step.40", "step": 40, "valid_loss": 1.5}
    result = {"version": "naval@1.0.0", "training": training, "checkpoints": [earlier]}
    last, first = checkpoint_objects(job_of(status="succeeded", ended=1040.7, result=result))
    assert (last["id"], first["id"]) == ("ftckpt-1-80", "ftckpt-1-40")
    assert last["fine_tuned_model_checkpoint"] == "naval@1.0.0"
    assert last["metrics"] == {"step": 80, "train_loss": 0.5, "valid_loss": 0.75}
    assert first["metrics"] == {"step": 40, "valid_loss": 1.5}
    assert (first["created_at"], first["step_number"]) == (1040, 40)
