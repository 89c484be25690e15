"""Four-bit weights in checkpoint files, in bitsandbytes' layout, so that transformers opens them.

A Linear's ``<path>.weight`` holds the packed bytes, (⌈n/2⌉, 1) uint8; beside it lie

    <path>.weight.absmax                         float32 scales, or uint8 with double quantization
    <path>.weight.quant_map                      the 16 levels by code
    <path>.weight.nested_absmax                  the scales' own scales, float32
    <path>.weight.nested_quant_map               their levels: the signed dynamic map
    <path>.weight.quant_state.bitsandbytes__nf4  JSON as bytes: block sizes, shape, dtype, the
                                                 scales' mean

Reading trusts none of it: sizes, levels and the JSON are checked, and an error names the tensor
that does not fit.

Source: bitsandbytes 0.50 ``functional.QuantState.as_dict``; tests/formats/test_bitsandbytes_4bit.py
compares with it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..nf4.codebook import table_of_levels
from ..nf4.tensor import SCALE_BLOCK, NF4Tensor, dynamic_map

STATE = "quant_state.bitsandbytes__"
CPU = torch.device("cpu")
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def to_checkpoint(name: str, weight: NF4Tensor) -> dict[str, Tensor]:
    """The tensors of one quantized weight, by their names in the file.

    Raises ``ValueError`` for a kind or dtype that bitsandbytes has no format for.

    >>> from minilora import nf4
    >>> sorted(to_checkpoint("q.weight", nf4.quantize(torch.ones(2, 32), double_quant=False)))
    ['q.weight', 'q.weight.absmax', 'q.weight.quant_map', 'q.weight.quant_state.bitsandbytes__nf4']
    """
    dtype = str(weight.dtype).removeprefix("torch.")
    if weight.kind not in ("nf4", "fp4") or dtype not in DTYPES:
        formats = "only nf4 and fp4 of 16- or 32-bit floats have a file format"
        raise ValueError(f"{name}: {formats}, got {weight.kind} of {dtype}")
    about: dict[str, Any] = {"quant_type": weight.kind, "blocksize": weight.block_size}
    about |= {"dtype": dtype, "shape": list(weight.shape)}
    tensors = {
        name: weight.packed[:, None],
        f"{name}.absmax": weight.absmax,
        # a copy: safetensors refuses shared storages
        f"{name}.quant_map": table_of_levels(weight.kind, CPU).clone(),
    }
    if weight.absmax2 is not None and weight.offset is not None:
        about |= {"nested_blocksize": SCALE_BLOCK, "nested_dtype": "float32"}
        about["nested_offset"] = weight.offset.item()
        tensors[f"{name}.nested_absmax"] = weight.absmax2
        tensors[f"{name}.nested_quant_map"] = dynamic_map(CPU).clone()
    text = bytearray(json.dumps(about).encode())
    tensors[f"{name}.{STATE}{weight.kind}"] = torch.frombuffer(text, dtype=torch.uint8)
    return tensors


def packed_names(names: list[str]) -> dict[str, str]:
    """For each quantized weight in a file: its name, and that of its JSON."""
    return {name.partition(f".{STATE}")[0]: name for name in names if f".{STATE}" in name}


def companions(name: str, state: str) -> set[str]:
    """Every name that belongs to one quantized weight, its own included."""
    parts = ("absmax", "quant_map", "nested_absmax", "nested_quant_map")
    return {name, state, *(f"{name}.{part}" for part in parts)}


def from_checkpoint(name: str, tensors: Mapping[str, Tensor], shape: tuple[int, ...]) -> NF4Tensor:
    """Read one quantized weight of a known shape.

    Raises ``ValueError`` that names the tensor that is missing or does not fit.
    """
    state = packed_names([key for key in tensors if key.startswith(f"{name}.{STATE}")]).get(name)
    if state is None:
        reason = "it is not a 4-bit weight in bitsandbytes' layout"
        raise ValueError(f"{name} has no {STATE}nf4 beside it: {reason}")
    about = read_state(state, tensors[state])
    double_quant = "nested_offset" in about
    needed = [name, f"{name}.absmax", f"{name}.quant_map"]
    needed += [f"{name}.nested_absmax", f"{name}.nested_quant_map"] if double_quant else []
    if missing := [key for key in needed if key not in tensors]:
        raise ValueError(f"the 4-bit weight {name} lacks {', '.join(missing)}")
    if tuple(about["shape"]) != shape:
        raise ValueError(f"{state} has shape {tuple(about['shape'])}, expected {shape}")
    kind = state.rpartition("__")[2]
    if not torch.equal(tensors[f"{name}.quant_map"], table_of_levels(kind, CPU)):
        raise ValueError(f"{name}.quant_map does not hold the levels of {kind}")
    if double_quant and not torch.equal(tensors[f"{name}.nested_quant_map"], dynamic_map(CPU)):
        raise ValueError(f"{name}.nested_quant_map does not hold the signed dynamic map")
    absmax = tensors[f"{name}.absmax"]
    absmax2 = tensors[f"{name}.nested_absmax"] if double_quant else None
    if not all(torch.isfinite(scale).all() for scale in (absmax, absmax2) if scale is not None):
        raise ValueError(f"{name}: the scales hold values that are not finite")
    packed, size = tensors[name].flatten(), torch.Size(shape)
    offset = torch.tensor(about["nested_offset"]) if double_quant else None
    dtype, block_size = DTYPES[about["dtype"]], about["blocksize"]
    try:
        return NF4Tensor(packed, absmax, absmax2, offset, size, dtype, block_size, kind)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{name}: {error}") from error


def read_state(name: str, raw: Tensor) -> dict[str, Any]:
    """The JSON beside a quantized weight, with its fields checked."""
    try:
        about = json.loads(bytes(raw.tolist()))
        readable = isinstance(about, dict) and is_readable(about, name.rpartition("__")[2])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"{name} holds no description of a 4-bit weight ({error})") from error
    if not readable:
        raise ValueError(f"{name} describes a weight that minilora cannot read: {about}")
    return about


def is_readable(about: dict[str, Any], kind: str) -> bool:
    """Whether the fields, all of which must be there, describe what ``NF4Tensor`` can hold."""
    nested = "nested_offset" in about
    return (
        about["dtype"] in DTYPES
        and about["quant_type"] == kind
        and all(type(size) is int and size > 0 for size in [about["blocksize"], *about["shape"]])
        and (not nested or about["nested_blocksize"] == SCALE_BLOCK)
        and (not nested or math.isfinite(about["nested_offset"]))
    )
