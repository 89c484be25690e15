"""A model's shapes, whether it is given as a preset, a folder, a file, a dict or a list."""

import json
import time
from pathlib import Path

import pytest

import minilora
from minilora.ledger.shapes import architecture

from .test_families import SMALL


def test_our_base_is_a_preset_and_a_folder_and_a_file(base, tmp_path):
    assert architecture("base").parameters == sum(p.numel() for p in base.parameters())
    minilora.save_model(base, tmp_path / "mine")
    for source in (tmp_path / "mine", str(tmp_path / "mine" / "config.json")):
        assert architecture(source).linears == architecture("base").linears


def test_gpt_3_has_175_billion_parameters():
    assert round(architecture("gpt3-175b").parameters / 1e9) == 175


def test_a_405b_architecture_takes_milliseconds():
    best = min(timed(time.perf_counter) for _ in range(5))
    assert best < 0.05


def timed(clock):
    started = clock()
    architecture("llama-3.1-405b")
    return clock() - started


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "mixtral-8x7b",
            "nearest presets: mistral-7b.*a mixture of experts is counted from its config.json",
        ),
        ("my/config.json", "there is no such file"),
        (str(Path(__file__).parent), "the folder holds none"),
        (
            {"model_type": "dbrx", "num_local_experts": 8},
            "expected one of bert, .*; a mixture of experts is .* one of mixtral, qwen2_moe",
        ),
        (
            "llama-3-8",
            r"'llama-3-8' is neither a preset nor a config.json; nearest presets: llama-3-8b",
        ),
        ("ßßß", r"`minilora plan --list` names the presets"),
        (
            {"model_type": "llama", "hidden_size": 64},
            r"llama: the config lacks 'vocab_size', which decides shapes",
        ),
        (
            {"model_type": "llama", **SMALL, "num_hidden_layers": -3},
            "num_hidden_layers must be a whole number of at least 1, got -3",
        ),
        (
            {"model_type": "llama", **SMALL, "hidden_size": 64.5},
            "hidden_size must be a whole number of at least 1, got 64.5",
        ),
        (
            {"model_type": "llama", **SMALL, "hidden_size": True},
            "hidden_size must be a whole number of at least 1, got True",
        ),
        # only a llama may
        ({"model_type": "mistral", **SMALL}, "mistral: the config lacks 'num_key_value_heads'"),
        (
            {"model_type": "qwen3", **SMALL, "num_key_value_heads": 2},
            "qwen3: the config lacks 'head_dim'",
        ),
        ({"model_type": "mamba"}, "model_type is 'mamba', expected one of bert, gemma"),
        ({}, "model_type is None"),
        ([(4, 4), (0, 4)], "linear.1: in must be a whole number of at least 1, got 0"),
        ([(4, 2.5)], "out must be a whole number of at least 1, got 2.5"),
        ([4], r"a shape is \(in, out\) or \(name, in, out\), got 4"),
        ([], "an empty list of shapes"),
    ],
)
def test_bad_input_is_named(source, message):
    with pytest.raises(ValueError, match=message):
        architecture(source)


def test_a_config_json_without_a_key_says_which(tmp_path):
    file = tmp_path / "config.json"
    file.write_text(
        json.dumps(
            {
                "model_type": "t5",
                "vocab_size": 80,
                "d_model": 64,
                "d_kv": 8,
                "d_ff": 96,
                "num_layers": 2,
            }
        )
    )
    with pytest.raises(ValueError, match="lacks 'num_heads'"):
        architecture(file)


def test_a_config_in_memory_is_refused_with_what_to_give():
    config = minilora.LlamaConfig()
    with pytest.raises(TypeError, match=r"got a LlamaConfig; .* model.name_or_path"):
        architecture(config)
