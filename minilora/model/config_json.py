"""The ``config.json`` of the Llama family, in Hugging Face's words: read with every field checked, and written.

What ``model/transformer.py`` cannot compute (scaled rotary positions, a sliding window, another activation) is refused by name: a
model that loads and computes something else would be worse.
"""

from __future__ import annotations

from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..nf4.tensor import NF4Tensor
from .transformer import Llama, LlamaConfig

# Architectures whose blocks are exactly those of model/transformer.py, and what their configs mean by leaving something out.
BOTH = {"tie_word_embeddings": False, "rms_norm_eps": 1e-6}
FAMILY: dict[str, dict[str, Any]] = {
    "llama": {**BOTH, "max_position_embeddings": 2048},
    "mistral": {
        **BOTH,
        "max_position_embeddings": 131_072,
        "num_key_value_heads": 8,
        "sliding_window": 4096,
    },
}
# null: as many as heads, none; elsewhere it is as good as left out
NULLABLE = ("num_key_value_heads", "sliding_window")

# What config.json must hold in each field: a size, a positive number, or true/false.
KINDS = {
    field.name: {
        "int": "size from 1 to a billion",
        "float": "positive number",
        "bool": "true or false",
    }[str(field.type)]
    for field in fields(LlamaConfig)
}


def is_kind(value: Any, kind: str) -> bool:
    """Whether a value from ``config.json`` is of one of the ``KINDS``."""
    if isinstance(value, bool) or kind == "true or false":
        return isinstance(value, bool) and kind == "true or false"
    if kind == "positive number":
        return isinstance(value, int | float) and 0 < value < 1e18
    return isinstance(value, int) and 0 < value <= 10**9


def llama_config(found: dict[str, Any], folder: Path) -> LlamaConfig:
    """Read ``config.json``'s fields; raise ``ValueError`` on what ``model/transformer.py`` cannot compute."""
    wrong = []
    ropes = [found.get(name) or {} for name in ("rope_scaling", "rope_parameters")]
    rope: dict[str, Any] = {}
    for part in ropes:
        rope |= part if isinstance(part, dict) else {"rope_type": part}
    if found.get("model_type") not in FAMILY:
        raise ValueError(
            f"{folder / 'config.json'} describes no Llama that minilora can run: model_type is {found.get('model_type')!r}, "
            f"needed one of {tuple(FAMILY)}. Load it with transformers: minilora.inject takes any model of Linears, in Python"
        )
    said = {name: value for name, value in found.items() if value is not None or name in NULLABLE}
    found = FAMILY[found["model_type"]] | said
    if rope.get("rope_type", rope.get("type", "default")) != "default":
        wrong.append(f"scaled rotary positions ({rope}) are not supported")
    if found.get("hidden_act", "silu") not in ("silu", "swish"):
        wrong.append(f"hidden_act is {found['hidden_act']!r}, needed 'silu'")
    packing = found.get("quantization_config") or {}
    if packing and not (isinstance(packing, dict) and packing.get("load_in_4bit") is True):
        wrong.append(
            "the weights are quantized in another way than bitsandbytes' 4 bits (quantization_config)"
        )
    needed = (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
    )
    if missing := [name for name in needed if found.get(name) is None]:
        wrong.append(f"these sizes are missing: {', '.join(missing)}")
    known: dict[str, Any] = {
        f.name: found[f.name] for f in fields(LlamaConfig) if found.get(f.name) is not None
    }
    known |= {"rope_theta": rope["rope_theta"]} if "rope_theta" in rope else {}
    wrong += [
        f"{name}={value!r} is no {KINDS[name]}"
        for name, value in known.items()
        if not is_kind(value, KINDS[name])
    ]
    window = found.get("sliding_window")
    if (
        window is not None
        and not wrong
        and not (isinstance(window, int) and window >= known["max_position_embeddings"])
    ):
        wrong.append(
            f"sliding_window={window!r} is not supported (for texts no longer than that, null there is the same)"
        )
    if wrong:
        raise ValueError(
            f"{folder / 'config.json'} describes no Llama that minilora can run: {'; '.join(wrong)}"
        )
    return LlamaConfig(**known)


def first(value: Any) -> int | None:
    """The first of a list, or the value itself: config.json may name one end token or several."""
    return (
        value[0]
        if isinstance(value, list) and value
        else (value if isinstance(value, int) else None)
    )


def config_json_of(
    model: Llama, dtype: torch.dtype, tied: bool, packed: NF4Tensor | None
) -> dict[str, Any]:
    """Hugging Face's ``config.json`` for one of our models; transformers finds in it that (and how, and which) weights are
    packed: those of every Linear that is not named there."""
    about: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **asdict(model.config),
        "tie_word_embeddings": tied,
        "hidden_act": "silu",
        "eos_token_id": model.tokenizer.eos_id if model.tokenizer is not None else None,
        "bos_token_id": None,
        "dtype": str(dtype).removeprefix("torch."),
    }
    if packed is not None:
        about["quantization_config"] = {
            "quant_method": "bitsandbytes",
            "load_in_4bit": True,
            "bnb_4bit_quant_type": packed.kind,
            "bnb_4bit_use_double_quant": packed.absmax2 is not None,
            "bnb_4bit_compute_dtype": "float32",
            "llm_int8_skip_modules": [
                name for name, module in model.named_modules() if isinstance(module, nn.Linear)
            ],
        }
    return about
