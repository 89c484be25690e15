"""Bases on disk, in Hugging Face's layout: ``config.json``, ``model.safetensors``, ``tokenizer.json``.

``load_base()`` opens the small Llama that ships with the package; ``load_base(folder)`` any folder of the Llama family.
``save_model`` writes the same three files, which transformers and vLLM open as they are.

Loading is strict: a missing tensor, one too many, a wrong shape, or a feature that ``model/transformer.py`` does not have is an
error that names all of it, before any model is built in memory. Only safetensors are read, never a pickle.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ..files import TensorFiles, json_writer, read_json, tensor_writer, text_writer, write_together
from ..formats.bitsandbytes_4bit import companions, from_checkpoint, packed_names, to_checkpoint
from ..lora.layer import is_packed
from ..nf4 import tensor
from ..nf4.codebook import codebook
from ..nf4.linear import NF4Linear
from ..nf4.tensor import NF4Tensor
from ..text import listed
from .config_json import config_json_of, first, llama_config
from .tokenizer import END_OF_TEXT, Tokenizer, default_system
from .transformer import Llama, LlamaConfig

SHIPPED = Path(__file__).parent / "base"
INDEX = "model.safetensors.index.json"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


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
    if config.tie_word_embeddings and has_head_of_its_own(tensors):
        config = replace(config, tie_word_embeddings=False)
    # shapes only: no memory, no time spent on an initialisation that is thrown away
    with torch.device("meta"):
        model = Llama(config)
    fill_model(model, tensors, check_tensors(model, tensors, folder), dtype, device, quantize)
    if (folder / "tokenizer.json").is_file():
        system = default_system(chat_template_of(folder))
        tokenizer = Tokenizer(
            folder / "tokenizer.json", system, eos_id=first(config_json.get("eos_token_id"))
        )
        if len(tokenizer) > config.vocab_size:
            raise ValueError(
                f"{folder}: tokenizer.json has {len(tokenizer)} tokens, but the model only vocab_size={config.vocab_size}"
            )
        if not 0 <= tokenizer.eos_id < config.vocab_size:
            raise ValueError(
                f"{folder}: eos_token_id is {tokenizer.eos_id}, but vocab_size={config.vocab_size}"
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
    linears = {
        f"{name}.weight"
        for name, m in model.named_modules()
        if isinstance(m, nn.Linear) and name != "lm_head"
    }
    for name in names:
        if name in packed:
            found = from_checkpoint(name, tensors, tuple(model.get_parameter(name).shape))
            if quantize not in (None, found.kind):
                raise ValueError(
                    f"{name} is in {found.kind} already, so it cannot be had in {quantize}: load a float checkpoint"
                )
            layer = NF4Linear.from_quantized(replace(found, dtype=dtype))
        elif quantize is not None and name in linears:
            layer = NF4Linear.from_quantized(
                tensor.quantize(tensors[name].to(device=device, dtype=dtype), kind=quantize)
            )
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
        raise ValueError(
            f"save_model writes a minilora Llama, got {type(model).__name__}: save others with their own library"
        )
    tensors, quantized = float_tensors(model), packed_weights(model)
    with torch.device("meta"):
        plain = Llama(config)
    left_out = {"lm_head.weight"} if (tied := is_tied(model)) else set()
    if wrong := sorted(
        (tensors.keys() | quantized.keys()) ^ (plain.state_dict().keys() - left_out)
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
        files |= {
            "tokenizer.json": text_writer(model.tokenizer.raw.to_str()),
            "tokenizer_config.json": json_writer(about),
        }
    files["config.json"] = json_writer(
        config_json_of(model, stored, tied, next(iter(quantized.values()), None))
    )
    write_together(Path(folder), files, remove=["config.json", INDEX, *TOKENIZER_FILES])
    return Path(folder)


def chat_template_of(folder: Path) -> str:
    """The text of a folder's chat template, wherever it keeps that; empty without one."""
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8", errors="replace")
    found = (
        read_json(folder / "tokenizer_config.json")
        if (folder / "tokenizer_config.json").is_file()
        else {}
    )
    return template if isinstance(template := found.get("chat_template"), str) else ""


def float_tensors(model: Llama) -> dict[str, Tensor]:
    """Every tensor of a model that is kept in floats, tied ones once, by its name in a checkpoint."""
    left_out = {
        f"{name}.{part}" for name, m in model.named_modules() if is_packed(m) for part in m._buffers
    }
    if is_tied(model):
        left_out.add("lm_head.weight")
    return {name: tensor for name, tensor in model.state_dict().items() if name not in left_out}


def is_tied(model: Llama) -> bool:
    """Whether the head *is* the embedding now, whatever the config said when the model was made."""
    return model.lm_head._parameters.get("weight") is model.model.embed_tokens.weight


def has_head_of_its_own(tensors: TensorFiles) -> bool:
    """Whether a checkpoint holds a head that differs from its embedding: then, as in transformers 5, it is not tied to it."""
    head, embedding = (tensors.get(f"{name}.weight") for name in ("lm_head", "model.embed_tokens"))
    if head is None or embedding is None:
        return False
    return head.dtype != embedding.dtype or not torch.equal(head, embedding)


def packed_weights(model: Llama) -> dict[str, NF4Tensor]:
    """Every weight of a model that is kept in four bits, by its name in a checkpoint."""
    return {
        f"{name}.weight": m.quantized
        for name, m in model.named_modules()
        if isinstance(m, NF4Linear)
    }


def read_weights(folder: Path) -> TensorFiles:
    """The tensors of a checkpoint, in one file or in the shards that its index lists, not read yet."""
    index = folder / INDEX
    if (
        (folder / "pytorch_model.bin").is_file()
        and not (folder / "model.safetensors").is_file()
        and not index.is_file()
    ):
        raise ValueError(
            f"{folder} keeps its weights in a pickle, which may run a stranger's code and is never read: open it in "
            "transformers and save_pretrained it, which writes model.safetensors"
        )
    if (folder / "model.safetensors").is_file() or not index.is_file():
        return TensorFiles(folder / "model.safetensors")
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(
        isinstance(name, str) for name in weight_map.values()
    ):
        raise ValueError(
            f"{index} must hold a weight_map of tensor names to file names, got {weight_map!r:.80}"
        )
    shards = sorted(set(weight_map.values()))
    if outside := [name for name in shards if Path(name).name != name]:
        raise ValueError(f"{index} points outside its folder: {outside[0]!r}")
    return TensorFiles(*(folder / shard for shard in shards))


def check_tensors(model: Llama, tensors: TensorFiles, folder: Path) -> list[str]:
    """The names to read; raise ``ValueError`` naming each that is missing, unknown or of another shape than the config's."""
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    packed = packed_names(list(tensors))
    known = set().union(*(companions(name, state) for name, state in packed.items()))
    # old exports: it follows from rope_theta
    known |= {name for name in tensors if name.endswith("rotary_emb.inv_freq")}
    if model.config.tie_word_embeddings:
        wanted.pop("lm_head.weight")
        known.add("lm_head.weight")  # some exporters write the tied head out as well
    wrong = [f"{name} is missing" for name in wanted if name not in tensors]
    wrong += [f"{name} is unknown" for name in tensors if name not in wanted and name not in known]
    linears = {
        f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear)
    }
    wrong += [
        f"{name} is in 4 bits, but no Linear's weight"
        for name in packed
        if name not in linears & wanted.keys()
    ]
    wrong += [
        f"{name} has shape {tensors.shape(name)}, needed {shape}"
        for name, shape in wanted.items()
        if name in tensors and name not in packed and tensors.shape(name) != shape
    ]
    if wrong:
        raise ValueError(f"the tensors in {folder} do not fit its config.json: {listed(wrong, 8)}")
    return list(wanted)
