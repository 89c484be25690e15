"""Shapes from a config equal those of the real architecture in transformers, name by name."""

import pytest
import torch
from torch import nn

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
LAYERS = {"num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 80}
SMALL = {**LAYERS, "hidden_size": 64, "intermediate_size": 96}
OPT = {**LAYERS, "hidden_size": 64, "ffn_dim": 96, "max_position_embeddings": 32}
GPT2 = {"vocab_size": 80, "n_embd": 64, "n_head": 4, "n_layer": 2, "n_positions": 32}
T5 = {"vocab_size": 80, "d_model": 64, "d_kv": 8, "d_ff": 96, "num_layers": 2, "num_heads": 4}
BIASES = {"attention_bias": True, "mlp_bias": True}
BARE = {"enable_bias": False, "layer_norm_elementwise_affine": False}
BARE["_remove_final_layer_norm"] = True
ODD = [
    ("llama", SMALL),
    ("llama", SMALL | BIASES | {"num_key_value_heads": 2, "head_dim": 24}),
    # Mistral ignores attention_bias
    ("mistral", SMALL | {"num_key_value_heads": 2, "attention_bias": True}),
    ("gpt2", GPT2 | {"n_inner": 100}),
    ("qwen2", SMALL | {"num_key_value_heads": 4}),
    ("qwen3", SMALL | {"attention_bias": True, "head_dim": 32, "num_key_value_heads": 1}),
    ("opt", OPT | {"word_embed_proj_dim": 64, "tie_word_embeddings": True}),
    ("opt", OPT | {"word_embed_proj_dim": 24, "do_layer_norm_before": False}),
    ("opt", OPT | {"word_embed_proj_dim": 64} | BARE),
    ("roberta", SMALL | {"max_position_embeddings": 40}),
    ("roberta", SMALL | {"max_position_embeddings": 40, "tie_word_embeddings": False}),
    ("t5", T5 | {"num_decoder_layers": 3, "feed_forward_proj": "gated-gelu"}),
]


def real(config):
    """The model of a config on the meta device, which takes no memory."""
    import transformers

    built = transformers.AutoConfig.for_model(**config)
    with torch.device("meta"):
        return getattr(transformers, CLASSES[config["model_type"]])(built)


def linears(model):
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            yield name, module.in_features, module.out_features, module.bias is not None
        elif type(module).__name__ == "Conv1D":
            yield name, *module.weight.shape, True


def shapes(arch):
    return [(x.name, x.in_features, x.out_features, x.bias) for x in arch.linears]


@pytest.mark.parametrize("name", CHECKED)
def test_every_preset_has_the_shapes_of_the_real_model(name):
    model, arch = real(presets()[name]), architecture(name)
    assert shapes(arch) == list(linears(model))
    # flan-T5's published head is not tied
    tied_by_transformers_5 = 32_128 * arch.hidden if name.startswith("flan") else 0
    assert arch.parameters - tied_by_transformers_5 == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(("family", "sizes"), ODD)
def test_odd_configs_too(family, sizes):
    config = {"model_type": family, **sizes}
    model, arch = real(config), architecture(config)
    assert shapes(arch) == list(linears(model))
    assert arch.parameters == sum(p.numel() for p in model.parameters())
