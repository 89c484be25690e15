"""How a step's output comes into place."""

from types import SimpleNamespace

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
