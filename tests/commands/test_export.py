"""``minilora export``: a model, an adapter, either form; what does not fit is one line."""

import json

import pytest
from safetensors.torch import load_file

from minilora import LoraConfig, inject, load_base, save_adapter
from minilora.commands.cli import main

from ..formats.test_gguf_file import read
from ..model.gguf_folders import write_gguf_folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A model folder and an adapter with patterns for it."""
    place = tmp_path_factory.mktemp("export me")
    model, adapter = place / "model", place / "adapter"
    model.mkdir()
    base = load_base(write_gguf_folder(model, "llama 3"))
    inject(base, LoraConfig(r=4, rank_pattern={"v_proj": 2}, use_rslora=True))
    save_adapter(base, adapter)
    return model, adapter


def test_a_model_folder_becomes_one_file_beside_it(folders, capsys):
    model, _ = folders
    assert main(["export", str(model), "--gguf", "--type", "q8_0"]) == 0
    file = model / "model-q8_0.gguf"
    assert f"Saved {file}, 0.1 MB. Next:\n  llama-cli -m '{file}'\n" == capsys.readouterr().out
    assert read(file)[0]["blk.0.attn_q.weight"][0] == "Q8_0"


def test_an_adapter_becomes_a_file_of_its_own_or_a_plain_folder(folders, tmp_path, capsys):
    model, adapter = folders
    file, base = tmp_path / "naval.gguf", ["--base", str(model)]
    assert main(["export", str(adapter), *base, "--gguf", "--out", str(file)]) == 0
    assert f"--lora {file}" in capsys.readouterr().out
    tensors, about = read(file)
    assert about["adapter.type"] == "lora"
    assert tensors["blk.1.attn_v.weight.lora_a"][1].shape == (4, 64)
    assert main(["export", str(adapter), *base, "--plain"]) == 0
    plain = adapter.with_name("adapter-plain")
    config = json.loads((plain / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["rank_pattern"]) == (4, 32, {})
    shapes = {t.shape for t in load_file(plain / "adapter_model.safetensors").values()}
    assert {min(shape) for shape in shapes} == {4}


REFUSED = [
    (["{model}"], "one of the arguments --gguf --plain is required"),
    (["nowhere", "--gguf"], "nowhere is not a folder on this machine"),
    (["{model}/..", "--gguf"], "holds neither a model nor an adapter: did you mean"),
    (["{model}", "--plain"], "--plain is for adapters, and {model} holds a model"),
    (["{model}", "--gguf", "--base", "x"], "--base belongs to an adapter"),
    (["{adapter}", "--base", "{model}", "--gguf", "--pre", "x"], "--pre belongs to a model"),
    (["{adapter}", "--base", "{model}", "--gguf", "--type", "q8_0"], "write f16 or f32"),
    (["{adapter}", "--base", "{model}", "--plain", "--out", "{adapter}"], "is the adapter itself"),
    (["{adapter}", "--gguf"], "was made for a base of another architecture"),
]


@pytest.mark.parametrize(("words", "message"), REFUSED, ids=range(len(REFUSED)))
def test_what_does_not_fit_is_refused(folders, capsys, words, message):
    names = dict(zip(("model", "adapter"), folders, strict=True))
    try:
        status = main(["export", *(word.format(**names) for word in words)])
    except SystemExit as stop:  # argparse
        status = stop.code
    assert status == 2
    assert message.format(**names) in capsys.readouterr().err
