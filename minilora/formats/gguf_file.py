"""GGUF: the one-file format of llama.cpp, with tensors, settings and tokenizer together.

    "GGUF", version, counts | key: type, value … | name: shape, type, place … | data, 32-aligned

The ``gguf`` package of llama.cpp's authors lays the bytes out; here is what goes in. A matrix is
stored as one of

    f32    as it is
    f16    rounded to half precision, 2 bytes a weight
    q8_0   blocks of 32 in a row: scale d = max |w| / 127 as half, and round(w / d) as a signed
           byte, 34 bytes a block or 1.06 bytes a weight

and a vector (norms, biases) always in f32, as llama.cpp's own converter does. A matrix whose rows
are no multiple of 32 long stays in f16.

Left out: the k-quants and i-quants, for which llama.cpp's ``llama-quantize`` takes an f16 file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..files import write_atomically

KINDS = {"f32": 0, "f16": 1, "q8_0": 7}  # and llama.cpp's numbers for the whole file
HALF = 65504.0  # the largest number in half precision
Tensors = Mapping[str, Callable[[], Tensor]]


def write_gguf(
    path: str | Path, architecture: str, fields: Mapping[str, Any], tensors: Tensors, kind: str
) -> Path:
    """Write a GGUF file, whole or not at all; one tensor is in memory at a time.

    ``fields`` are settings by key: text, numbers, switches, or lists of them. ``tensors`` give each
    tensor when asked, twice. Raises ``ValueError`` without the ``gguf`` package, for an unknown
    ``kind``, and for values that do not fit it.
    """
    if kind not in KINDS:
        raise ValueError(f"type must be one of {', '.join(KINDS)}, got {kind!r}")
    library()
    about = {**fields, "general.file_type": KINDS[kind], "general.quantization_version": 2}
    write = partial(write_parts, architecture=architecture, fields=about, tensors=tensors)
    return write_atomically(path, partial(write, kind=kind))


def library() -> Any:
    """The ``gguf`` package; ``ValueError`` without it."""
    try:
        import gguf
    except ImportError as error:
        raise ValueError(f"writing GGUF needs {error.name}: pip install gguf") from error
    return gguf


def write_parts(
    path: Path, architecture: str, fields: Mapping[str, Any], tensors: Tensors, kind: str
) -> None:
    """Header, settings, the list of tensors, then the tensors one by one."""
    gguf = library()
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in fields.items():
        add_field(writer, key, value)
    for name, get in tensors.items():
        shape, stored = tuple(get().shape), storage(get(), kind)
        size = gguf.GGML_QUANT_SIZES[getattr(gguf.GGMLQuantizationType, stored)]
        quantized = getattr(gguf.GGMLQuantizationType, stored)
        bytes_of_all = get().numel() // size[0] * size[1]
        writer.add_tensor_info(name, shape, np.dtype("float32"), bytes_of_all, quantized)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name, get in tensors.items():
            writer.write_tensor_data(encoded(name, get(), kind))
    finally:
        writer.close()


def add_field(writer: Any, key: str, value: Any) -> None:
    """One setting, in the type that llama.cpp reads it in."""
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def storage(tensor: Tensor, kind: str) -> str:
    """How a tensor is stored: F32, F16 or Q8_0."""
    if tensor.dim() < 2 or kind == "f32":
        return "F32"
    return "Q8_0" if kind == "q8_0" and tensor.shape[-1] % 32 == 0 else "F16"


def encoded(name: str, tensor: Tensor, kind: str) -> np.ndarray:
    """A tensor's bytes. Raises ``ValueError`` where a value is not finite in them."""
    stored = storage(tensor, kind)
    values: np.ndarray = tensor.detach().to("cpu", torch.float32).contiguous().numpy()
    largest = float(np.abs(values).max(initial=0.0))
    limit = {"F32": float(np.finfo(np.float32).max), "F16": HALF, "Q8_0": 127 * HALF}[stored]
    if not largest <= limit:  # NaN too
        raise ValueError(
            f"{name} holds values up to {largest:g}, which {stored.lower()} cannot hold: "
            "write another type, or repair the model"
        )
    if stored == "Q8_0":
        gguf = library()
        return gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q8_0)
    return values.astype(np.float16) if stored == "F16" else values
