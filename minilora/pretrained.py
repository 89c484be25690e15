"""Bases on disk, in Hugging Face's layout: ``config.json``, ``model.safetensors``, ``tokenizer.json``.

``load_base()`` opens the small Llama that ships with the package; ``load_base(folder)`` any folder of the Llama family.
``save_model`` writes the same three files, which transformers and vLLM open as they are.

Loading is strict: a missing tensor, one too many, a wrong shape, or a feature that ``transformer.py`` does not have is an
error that names all of it, before any model is built in memory. Only safetensors are read, never a pickle.
"""

from __future__ import annotations

from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import nf4
from .codebook import codebook
from .files import TensorFiles, json_writer, read_json, tensor_writer, text_writer, write_together
from .lora import is_packed
from .nf4 import NF4Tensor
from .packed import companions, from_checkpoint, packed_names, to_checkpoint
from .qlora import NF4Linear
from .tokenizer import END_OF_TEXT, Tokenizer, default_system
from .transformer import Llama, LlamaConfig

SHIPPED = Path(__file__).parent / "base"
INDEX = "model.safetensors.index.json"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
FAMILY = ("llama", "mistral")  # architectures whose blocks are exactly those of transformer.py


def load_base(
    folder: str | Path | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    quantize: str | None = None,
) -> Llama:
    """The shipped base, or the Llama-family model in ``folder``, ready for ``inject`` and ``generate_text``.

    Weights are stored in half precision and computed with in ``dtype``. ``quantize="nf4"`` (or ``"fp4"``, ``"int4"``) turns
    each Linear but the head into four bits as it is read, so that memory never holds more than one of them in floats; a
    folder that was saved in four bits opens so by itself. Raises ``ValueError`` when the folder holds no such model, naming
    everything that does not fit.

    >>> model = load_base()
    >>> model.config.hidden_size
    128
    """
    folder = SHIPPED if folder is None else Path(folder)
    if quantize is not None:
        codebook(quantize)
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"{folder} {'holds no config.json' if folder.is_dir() else 'is no folder here (a model hub is not asked)'}: "
            "a base is a folder with config.json, model.safetensors and tokenizer.json"
        )
    config_json = read_json(folder / "config.json")
    config = llama_config(config_json, folder)
    tensors = read_weights(folder)
    with torch.device("meta"):  # shapes only: no memory, no time spent on an initialisation that is thrown away
        model = Llama(config)
    fill_model(model, tensors, check_tensors(model, tensors, folder), dtype, device, quantize)
    if (folder / "tokenizer.json").is_file():
        system = default_system(chat_template_of(folder))
        tokenizer = Tokenizer(folder / "tokenizer.json", system, eos_id=first(config_json.get("eos_token_id")))
        if len(tokenizer) > config.vocab_size:
            raise ValueError(
                f"{folder}: tokenizer.json has {len(tokenizer)} tokens, but the model only vocab_size={config.vocab_size}"
            )
        model.tokenizer = tokenizer
    return model.eval()


def fill_model(
    model: Llama,
    tensors: TensorFiles,
    names: list[str],
    dtype: torch.dtype,
    device: str | torch.device,
    quantize: str | None,
) -> None:
    """Give a model without storage its weights, one tensor at a time; Linears that are or shall be in four bits become so."""
    packed, floats = packed_names(list(tensors)), {}
    linears = {f"{name}.weight" for name, m in model.named_modules() if isinstance(m, nn.Linear) and name != "lm_head"}
    for name in names:
        if name in packed:
            found = from_checkpoint(name, tensors, tuple(model.get_parameter(name).shape))
            if quantize not in (None, found.kind):
                raise ValueError(
                    f"{name} is in {found.kind} already, so it cannot be had in {quantize}: load a float checkpoint"
                )
            layer = NF4Linear.from_quantized(replace(found, dtype=dtype))
        elif quantize is not None and name in linears:
            layer = NF4Linear.from_quantized(nf4.quantize(tensors[name].to(device=device, dtype=dtype), kind=quantize))
        else:
            floats[name] = tensors[name].to(device=device, dtype=dtype)
            continue
        model.set_submodule(name.removesuffix(".weight"), layer.to(device))
    if model.config.tie_word_embeddings:
        floats["lm_head.weight"] = floats["model.embed_tokens.weight"]
    model.load_state_dict(floats, assign=True, strict=False)  # check_tensors has compared the names
    if model.config.tie_word_embeddings:
        model.lm_head.weight = model.model.embed_tokens.weight
    model.requires_grad_(not packed and quantize is None)


def save_model(model: nn.Module, folder: str | Path, *, dtype: torch.dtype | None = None) -> Path:
    """Write a plain model as a Hugging Face folder: ``config.json``, ``model.safetensors``, ``tokenizer.json``.

    Tied weights are stored once. ``dtype`` converts on the way (``torch.float16`` halves a float32 file). Raises
    ``ValueError`` when adapters are still inside: ``merge_and_unload`` first.
    The config is written last, so a folder that has one is whole.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     sorted(file.name for file in save_model(load_base(), folder).iterdir())
    ['config.json', 'model.safetensors', 'tokenizer.json', 'tokenizer_config.json']
    """
    config = getattr(model, "config", None)
    if not isinstance(model, Llama) or not isinstance(config, LlamaConfig):
        raise ValueError(f"save_model writes a minilora Llama, got {type(model).__name__}: save others with their own library")
    tensors, quantized = float_tensors(model), packed_weights(model)
    with torch.device("meta"):
        plain = Llama(config)
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    if wrong := sorted((tensors.keys() | quantized.keys()) ^ (plain.state_dict().keys() - tied)):
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
    stored = next(iter(tensors.values())).dtype
    for name, weight in quantized.items():
        tensors |= to_checkpoint(name, replace(weight, dtype=stored))
    files = {"model.safetensors": tensor_writer(tensors)}
    if model.tokenizer is not None:
        end = model.tokenizer.raw.id_to_token(model.tokenizer.eos_id)
        about = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": end,
            "pad_token": END_OF_TEXT if model.tokenizer.is_chatml else end,
            "chat_template": model.tokenizer.chat_template,
        }
        files |= {"tokenizer.json": text_writer(model.tokenizer.raw.to_str()), "tokenizer_config.json": json_writer(about)}
    files["config.json"] = json_writer(config_json_of(model, stored, next(iter(quantized.values()), None)))
    write_together(Path(folder), files, remove=["config.json", INDEX, *TOKENIZER_FILES])
    return Path(folder)


def chat_template_of(folder: Path) -> str:
    """The text of a folder's chat template, wherever it keeps that; empty without one."""
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8", errors="replace")
    found = read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
    return template if isinstance(template := found.get("chat_template"), str) else ""


def float_tensors(model: Llama) -> dict[str, Tensor]:
    """Every tensor of a model that is kept in floats, tied ones once, by its name in a checkpoint."""
    parts = {f"{name}.{part}" for name, m in model.named_modules() if is_packed(m) for part in m._buffers}
    tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    return {name: tensor for name, tensor in model.state_dict().items() if name not in parts | tied}


def packed_weights(model: Llama) -> dict[str, NF4Tensor]:
    """Every weight of a model that is kept in four bits, by its name in a checkpoint."""
    return {f"{name}.weight": m.quantized for name, m in model.named_modules() if isinstance(m, NF4Linear)}


def config_json_of(model: Llama, dtype: torch.dtype, packed: NF4Tensor | None) -> dict[str, Any]:
    """Hugging Face's ``config.json`` for one of our models; transformers finds in it that (and how) weights are packed."""
    about: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **asdict(model.config),
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
            "llm_int8_skip_modules": ["lm_head"],
        }
    return about


def llama_config(found: dict[str, Any], folder: Path) -> LlamaConfig:
    """Read ``config.json``'s fields; raise ``ValueError`` on what ``transformer.py`` cannot compute."""
    wrong = []
    ropes = [found.get(name) or {} for name in ("rope_scaling", "rope_parameters")]
    rope: dict[str, Any] = {}
    for part in ropes:
        rope |= part if isinstance(part, dict) else {"rope_type": part}
    if found.get("model_type") not in FAMILY:
        raise ValueError(
            f"{folder / 'config.json'} describes no Llama that minilora can run: model_type is {found.get('model_type')!r}, "
            f"needed one of {FAMILY}. Load it with transformers: minilora.inject takes any model of Linears, in Python"
        )
    if rope.get("rope_type", rope.get("type", "default")) != "default":
        wrong.append(f"scaled rotary positions ({rope}) are not supported")
    if found.get("hidden_act", "silu") not in ("silu", "swish"):
        wrong.append(f"hidden_act is {found['hidden_act']!r}, needed 'silu'")
    packing = found.get("quantization_config") or {}
    if packing and not (isinstance(packing, dict) and packing.get("load_in_4bit") is True):
        wrong.append("the weights are quantized in another way than bitsandbytes' 4 bits (quantization_config)")
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
        wrong.append(f"sliding_window={window!r} is not supported (for texts no longer than that, null there is the same)")
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


def read_weights(folder: Path) -> TensorFiles:
    """The tensors of a checkpoint, in one file or in the shards that its index lists, not read yet."""
    index = folder / INDEX
    if (folder / "pytorch_model.bin").is_file() and not (folder / "model.safetensors").is_file() and not index.is_file():
        raise ValueError(
            f"{folder} keeps its weights in a pickle, which may run a stranger's code and is never read: open it in "
            "transformers and save_pretrained it, which writes model.safetensors"
        )
    if (folder / "model.safetensors").is_file() or not index.is_file():
        return TensorFiles(folder / "model.safetensors")
    shards = sorted(set(read_json(index).get("weight_map", {}).values()))
    if outside := [name for name in shards if Path(name).name != name]:
        raise ValueError(f"{index} points outside its folder: {outside[0]!r}")
    return TensorFiles(*(folder / shard for shard in shards))


def check_tensors(model: Llama, tensors: TensorFiles, folder: Path) -> list[str]:
    """The names to read; raise ``ValueError`` naming each that is missing, unknown or of another shape than the config's."""
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    packed = packed_names(list(tensors))
    known = set().union(*(companions(name, state) for name, state in packed.items()))
    known |= {name for name in tensors if name.endswith("rotary_emb.inv_freq")}  # old exports: it follows from rope_theta
    if model.config.tie_word_embeddings:
        wanted.pop("lm_head.weight")
        known.add("lm_head.weight")  # some exporters write the tied head out as well
    wrong = [f"{name} is missing" for name in wanted if name not in tensors]
    wrong += [f"{name} is unknown" for name in tensors if name not in wanted and name not in known]
    linears = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    wrong += [f"{name} is in 4 bits, but no Linear's weight" for name in packed if name not in linears & wanted.keys()]
    wrong += [
        f"{name} has shape {tensors.shape(name)}, needed {shape}"
        for name, shape in wanted.items()
        if name in tensors and name not in packed and tensors.shape(name) != shape
    ]
    if wrong:
        more = f"; and {len(wrong) - 8} more" if len(wrong) > 8 else ""
        raise ValueError(f"the tensors in {folder} do not fit its config.json: {'; '.join(wrong[:8])}{more}")
    return list(wanted)


def first(value: Any) -> int | None:
    """The first of a list, or the value itself: config.json may name one end token or several."""
    return value[0] if isinstance(value, list) and value else (value if isinstance(value, int) else None)
