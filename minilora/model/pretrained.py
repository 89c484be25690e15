"""Bases on disk, in Hugging Face's layout: config.json, model.safetensors, tokenizer.json.

``load_base()`` opens the small Llama that ships with the package; ``load_base(folder)`` opens any
folder of the Llama family. ``save_model`` writes the same three files, which transformers and vLLM
open as they are.

Loading is strict. A missing tensor, one too many, a wrong shape, or a feature that
``model/transformer.py`` does not have is an error, raised before any model is built in memory, and
it names everything that is wrong. Only safetensors are read, never a pickle.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ..files import TensorFiles, json_writer, read_json, tensor_writer, write_together
from ..formats.bitsandbytes_4bit import companions, from_checkpoint, packed_names, to_checkpoint
from ..nf4.codebook import codebook
from ..nf4.linear import NF4Linear
from ..nf4.tensor import NF4Tensor
from ..nf4.tensor import quantize as quantize_weight
from ..text import listed
from .config_json import config_json_of, end_token, llama_config
from .tokenizer import TOKENIZER_FILES, load_tokenizer, tokenizer_files
from .transformer import Llama, LlamaConfig

SHIPPED = Path(__file__).parent / "base"
INDEX = "model.safetensors.index.json"


def load_base(
    folder: str | Path | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    quantize: str | None = None,
) -> Llama:
    """The shipped base, or the Llama-family model in ``folder``: ready to adapt and to answer.

    Weights are converted to ``dtype``, whatever they are stored in. ``quantize="nf4"`` (or
    ``"fp4"``, ``"int4"``) turns each Linear but the head into four bits as it is read, so memory
    never holds more than one of them in floats. A folder saved in four bits is opened in four bits
    without it. Raises ``ValueError`` that names everything that does not fit.

    >>> model = load_base()
    >>> model.config.hidden_size
    128
    """
    folder = SHIPPED if folder is None else Path(folder)
    if quantize is not None:
        codebook(quantize)
    if not (folder / "config.json").is_file():
        problem = "holds no config.json" if folder.is_dir() else "is not a folder on this machine"
        raise ValueError(
            f"{folder} {problem}: a base is a folder with config.json, model.safetensors and "
            "tokenizer.json, and nothing is downloaded"
        )
    config_json = read_json(folder / "config.json")
    config = llama_config(config_json, folder)
    tensors = read_weights(folder)
    if config.tie_word_embeddings and has_head_of_its_own(tensors):  # as in transformers 5
        config = replace(config, tie_word_embeddings=False)
    # shapes only: no memory, and no time spent on an initialisation that is thrown away
    with torch.device("meta"):
        model = Llama(config)
    fill_model(model, tensors, check_tensors(model, tensors, folder), dtype, device, quantize)
    if (folder / "tokenizer.json").is_file():
        model.tokenizer = load_tokenizer(folder, end_token(config_json), config.vocab_size)
    return model.eval()


def fill_model(
    model: Llama,
    tensors: TensorFiles,
    names: list[str],
    dtype: torch.dtype,
    device: str | torch.device,
    quantize: str | None,
) -> None:
    """Give a model without storage its weights, one tensor at a time.

    Linears whose weights are stored in four bits, or are to be quantized, become ``NF4Linear``.
    """
    packed, floats = packed_names(list(tensors)), {}
    linears = linear_weights(model) - {"lm_head.weight"}
    for name in names:
        if name in packed:
            stored = from_checkpoint(name, tensors, tuple(model.get_parameter(name).shape))
            if quantize not in (None, stored.kind):
                raise ValueError(
                    f"{name} is stored in {stored.kind}, so it cannot be loaded in {quantize}: "
                    "load a float checkpoint"
                )
            weight = replace(stored, dtype=dtype)
        elif quantize is not None and name in linears:
            in_floats = tensors[name].to(device=device, dtype=dtype)
            weight = quantize_weight(in_floats, kind=quantize)
        else:
            floats[name] = tensors[name].to(device=device, dtype=dtype)
            continue
        layer = NF4Linear.from_quantized(weight)
        model.set_submodule(name.removesuffix(".weight"), layer.to(device))
    if model.config.tie_word_embeddings:
        floats["lm_head.weight"] = floats["model.embed_tokens.weight"]
    model.load_state_dict(floats, assign=True, strict=False)  # check_tensors has compared the names
    if model.config.tie_word_embeddings:
        model.lm_head.weight = model.model.embed_tokens.weight
    model.requires_grad_(not packed and quantize is None)


def linear_weights(model: Llama) -> set[str]:
    """The names of the weights of every Linear."""
    return {f"{name}.weight" for name, m in model.named_modules() if isinstance(m, nn.Linear)}


def save_model(model: nn.Module, folder: str | Path, *, dtype: torch.dtype | None = None) -> Path:
    """Write a plain model as a Hugging Face folder, which transformers and vLLM open as it is.

    The folder holds ``config.json``, ``model.safetensors`` and, where the model has a tokenizer,
    ``tokenizer.json`` and ``tokenizer_config.json``. Tied weights are stored once. ``dtype``
    converts on the way (``torch.float16`` halves a float32 file). The config is written last, so a
    folder that has one is whole. Raises ``ValueError`` when adapters are still inside:
    ``merge_and_unload`` first.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     sorted(file.name for file in save_model(load_base(), folder).iterdir())
    ['config.json', 'model.safetensors', 'tokenizer.json', 'tokenizer_config.json']
    """
    config = getattr(model, "config", None)
    if not isinstance(model, Llama) or not isinstance(config, LlamaConfig):
        raise ValueError(
            f"save_model writes a minilora Llama, got {type(model).__name__}: "
            "save other models with their own library"
        )
    tensors, quantized, tied = float_tensors(model), packed_weights(model), is_tied(model)
    check_plain(config, tensors.keys() | quantized.keys(), tied)
    if dtype is not None:
        tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    if bad := [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]:
        raise ValueError(
            f"{bad[0]} holds values that are not finite{f' in {dtype}' if dtype else ''}: "
            "save in float32, or repair it"
        )
    stored = next(iter(tensors.values())).dtype
    for name, weight in quantized.items():
        tensors |= to_checkpoint(name, replace(weight, dtype=stored))
    about = config_json_of(model, stored, tied, next(iter(quantized.values()), None))
    files = {"model.safetensors": tensor_writer(tensors)}
    if model.tokenizer is not None:
        files |= tokenizer_files(model.tokenizer)
    files["config.json"] = json_writer(about)
    write_together(Path(folder), files, remove=["config.json", INDEX, *TOKENIZER_FILES])
    return Path(folder)


def check_plain(config: LlamaConfig, names: Set[str], tied: bool) -> None:
    """Raise ``ValueError`` unless these are the names of a Llama's weights, and no others."""
    with torch.device("meta"):
        expected = Llama(config).state_dict().keys() - ({"lm_head.weight"} if tied else set())
    if wrong := sorted(names ^ expected):
        problem = "missing" if wrong[0] in expected else "unexpected"
        raise ValueError(
            f"this model is not a plain Llama: {wrong[0]!r} is {problem}. If an adapter is still "
            "inside, call merge_and_unload(model) or unload(model) first, or "
            "save_adapter(model, folder) to keep it apart"
        )


def float_tensors(model: Llama) -> dict[str, Tensor]:
    """The tensors of a model that are kept in floats, by name in a checkpoint; tied ones once."""
    left_out = {
        f"{name}.{part}"
        for name, m in model.named_modules()
        if isinstance(m, NF4Linear)
        for part in m._buffers
    }
    if is_tied(model):
        left_out.add("lm_head.weight")
    return {name: tensor for name, tensor in model.state_dict().items() if name not in left_out}


def is_tied(model: Llama) -> bool:
    """Whether the head *is* the embedding now, whatever the model's config says."""
    return model.lm_head._parameters.get("weight") is model.model.embed_tokens.weight


def has_head_of_its_own(tensors: TensorFiles) -> bool:
    """Whether a checkpoint's head differs from its embedding, and so is not tied to it."""
    head, embedding = (tensors.get(f"{name}.weight") for name in ("lm_head", "model.embed_tokens"))
    if head is None or embedding is None:
        return False
    return head.dtype != embedding.dtype or not torch.equal(head, embedding)


def packed_weights(model: Llama) -> dict[str, NF4Tensor]:
    """The weights of a model that are kept in four bits, by name in a checkpoint."""
    modules = model.named_modules()
    return {f"{name}.weight": m.quantized for name, m in modules if isinstance(m, NF4Linear)}


def read_weights(folder: Path) -> TensorFiles:
    """The tensors of a checkpoint, in one file or in the shards of its index; none is read yet."""
    index, single = folder / INDEX, folder / "model.safetensors"
    if single.is_file() or not index.is_file():
        if (folder / "pytorch_model.bin").is_file() and not single.is_file():
            raise ValueError(
                f"{folder} keeps its weights in a pickle, which can run a stranger's code, so it "
                "is never read: open the folder in transformers and call save_pretrained, which "
                "writes model.safetensors"
            )
        return TensorFiles(single)
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
    """The names of the tensors to read.

    Raises ``ValueError`` that names each one which is missing, unknown, or not of the shape that
    the config gives it.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    packed, linears = packed_names(list(tensors)), linear_weights(model)
    ignored = set().union(*(companions(name, state) for name, state in packed.items()))
    # old exports hold these, which follow from rope_theta
    ignored |= {name for name in tensors if name.endswith("rotary_emb.inv_freq")}
    if model.config.tie_word_embeddings:
        shapes.pop("lm_head.weight")
        ignored.add("lm_head.weight")  # some exporters write the tied head out as well
    wrong = [f"{name} is missing" for name in shapes if name not in tensors]
    wrong += [f"{name} is unknown" for name in tensors if name not in shapes.keys() | ignored]
    wrong += [
        f"{name} is in 4 bits, but it is not the weight of a Linear"
        for name in packed
        if name not in linears & shapes.keys()
    ]
    wrong += [
        f"{name} has shape {tensors.shape(name)}, expected {shape}"
        for name, shape in shapes.items()
        if name in tensors and name not in packed and tensors.shape(name) != shape
    ]
    if wrong:
        raise ValueError(f"the tensors in {folder} do not fit its config.json: {listed(wrong, 8)}")
    return list(shapes)
