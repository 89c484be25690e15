"""``spec.toml``: read strictly, refused whole, with every line that is wrong."""

import json

import pytest

from minilora.jobs import Spec, read_spec

GOOD = """
name = "naval"
[data]
train = "naval.jsonl"
[method]
kind = "dora"
r = 4
target_modules = "all-linear"
[train]
steps = 20
[replay]
share = 0.25
[evaluation]
regression = "naval.jsonl"
"""


@pytest.fixture
def written(naval):
    def write(text):
        file = naval.parent / "spec.toml"
        file.write_text(text, encoding="utf-8")
        return file

    return write


def test_a_spec_is_read_with_whole_paths_and_survives_json(written, naval):
    spec = read_spec(written(GOOD))
    assert spec.data.train == spec.evaluation.regression == str(naval)
    assert (spec.config.use_dora, spec.config.r, spec.config.lora_alpha) == (True, 4, 8)
    assert (spec.replay.share, spec.replay.source) == (0.25, "self")
    assert Spec.parse(json.loads(json.dumps(spec.as_dict()))) == spec


WRONG = {
    'name = "na/val"': ("name", "line 2: name: expected an adapter's name"),
    'nme = "naval"': ("name", "line 2: unknown 'nme': did you mean 'name'"),
    'train = "nowhere.jsonl"': ("train", "line 4: data.train: .*nowhere.jsonl does not exist"),
    "train = 3": ("train", "line 4: data.train must be str, got 3"),
    'trian = "naval.jsonl"': ("train", "line 4: unknown data.trian: did you mean 'train'"),
    'kind = "lorra"': ("kind", "line 6: unknown method 'lorra': did you mean 'lora'"),
    "r = 0": ("r = ", "line 7: r must be"),
    "rank = 4": ("r = ", "line 7: .*'rank'"),
    "steps = -1": ("steps", "line 10: steps must be a whole number of at least 1"),
    'out = "x"': ("steps", "line 10: train.out is the job's own"),
    "share = 2.0": ("share", r"line 12: replay.share must be in \[0, 1\)"),
    "share = 0": ("share", "line 12: replay.share must be above 0"),
}


@pytest.mark.parametrize("line", WRONG)
def test_a_bad_line_is_named(line, written):
    place, message = WRONG[line]
    lines = [line if each.startswith(place) else each for each in GOOD.split("\n")]
    with pytest.raises(ValueError, match=message):
        read_spec(written("\n".join(lines)))


def test_all_that_is_wrong_is_told_at_once(written):
    text = GOOD.replace("r = 4", "r = -4").replace("steps = 20", "steps = 0\nlr = 'x'")
    told = r"(?s)line 10: steps.*line 11: lr.*line 7: r must.*; nothing was"
    with pytest.raises(ValueError, match=told):
        read_spec(written(text))


def test_what_is_no_toml_and_what_is_not_there(written, tmp_path):
    with pytest.raises(ValueError, match=r"is not TOML: .*line 2"):
        read_spec(written("\nname = = 3"))
    with pytest.raises(ValueError, match="does not exist: expected a spec.toml"):
        read_spec(tmp_path / "none.toml")
    (tmp_path / "latin.toml").write_bytes(b'name = "caf\xe9"')
    with pytest.raises(ValueError, match="cannot be read as UTF-8 text"):
        read_spec(tmp_path / "latin.toml")


def test_settings_that_contradict_each_other_are_refused_together(written):
    text = GOOD.replace("steps = 20", "batch_size = 4\naccumulate = 3")
    with pytest.raises(ValueError, match="must be a multiple of accumulate=3"):
        read_spec(written(text))
    text = GOOD.replace("steps = 20", "batch_size = 9\naccumulate = 3")
    assert read_spec(written(text)).train == {"batch_size": 9, "accumulate": 3}
