"""A damaged model folder opens as what it says, or is refused: no crash, no memory, no time."""

import json
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import minilora
from minilora import load_base, save_model

from .. import profiles
from ..strategies import damaged

EXTREMES = [0, 1, 2, -1, 10**9, 10**18, 10**30, 1e9, 1e308, float("nan"), float("inf"), 0.5]
EXTREMES += [True, False, None, "", "2", "x", [], [1], {}, {"a": 1}, ["x"] * 3, "llama", "qwen3"]
CONFIG = {"model_type": "qwen2", "sliding_window": 4, "max_window_layers": 1}
SHAPE = (16, 8, 12, 2, 2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model with every part that a config can have."""
    torch.manual_seed(0)
    return save_model(
        minilora.Llama(minilora.LlamaConfig(*SHAPE, **CONFIG)), tmp_path_factory.mktemp("model")
    )


def keys(value):
    """The places in a JSON object: paths of keys."""
    places = [(key,) for key in value]
    return places + [
        (key, *rest) for key in value if isinstance(value[key], dict) for rest in keys(value[key])
    ]


def changed(config_json, place, value):
    """A copy with another value at a place."""
    copy = json.loads(json.dumps(config_json))
    inner = copy
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    return copy


ROPE = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
ROPE |= {"original_max_position_embeddings": 16}


def opens(tmp_path_factory, folder, config_json):
    """Whether the weights open under another config; anything but ``ValueError`` is a crash."""
    other = tmp_path_factory.mktemp("changed")
    (other / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    (other / "config.json").write_text(json.dumps(config_json))
    begun = time.monotonic()
    try:
        model = load_base(other)
        assert model(torch.arange(12).view(1, 12)).shape == (1, 12, 16)
    except ValueError:
        model = None
    assert time.monotonic() - begun < 5
    return model is not None


def test_every_key_at_every_extreme_value_opens_or_is_refused(tmp_path_factory, folder):
    config_json = json.loads((folder / "config.json").read_text()) | {"rope_scaling": ROPE}
    assert opens(tmp_path_factory, folder, config_json)
    sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "head_dim")
    for place in keys(config_json):
        for value in EXTREMES:
            opened = opens(tmp_path_factory, folder, changed(config_json, place, value))
            if place[-1] in sizes and value not in (None, config_json[place[-1]]):
                assert not opened, (place, value)


@settings(max_examples=profiles.of(20, 100, 3000))
@given(st.data())
def test_a_folder_of_damaged_bytes_opens_or_is_refused(tmp_path_factory, folder, data):
    names = ("config.json", "model.safetensors")
    files = data.draw(damaged({name: (folder / name).read_bytes() for name in names}))
    other = tmp_path_factory.mktemp("damaged")
    for name, content in files.items():
        (other / name).write_bytes(content)
    try:
        model = load_base(other)
    except ValueError:
        return  # and nothing else
    assert isinstance(model, minilora.Llama)


def test_tensors_that_name_a_billion_layers_build_none(tmp_path, folder):
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.999999999.input_layernorm.weight"] = torch.ones(8)
    save_file(tensors, tmp_path / "model.safetensors")
    about = json.loads((folder / "config.json").read_text()) | {"num_hidden_layers": 10**9}
    (tmp_path / "config.json").write_text(json.dumps(about))
    with pytest.raises(
        ValueError, match="num_hidden_layers is 10{9}, but they are those of 3 layers"
    ):
        load_base(tmp_path)
