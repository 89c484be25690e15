"""The tensors of a model folder: in one file or in shards, held against the folder's config.

A folder of shards has an index as Hugging Face writes it, ``{"metadata": {"total_size": bytes},
"weight_map": {tensor: file}}``. Sizes in a config are compared with the tensors' before anything is
built: a damaged config that asks for a billion layers costs no memory.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..files import json_writer, read_json
from ..formats.bitsandbytes_4bit import companions, packed_names
from ..tensor_files import TensorFiles, tensor_writer
from ..text import listed
from .config import LlamaConfig
from .transformer import Llama

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def read_weights(folder: Path) -> TensorFiles:
    """The tensors of a checkpoint, in one file or in the shards of its index; none is read yet."""
    index, single = folder / INDEX, folder / SINGLE
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


def size_in_bytes(size: str | int) -> int:
    """A file size as bytes: a number, or one with a unit.

    >>> size_in_bytes("2GB"), size_in_bytes("1.5 MiB")
    (2000000000, 1572864)
    """
    match = re.fullmatch(r"\s*([\d.]+)\s*([KMG]i?B)\s*", str(size), re.IGNORECASE)
    try:
        count = float(match[1]) * UNITS[match[2].upper()] if match else float(size)
    except ValueError:
        count = 0.0
    if isinstance(size, bool) or not 1 <= count < math.inf:
        raise ValueError(f"shard must be a size such as '2GB', or a number of bytes, got {size!r}")
    return int(count)


def weight_files(
    tensors: Mapping[str, Tensor], limit: int | None = None
) -> dict[str, Callable[[Path], None]]:
    """The weights as files to write, by name: one, or shards of ``limit`` bytes with an index.

    A tensor larger than that has a shard of its own; the parts of a four-bit weight stay together.
    """
    total = sum(tensor.nbytes for tensor in tensors.values())
    if limit is None or total <= limit:
        return {SINGLE: tensor_writer(tensors)}
    shards: list[dict[str, Tensor]] = [{}]
    for _, names in groupby(tensors, key=lambda name: name.partition(".weight")[0]):
        module = {name: tensors[name] for name in names}
        held = sum(tensor.nbytes for tensor in (*shards[-1].values(), *module.values()))
        if held > limit and shards[-1]:
            shards.append({})
        shards[-1] |= module
    titles = [f"model-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
    weight_map = {name: title for title, part in zip(titles, shards, strict=True) for name in part}
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    files = {title: tensor_writer(part) for title, part in zip(titles, shards, strict=True)}
    return {**files, INDEX: json_writer(index)}


def stale_weights(folder: Path, files: Mapping[str, Any]) -> list[str]:
    """Files of an older save that would be read instead of the new ones, or only take up room."""
    present = {file.name for file in folder.glob("model*")} if folder.is_dir() else set()
    shards = {name for name in present if re.fullmatch(r"model-\d+-of-\d+\.safetensors", name)}
    return sorted({SINGLE, INDEX, *shards} - files.keys())


def check_sizes(config: LlamaConfig, tensors: TensorFiles, folder: Path) -> None:
    """Raise ``ValueError`` unless the config's sizes are those of the tensors; builds nothing."""
    layers = {m[1] for m in map(re.compile(r"model\.layers\.(\d+)\.").match, tensors) if m}
    wrong = []
    if len(layers) != config.num_hidden_layers:
        count = config.num_hidden_layers
        wrong = [f"num_hidden_layers is {count}, but they are those of {len(layers)} layers"]
    width, packed = config.hidden_size, packed_names(list(tensors))
    rows = {
        "model.embed_tokens": config.vocab_size,
        "model.layers.0.self_attn.q_proj": config.num_attention_heads * config.head_dim,
        "model.layers.0.self_attn.k_proj": config.num_key_value_heads * config.head_dim,
        "model.layers.0.mlp.gate_proj": config.intermediate_size,
    }
    for name, expected in ((f"{path}.weight", (height, width)) for path, height in rows.items()):
        if name not in tensors:
            wrong.append(f"{name} is missing")
        elif name in packed:  # two weights a byte
            if math.prod(tensors.shape(name)) != (math.prod(expected) + 1) // 2:
                wrong.append(f"{name} in 4 bits is not of shape {expected}")
        elif tensors.shape(name) != expected:
            wrong.append(f"{name} has shape {tensors.shape(name)}, expected {expected}")
    if wrong:
        raise ValueError(f"the tensors in {folder} do not fit its config.json: {listed(wrong, 8)}")


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


def linear_weights(model: Llama) -> set[str]:
    """The names of the weights of every Linear."""
    return {f"{name}.weight" for name, m in model.named_modules() if isinstance(m, nn.Linear)}


def has_head_of_its_own(tensors: TensorFiles) -> bool:
    """Whether a checkpoint's head differs from its embedding, and so is not tied to it."""
    head, embedding = (tensors.get(f"{name}.weight") for name in ("lm_head", "model.embed_tokens"))
    if head is None or embedding is None:
        return False
    return head.dtype != embedding.dtype or not torch.equal(head, embedding)
