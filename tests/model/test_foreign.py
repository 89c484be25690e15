"""transformers' models are asked, judged and saved as ours: its own generate is the oracle."""

import copy
import os
import subprocess
import sys

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import nn

import minilora
from minilora import Conversation, Example, LoraConfig, add_tokenizer, exact_match, inject
from minilora.model.foreign import Foreign, speaking

from .chat_folders import byte_level, theirs, write_folder
from .test_generation import asked

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 200}
OPT = {**SIZES, "ffn_dim": 48, "word_embed_proj_dim": 32, "max_position_embeddings": 200}
KIN = {**SIZES, "intermediate_size": 48, "num_key_value_heads": 2}
FAMILIES = {
    "GPT-2": (transformers.GPT2Config, GPT2, "chatml"),
    "OPT": (transformers.OPTConfig, OPT, "phi3"),
    "Llama": (transformers.LlamaConfig, KIN, "llama3"),
    "Gemma 2": (transformers.Gemma2Config, {**KIN, "head_dim": 8, "sliding_window": 16}, "gemma"),
    "Bloom": (transformers.BloomConfig, {"hidden_size": 32, "n_layer": 2, "n_head": 4}, "qwen3"),
}


def foreign(folder, family, std=0.4):
    """A random model and its folder, with a tokenizer and a chat template in it."""
    kind, sizes, form = FAMILIES[family]
    write_folder(folder, form)
    tokenizer = theirs(folder)
    torch.manual_seed(0)
    ends = [tokenizer.eos_token_id, tokenizer.eos_token_id - 1]
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": ends, "pad_token_id": 5}
    model = transformers.AutoModelForCausalLM.from_config(kind(vocab_size=400, **sizes, **ids))
    for parameter in model.parameters() if std else ():
        nn.init.normal_(parameter, std=std)
    model.save_pretrained(folder)
    return transformers.AutoModelForCausalLM.from_pretrained(folder).eval(), tokenizer


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_answers_are_those_of_transformers_alone_and_in_a_batch(tmp_path, family):
    model, tokenizer = foreign(tmp_path, family)
    add_tokenizer(model, tmp_path)
    talks = [asked("Status?", ""), asked("Hull?", "Log: Hull 90%, Fuel 12%. " * 3)]
    expected = []
    for talk in talks:
        ids = tokenizer.apply_chat_template(talk, add_generation_prompt=True)["input_ids"]
        settings = {"max_new_tokens": 12, "do_sample": False}
        out = model.generate(torch.tensor([ids]), **settings)[0, len(ids) :].tolist()
        ends = model.tokenizer.eos_ids
        new = out[: next((n for n, token in enumerate(out) if token in ends), len(out))]
        expected.append(model.tokenizer.answer_text(ids, new).rstrip())
    assert [model.generate_text(talk, max_new_tokens=12) for talk in talks] == expected
    assert model.generate_texts(talks, 12) == expected
    assert model.generate_texts(talks, 12, use_cache=False) == expected
    assert "".join(model.stream_text(talks[1], max_new_tokens=12)) == expected[1]
    assert not model.training


def test_every_end_of_the_generation_config_ends_an_answer(tmp_path):
    model, tokenizer = foreign(tmp_path, "Llama")
    for source in (tmp_path, tokenizer):
        add_tokenizer(model, source)
        assert set(model.tokenizer.eos_ids) >= set(model.generation_config.eos_token_id)
        assert model.tokenizer.chat_template == tokenizer.chat_template
        spoken = model.tokenizer.apply_chat_template(asked(), add_generation_prompt=True)
        whole = tokenizer.apply_chat_template(asked(), add_generation_prompt=True)
        assert spoken == whole["input_ids"]


def test_an_adapted_foreign_model_trains_answers_is_judged_saved_and_reloaded(tmp_path):
    """The README's lines for other families, whole."""
    (tmp_path / "base").mkdir()
    model, tokenizer = foreign(tmp_path / "base", "GPT-2", std=0)
    add_tokenizer(model, tmp_path / "base")
    inject(model, LoraConfig(r=8, target_modules="all-linear"))
    example = Example("Status?", "hi")
    task = minilora.Task("one", (example,), (example,))
    history = minilora.train(model, task, steps=60, lr=1e-2, batch_size=1, valid_answers=1)
    assert history.validations[-1]["exact_match"] == exact_match(model, [example]) == 1.0
    assert model.generate_text("Status?") == "hi"
    talk = Conversation((("user", "Status?"), ("assistant", "hi")))
    assert exact_match(model, [talk]) == 1.0
    with pytest.raises(ValueError, match="an adapter is inside .*merge_and_unload"):
        minilora.save_model(model, tmp_path / "merged")
    merged = minilora.merge_and_unload(model)
    minilora.save_model(merged, tmp_path / "merged")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    read = transformers.AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert read.chat_template == tokenizer.chat_template
    assert (read.bos_token, read.eos_token) == (tokenizer.bos_token, tokenizer.eos_token)
    assert again.generation_config.eos_token_id == model.generation_config.eos_token_id
    assert again.generation_config.pad_token_id == 5
    add_tokenizer(again, tmp_path / "merged")
    assert again.generate_text("Status?") == "hi"
    copied = copy.deepcopy(again)
    nn.init.zeros_(copied.transformer.wte.weight)
    assert copied.generate_text("Status?", max_new_tokens=3) != "hi"


def test_saving_over_a_folder_leaves_nothing_of_the_old_model(tmp_path):
    model, _ = foreign(tmp_path, "GPT-2")
    add_tokenizer(model, tmp_path)
    minilora.save_model(model, tmp_path / "out", shard="20KB")
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 2
    minilora.save_model(model, tmp_path / "out", dtype=torch.float16)
    files = {file.name for file in (tmp_path / "out").iterdir()}
    assert files == {
        *("config.json", "generation_config.json", "model.safetensors"),
        *("tokenizer.json", "tokenizer_config.json"),
    }
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert again.transformer.wte.weight.dtype == torch.float16
    assert "lm_head.weight" not in load_file(tmp_path / "out" / "model.safetensors")
    assert not list(tmp_path.glob(".*"))


def test_a_killed_save_leaves_nothing_that_the_next_one_does_not_sweep(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", "pass"])
    dead.wait()
    (tmp_path / f".out.abc.{dead.pid}.saving").mkdir()
    (tmp_path / f".out.abc.{os.getpid()}.saving").mkdir()
    model, _ = foreign(tmp_path, "GPT-2")
    minilora.save_model(model, tmp_path / "out")
    assert [file.name for file in tmp_path.glob(".*")] == [f".out.abc.{os.getpid()}.saving"]


def test_save_pretrained_with_adapters_inside_warns_that_it_reloads_afresh(tmp_path, recwarn):
    model, _ = foreign(tmp_path, "Llama")
    for _ in range(2):
        inject(model)
        with pytest.warns(UserWarning, match=r"layers.0.self_attn.q_proj.base.weight .*afresh"):
            model.save_pretrained(tmp_path / "adapted")
        minilora.unload(model)
    recwarn.clear()
    model.save_pretrained(tmp_path / "plain")
    minilora.inject(model)
    minilora.save_adapter(model, tmp_path / "adapter")
    minilora.merge(model)
    minilora.merge_and_unload(model).state_dict()
    assert not [each for each in recwarn if "afresh" in str(each.message)]


class Strange(nn.Linear):
    """A module of nobody's."""


def test_what_cannot_be_asked_is_refused(tmp_path):
    with pytest.raises(ValueError, match="with a tokenizer, .* or a language model of transformer"):
        speaking(Strange(2, 2))
    t5 = transformers.T5Config(vocab_size=9, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    with pytest.raises(ValueError, match="T5ForConditionalGeneration is an encoder-decoder"):
        add_tokenizer(transformers.T5ForConditionalGeneration(t5), tmp_path)
    model, _ = foreign(tmp_path, "Llama")
    with pytest.raises(
        ValueError, match="or another model with one, .*, got a LlamaForCausalLM without"
    ):
        exact_match(model, [Example("a", "b")])
    (tmp_path / "tokenizer.json").rename(tmp_path / "elsewhere.json")
    with pytest.raises(ValueError, match="holds no tokenizer.json: only fast tokenizers are read"):
        add_tokenizer(model, tmp_path)
    byte_level([f"<{n}>" for n in range(200)]).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match=r"has token \d+, but the model's embedding only 400 rows"):
        add_tokenizer(model, tmp_path)
    with pytest.raises(ValueError, match="writes a minilora Llama or a model of transformers, got"):
        minilora.save_model(Strange(2, 2), tmp_path / "x")


def test_a_model_without_a_cache_reads_the_whole_text_again(tmp_path):
    model, _ = foreign(tmp_path, "Llama")
    add_tokenizer(model, tmp_path)
    expected = model.generate_text(asked(), max_new_tokens=6)

    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.config, self.tokenizer = model, model.config, model.tokenizer

        def forward(self, input_ids, attention_mask=None):
            return self.inner(input_ids, attention_mask=attention_mask).logits

    plain = Foreign(Plain())
    assert plain.new_cache() is None
    assert plain.generate_text(asked(), max_new_tokens=6) == expected
