"""What is stored, in bytes: the base in floats or four bits, an adapter and its file, an optimizer's state.

    a weight in four bits   half a byte, and a scale for 64 of them: 4 bytes, or 1 + 4/256 (arXiv 2305.14314 section 3)
    an adapter              A (r, in) and B (out, r) of every chosen Linear

``ledger/estimate.py`` adds what passes by during a step.
"""

from __future__ import annotations

import json
from typing import Any

from .dimensions import Architecture, LinearShape

OPTIMIZER_BYTES: dict[str, Any] = {
    "adamw": lambda numbers: 8 * numbers,
    # bitsandbytes: two moments of a byte and a float32 scale for 256 of them; tensors below 4,096 numbers stay in float32
    "adamw8bit": lambda numbers: (
        8 * numbers if numbers < 4096 else 2 * numbers + 8 * -(-numbers // 256)
    ),
    "sgd": lambda numbers: 0,
}


def factor_shapes(linear: LinearShape, r: int) -> list[tuple[str, int, int]]:
    """A (r, in) and B (out, r). A further method adds its tensors here."""
    return [("lora_A", r, linear.in_features), ("lora_B", linear.out_features, r)]


def parameter_sizes(arch: Architecture) -> list[int]:
    """The numbers in every parameter tensor of the base, tied ones once."""
    weights = [linear.weights for linear in arch.linears if not linear.tied]
    return (
        weights
        + [linear.out_features for linear in arch.linears if linear.bias]
        + [size for _, size in arch.others]
    )


def weight_bytes(
    arch: Architecture, size: int, four_bit: bool, double_quant: bool
) -> tuple[int, int, int]:
    """Bytes of weights and of quantization constants, and of the largest 4-bit weight when opened for a product."""
    codes = constants = opened = plain = 0
    for linear in arch.linears:
        if not four_bit or linear.role == "head" or "lm_head" in linear.name.split("."):
            plain += linear.parameters
            continue
        blocks = -(-linear.weights // 64)
        codes += -(-linear.weights // 2)
        # scales, their scales, the offset
        constants += blocks + 4 * -(-blocks // 256) + 4 if double_quant else 4 * blocks
        plain += linear.parameters - linear.weights
        opened = max(opened, linear.weights * size)
    plain += sum(numbers for _, numbers in arch.others)
    return codes + plain * size, constants, opened


def file_bytes(factors: list[tuple[str, str, int, int]], size: int) -> int:
    """Bytes of PEFT's ``adapter_model.safetensors`` in float32 or bfloat16: 8, a JSON header filled up to 8, the numbers.

    ``save_adapter`` adds a copy of the config and the base's fingerprint, some hundred bytes.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start, dtype = 0, {4: "F32", 2: "BF16"}[size]
    for name, rows, columns in sorted(
        (f"base_model.model.{name}.{part}.weight", i, j) for name, part, i, j in factors
    ):
        header[name] = {
            "dtype": dtype,
            "shape": [rows, columns],
            "data_offsets": [start, start + rows * columns * size],
        }
        start += rows * columns * size
    length = len(json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode())
    return 8 + -(-length // 8) * 8 + start
