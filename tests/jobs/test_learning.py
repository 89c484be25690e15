"""The loop's training as a job: seen in the queue, done once, gone on with after a kill."""

import pytest

from minilora import data
from minilora.hub import Hub
from minilora.jobs import Queue, learning
from minilora.jobs.learning import Unfinished, learn
from minilora.jobs.recipe import Recipe


@pytest.fixture
def recipe():
    task = data.naval_log(8, 2)
    short = {"steps": 1, "batch_size": 4}
    return Recipe("naval", task.train, task.valid, train=short, replay={"share": 0.2, "windows": 2})


def test_a_training_is_a_job_of_the_tenant_and_done_once(recipe, tmp_path):
    queue, hub = Queue(tmp_path / "jobs"), Hub(tmp_path / "hub", "acme")
    version = learn(queue, hub, recipe, recipe.old, facts={"without": "mal"})
    again = learn(queue, hub, recipe, recipe.old, facts={"without": "mal"})
    assert again.spec == version.spec
    (job,) = queue.jobs("acme")
    assert (job.status, job.result["version"]) == ("succeeded", "naval@1.0.0")
    assert job.result["data"]["train"] == 8, "all of them: the gate judges, not the job"
    lineage = hub.show("naval").manifest
    assert (lineage.recipe["without"], lineage.recipe["job"]) == ("mal", job.id)
    child = learn(queue, hub, recipe, recipe.old[:4], parent=version.spec)
    assert hub.show(child.spec).manifest.parent == version.spec


def test_a_job_that_a_killed_loop_left_is_gone_on_with(recipe, tmp_path, monkeypatch):
    queue, hub = Queue(tmp_path / "jobs"), Hub(tmp_path / "hub")

    class Killed:
        def __init__(self, *_, **__):
            pass

        def run(self, id):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(learning, "Worker", Killed)
        with pytest.raises(KeyboardInterrupt):
            learn(queue, hub, recipe, recipe.old, facts={"without": "mal", "candidates": 3})
    again = learn(queue, hub, recipe, recipe.old, facts={"candidates": 3, "without": "mal"})
    assert again.spec == "naval@1.0.0"
    assert len(queue.jobs()) == 1


def test_a_job_that_somebody_cancelled_is_told(recipe, tmp_path, monkeypatch):
    queue, hub = Queue(tmp_path / "jobs"), Hub(tmp_path / "hub")
    monkeypatch.setattr(learning.Worker, "run", lambda worker, id: worker.queue.cancel(id) and 0)
    with pytest.raises(Unfinished, match="is cancelled"):
        learn(queue, hub, recipe, recipe.old)


def test_a_recipe_that_no_job_would_take_is_refused(recipe):
    with pytest.raises(ValueError, match="stepz"):
        Recipe("naval", recipe.old, recipe.regression, train={"stepz": 1})
    with pytest.raises(ValueError, match="after and block from 1 on"):
        Recipe("naval", recipe.old, recipe.regression, block=0)


def test_the_smallest_recipe_is_taken(recipe):
    least = {"after": 1, "block": 1, "suspects": 0, "every": 1e-9}
    assert Recipe("naval", recipe.old, recipe.regression, **least).suspects == 0
    for name, value in {"after": 0, "suspects": -1, "every": 0.0}.items():
        with pytest.raises(ValueError, match="expected after and block from 1 on"):
            Recipe("naval", recipe.old, recipe.regression, **least | {name: value})
