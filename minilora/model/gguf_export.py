"""A model, or an adapter alone, as a GGUF file for llama.cpp, Ollama and their kin.

    model      general.type = model     token_embd.weight, blk.0.attn_q.weight, …, output.weight
    adapter    general.type = adapter   blk.0.attn_q.weight.lora_a (r, in), ….lora_b (out, r)

llama.cpp turns neighbours (x₀, x₁), (x₂, x₃), … by the rotary angles of a ``llama``; Hugging Face
pairs x_i with x_{i+d/2}. So the rows of q and k (and of their B, and their biases) are sorted: out
of each head's two halves, one row each in turn. Its ``qwen2`` and ``qwen3`` pair as Hugging Face
does, and stay. The stretched frequencies of Llama 3.1 travel as a vector, ``rope_freqs.weight``, by
which each frequency is divided.

An adapter is written with one rank and one alpha (formats/plain_lora.py).

Left out: sliding windows, which llama.cpp does not have for these: the context ends where the
window does, and within it the model is the same.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..formats.gguf_file import write_gguf
from ..formats.plain_lora import plain_lora
from ..formats.save_and_load import linears_to_save
from ..lora.adapter_layer import adapter_layers
from ..lora.attached import attached_modules
from ..nf4.linear import NF4Linear
from .config import LlamaConfig
from .gguf_vocab import vocab_fields
from .pretrained import check_plain, float_tensors, is_tied, packed_weights
from .rotary import frequencies
from .transformer import Llama

ARCHITECTURE = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def export_gguf(
    model: nn.Module, path: str | Path, kind: str = "f16", *, pre: str | None = None
) -> Path:
    """Write a plain Llama with its tokenizer, chat template and ends as one GGUF file.

    ``kind`` is ``f32``, ``f16`` or ``q8_0`` (formats/gguf_file.py). ``pre`` names one of
    llama.cpp's pre-tokenizers for a tokenizer that none of them fits. Raises ``ValueError`` while
    adapters are inside, without a tokenizer, for one that llama.cpp does not have, and for biases
    that it would leave out.

    >>> import minilora, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = export_gguf(minilora.load_base(), f"{folder}/base.gguf", pre="gpt-2")
    ...     file.read_bytes()[:4]
    b'GGUF'
    """
    model = a_llama(model)
    adapters = [name for name, _ in adapter_layers(model)]
    adapters += [name or "the whole model" for name, _ in attached_modules(model)]
    if adapters:
        raise ValueError(
            f"an adapter is inside ({adapters[0]}): merge_and_unload(model) first, or write the "
            "adapter alone with export_adapter_gguf(model, path)"
        )
    check_plain(model.config, float_tensors(model).keys() | packed_weights(model), is_tied(model))
    if model.tokenizer is None:
        raise ValueError(
            "a GGUF file needs a tokenizer, and this model has none: set model.tokenizer"
        )
    fields = model_fields(model) | vocab_fields(model.tokenizer, model.config.vocab_size, pre)
    return write_gguf(path, architecture_of(model), fields, model_tensors(model), kind)


def export_adapter_gguf(model: nn.Module, path: str | Path, kind: str = "f16") -> Path:
    """Write the LoRA inside a Llama as a GGUF adapter, for ``llama-cli --lora``.

    Raises ``ValueError`` without adapters, and for ``kind="q8_0"``, which would round the thin
    matrices more than it saves.

    >>> import minilora, tempfile
    >>> model = minilora.load_base()
    >>> _ = minilora.inject(model)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     export_adapter_gguf(model, f"{folder}/naval.gguf").read_bytes()[:4]
    b'GGUF'
    """
    model = a_llama(model)
    if kind == "q8_0":
        raise ValueError("an adapter in q8_0 would lose more than it saves: write f16 or f32")
    _, lora_alpha, factors = plain_lora(linears_to_save(model))
    tensors: dict[str, Callable[[], Tensor]] = {}
    for path_of_linear, (A, B) in factors.items():
        name = gguf_name(f"{path_of_linear}.weight")
        tensors[f"{name}.lora_a"] = partial(as_it_is, A)
        tensors[f"{name}.lora_b"] = partial(in_gguf_order, model.config, path_of_linear, B)
    about = {"general.type": "adapter", "adapter.type": "lora", "adapter.lora.alpha": lora_alpha}
    return write_gguf(path, architecture_of(model), about, tensors, kind)


def a_llama(model: nn.Module) -> Llama:
    """The model; ``ValueError`` unless it is one of ours."""
    if not isinstance(model, Llama):
        raise ValueError(
            f"only a minilora Llama is written as GGUF, got {type(model).__name__}: "
            "open its folder with load_base"
        )
    return model


def architecture_of(model: Llama) -> str:
    """llama.cpp's name for the family. Raises ``ValueError`` for what it does not have there."""
    architecture, config = ARCHITECTURE[model.config.model_type], model.config
    if architecture == "qwen3" and config.attention_bias:
        raise ValueError("llama.cpp's qwen3 has no biases in its attention, but this model has")
    scaling = config.rope_scaling
    if architecture != "llama" and scaling is not None and scaling.rope_type == "llama3":
        raise ValueError(f"llama.cpp's {architecture} has no llama3 rope, but this model has")
    return architecture


def model_fields(model: Llama) -> dict[str, Any]:
    """The sizes and switches of a model, by key."""
    config, name = model.config, architecture_of(model)
    context = config.max_position_embeddings
    windows = [w for n in range(config.num_hidden_layers) if (w := config.window(n)) is not None]
    if windows and min(windows) < context:
        context = min(windows)
        warnings.warn(
            f"llama.cpp has no sliding window for {config.model_type}: the file's context ends at "
            f"{context} tokens, within which nothing differs",
            stacklevel=3,
        )
    sizes: dict[str, Any] = {
        "vocab_size": config.vocab_size,
        "context_length": context,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "rope.dimension_count": config.head_dim,
        "rope.freq_base": float(config.rope_theta),
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
    }
    if config.rope_scaling is not None and config.rope_scaling.rope_type == "linear":
        sizes |= {"rope.scaling.type": "linear"}
        sizes |= {"rope.scaling.factor": float(config.rope_scaling.factor)}
    about = {"general.type": "model", "general.name": Path(model.name_or_path).name or "minilora"}
    return about | {f"{name}.{key}": value for key, value in sizes.items()}


def model_tensors(model: Llama) -> dict[str, Callable[[], Tensor]]:
    """Every tensor of a model under llama.cpp's name, in its order of rows."""
    tensors: dict[str, Callable[[], Tensor]] = {}
    tied = is_tied(model)
    for path, module in model.named_modules():
        if path == "lm_head" and tied:
            continue
        for part, tensor in module.named_parameters(recurse=False):
            tensors[gguf_name(f"{path}.{part}")] = partial(
                in_gguf_order, model.config, path, tensor
            )
        if isinstance(module, NF4Linear):
            tensors[gguf_name(f"{path}.weight")] = partial(dequantized, model.config, path, module)
    scaling = model.config.rope_scaling
    if scaling is not None and scaling.rope_type == "llama3":
        exponents = torch.arange(0, model.config.head_dim, 2).float() / model.config.head_dim
        theta = model.config.rope_theta
        divisors = frequencies(exponents, theta, None) / frequencies(exponents, theta, scaling)
        tensors["rope_freqs.weight"] = partial(as_it_is, divisors)
    return tensors


def gguf_name(name: str) -> str:
    """llama.cpp's name for a tensor.

    >>> gguf_name("model.layers.3.self_attn.q_proj.weight")
    'blk.3.attn_q.weight'
    """
    path, _, part = name.rpartition(".")
    if path.startswith("model.layers."):
        number, _, inner = path.removeprefix("model.layers.").partition(".")
        return f"blk.{number}.{NAMES[inner]}.{part}"
    return f"{NAMES[path]}.{part}"


def as_it_is(tensor: Tensor) -> Tensor:
    """The tensor."""
    return tensor


def dequantized(config: LlamaConfig, path: str, module: NF4Linear) -> Tensor:
    """The float weight of a Linear in four bits, in llama.cpp's order of rows."""
    return in_gguf_order(config, path, module.weight)


def in_gguf_order(config: LlamaConfig, path: str, tensor: Tensor) -> Tensor:
    """A tensor whose first axis is a Linear's output, with a rotated head's halves interleaved.

    Row i of the first half and row i of the second become neighbours, 2i and 2i + 1.
    """
    part = path.rpartition(".")[2]
    if ARCHITECTURE[config.model_type] != "llama" or part not in ("q_proj", "k_proj"):
        return tensor
    heads = config.num_attention_heads if part == "q_proj" else config.num_key_value_heads
    halves = tensor.detach().unflatten(0, (heads, 2, config.head_dim // 2))
    return halves.transpose(1, 2).flatten(0, 2)
