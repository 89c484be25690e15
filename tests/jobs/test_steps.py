"""The four steps: from a file to a version in the hub, the same as ``minilora.train`` makes."""

import pytest
import torch

import minilora
from minilora.hub import Hub
from minilora.jobs import Spec, Worker
from minilora.jobs.steps import as_line
from minilora.tensor_files import read_tensors
from minilora.training.examples import split_examples
from minilora.training.readers import read_examples


def by_hand(spec, out):
    """The weights of the spec's training, as the library alone makes them."""
    spec = Spec.parse(spec)
    read = read_examples(spec.data.train)
    torch.manual_seed(0)
    model = minilora.load_base(quantize="nf4" if spec.base.four_bits else None)
    minilora.inject(model, spec.config)
    settings = {**spec.train, "checkpoint_every": 0, "progress": False}
    minilora.train(model, split_examples(read, spec.name, 0.1, 0), **settings)
    minilora.save_adapter(model, out)
    return read_tensors(out / "adapter_model.safetensors")


def weights(hub, spec):
    return read_tensors(hub.pull(spec) / "adapter_model.safetensors")


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_job_makes_the_adapter_that_the_library_makes_and_says_where_it_comes_from(
    queue, spec, tmp_path
):
    job = queue.submit(spec)
    Worker(queue, tmp_path / "hub").run(until_idle=True)
    job = queue.job(job.id)
    assert job.status == "succeeded", job.error
    assert job.result["version"] == "naval@1.0.0"
    hub = Hub(tmp_path / "hub")
    assert same(weights(hub, "naval"), by_hand(spec, tmp_path / "by hand"))
    manifest = hub.show("naval").manifest
    assert manifest.recipe["job"] == job.id
    assert (manifest.recipe["steps"], manifest.recipe["lr"]) == (4, 5e-3)
    assert manifest.data_sha == job.result["data"]["sha256"]
    assert manifest.metrics.keys() >= {"loss", "exact_match", "exact_match_base"}
    (last,) = [e for e in queue.events(job.id) if e.message.startswith("step 4/4: loss")]
    assert manifest.metrics["loss"] == last.data["loss"]
    assert not list((queue.folder / "jobs" / job.id).glob("*-*")), "nothing is left over"


def test_a_step_is_done_again_when_the_kill_came_between_its_rename_and_its_commit(
    queue, spec, tmp_path, monkeypatch
):
    """Every ``place`` is done, and the transaction around it is undone; then all once more."""
    undone = set()
    finish = queue.finish

    def finish_but_die_first(job, place, **more):
        if job.step in undone:
            return finish(job, place, **more)
        undone.add(job.step)

        def place_and_die():
            place()
            raise KeyboardInterrupt

        return finish(job, place_and_die, **more)

    monkeypatch.setattr(queue, "finish", finish_but_die_first)
    job = queue.submit(spec)
    for _ in range(5):
        Worker(queue, tmp_path / "hub").run(until_idle=True)
    assert undone == {"prepare", "train", "evaluate", "register"}
    job = queue.job(job.id)
    assert job.status == "succeeded", job.error
    hub = Hub(tmp_path / "hub")
    assert [version.spec for version in hub.list("naval")] == ["naval@1.0.0"]
    assert same(weights(hub, "naval"), by_hand(spec, tmp_path / "by hand"))


def test_the_last_validations_are_kept_as_prereleases_and_only_where_they_are_named(
    queue, spec, tmp_path, monkeypatch
):
    """Killed after the hub's commit of the release: the pre-releases are still there once."""
    kept = {"evaluation": {"examples": 0, "prose": False, "checkpoints": 2}}
    spec |= {"train": {"steps": 4, "batch_size": 4, "validate_every": 1}, **kept}
    push, killed = Hub.push, []

    def push_and_die(hub, name, folder, **more):
        version = push(hub, name, folder, **more)
        if not killed:
            killed.append(version)
            raise KeyboardInterrupt
        return version

    monkeypatch.setattr(Hub, "push", push_and_die)
    job = queue.submit(spec)
    for _ in range(2):
        Worker(queue, tmp_path / "hub").run(until_idle=True)
    made = queue.job(job.id).result
    hub = Hub(tmp_path / "hub")
    steps = [each["version"] for each in made["checkpoints"]]
    assert steps == ["naval@1.0.0-step.3", "naval@1.0.0-step.2"]
    assert {each.spec for each in hub.list("naval")} == {"naval@1.0.0", *steps}
    assert hub.show("naval").spec == made["version"] == "naval@1.0.0"
    assert not same(weights(hub, steps[0]), weights(hub, steps[1]))


ROWS = [
    {"instruction": "Hi ", "output": " Ahoy!\n", "input": " a\tb "},
    {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
    {"messages": [{"role": r, "content": "x"} for r in ("system", "user", "assistant")]},
    {
        "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
        "tools": [{"type": "function", "function": {"name": "f"}}],
    },
    {"text": " Hull\u2028 90%. "},
]


@pytest.mark.parametrize("number", range(len(ROWS)))
def test_what_prepare_writes_is_read_as_the_same(number, tmp_path):
    (example,) = read_examples([ROWS[number]])
    file = tmp_path / "one.jsonl"
    file.write_text(as_line(example), encoding="utf-8")
    assert read_examples(file)[0] == example
