"""Shapes from a config equal those of the real architecture in transformers, built on the meta device: name by name."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import minilora
from minilora.ledger.shapes import architecture, presets

CLASSES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gpt2": "GPT2LMHeadModel",
    "opt": "OPTForCausalLM",
    "roberta": "RobertaForMaskedLM",
    "t5": "T5ForConditionalGeneration",
}
CHECKED = sorted(name for name, config in presets().items() if config["model_type"] != "gpt3")
SMALL = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 80,
}


def real(config, names=True):
    """The model of a config, no memory behind it."""
    import transformers

    made = transformers.AutoConfig.for_model(**config)
    with torch.device("meta"):
        return getattr(transformers, CLASSES[config["model_type"]])(made)


def linears(model):
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            yield name, module.in_features, module.out_features, module.bias is not None
        elif type(module).__name__ == "Conv1D":
            yield name, *module.weight.shape, True


@pytest.mark.parametrize("name", CHECKED)
def test_every_preset_has_the_shapes_of_the_real_model(name):
    model, found = real(presets()[name]), architecture(name)
    assert [(x.name, x.in_features, x.out_features, x.bias) for x in found.linears] == list(
        linears(model)
    )
    # the published head is not tied
    tied_by_transformers_5 = 32_128 * found.hidden if name.startswith("flan") else 0
    assert found.parameters - tied_by_transformers_5 == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    "config",
    [
        {
            "model_type": "llama",
            **SMALL,
            "attention_bias": True,
            "mlp_bias": True,
            "num_key_value_heads": 2,
            "head_dim": 24,
        },
        {"model_type": "llama", **SMALL},
        # which it passes over
        {"model_type": "mistral", **SMALL, "num_key_value_heads": 2, "attention_bias": True},
        {
            "model_type": "gpt2",
            "vocab_size": 80,
            "n_embd": 64,
            "n_head": 4,
            "n_layer": 2,
            "n_positions": 32,
            "n_inner": 100,
        },
        {"model_type": "qwen2", **SMALL, "num_key_value_heads": 4},
        {
            "model_type": "qwen3",
            **SMALL,
            "attention_bias": True,
            "head_dim": 32,
            "num_key_value_heads": 1,
        },
        {
            "model_type": "opt",
            "hidden_size": 64,
            "ffn_dim": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
        }
        | {
            "vocab_size": 80,
            "max_position_embeddings": 32,
            "word_embed_proj_dim": 64,
            "tie_word_embeddings": True,
        },
        {
            "model_type": "opt",
            "hidden_size": 64,
            "ffn_dim": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
        }
        | {
            "vocab_size": 80,
            "max_position_embeddings": 32,
            "word_embed_proj_dim": 24,
            "do_layer_norm_before": False,
        },
        {
            "model_type": "opt",
            "hidden_size": 64,
            "ffn_dim": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
        }
        | {
            "vocab_size": 80,
            "max_position_embeddings": 32,
            "word_embed_proj_dim": 64,
            "enable_bias": False,
        }
        | {"layer_norm_elementwise_affine": False, "_remove_final_layer_norm": True},
        {"model_type": "roberta", **SMALL, "max_position_embeddings": 40},
        {
            "model_type": "roberta",
            **SMALL,
            "max_position_embeddings": 40,
            "tie_word_embeddings": False,
        },
        {
            "model_type": "t5",
            "d_model": 64,
            "d_kv": 8,
            "d_ff": 96,
            "num_layers": 2,
            "num_decoder_layers": 3,
            "num_heads": 4,
        }
        | {"vocab_size": 80, "feed_forward_proj": "gated-gelu"},
    ],
    ids=lambda config: config["model_type"],
)
def test_odd_configs_too(config):
    model, found = real(config), architecture(config)
    assert [(x.name, x.in_features, x.out_features, x.bias) for x in found.linears] == list(
        linears(model)
    )
    assert found.parameters == sum(p.numel() for p in model.parameters())


def test_our_base_is_a_preset_and_a_folder_and_a_file(base, tmp_path):
    assert architecture("base").parameters == sum(p.numel() for p in base.parameters())
    minilora.save_model(base, tmp_path / "mine")
    for source in (tmp_path / "mine", str(tmp_path / "mine" / "config.json")):
        assert architecture(source).linears == architecture("base").linears


def test_gpt_3_has_175_billion_parameters():
    assert round(architecture("gpt3-175b").parameters / 1e9) == 175


def test_a_405b_architecture_takes_milliseconds():
    import time

    best = min(timed(time.perf_counter) for _ in range(5))
    assert best < 0.05


def timed(clock):
    started = clock()
    architecture("llama-3.1-405b")
    return clock() - started


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("mixtral-8x7b", "nearest presets: mistral-7b.*mixtures of experts are not counted"),
        ("my/config.json", "there is no such file"),
        (str(Path(__file__).parent), "the folder holds none"),
        (
            {"model_type": "mixtral", "num_local_experts": 8},
            "known are gpt2, .*; mixtures of experts are not counted",
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
        ({"model_type": "mamba"}, "model_type is 'mamba', known are gpt2, gpt3"),
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
