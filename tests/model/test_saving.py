"""A folder is swapped whole or not at all, in one file or in shards, whatever kills the saver."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers

import minilora
from minilora import load_base, save_model
from minilora.model.weights import size_in_bytes

from .. import profiles
from ..lora.test_injection import tiny


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_killed_save_leaves_the_old_model_or_the_new_one(tmp_path):
    """Killed at each of its renames, and at as many random moments; nothing is left behind."""
    moments = profiles.of(8, 16, 200)
    command = [sys.executable, "-m", "tests.model.killed_saver", tmp_path / "model", str(moments)]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "{'old': 0" not in done.stdout


def same(model, other):
    theirs = other.state_dict()
    return all(torch.equal(tensor, theirs[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("packed", [False, True])
def test_shards_open_here_and_in_transformers(tmp_path, packed):
    torch.manual_seed(0)
    model = minilora.Llama(
        minilora.LlamaConfig(64, 64, 128, 2, 2, tie_word_embeddings=False)
    ).eval()
    model = minilora.quantize_base(model) if packed else model
    save_model(model, tmp_path, shard="40KB")
    shards = sorted(file.name for file in tmp_path.glob("model-*"))
    count = len(shards)
    assert count > 1
    assert shards == [f"model-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)]
    assert all(file.stat().st_size < 44_000 for file in tmp_path.glob("model-*"))
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == set(shards)
    assert same(load_base(tmp_path), model)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    plain = minilora.dequantize_base(model) if packed else model
    for name, tensor in theirs.state_dict().items():
        if tensor.is_floating_point() and "absmax" not in name and "quant" not in name:
            assert torch.equal(tensor, plain.state_dict()[name]), name
    # a save in one file takes every shard away, and the other way round
    save_model(tiny(), tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    save_model(model, tmp_path, shard=40_000)
    assert not (tmp_path / "model.safetensors").exists()
    assert same(load_base(tmp_path), model)


def test_a_tensor_larger_than_a_shard_stands_alone_and_a_small_model_is_one_file(tmp_path):
    model = tiny()
    save_model(model, tmp_path / "many", shard=1)
    assert same(load_base(tmp_path / "many"), model)
    save_model(model, tmp_path / "one", shard="2GB")
    assert (tmp_path / "one" / "model.safetensors").exists()


@pytest.mark.parametrize(
    "size", ["2 bananas", "", 0, -5, "0GB", True, "1.2.3GB", "inf", float("nan")]
)
def test_a_size_that_is_none_is_refused_before_anything_is_written(tmp_path, size):
    with pytest.raises(ValueError, match="shard must be a size such as '2GB'"):
        save_model(tiny(), tmp_path, shard=size)
    assert not list(tmp_path.iterdir())


def test_sizes_in_words_and_numbers():
    sizes = {"2GB": 2 * 10**9, "500mb": 500 * 10**6, "1 KiB": 1024, 1234: 1234, "99": 99}
    assert {size: size_in_bytes(size) for size in sizes} == sizes


def test_a_saved_folder_names_a_first_token_that_no_text_gets(base, tmp_path):
    """CTranslate2 does not convert a Llama whose tokenizer has none (tried with 4.8)."""
    text, talk = "Hull 90%.", [{"role": "user", "content": "Status?"}]
    before = base.tokenizer.apply_chat_template(talk, add_generation_prompt=True)
    save_model(base, tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.bos_token == "<|im_start|>"
    assert theirs(text)["input_ids"] == base.tokenizer.encode(text)
    settings = {"add_generation_prompt": True, "return_dict": True}
    assert theirs.apply_chat_template(talk, **settings)["input_ids"] == before
    again = load_base(tmp_path).tokenizer
    assert again.apply_chat_template(talk, add_generation_prompt=True) == before
    assert not again.adds_bos
