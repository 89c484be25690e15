"""``minilora export``: a model, an adapter, either form; what does not fit is one line."""

import json

import pytest
from safetensors.torch import load_file

from minilora import LoraConfig, inject, load_base, save_adapter
from minilora.commands.cli import main
from minilora.hub import Hub

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
    assert f"Saved {file}, 147.8 kB. Next:\n  llama-cli -m '{file}'\n" == capsys.readouterr().out
    assert read(file)[0]["blk.0.attn_q.weight"][0] == "Q8_0"


def test_an_adapter_becomes_a_file_of_its_own_or_a_plain_folder(folders, tmp_path, capsys):
    model, adapter = folders
    file, base = tmp_path / "naval.gguf", ["--base", str(model)]
    assert main(["export", str(adapter), *base, "--gguf", "--out", str(file)]) == 0
    gguf, printed = tmp_path / "base.gguf", capsys.readouterr().out
    assert f"  minilora export '{model}' --gguf --out {gguf}\n" in printed
    assert f"  llama-cli -m {gguf} --lora {file}\n" in printed
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
    (["nowhere", "--gguf"], "nowhere is not a folder, and there is no hub"),
    (["{model}/..", "--gguf"], "holds neither a model nor an adapter: did you mean"),
    (["{model}", "--plain"], "--plain is for adapters, and {model} holds a model"),
    (["{model}", "--gguf", "--base", "x"], "--base belongs to an adapter"),
    (["{model}", "--gguf", "--qlora"], "--qlora belongs to an adapter"),
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


def test_a_name_of_the_hub_in_four_bits_is_exported_combined_and_analyzed(
    tmp_path, capsys, recwarn
):
    base = load_base(quantize="nf4")
    inject(base, LoraConfig(r=2))
    hub = Hub(tmp_path / "hub")
    hub.push("naval", save_adapter(base, tmp_path / "a"))
    where, four = ["--hub", str(tmp_path / "hub")], ["--qlora"]
    assert main(["export", "naval", *where, *four, "--plain"]) == 2
    assert "give --out" in capsys.readouterr().err
    assert main(["export", "naval", *where, *four, "--plain", "--out", f"{tmp_path}/p"]) == 0
    assert main(["analyze", "naval", *where, *four, "--out", f"{tmp_path}/x.svg"]) == 0
    assert not list(recwarn)  # it is the base that the adapter was made on
    with pytest.warns(UserWarning, match="one quantized or rounded otherwise"):
        assert main(["analyze", "naval", *where, "--out", f"{tmp_path}/x.svg"]) == 0
    assert main(["combine", "naval", "naval@1.0.0", *where, "--out", str(tmp_path / "two")]) == 0
    assert f"minilora generate --adapter {tmp_path / 'two'}" in capsys.readouterr().out


def test_the_next_command_names_the_base(folders, tmp_path, capsys):
    model, adapter = folders
    assert main(["combine", str(adapter), str(adapter), "--out", str(tmp_path / "two")]) == 0
    words = f"--base '{model}' --adapter {tmp_path / 'two'}"
    assert f"minilora generate {words}" in capsys.readouterr().out
