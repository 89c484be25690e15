"""The ``config.json`` of the Llama family, in Hugging Face's words: read with checks, and written.

Every key that changes what transformers computes is read here, or refused by name: a model that
loads and computes something else would be worse. The keys of each family, their defaults and the
meaning of null are those of transformers 5; tests/model/test_config_json.py draws configs at random
and compares. All other keys (dropout, initialisation, token ids, notes of other tools) change no
logits of a loaded model there, and are ignored.
"""

from __future__ import annotations

from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..nf4.tensor import NF4Tensor
from .config import LACKS, LlamaConfig
from .rotary import RopeScaling
from .tokenizer_folder import Companions
from .transformer import Llama

# What a config may leave out, and what it then means; None is left to LlamaConfig. A family's
# keys are these and SIZES: transformers ignores attention_bias in a Mistral, and so do we.
SIZES = (
    *("vocab_size", "hidden_size", "intermediate_size"),
    *("num_hidden_layers", "num_attention_heads"),
)
EVERY = {"tie_word_embeddings": False, "rms_norm_eps": 1e-6, "head_dim": None}
LLAMA = {"num_key_value_heads": None, "attention_bias": False, "mlp_bias": False}
MISTRAL = {"num_key_value_heads": 8, "sliding_window": 4096}
WINDOW = ("use_sliding_window", "sliding_window", "max_window_layers")
QWEN = {"num_key_value_heads": 32, "max_position_embeddings": 32_768, "use_sliding_window": False}
QWEN |= {"sliding_window": 4096, "max_window_layers": 28}
FAMILY: dict[str, dict[str, Any]] = {
    "llama": {**EVERY, **LLAMA, "max_position_embeddings": 2048},
    "mistral": {**EVERY, **MISTRAL, "max_position_embeddings": 131_072},
    "qwen2": {**EVERY, **QWEN},
    "qwen3": {**EVERY, **QWEN, "head_dim": 128, "attention_bias": False},
}
NAMES = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}
# Where null has a meaning beside the defaults of None: one key/value head a head, no window.
NULLABLE = ("num_key_value_heads", "sliding_window")

# Keys that transformers heeds in any config, and the one value with which a Llama stays a Llama.
FIXED: dict[str, Any] = {
    "is_causal": True,
    "partial_rotary_factor": 1.0,
    **dict.fromkeys(("attention_chunk_size", "per_layer_config", "kv_sharing_modes")),
    **dict.fromkeys(("text_config", "text_encoder", "decoder", "generator")),
    **dict.fromkeys(("attribute_map", "_rope_type_labels")),
}

KINDS = {
    "int": "a size from 1 to a billion",
    "float": "a positive number",
    "bool": "true or false",
    "count": "a whole number from 0 to a billion",
}
TYPES = {field.name: str(field.type).removesuffix(" | None") for field in fields(LlamaConfig)}
TYPES |= {field.name: str(field.type) for field in fields(RopeScaling)}
TYPES |= {"use_sliding_window": "bool", "max_window_layers": "count"}
# What llama3's rope_scaling must hold; linear needs the factor alone.
LLAMA3 = tuple(field.name for field in fields(RopeScaling))[1:]


def is_kind(value: Any, kind: str) -> bool:
    """Whether a value from ``config.json`` is one of the ``KINDS``."""
    if isinstance(value, bool) or kind == "bool":
        return isinstance(value, bool) and kind == "bool"
    if kind == "float":
        return isinstance(value, int | float) and 0 < value < 1e18
    return isinstance(value, int) and (0 if kind == "count" else 1) <= value <= 10**9


def llama_config(config_json: dict[str, Any], folder: Path) -> LlamaConfig:
    """The ``LlamaConfig`` in a ``config.json``.

    Raises ``ValueError`` that names every field which ``model/transformer.py`` cannot compute.
    """
    refused = f"{folder / 'config.json'} does not describe a Llama that minilora can run"
    model_type = config_json.get("model_type")
    if model_type not in tuple(FAMILY):
        raise ValueError(
            f"{refused}: expected model_type {', '.join(map(repr, FAMILY))}, got {model_type!r}. "
            "Load it with transformers: minilora.inject takes any model of Linears, in Python"
        )
    family = FAMILY[model_type]
    values = family | {n: v for n, v in config_json.items() if n in family or n in SIZES}
    missing = [name for name in SIZES if config_json.get(name) is None]
    problems = [f"these sizes are missing: {', '.join(missing)}"] if missing else []
    for name, value in values.items():
        may_be_null = name in (*NULLABLE, *missing) or family.get(name, ...) is None
        if not is_kind(value, TYPES[name]) and not (value is None and may_be_null):
            problems.append(f"{name}={value!r} is not {KINDS[TYPES[name]]}")
    problems += unsupported(config_json)
    rope, rope_problems = rope_of(config_json, values["max_position_embeddings"])
    windows, window_problems = windows_of(model_type, config_json, values)
    problems += rope_problems + window_problems
    if problems:
        raise ValueError(f"{refused}: {'; '.join(problems)}")
    known = {n: v for n, v in values.items() if v is not None and n not in WINDOW}
    try:
        return LlamaConfig(model_type=model_type, **known, **rope, **windows)
    except ValueError as error:
        raise ValueError(f"{refused}: {error}") from error


def rope_of(config_json: dict[str, Any], longest: Any) -> tuple[dict[str, Any], list[str]]:
    """``rope_theta`` and ``rope_scaling`` of a config, and what is wrong with them.

    There are two keys for it. As in transformers, ``rope_scaling`` counts whole wherever it is
    there, and ``rope_parameters`` beside it does not.
    """
    given = config_json.get("rope_scaling") or config_json.get("rope_parameters") or {}
    if not isinstance(given, dict) or any(isinstance(part, dict) for part in given.values()):
        return {}, [f"scaled rotary positions ({given!r:.200}) are not supported"]
    original = given.get("original_max_position_embeddings", longest)
    given = {"rope_theta": config_json.get("rope_theta", 10_000.0), **given}
    given["original_max_position_embeddings"] = config_json.get(
        "original_max_position_embeddings", original
    )
    rope_type = given.get("rope_type", given.get("type", "default"))
    needed = {"default": (), "linear": ("factor",), "llama3": LLAMA3}.get(str(rope_type))
    if needed is None or given.get("partial_rotary_factor") not in (None, 1):
        return {}, [f"scaled rotary positions ({given!r:.200}) are not supported"]
    problems = [
        f"the rotary positions' {name}={given.get(name)!r} is not {KINDS[TYPES[name]]}"
        for name in ("rope_theta", *needed)
        if not is_kind(given.get(name), TYPES[name])
    ]
    if problems or not needed:
        return {"rope_theta": given["rope_theta"]}, problems
    try:
        scaling = RopeScaling(rope_type, *(given[name] for name in needed))
    except ValueError as error:
        return {}, [str(error)]
    return {"rope_theta": given["rope_theta"], "rope_scaling": scaling}, []


def windows_of(
    model_type: str, config_json: dict[str, Any], values: dict[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """The fields of ``LlamaConfig`` that give layers a window, and what is wrong with them."""
    window, types = values.get("sliding_window"), config_json.get("layer_types")
    if model_type == "llama" and is_shorter(config_json.get("sliding_window"), values):
        # transformers' Llama ignores it, but the cache of its generate() does not
        problem = f"sliding_window={config_json['sliding_window']!r} is not supported"
        return {}, [f"{problem} (set it to null if no text is longer)"]
    if values.get("use_sliding_window") is False:
        window = None
    possible = ["full_attention"] * (window is None or model_type != "mistral")
    possible += ["sliding_attention"] * (window is not None)
    if types is not None and not (isinstance(types, list) and all(t in possible for t in types)):
        return {}, [f"layer_types={types!r:.200} is not a list of {' and '.join(possible)}"]
    if window is None or model_type == "mistral":
        return {"sliding_window": window}, []
    if types is not None:
        return {"sliding_window": window, "layer_types": tuple(types)}, []
    return {name: values[name] for name in ("sliding_window", "max_window_layers")}, []


def is_shorter(window: Any, values: dict[str, Any]) -> bool:
    """Whether a window hides a part of the longest text."""
    longest = values["max_position_embeddings"]
    sizes = is_kind(window, "int") and is_kind(longest, "int")
    return window is not None and not (sizes and window >= longest)


def unsupported(config_json: dict[str, Any]) -> list[str]:
    """The features of a config that ``model/transformer.py`` does not have, one sentence each."""
    problems = []
    for name, neutral in FIXED.items():
        value = config_json.get(name, neutral)
        if value != neutral and not (value is None and name != "is_causal"):
            problems.append(f"{name}={value!r:.80} is not supported, expected {neutral}")
    if (activation := config_json.get("hidden_act", "silu")) not in ("silu", "swish"):
        problems.append(f"hidden_act is {activation!r}, expected 'silu'")
    packing = config_json.get("quantization_config") or {}
    if packing and not (isinstance(packing, dict) and packing.get("load_in_4bit") is True):
        problems.append(
            f"quantization_config is {packing!r:.80}, expected bitsandbytes' with load_in_4bit"
        )
    return problems


def kept_companions(model: Llama) -> Companions:
    """What stood beside the weights of the base: as the tokenizer found it, where there is one."""
    return getattr(model.tokenizer, "companions", model.companions)


def special_ids(model: Llama) -> dict[str, Any]:
    """The ids of the base's config; what ends an answer comes from the tokenizer if it had none."""
    kept = kept_companions(model).ids
    ends = model.tokenizer.ends[:1] if model.tokenizer is not None else []
    if kept.get("eos_token_id") is None and ends:
        kept = {**kept, "eos_token_id": ends[0]}
    return {"eos_token_id": None, "bos_token_id": None, **kept}


def config_json_of(
    model: Llama, dtype: torch.dtype, tied: bool, packed: NF4Tensor | None
) -> dict[str, Any]:
    """Hugging Face's ``config.json`` for one of our models.

    If weights are packed, it tells transformers how (``packed`` is one of them) and names every
    Linear that is not: transformers takes all others for packed ones.
    """
    config = model.config
    about: dict[str, Any] = {
        "architectures": [f"{NAMES[config.model_type]}ForCausalLM"],
        "model_type": config.model_type,
        **family_fields(config),
        "tie_word_embeddings": tied,
        "hidden_act": "silu",
        **special_ids(model),
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


def family_fields(config: LlamaConfig) -> dict[str, Any]:
    """A config's fields as its family writes them: none that the family does not have."""
    values = {n: v for n, v in asdict(config).items() if n not in LACKS[config.model_type]}
    scaling, types = values.pop("rope_scaling"), values.pop("layer_types", ())
    if scaling is not None:
        kept = ("factor",) if scaling["rope_type"] == "linear" else LLAMA3
        values["rope_scaling"] = {name: scaling[name] for name in ("rope_type", *kept)}
    if "max_window_layers" in values:
        values["use_sliding_window"] = config.sliding_window is not None
    return values | ({"layer_types": list(types)} if types else {})
