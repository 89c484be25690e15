"""Models and adapters as GGUF: transformers reads the files with our logits, and so does llama.cpp.

transformers' reader leaves out Llama 3's stretched positions, linear ones and a Llama's biases;
llama.cpp has them, and the test with it, where llama-cpp-python is installed, covers all folders.
"""

import numpy as np
import pytest
import torch
import transformers

from minilora import (
    LoraConfig,
    export_adapter_gguf,
    export_gguf,
    inject,
    load_base,
    merge_and_unload,
    quantize_base,
)
from minilora.lora.layer import lora_layers
from minilora.model.transformer import Llama, LlamaConfig

from ..formats.test_gguf_file import read
from ..tolerance import assert_as_close, exactly
from .gguf_folders import FOLDERS, write_gguf_folder

READ_WHOLE = ["llama, gpt-2", "llama 2", "mistral 7b", "qwen 2", "qwen 3"]
TARGETS = {"target_modules": "all-linear", "exclude_modules": ["lm_head"]}


def prompt_of(model):
    """A text of the form's own, and all kinds of letters."""
    text = "Hello there, it's 1234 of 90%!\nNew   lines\n\n and I'VE said: é ü 你好 🦙 don't"
    return torch.tensor([model.tokenizer.encode(text)[:50]])


def adapted(model):
    """The model with an adapter of several ranks and scales that changes its logits."""
    inject(model, LoraConfig(r=4, lora_alpha=9, rank_pattern={"k_proj": 2}, **TARGETS))
    torch.manual_seed(2)
    for _, layer in lora_layers(model):
        torch.nn.init.normal_(layer.lora_B, std=0.1)
    return model


@pytest.mark.parametrize("name", READ_WHOLE)
@torch.no_grad()
def test_transformers_reads_the_file_with_our_logits(tmp_path, name):
    ours = load_base(write_gguf_folder(tmp_path, name))
    prompt = prompt_of(ours)
    for kind in ("f16", "q8_0"):
        export_gguf(ours, tmp_path / f"{kind}.gguf", kind)
        where = {"pretrained_model_name_or_path": tmp_path, "gguf_file": f"{kind}.gguf"}
        theirs = transformers.AutoModelForCausalLM.from_pretrained(**where).eval()
        logits = theirs(prompt).logits
        if kind == "f16":  # the weights are numbers of half precision already
            assert_as_close(logits, ours(prompt), exactly(ours, prompt))
        else:
            assert (logits - ours(prompt)).abs().max() < 0.03 * ours(prompt).abs().max()


def test_transformers_reads_the_template_and_the_end(tmp_path):
    """Of a Qwen; for a byte-level Llama its reader of tokenizers drops the template."""
    ours = load_base(write_gguf_folder(tmp_path, "qwen 2"))
    export_gguf(ours, tmp_path / "model.gguf")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file="model.gguf")
    assert theirs.chat_template == ours.tokenizer.chat_template
    assert theirs.eos_token_id == ours.tokenizer.eos_id


@pytest.mark.parametrize("name", FOLDERS)
@torch.no_grad()
def test_an_adapters_file_is_the_difference_that_its_merge_makes(tmp_path, name):
    """Rows in the same order as the model's: merged − base = alpha / r · B A, tensor by tensor."""
    folder = write_gguf_folder(tmp_path, name)
    export_gguf(load_base(folder), tmp_path / "base.gguf", "f32")
    model = adapted(load_base(folder))
    adapters, about = read(export_adapter_gguf(model, tmp_path / "adapter.gguf", "f32"))
    export_gguf(merge_and_unload(model), tmp_path / "merged.gguf", "f32")
    (base, _), (merged, _) = read(tmp_path / "base.gguf"), read(tmp_path / "merged.gguf")
    assert about["general.type"] == "adapter"
    assert about["adapter.type"] == "lora"
    assert about["general.architecture"] == ("llama" if "qw" not in name else name.replace(" ", ""))
    touched = {tensor.rpartition(".")[0] for tensor in adapters}
    for tensor, (_, before) in base.items():
        difference = merged[tensor][1] - before
        if tensor not in touched:
            assert not difference.any(), tensor
            continue
        (_, A), (_, B) = adapters[f"{tensor}.lora_a"], adapters[f"{tensor}.lora_b"]
        assert A.shape[0] == B.shape[1] == 4
        delta = about["adapter.lora.alpha"] / 4 * (B @ A)
        torch.testing.assert_close(difference, delta, rtol=1e-4, atol=1e-6)
    assert len(touched) == 14


def test_four_bits_are_written_as_the_floats_that_they_stand_for(tmp_path):
    model = load_base(write_gguf_folder(tmp_path, "qwen 2"))
    quantize_base(model)
    tensors, _ = read(export_gguf(model, tmp_path / "model.gguf", "f32"))
    layer = model.model.layers[1].mlp.up_proj
    assert torch.equal(tensors["blk.1.ffn_up.weight"][1], layer.weight)
    assert "output.weight" in tensors


@pytest.mark.parametrize("name", FOLDERS)
def test_the_file_says_sizes_positions_ends_and_template(tmp_path, name):
    model = load_base(write_gguf_folder(tmp_path, name))
    tensors, about = read(export_gguf(model, tmp_path / "model.gguf"))
    config, kind = model.config, about["general.architecture"]
    assert about[f"{kind}.block_count"] == 2
    assert about[f"{kind}.attention.key_length"] == config.head_dim
    assert about[f"{kind}.context_length"] == 128
    assert about[f"{kind}.rope.freq_base"] == config.rope_theta
    assert about.get(f"{kind}.rope.scaling.factor") == (4.0 if "linear" in name else None)
    assert ("rope_freqs.weight" in tensors) == (name == "llama 3")
    assert ("output.weight" in tensors) == (name != "qwen 3")
    assert ("blk.0.attn_q.bias" in tensors) == (name in ("biases", "qwen 2"))
    tokenizer, fields = model.tokenizer, {n.rpartition(".")[2]: v for n, v in about.items()}
    assert fields["chat_template"] == tokenizer.chat_template
    named = [fields.get(f"{end}_token_id") for end in ("eos", "eot", "eom")]
    assert [token for token in named if token is not None] == tokenizer.eos_ids
    bos = tokenizer.companions.special_tokens().get("bos_token", "")
    assert fields.get("bos_token_id") == tokenizer.raw.token_to_id(bos)
    assert fields["add_bos_token"] == tokenizer.adds_bos
    assert len(fields["tokens"]) == len(fields["token_type"]) == config.vocab_size


def test_a_window_ends_the_context_and_is_said(tmp_path):
    ours = load_base(write_gguf_folder(tmp_path, "mistral 7b"))
    windowed = Llama(LlamaConfig(**{**vars(ours.config), "sliding_window": 40}))
    windowed.tokenizer = ours.tokenizer
    with pytest.warns(UserWarning, match="no sliding window for mistral: .* ends at 40 tokens"):
        file = export_gguf(windowed, tmp_path / "model.gguf")
    assert read(file)[1]["llama.context_length"] == 40


def test_what_cannot_be_exported_is_refused_in_words(tmp_path, base):
    file = tmp_path / "x.gguf"
    with pytest.raises(ValueError, match="llama.cpp has no such tokenizer: its normalizer is Prep"):
        export_gguf(base, file)
    with pytest.raises(ValueError, match="there is no adapter in this model|no adapter"):
        export_adapter_gguf(base, file)
    with pytest.raises(ValueError, match=r"only a minilora Llama is written as GGUF, got Linear"):
        export_gguf(torch.nn.Linear(2, 2), file)
    inject(base)
    with pytest.raises(ValueError, match="an adapter is inside .*: merge_and_unload"):
        export_gguf(base, file, pre="gpt-2")
    with pytest.raises(ValueError, match="an adapter in q8_0 would lose more"):
        export_adapter_gguf(base, file, "q8_0")
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "vocab_size": 40}
    with pytest.raises(ValueError, match="needs a tokenizer, and this model has none"):
        export_gguf(Llama(LlamaConfig(**sizes)), file)
    ours = Llama(LlamaConfig(**sizes, model_type="qwen3", attention_bias=True))
    ours.tokenizer = base.tokenizer
    with pytest.raises(ValueError, match="llama.cpp's qwen3 has no biases in its attention"):
        export_gguf(ours, file, pre="gpt-2")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", FOLDERS)
@torch.no_grad()
def test_llama_cpp_computes_our_logits_and_our_tokens(tmp_path, name):
    """Within float32 in f32; an adapter too. Measured with llama-cpp-python 0.3.36: 5e-7."""
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    ours = load_base(write_gguf_folder(tmp_path, name))
    prompt = prompt_of(ours)
    expected = {"f32": ours(prompt)[0], "f16": ours(prompt)[0]}
    for kind in expected:
        export_gguf(ours, tmp_path / f"{kind}.gguf", kind)
    texts = ["Hello there, it's 1234!\n\n I'VE: é 你好 🦙", "  two", " a", "12 345 6789 x1y22"]
    ids = [ours.tokenizer.encode(text) for text in texts]
    export_adapter_gguf(adapted(ours), tmp_path / "adapter.gguf", "f32")
    expected["adapter"] = ours(prompt)[0]
    for kind, logits in expected.items():
        lora = {"lora_path": str(tmp_path / "adapter.gguf")} if kind == "adapter" else {}
        file = str(tmp_path / ("f32.gguf" if lora else f"{kind}.gguf"))
        settings = {"n_ctx": 128, "logits_all": True, "n_threads": 1, "verbose": False}
        theirs = llama_cpp.Llama(file, **settings, **lora, type_k=0, type_v=0)
        theirs.eval(prompt[0].tolist())
        difference = np.abs(theirs.scores[: prompt.shape[1]] - logits.numpy()).max()
        assert difference < (1e-3 if kind == "f16" else 5e-6), kind
        options = {"add_bos": False, "special": True}
        assert [theirs.tokenize(text.encode(), **options) for text in texts] == ids
