"""Bases on disk, in Hugging Face's layout: ``config.json``, ``model.safetensors``, ``tokenizer.json``.

``load_base()`` opens the small Llama that ships with the package; ``load_base(folder)`` any folder of the Llama family.
``save_model`` writes the same three files, which transformers and vLLM open as they are.

Loading is strict: a missing tensor, one too many, a wrong shape, or a feature that ``transformer.py`` does not have is an
error that names all of it, before any model is built in memory. Only safetensors are read, never a pickle.
"""

from __future__ import annotations

from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .files import json_writer, read_json, read_tensors, tensor_writer, text_writer, write_together
from .tokenizer import END_OF_TEXT, Tokenizer
from .transformer import Llama, LlamaConfig

SHIPPED = Path(__file__).parent / "base"
INDEX = "model.safetensors.index.json"
FAMILY = ("llama", "mistral")  # architectures whose blocks are exactly those of transformer.py


def load_base(
    folder: str | Path | None = None, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
) -> Llama:
    """The shipped base, or the Llama-family model in ``folder``, ready for ``inject`` and ``generate_text``.

    Weights are stored in half precision and computed with in ``dtype``. Raises ``ValueError`` when the folder holds no
    such model, naming everything that does not fit.

    >>> model = load_base()
    >>> model.config.hidden_size
    128
    """
    folder = SHIPPED if folder is None else Path(folder)
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"{folder} holds no config.json: a base is a folder with config.json, model.safetensors and tokenizer.json"
        )
    config_json = read_json(folder / "config.json")
    config = llama_config(config_json, folder)
    tensors = read_weights(folder)
    with torch.device("meta"):  # shapes only: no memory, no time spent on an initialisation that is thrown away
        model = Llama(config)
    check_tensors(model, tensors, folder)
    tensors = {name: tensor.to(device=device, dtype=dtype) for name, tensor in tensors.items()}
    if config.tie_word_embeddings:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    model.load_state_dict(tensors, assign=True)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    if config.tie_word_embeddings:
        model.lm_head.weight = model.model.embed_tokens.weight
    if (folder / "tokenizer.json").is_file():
        tokenizer = Tokenizer(folder / "tokenizer.json", eos_id=first(config_json.get("eos_token_id")))
        if len(tokenizer) > config.vocab_size:
            raise ValueError(
                f"{folder}: tokenizer.json has {len(tokenizer)} tokens, but the model only vocab_size={config.vocab_size}"
            )
        model.tokenizer = tokenizer
    return model.eval()


def save_model(model: nn.Module, folder: str | Path, *, dtype: torch.dtype | None = None) -> Path:
    """Write a plain model as a Hugging Face folder: ``config.json``, ``model.safetensors``, ``tokenizer.json``.

    Tied weights are stored once. ``dtype`` converts on the way (``torch.float16`` halves a float32 file). Raises
    ``ValueError`` when adapters are still inside: ``merge_and_unload`` first.
    The config is written last, so a folder that has one is whole.
    """
    config = getattr(model, "config", None)
    if not isinstance(model, Llama) or not isinstance(config, LlamaConfig):
        raise ValueError(f"save_model writes a minilora Llama, got {type(model).__name__}: save others with their own library")
    tensors = {
        name: t for name, t in model.state_dict().items() if not (config.tie_word_embeddings and name == "lm_head.weight")
    }
    with torch.device("meta"):
        plain = Llama(config)
    if wrong := sorted(
        set(tensors) ^ (set(plain.state_dict()) - ({"lm_head.weight"} if config.tie_word_embeddings else set()))
    ):
        raise ValueError(
            f"this model is not a plain Llama, for example {wrong[0]!r} should not be there or is missing: an adapter is "
            "still inside? call merge_and_unload(model) or unload(model) first, or save_adapter(model, folder) to keep it apart"
        )
    if dtype is not None:
        tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    if bad := [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]:
        raise ValueError(
            f"{bad[0]} holds values that are not finite{f' in {dtype}' if dtype else ''}: save in float32, or repair it"
        )
    files = {"model.safetensors": tensor_writer(tensors)}
    if model.tokenizer is not None:
        end = model.tokenizer.raw.id_to_token(model.tokenizer.eos_id)
        about = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": end,
            "pad_token": END_OF_TEXT if model.tokenizer.is_chatml else end,
        }
        files |= {"tokenizer.json": text_writer(model.tokenizer.raw.to_str()), "tokenizer_config.json": json_writer(about)}
    files["config.json"] = json_writer(config_json_of(model, next(iter(tensors.values())).dtype))
    write_together(Path(folder), files, remove=["config.json", INDEX, "tokenizer.json", "tokenizer_config.json"])
    return Path(folder)


def config_json_of(model: Llama, dtype: torch.dtype) -> dict[str, Any]:
    """Hugging Face's ``config.json`` for one of our models."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **asdict(model.config),
        "hidden_act": "silu",
        "eos_token_id": model.tokenizer.eos_id if model.tokenizer is not None else None,
        "bos_token_id": None,
        "dtype": str(dtype).removeprefix("torch."),
    }


def llama_config(found: dict[str, Any], folder: Path) -> LlamaConfig:
    """Read ``config.json``'s fields; raise ``ValueError`` on what ``transformer.py`` cannot compute."""
    wrong = []
    ropes = [found.get(name) or {} for name in ("rope_scaling", "rope_parameters")]
    rope: dict[str, Any] = {}
    for part in ropes:
        rope |= part if isinstance(part, dict) else {"rope_type": part}
    if found.get("model_type") not in FAMILY:
        wrong.append(f"model_type is {found.get('model_type')!r}, needed one of {FAMILY}")
    if rope.get("rope_type", rope.get("type", "default")) != "default":
        wrong.append(f"scaled rotary positions ({rope}) are not supported")
    if found.get("hidden_act", "silu") not in ("silu", "swish"):
        wrong.append(f"hidden_act is {found['hidden_act']!r}, needed 'silu'")
    if found.get("quantization_config"):
        wrong.append("the weights are already quantized (quantization_config); a float checkpoint is needed")
    needed = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    if missing := [name for name in needed if found.get(name) is None]:
        wrong.append(f"these sizes are missing: {', '.join(missing)}")
    known: dict[str, Any] = {
        "tie_word_embeddings": False,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
    }  # their defaults
    known |= {field.name: found[field.name] for field in fields(LlamaConfig) if found.get(field.name) is not None}
    known |= {"rope_theta": rope["rope_theta"]} if "rope_theta" in rope else {}
    wrong += [f"{name}={value!r} is no {KINDS[name]}" for name, value in known.items() if not is_kind(value, KINDS[name])]
    window = found.get("sliding_window")
    if window is not None and not wrong and not (isinstance(window, int) and window >= known["max_position_embeddings"]):
        wrong.append(f"sliding_window={window!r} is not supported")
    if wrong:
        raise ValueError(f"{folder / 'config.json'} describes no Llama that minilora can run: {'; '.join(wrong)}")
    return LlamaConfig(**known)


# What config.json must hold in each field: a size, a positive number, or true/false.
KINDS = {
    field.name: {"int": "size from 1 to a billion", "float": "positive number", "bool": "true or false"}[str(field.type)]
    for field in fields(LlamaConfig)
}


def is_kind(value: Any, kind: str) -> bool:
    """Whether a value from ``config.json`` is of one of the ``KINDS``."""
    if isinstance(value, bool) or kind == "true or false":
        return isinstance(value, bool) and kind == "true or false"
    if kind == "positive number":
        return isinstance(value, int | float) and 0 < value < 1e30
    return isinstance(value, int) and 0 < value <= 10**9


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint, from one file or from the shards that its index lists."""
    index = folder / INDEX
    if (folder / "model.safetensors").is_file() or not index.is_file():
        return read_tensors(folder / "model.safetensors")
    shards = sorted(set(read_json(index).get("weight_map", {}).values()))
    if outside := [name for name in shards if Path(name).name != name]:
        raise ValueError(f"{index} points outside its folder: {outside[0]!r}")
    return {name: tensor for shard in shards for name, tensor in read_tensors(folder / shard).items()}


def check_tensors(model: Llama, tensors: dict[str, Tensor], folder: Path) -> None:
    """Raise ``ValueError`` naming each tensor that is missing, unknown or of another shape than the config asks for."""
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        wanted.pop("lm_head.weight")
        tensors.pop("lm_head.weight", None)  # some exporters write the tied head out as well
    for name in [name for name in tensors if name.endswith("rotary_emb.inv_freq")]:
        tensors.pop(name)  # old exports carry this constant; it follows from rope_theta
    wrong = [f"{name} is missing" for name in wanted if name not in tensors]
    wrong += [f"{name} is unknown" for name in tensors if name not in wanted]
    wrong += [
        f"{name} has shape {tuple(tensor.shape)}, needed {wanted[name]}"
        for name, tensor in tensors.items()
        if name in wanted and tuple(tensor.shape) != wanted[name]
    ]
    if wrong:
        more = f"; and {len(wrong) - 8} more" if len(wrong) > 8 else ""
        raise ValueError(f"the tensors in {folder} do not fit its config.json: {'; '.join(wrong[:8])}{more}")


def first(value: Any) -> int | None:
    """The first of a list, or the value itself: config.json may name one end token or several."""
    return value[0] if isinstance(value, list) and value else (value if isinstance(value, int) else None)
