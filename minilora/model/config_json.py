"""The ``config.json`` of the Llama family, in Hugging Face's words: read with checks, and written.

What ``model/transformer.py`` cannot compute (scaled rotary positions, a sliding window, another
activation) is refused by name: a model that loads and computes something else would be worse.
"""

from __future__ import annotations

from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..nf4.tensor import NF4Tensor
from .transformer import Llama, LlamaConfig

# Architectures whose blocks are exactly those of model/transformer.py, and the values that their
# configs mean where they leave a field out.
BOTH = {"tie_word_embeddings": False, "rms_norm_eps": 1e-6}
MISTRAL = {"max_position_embeddings": 131_072, "num_key_value_heads": 8, "sliding_window": 4096}
FAMILY: dict[str, dict[str, Any]] = {
    "llama": {**BOTH, "max_position_embeddings": 2048},
    "mistral": {**BOTH, **MISTRAL},
}
# Fields in which null has a meaning: one key/value head a head, no window. Elsewhere null means
# that the field is left out.
NULLABLE = ("num_key_value_heads", "sliding_window")

# What each field of config.json must hold, by the type it has in LlamaConfig.
KINDS = {"int": "a size from 1 to a billion", "float": "a positive number", "bool": "true or false"}
TYPES = {field.name: str(field.type) for field in fields(LlamaConfig)}
SIZES = (
    *("vocab_size", "hidden_size", "intermediate_size"),
    *("num_hidden_layers", "num_attention_heads"),
)


def is_kind(value: Any, type_name: str) -> bool:
    """Whether a value from ``config.json`` is one of the ``KINDS``."""
    if isinstance(value, bool) or type_name == "bool":
        return isinstance(value, bool) and type_name == "bool"
    if type_name == "float":
        return isinstance(value, int | float) and 0 < value < 1e18
    return isinstance(value, int) and 0 < value <= 10**9


def llama_config(config_json: dict[str, Any], folder: Path) -> LlamaConfig:
    """The ``LlamaConfig`` in a ``config.json``.

    Raises ``ValueError`` that names every field which ``model/transformer.py`` cannot compute.
    """
    refused = f"{folder / 'config.json'} does not describe a Llama that minilora can run"
    model_type = config_json.get("model_type")
    if model_type not in tuple(FAMILY):
        raise ValueError(
            f"{refused}: expected model_type {' or '.join(map(repr, FAMILY))}, got {model_type!r}. "
            "Load it with transformers: minilora.inject takes any model of Linears, in Python"
        )
    given = {name: v for name, v in config_json.items() if v is not None or name in NULLABLE}
    settings = FAMILY[model_type] | given
    rope = rope_of(settings)
    known = {name: settings[name] for name in TYPES if settings.get(name) is not None}
    if "rope_theta" in rope:
        known["rope_theta"] = rope["rope_theta"]
    missing = [name for name in SIZES if name not in known]
    problems = [
        *unsupported(settings, rope),
        *([f"these sizes are missing: {', '.join(missing)}"] if missing else []),
        *(
            f"{name}={value!r} is not {KINDS[TYPES[name]]}"
            for name, value in known.items()
            if not is_kind(value, TYPES[name])
        ),
    ]
    window, longest = settings.get("sliding_window"), known["max_position_embeddings"]
    if window is not None and not problems and not (isinstance(window, int) and window >= longest):
        problems.append(
            f"sliding_window={window!r} is not supported (set it to null if no text is longer)"
        )
    if problems:
        raise ValueError(f"{refused}: {'; '.join(problems)}")
    return LlamaConfig(**known)


def rope_of(settings: dict[str, Any]) -> dict[str, Any]:
    """What a config says of its rotary positions, in either of the two fields for it."""
    rope: dict[str, Any] = {}
    for name in ("rope_scaling", "rope_parameters"):
        part = settings.get(name) or {}
        rope |= part if isinstance(part, dict) else {"rope_type": part}
    return rope


def unsupported(settings: dict[str, Any], rope: dict[str, Any]) -> list[str]:
    """The features of a config that ``model/transformer.py`` does not have, one sentence each."""
    problems = []
    if rope.get("rope_type", rope.get("type", "default")) != "default":
        problems.append(f"scaled rotary positions ({rope}) are not supported")
    if (activation := settings.get("hidden_act", "silu")) not in ("silu", "swish"):
        problems.append(f"hidden_act is {activation!r}, expected 'silu'")
    packing = settings.get("quantization_config") or {}
    if packing and not (isinstance(packing, dict) and packing.get("load_in_4bit") is True):
        problems.append(
            f"quantization_config is {packing!r:.80}, expected bitsandbytes' with load_in_4bit"
        )
    return problems


def end_token(config_json: dict[str, Any]) -> int | None:
    """The ``eos_token_id`` of a config, the first where it lists several; None without one."""
    value = config_json.get("eos_token_id")
    if isinstance(value, list):
        value = value[0] if value else None
    return value if isinstance(value, int) else None


def config_json_of(
    model: Llama, dtype: torch.dtype, tied: bool, packed: NF4Tensor | None
) -> dict[str, Any]:
    """Hugging Face's ``config.json`` for one of our models.

    If weights are packed, it tells transformers how (``packed`` is one of them) and names every
    Linear that is not: transformers takes all others for packed ones.
    """
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
        linears = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
        about["quantization_config"] = {
            "quant_method": "bitsandbytes",
            "load_in_4bit": True,
            "bnb_4bit_quant_type": packed.kind,
            "bnb_4bit_use_double_quant": packed.absmax2 is not None,
            "bnb_4bit_compute_dtype": "float32",
            "llm_int8_skip_modules": linears,
        }
    return about
