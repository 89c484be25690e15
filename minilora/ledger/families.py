"""Families of architectures: from a ``config.json`` to every Linear, embedding and norm in it.

Names and order are those of the transformers library, so target patterns mean the same here as on
the real model; ``tests/ledger/test_families.py`` builds the real ones on the meta device and
compares. GPT-3, which was never published, has the blocks of OPT (arXiv 2205.01068) without its two
spare positions.

Left out: mixtures of experts, models of images and sound.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from .dimensions import Architecture, LinearShape, whole

Config = Mapping[str, Any]


def llama(config: Config, name: str) -> Architecture:
    """Llama, Mistral, Qwen 2 (biases on q, k, v) and Qwen 3 (norms on q and k)."""
    size, kind = partial(whole, config, name=name), config["model_type"]
    vocab, d, inner = size("vocab_size"), size("hidden_size"), size("intermediate_size")
    layers, heads = size("num_hidden_layers"), size("num_attention_heads")
    # Only a Llama's config may leave these out: the others' defaults are one model's, not the
    # family's.
    may_lack = kind == "llama" or "num_key_value_heads" in config
    kv_heads = size("num_key_value_heads", default=heads if may_lack else None)
    head_dim = size("head_dim", default=None if kind == "qwen3" else max(1, d // heads))
    bias = kind == "qwen2" or (kind != "mistral" and bool(config.get("attention_bias", False)))
    o_bias = bias and kind != "qwen2"
    mlp_bias = kind == "llama" and bool(config.get("mlp_bias", False))
    q, kv = heads * head_dim, kv_heads * head_dim
    linears: list[LinearShape] = []
    others = [("model.embed_tokens", vocab * d)]
    for i in range(layers):
        block = f"model.layers.{i}"
        linears += [
            LinearShape(f"{block}.self_attn.q_proj", d, q, bias, "q", block),
            LinearShape(f"{block}.self_attn.k_proj", d, kv, bias, "k", block),
            LinearShape(f"{block}.self_attn.v_proj", d, kv, bias, "v", block),
            LinearShape(f"{block}.self_attn.o_proj", q, d, o_bias, "o", block),
            LinearShape(f"{block}.mlp.gate_proj", d, inner, mlp_bias, "gate", block),
            LinearShape(f"{block}.mlp.up_proj", d, inner, mlp_bias, "up", block),
            LinearShape(f"{block}.mlp.down_proj", inner, d, mlp_bias, "down", block),
        ]
        norms = ("input_layernorm", "post_attention_layernorm")
        others += [(f"{block}.{norm}", d) for norm in norms]
        if kind == "qwen3":
            others += [(f"{block}.self_attn.{norm}", head_dim) for norm in ("q_norm", "k_norm")]
    others.append(("model.norm", d))
    tied = bool(config.get("tie_word_embeddings", False))
    linears.append(LinearShape("lm_head", d, vocab, role="head", tied=tied))
    sizes = (tuple(linears), tuple(others), d, heads, head_dim)
    return Architecture(name, kind, *sizes, qk_norm=kind == "qwen3")


def gpt2(config: Config, name: str) -> Architecture:
    """GPT-2: one Conv1D makes q, k and v."""
    size = partial(whole, config, name=name)
    vocab, d, heads = size("vocab_size"), size("n_embd"), size("n_head")
    inner = size("n_inner", default=4 * d)
    linears: list[LinearShape] = []
    others = [("transformer.wte", vocab * d), ("transformer.wpe", size("n_positions") * d)]
    for i in range(size("n_layer")):
        block = f"transformer.h.{i}"
        linears += [
            LinearShape(f"{block}.attn.c_attn", d, 3 * d, True, "qkv", block),
            LinearShape(f"{block}.attn.c_proj", d, d, True, "o", block),
            LinearShape(f"{block}.mlp.c_fc", d, inner, True, "up", block),
            LinearShape(f"{block}.mlp.c_proj", inner, d, True, "down", block),
        ]
        others += layer_norms([f"{block}.ln_1", f"{block}.ln_2"], d)
    others += layer_norms(["transformer.ln_f"], d)
    tied = bool(config.get("tie_word_embeddings", True))
    linears.append(LinearShape("lm_head", d, vocab, role="head", tied=tied))
    sizes = (tuple(linears), tuple(others), d, heads, d // heads)
    return Architecture(name, "gpt2", *sizes, rms=False, rotary=False)


def opt(config: Config, name: str) -> Architecture:
    """OPT, and GPT-3 with q, k and v apart, as the LoRA paper counts them.

    Only opt-350m has narrow embeddings, which two Linears widen and narrow again.
    """
    size, kind = partial(whole, config, name=name), config["model_type"]
    vocab, d, inner = size("vocab_size"), size("hidden_size"), size("ffn_dim")
    heads, narrow = size("num_attention_heads"), size("word_embed_proj_dim", default=d)
    positions = size("max_position_embeddings") + (2 if kind == "opt" else 0)
    bias = bool(config.get("enable_bias", True))
    affine = bool(config.get("layer_norm_elementwise_affine", True))
    linears: list[LinearShape] = []
    if narrow != d:
        linears.append(LinearShape("model.decoder.project_out", d, narrow))
        linears.append(LinearShape("model.decoder.project_in", narrow, d))
    others = [("model.decoder.embed_tokens", vocab * narrow)]
    others.append(("model.decoder.embed_positions", positions * d))
    norms: list[str] = []
    for i in range(size("num_hidden_layers")):
        block = f"model.decoder.layers.{i}"
        linears += [
            LinearShape(f"{block}.self_attn.k_proj", d, d, bias, "k", block),
            LinearShape(f"{block}.self_attn.v_proj", d, d, bias, "v", block),
            LinearShape(f"{block}.self_attn.q_proj", d, d, bias, "q", block),
            LinearShape(f"{block}.self_attn.out_proj", d, d, bias, "o", block),
            LinearShape(f"{block}.fc1", d, inner, bias, "up", block),
            LinearShape(f"{block}.fc2", inner, d, bias, "down", block),
        ]
        norms += [f"{block}.self_attn_layer_norm", f"{block}.final_layer_norm"]
    norm_first = config.get("do_layer_norm_before", True)
    if norm_first and not config.get("_remove_final_layer_norm", False):
        norms.append("model.decoder.final_layer_norm")
    others += layer_norms(norms, d) if affine else []
    tied = bool(config.get("tie_word_embeddings", True))
    linears.append(LinearShape("lm_head", narrow, vocab, role="head", tied=tied))
    sizes = (tuple(linears), tuple(others), d, heads, d // heads)
    return Architecture(name, kind, *sizes, rms=False, rotary=False)


def roberta(config: Config, name: str) -> Architecture:
    """RoBERTa with its masked-language head, whose decoder is the embedding."""
    size = partial(whole, config, name=name)
    vocab, d, inner = size("vocab_size"), size("hidden_size"), size("intermediate_size")
    heads, positions = size("num_attention_heads"), size("max_position_embeddings")
    rows = {"word": vocab, "position": positions}
    rows["token_type"] = size("type_vocab_size", default=2)
    linears: list[LinearShape] = []
    others = [(f"roberta.embeddings.{kind}_embeddings", count * d) for kind, count in rows.items()]
    norms = ["roberta.embeddings.LayerNorm"]
    for i in range(size("num_hidden_layers")):
        block = f"roberta.encoder.layer.{i}"
        attention = f"{block}.attention"
        linears += [
            LinearShape(f"{attention}.self.query", d, d, True, "q", block),
            LinearShape(f"{attention}.self.key", d, d, True, "k", block),
            LinearShape(f"{attention}.self.value", d, d, True, "v", block),
            LinearShape(f"{attention}.output.dense", d, d, True, "o", block),
            LinearShape(f"{block}.intermediate.dense", d, inner, True, "up", block),
            LinearShape(f"{block}.output.dense", inner, d, True, "down", block),
        ]
        norms += [f"{attention}.output.LayerNorm", f"{block}.output.LayerNorm"]
    others += layer_norms([*norms, "lm_head.layer_norm"], d)
    tied = bool(config.get("tie_word_embeddings", True))
    linears.append(LinearShape("lm_head.dense", d, d, True))
    linears.append(LinearShape("lm_head.decoder", d, vocab, True, role="head", tied=tied))
    others += [] if tied else [("lm_head.bias", vocab)]  # when tied, it is the decoder's own
    sizes = (tuple(linears), tuple(others), d, heads, d // heads)
    return Architecture(name, "roberta", *sizes, rms=False, rotary=False)


def t5(config: Config, name: str) -> Architecture:
    """T5 and flan-T5: an encoder, and a decoder with a second attention, to the encoder.

    flan-T5's published head is a matrix of its own (``tie_word_embeddings`` false), and is counted;
    transformers 5 ties it.
    """
    size = partial(whole, config, name=name)
    vocab, d, inner = size("vocab_size"), size("d_model"), size("d_ff")
    heads, head_dim, layers = size("num_heads"), size("d_kv"), size("num_layers")
    buckets = size("relative_attention_num_buckets", default=32)
    depths = {"encoder": layers, "decoder": size("num_decoder_layers", default=layers)}
    gated = str(config.get("feed_forward_proj", "relu")).startswith("gated")
    ups = {"wi_0": "gate", "wi_1": "up"} if gated else {"wi": "up"}
    linears: list[LinearShape] = []
    others = [("shared", vocab * d)]
    for side, depth in depths.items():
        attentions = ["SelfAttention"] + ["EncDecAttention"] * (side == "decoder")
        bias = f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias"
        others.append((bias, buckets * heads))
        for i in range(depth):
            block = f"{side}.block.{i}"
            for j, attention in enumerate(attentions):
                path, second = f"{block}.layer.{j}.{attention}", "'" * j
                for role in "qkv":
                    linears.append(
                        LinearShape(
                            f"{path}.{role}", d, heads * head_dim, False, role + second, block
                        )
                    )
                linears.append(
                    LinearShape(f"{path}.o", heads * head_dim, d, False, "o" + second, block)
                )
            path = f"{block}.layer.{len(attentions)}.DenseReluDense"
            for wi, role in ups.items():
                linears.append(LinearShape(f"{path}.{wi}", d, inner, False, role, block))
            linears.append(LinearShape(f"{path}.wo", inner, d, False, "down", block))
            others += [(f"{block}.layer.{j}.layer_norm", d) for j in range(len(attentions) + 1)]
        others.append((f"{side}.final_layer_norm", d))
    tied = bool(config.get("tie_word_embeddings", True))
    linears.append(LinearShape("lm_head", d, vocab, role="head", tied=tied))
    sizes = (tuple(linears), tuple(others), d, heads, head_dim)
    return Architecture(name, "t5", *sizes, rotary=False)


def layer_norms(paths: Iterable[str], width: int) -> list[tuple[str, int]]:
    """The weight and the bias of every LayerNorm."""
    return [(f"{path}.{part}", width) for path in paths for part in ("weight", "bias")]


FAMILIES: dict[str, Callable[[Config, str], Architecture]] = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3"), llama),
    **{"gpt2": gpt2, "opt": opt, "gpt3": opt, "roberta": roberta, "t5": t5},
}
