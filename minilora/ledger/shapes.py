"""The shapes of known models: every Linear with its name, and what else has parameters, from a ``config.json`` alone.

A preset *is* the part of a Hugging Face ``config.json`` that decides shapes (``presets.json``), so a preset, a dict and a
file all go one way::

    config.json -> family (``model_type``) -> LinearShape(name, in, out, bias, role, block) for every Linear, others

Names are those of the transformers library, so that target patterns mean here what they mean on the real model;
``tests/ledger/test_shapes.py`` builds the real ones on the meta device and compares. GPT-3, which was never published, has the
blocks of OPT (arXiv 2205.01068) without its two spare positions.

Left out: mixtures of experts, models of images and sound; give such a model as a list of shapes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ..files import read_json
from ..text import nearest

HERE = Path(__file__).parent
EXPERTS = "mixtures of experts are not counted"


@dataclass(frozen=True)
class LinearShape:
    """One Linear: ``role`` says what it does in its ``block`` (q, k, v, qkv, o, gate, up, down, dense, head)."""

    name: str
    in_features: int
    out_features: int
    bias: bool = False
    role: str = "dense"
    block: str = ""
    tied: bool = False  # its weight is the embedding's: counted there

    @property
    def weights(self) -> int:
        """``in · out``, whoever owns them."""
        return self.in_features * self.out_features

    @property
    def parameters(self) -> int:
        """Own parameters: none of a tied weight, and the bias."""
        return (0 if self.tied else self.weights) + (self.out_features if self.bias else 0)


@dataclass(frozen=True)
class Architecture:
    """A model as shapes. ``others`` are (name, numbers) of embeddings and norms; the sizes below decide the activations."""

    name: str
    family: str
    linears: tuple[LinearShape, ...]
    others: tuple[tuple[str, int], ...] = ()
    hidden: int = 0
    heads: int = 0
    head_dim: int = 0
    rms: bool = True  # RMSNorm, as opposed to LayerNorm
    rotary: bool = True
    qk_norm: bool = False

    @property
    def parameters(self) -> int:
        """All parameters, tied weights once."""
        return sum(linear.parameters for linear in self.linears) + sum(
            size for _, size in self.others
        )

    @property
    def blocks(self) -> dict[str, list[LinearShape]]:
        """The Linears of each block, in order; the head and what stands outside the blocks are left out."""
        found: dict[str, list[LinearShape]] = {}
        for linear in self.linears:
            if linear.block:
                found.setdefault(linear.block, []).append(linear)
        return found


Source = str | Path | Mapping[str, Any] | Sequence[Any] | Architecture


def architecture(source: Source) -> Architecture:
    """The shapes of a preset's name, a ``config.json`` (path, its folder, or dict), or a list of (in, out) or (name, in, out).

    Raises ``ValueError`` for an unknown name (with the nearest known), a config that lacks a key (which), an unknown family,
    sizes that are no positive whole numbers.

    >>> architecture("llama-3-8b").parameters
    8030261248
    """
    if isinstance(source, Architecture):
        return source
    if isinstance(source, Mapping):
        return from_config(source, str(source.get("model_type", "config")))
    if isinstance(source, str) and source in presets():
        return from_config(presets()[source], source)
    if isinstance(source, str | Path):
        path = Path(source)
        file = path / "config.json" if path.is_dir() else path
        if file.is_file():
            folder = file.resolve().parent.name
            return from_config(
                read_json(file), folder if file.name == "config.json" and folder else path.stem
            )
        near = nearest(str(source).lower(), presets(), most=3, cutoff=0.4)
        lack = (
            "; the folder holds none"
            if path.is_dir()
            else "; there is no such file"
            if path.suffix == ".json"
            else ""
        )
        why = f"{str(source)!r} is neither a preset nor a config.json{lack}"
        known = (
            f"nearest presets: {', '.join(near)}"
            if near
            else "`minilora plan --list` names the presets"
        )
        raise ValueError(
            f"{why}; {known}"
            + f" ({EXPERTS})" * bool(re.search(r"\dx\d|moe|mixtral", str(source).lower()))
        )
    return from_shapes(source)


@cache
def presets() -> dict[str, dict[str, Any]]:
    """Every preset's config by its name, ours (``base``) first.

    >>> presets()["llama-3-8b"]["num_hidden_layers"]
    32
    """
    known = json.loads((HERE / "presets.json").read_text(encoding="utf-8"))
    return {
        "base": json.loads(
            (HERE.parent / "model" / "base" / "config.json").read_text(encoding="utf-8")
        ),
        **known,
    }


def from_shapes(shapes: Sequence[Any]) -> Architecture:
    """Plain Linears: (in, out) or (name, in, out) each."""
    linears = []
    for index, shape in enumerate(shapes):
        if not isinstance(shape, tuple | list) or len(shape) not in (2, 3):
            raise ValueError(f"a shape is (in, out) or (name, in, out), got {shape!r}")
        name, size_in, size_out = shape if len(shape) == 3 else (f"linear.{index}", *shape)
        sizes = {"in": size_in, "out": size_out}
        linears.append(
            LinearShape(str(name), whole(sizes, "in", str(name)), whole(sizes, "out", str(name)))
        )
    if not linears:
        raise ValueError("an empty list of shapes costs nothing: give at least one (in, out)")
    return Architecture("shapes", "shapes", tuple(linears))


def from_config(config: Mapping[str, Any], name: str) -> Architecture:
    """The architecture that a ``config.json`` describes."""
    family = config.get("model_type")
    if family not in FAMILIES:
        why = (
            EXPERTS
            if any("experts" in key for key in config)
            else "minilora.ledger.plan takes a list of shapes too"
        )
        raise ValueError(
            f"{name}: model_type is {family!r}, known are {', '.join(sorted(FAMILIES))}; {why}"
        )
    return FAMILIES[family](config, name)


def whole(config: Mapping[str, Any], key: str, name: str, default: int | None = None) -> int:
    """A size; raise ``ValueError`` that names the key when it is missing or no positive whole number."""
    value = config.get(key)
    value = default if value is None else value
    if value is None:
        raise ValueError(f"{name}: the config lacks {key!r}, which decides shapes")
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name}: {key} must be a whole number of at least 1, got {value!r}")
    return value


def llama(c: Mapping[str, Any], name: str) -> Architecture:
    """Llama, Mistral, Qwen 2 (biases on q, k, v) and Qwen 3 (norms on q and k)."""
    kind = c["model_type"]
    v, d, f = (whole(c, key, name) for key in ("vocab_size", "hidden_size", "intermediate_size"))
    layers, heads = whole(c, "num_hidden_layers", name), whole(c, "num_attention_heads", name)
    # only a Llama's config may leave these out: the others' defaults are numbers of one model, not of the family
    may_lack = kind == "llama" or "num_key_value_heads" in c
    kv_heads = whole(c, "num_key_value_heads", name, heads if may_lack else None)
    head_dim = whole(c, "head_dim", name, None if kind == "qwen3" else max(1, d // heads))
    bias = kind == "qwen2" or (kind != "mistral" and bool(c.get("attention_bias", False)))
    mlp_bias = kind == "llama" and bool(c.get("mlp_bias", False))
    q, kv = heads * head_dim, kv_heads * head_dim
    linears: list[LinearShape] = []
    others = [("model.embed_tokens", v * d)]
    for i in range(layers):
        path = f"model.layers.{i}"
        for role, size_in, size_out in (("q", d, q), ("k", d, kv), ("v", d, kv), ("o", q, d)):
            has_bias = bias and not (kind == "qwen2" and role == "o")
            linears.append(
                LinearShape(
                    f"{path}.self_attn.{role}_proj", size_in, size_out, has_bias, role, path
                )
            )
        for role, size_in, size_out in (("gate", d, f), ("up", d, f), ("down", f, d)):
            linears.append(
                LinearShape(f"{path}.mlp.{role}_proj", size_in, size_out, mlp_bias, role, path)
            )
        others += [
            (f"{path}.{norm}", d) for norm in ("input_layernorm", "post_attention_layernorm")
        ]
        others += [(f"{path}.self_attn.{x}_norm", head_dim) for x in "qk" if kind == "qwen3"]
    others.append(("model.norm", d))
    linears.append(
        LinearShape("lm_head", d, v, role="head", tied=bool(c.get("tie_word_embeddings", False)))
    )
    return Architecture(
        name, kind, tuple(linears), tuple(others), d, heads, head_dim, qk_norm=kind == "qwen3"
    )


def gpt2(c: Mapping[str, Any], name: str) -> Architecture:
    """GPT-2: one Conv1D makes q, k and v."""
    v, d, heads = (whole(c, key, name) for key in ("vocab_size", "n_embd", "n_head"))
    f = whole(c, "n_inner", name, 4 * d)
    linears: list[LinearShape] = []
    others = [("transformer.wte", v * d), ("transformer.wpe", whole(c, "n_positions", name) * d)]
    for i in range(whole(c, "n_layer", name)):
        path = f"transformer.h.{i}"
        linears += [
            LinearShape(f"{path}.attn.c_attn", d, 3 * d, True, "qkv", path),
            LinearShape(f"{path}.attn.c_proj", d, d, True, "o", path),
            LinearShape(f"{path}.mlp.c_fc", d, f, True, "up", path),
            LinearShape(f"{path}.mlp.c_proj", f, d, True, "down", path),
        ]
        others += [
            (f"{path}.{norm}.{part}", d) for norm in ("ln_1", "ln_2") for part in ("weight", "bias")
        ]
    others += [(f"transformer.ln_f.{part}", d) for part in ("weight", "bias")]
    linears.append(
        LinearShape("lm_head", d, v, role="head", tied=bool(c.get("tie_word_embeddings", True)))
    )
    return Architecture(
        name, "gpt2", tuple(linears), tuple(others), d, heads, d // heads, rms=False, rotary=False
    )


def opt(c: Mapping[str, Any], name: str) -> Architecture:
    """OPT, and GPT-3 with q, k and v apart, as the LoRA paper counts them. opt-350m alone has narrow embeddings, widened."""
    v, d, f = (whole(c, key, name) for key in ("vocab_size", "hidden_size", "ffn_dim"))
    heads, spare = whole(c, "num_attention_heads", name), 2 if c["model_type"] == "opt" else 0
    narrow, bias = whole(c, "word_embed_proj_dim", name, d), bool(c.get("enable_bias", True))
    parts = ("weight", "bias") if c.get("layer_norm_elementwise_affine", True) else ()
    sides = (("project_out", d, narrow), ("project_in", narrow, d)) if narrow != d else ()
    linears = [
        LinearShape(f"model.decoder.{side}", size_in, size_out) for side, size_in, size_out in sides
    ]
    others = [("model.decoder.embed_tokens", v * narrow)]
    others.append(
        ("model.decoder.embed_positions", (whole(c, "max_position_embeddings", name) + spare) * d)
    )
    for i in range(whole(c, "num_hidden_layers", name)):
        path = f"model.decoder.layers.{i}"
        for proj in ("k_proj", "v_proj", "q_proj", "out_proj"):
            role = "o" if proj == "out_proj" else proj[0]
            linears.append(LinearShape(f"{path}.self_attn.{proj}", d, d, bias, role, path))
        for fc, role, size_in, size_out in (("fc1", "up", d, f), ("fc2", "down", f, d)):
            linears.append(LinearShape(f"{path}.{fc}", size_in, size_out, bias, role, path))
        others += [
            (f"{path}.{norm}.{part}", d)
            for norm in ("self_attn_layer_norm", "final_layer_norm")
            for part in parts
        ]
    if c.get("do_layer_norm_before", True) and not c.get("_remove_final_layer_norm", False):
        others += [(f"model.decoder.final_layer_norm.{part}", d) for part in parts]
    linears.append(
        LinearShape(
            "lm_head", narrow, v, role="head", tied=bool(c.get("tie_word_embeddings", True))
        )
    )
    return Architecture(
        name,
        c["model_type"],
        tuple(linears),
        tuple(others),
        d,
        heads,
        d // heads,
        rms=False,
        rotary=False,
    )


def roberta(c: Mapping[str, Any], name: str) -> Architecture:
    """RoBERTa with its masked-language head, whose decoder is the embedding."""
    v, d, f = (whole(c, key, name) for key in ("vocab_size", "hidden_size", "intermediate_size"))
    heads = whole(c, "num_attention_heads", name)
    rows = {
        "word": v,
        "position": whole(c, "max_position_embeddings", name),
        "token_type": whole(c, "type_vocab_size", name, 2),
    }
    linears: list[LinearShape] = []
    others = [(f"roberta.embeddings.{kind}_embeddings", count * d) for kind, count in rows.items()]
    norms = ["roberta.embeddings.LayerNorm"]
    for i in range(whole(c, "num_hidden_layers", name)):
        path = f"roberta.encoder.layer.{i}"
        for kind in ("query", "key", "value"):
            linears.append(LinearShape(f"{path}.attention.self.{kind}", d, d, True, kind[0], path))
        linears += [
            LinearShape(f"{path}.attention.output.dense", d, d, True, "o", path),
            LinearShape(f"{path}.intermediate.dense", d, f, True, "up", path),
            LinearShape(f"{path}.output.dense", f, d, True, "down", path),
        ]
        norms += [f"{path}.attention.output.LayerNorm", f"{path}.output.LayerNorm"]
    norms.append("lm_head.layer_norm")
    others += [(f"{norm}.{part}", d) for norm in norms for part in ("weight", "bias")]
    linears.append(LinearShape("lm_head.dense", d, d, True))
    tied = bool(c.get("tie_word_embeddings", True))
    linears.append(LinearShape("lm_head.decoder", d, v, True, role="head", tied=tied))
    others += [] if tied else [("lm_head.bias", v)]  # else the decoder's own
    return Architecture(
        name,
        "roberta",
        tuple(linears),
        tuple(others),
        d,
        heads,
        d // heads,
        rms=False,
        rotary=False,
    )


def t5(c: Mapping[str, Any], name: str) -> Architecture:
    """T5 and flan-T5: an encoder and a decoder, the latter with a second attention, to the encoder.

    flan-T5's published head is a matrix of its own (``tie_word_embeddings`` false), and is counted; transformers 5 ties it.
    """
    v, d, kv, f, heads = (
        whole(c, key, name) for key in ("vocab_size", "d_model", "d_kv", "d_ff", "num_heads")
    )
    layers, buckets = (
        whole(c, "num_layers", name),
        whole(c, "relative_attention_num_buckets", name, 32),
    )
    gated = str(c.get("feed_forward_proj", "relu")).startswith("gated")
    linears: list[LinearShape] = []
    others = [("shared", v * d)]
    for side, depth in (
        ("encoder", layers),
        ("decoder", whole(c, "num_decoder_layers", name, layers)),
    ):
        attentions = (
            ("SelfAttention",) if side == "encoder" else ("SelfAttention", "EncDecAttention")
        )
        others.append(
            (f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias", buckets * heads)
        )
        for i in range(depth):
            block = f"{side}.block.{i}"
            for j, attention in enumerate(attentions):
                for role in "qkvo":
                    sizes = (heads * kv, d) if role == "o" else (d, heads * kv)
                    linears.append(
                        LinearShape(
                            f"{block}.layer.{j}.{attention}.{role}",
                            *sizes,
                            False,
                            role + "'" * j,
                            block,
                        )
                    )
            path = f"{block}.layer.{len(attentions)}.DenseReluDense"
            ups = (("wi_0", "gate"), ("wi_1", "up")) if gated else (("wi", "up"),)
            linears += [LinearShape(f"{path}.{wi}", d, f, False, role, block) for wi, role in ups]
            linears.append(LinearShape(f"{path}.wo", f, d, False, "down", block))
            others += [(f"{block}.layer.{j}.layer_norm", d) for j in range(len(attentions) + 1)]
        others.append((f"{side}.final_layer_norm", d))
    linears.append(
        LinearShape("lm_head", d, v, role="head", tied=bool(c.get("tie_word_embeddings", True)))
    )
    return Architecture(name, "t5", tuple(linears), tuple(others), d, heads, kv, rotary=False)


FAMILIES: dict[str, Callable[[Mapping[str, Any], str], Architecture]] = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3"), llama),
    **{"gpt2": gpt2, "opt": opt, "gpt3": opt, "roberta": roberta, "t5": t5},
}
