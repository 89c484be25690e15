"""Four-bit weights in checkpoint files, in the layout of bitsandbytes, so that transformers opens what is saved here.

A Linear's ``<path>.weight`` holds the packed bytes, (⌈n/2⌉, 1) uint8; beside it lie

    <path>.weight.absmax                            scales, float32, or uint8 with double quantization
    <path>.weight.quant_map                         the 16 levels by code
    <path>.weight.nested_absmax, .nested_quant_map  the second level: float32 scales, the dynamic map
    <path>.weight.quant_state.bitsandbytes__nf4     JSON as bytes: block sizes, shape, dtype, the scales' mean

Reading trusts none of it: sizes, levels and the JSON are checked, and what does not fit is an error that names the tensor.

Source: bitsandbytes 0.50 ``functional.QuantState.as_dict``; tests/formats/test_bitsandbytes_4bit.py compares with it.
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
    """The tensors of one quantized weight, by their names in the file. Raises ``ValueError`` for what no peer could read.

    >>> from minilora import nf4
    >>> sorted(to_checkpoint("q.weight", nf4.quantize(torch.ones(2, 32), double_quant=False)))
    ['q.weight', 'q.weight.absmax', 'q.weight.quant_map', 'q.weight.quant_state.bitsandbytes__nf4']
    """
    dtype = str(weight.dtype).removeprefix("torch.")
    if weight.kind not in ("nf4", "fp4") or dtype not in DTYPES:
        raise ValueError(
            f"{name}: only nf4 and fp4 of 16- or 32-bit floats have a file format, this is {weight.kind} of {dtype}"
        )
    about: dict[str, Any] = {
        "quant_type": weight.kind,
        "blocksize": weight.block_size,
        "dtype": dtype,
        "shape": list(weight.shape),
    }
    tensors = {
        name: weight.packed[:, None],
        f"{name}.absmax": weight.absmax,
        # safetensors refuses shared storages
        f"{name}.quant_map": table_of_levels(weight.kind, CPU).clone(),
    }
    if weight.absmax2 is not None and weight.offset is not None:
        about |= {
            "nested_blocksize": SCALE_BLOCK,
            "nested_dtype": "float32",
            "nested_offset": weight.offset.item(),
        }
        tensors |= {
            f"{name}.nested_absmax": weight.absmax2,
            f"{name}.nested_quant_map": dynamic_map(CPU).clone(),
        }
    tensors[f"{name}.{STATE}{weight.kind}"] = torch.frombuffer(
        bytearray(json.dumps(about).encode()), dtype=torch.uint8
    )
    return tensors


def packed_names(names: list[str]) -> dict[str, str]:
    """For each quantized weight in a file: its name, and that of its JSON."""
    return {name.partition(f".{STATE}")[0]: name for name in names if f".{STATE}" in name}


def companions(name: str, state: str) -> set[str]:
    """Every name that belongs to one quantized weight, its own included."""
    parts = ("absmax", "quant_map", "nested_absmax", "nested_quant_map")
    return {name, state, *(f"{name}.{part}" for part in parts)}


def from_checkpoint(name: str, tensors: Mapping[str, Tensor], wanted: tuple[int, ...]) -> NF4Tensor:
    """Read one quantized weight of shape ``wanted``. Raises ``ValueError`` that names what is missing or does not fit."""
    state = packed_names([key for key in tensors if key.startswith(f"{name}.{STATE}")]).get(name)
    if state is None:
        raise ValueError(
            f"{name} has no {STATE}nf4 beside it: it is not a 4-bit weight in bitsandbytes' layout"
        )
    about = read_state(state, tensors[state])
    double_quant = "nested_offset" in about
    needed = [name, f"{name}.absmax", f"{name}.quant_map"]
    needed += [f"{name}.nested_absmax", f"{name}.nested_quant_map"] if double_quant else []
    if missing := [key for key in needed if key not in tensors]:
        raise ValueError(
            f"{', '.join(missing)} missing: the 4-bit weight {name} cannot be read without"
        )
    if tuple(about["shape"]) != wanted:
        raise ValueError(f"{state} says shape {tuple(about['shape'])}, needed {wanted}")
    kind = state.rpartition("__")[2]
    if not torch.equal(tensors[f"{name}.quant_map"], table_of_levels(kind, CPU)):
        raise ValueError(f"{name}.quant_map is not the levels of {kind}")
    if double_quant and not torch.equal(tensors[f"{name}.nested_quant_map"], dynamic_map(CPU)):
        raise ValueError(f"{name}.nested_quant_map is not the signed dynamic map")
    absmax, absmax2 = (
        tensors[f"{name}.absmax"],
        tensors[f"{name}.nested_absmax"] if double_quant else None,
    )
    if not all(torch.isfinite(scale).all() for scale in (absmax, absmax2) if scale is not None):
        raise ValueError(f"{name}: its scales hold values that are not finite")
    offset = torch.tensor(about["nested_offset"]) if double_quant else None
    dtype, block_size = DTYPES[about["dtype"]], about["blocksize"]
    try:
        return NF4Tensor(
            tensors[name].flatten(),
            absmax,
            absmax2,
            offset,
            torch.Size(wanted),
            dtype,
            block_size,
            kind,
        )
    except (ValueError, TypeError) as error:
        raise ValueError(f"{name}: {error}") from error


def read_state(name: str, raw: Tensor) -> dict[str, Any]:
    """The JSON beside a quantized weight, with its fields checked."""
    try:
        about = json.loads(bytes(raw.tolist()))
        fits = (
            isinstance(about, dict)
            and about["dtype"] in DTYPES
            and about["quant_type"] == name.rpartition("__")[2]
        )
        fits = fits and all(
            type(size) is int and size > 0 for size in [about["blocksize"], *about["shape"]]
        )
        if "nested_offset" in about:
            fits = (
                fits
                and about["nested_blocksize"] == SCALE_BLOCK
                and math.isfinite(about["nested_offset"])
            )
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"{name} holds no description of a 4-bit weight ({error})") from error
    if not fits:
        raise ValueError(f"{name} describes what minilora cannot read: {about}")
    return about
