"""What a step has in hand, and how its output comes into place."""

import json
from types import SimpleNamespace

import pytest

from minilora.jobs import work as work_module
from minilora.jobs.forecast import Limits
from minilora.jobs.work import Work


def test_an_output_replaces_what_a_kill_left_and_nothing_else(tmp_path):
    job = SimpleNamespace(step="train", fence=7)
    work = Work(job, tmp_path, tmp_path / "hub", None, Limits())
    for name in ("train-7", "train-3", "train", "prepare", "evaluate-2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter").write_text(name, encoding="utf-8")
    place = work.placed(scores={"loss": 1.5})
    assert (tmp_path / "train" / "adapter").read_text(encoding="utf-8") == "train", "not yet"
    assert place() == {"scores": {"loss": 1.5}}
    assert (tmp_path / "train" / "adapter").read_text(encoding="utf-8") == "train-7"
    left = sorted(each.name for each in tmp_path.iterdir())
    assert left == ["evaluate-2", "prepare", "train"], "what dead claims left is gone"


def work_on(folder, **tables):
    spec = {"name": "naval", "data": {"train": "my.jsonl"}, **tables}
    job = SimpleNamespace(id="ftjob-1", spec=json.dumps(spec), step="train", fence=1)
    return Work(job, folder, folder / "hub", None, Limits())


@pytest.mark.parametrize(("four_bits", "quantize"), [(True, "nf4"), (False, None)])
def test_the_base_is_as_the_spec_wants_it(tmp_path, monkeypatch, four_bits, quantize):
    opened = []
    monkeypatch.setattr(work_module, "load_base", lambda *told, **more: opened.append((told, more)))
    work_on(tmp_path, base={"folder": "SmolLM2", "four_bits": four_bits}).base()
    assert opened == [(("SmolLM2",), {"device": "cpu", "quantize": quantize})]


@pytest.mark.parametrize("held_out", [True, False])
def test_the_task_is_what_prepare_wrote_down(tmp_path, held_out):
    (tmp_path / "prepare").mkdir()
    for side, answer in (("train", "Ahoy!"), ("valid", "Aye!"))[: 1 + held_out]:
        row = json.dumps({"instruction": "Hi", "output": answer})
        (tmp_path / "prepare" / f"{side}.jsonl").write_text(row, encoding="utf-8")
    task = work_on(tmp_path).task()
    assert [each.output for each in task.train] == ["Ahoy!"]
    assert [each.output for each in task.valid] == ["Aye!"] * held_out
