"""Bytes stored: the base in floats or four bits, an adapter, its file, an optimizer's state.

    a weight in four bits   half a byte, and a scale for 64 of them: 4 bytes, or 1 + 4/256
                            (arXiv 2305.14314 section 3)
    an adapter              A (r, in) and B (out, r) of every chosen Linear

``ledger/estimate.py`` adds the bytes that are alive during a step only.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from .dimensions import Architecture

OPTIMIZER_BYTES: dict[str, Any] = {
    "adamw": lambda numbers: 8 * numbers,
    # bitsandbytes: two moments of one byte and a float32 scale for 256 of them; a tensor of fewer
    # than 4,096 numbers keeps float32 moments
    "adamw8bit": lambda numbers: (
        8 * numbers if numbers < 4096 else 2 * numbers + 8 * -(-numbers // 256)
    ),
    "sgd": lambda numbers: 0,
}


def parameter_sizes(arch: Architecture) -> list[int]:
    """How many numbers every parameter tensor of the base has, tied ones once."""
    weights = [linear.weights for linear in arch.linears if not linear.tied]
    biases = [linear.out_features for linear in arch.linears if linear.bias]
    return [*weights, *biases, *(numbers for _, numbers in arch.others)]


def weight_bytes(
    arch: Architecture, size: int, four_bit: bool, double_quant: bool
) -> tuple[int, int, int]:
    """Bytes of weights, of quantization constants, and of the largest 4-bit weight dequantized."""
    codes = constants = largest = plain = 0
    for linear in arch.linears:
        if not four_bit or linear.role == "head" or "lm_head" in linear.name.split("."):
            plain += linear.parameters
            continue
        blocks = -(-linear.weights // 64)
        codes += -(-linear.weights // 2)
        # with double quantization: scales of one byte, their float32 scales, the offset
        constants += blocks + 4 * -(-blocks // 256) + 4 if double_quant else 4 * blocks
        plain += linear.parameters - linear.weights
        largest = max(largest, linear.weights * size)
    plain += sum(numbers for _, numbers in arch.others)
    return codes + plain * size, constants, largest


def file_bytes(shapes: Mapping[str, tuple[int, ...]], size: int) -> int:
    """Bytes of PEFT's ``adapter_model.safetensors`` in float32 or bfloat16.

    A length of 8 bytes, a JSON header padded to a multiple of 8, the numbers. ``save_adapter`` adds
    a copy of the config and the base's fingerprint, some hundred bytes.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start, dtype = 0, {4: "F32", 2: "BF16"}[size]
    for key, shape in sorted(shapes.items()):
        end = start + math.prod(shape) * size
        header[key] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
        start = end
    length = len(json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode())
    return 8 + -(-length // 8) * 8 + start
