"""What a method beside the stream adds to a step: soft prompts, prefixes, bottlenecks.

    method        trains                               a step grows by
    soft prompt   k d                                  k tokens a text, in every layer
    prefix        k · 2 · layers · kv width            k keys and values a text, in every layer
    bottleneck    2 d k + k + d, one or two a layer    its input and k numbers a token (swish: 2 k)

A gradient reaches the first layer with a soft prompt, the first attention with a prefix, the first
bottleneck else. A projected prefix trains an MLP, whose own activations (a row for each of the k)
are left out; the file holds its result.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from ..lora.adapter_config import AttachedConfig
from .dimensions import Architecture

NAMES = {  # of each kind: the adapters of a block, in the order of the forward pass
    "houlsby": ("attention_adapter", "output_adapter"),
    "pfeiffer": ("output_adapter",),
    "parallel": ("output_adapter",),
}
Shapes = dict[str, tuple[int, ...]]


class Beside(NamedTuple):
    """An attached method in a model: its trained tensors and its file's, and what a step sees.

    ``rows`` stand before each text in the stream, ``cached`` before its keys and values;
    ``kind`` and ``width`` are a bottleneck's.
    """

    trained: Mapping[str, tuple[int, ...]]
    file: Mapping[str, tuple[int, ...]]
    rows: int = 0
    cached: int = 0
    kind: str = ""
    width: int = 0

    def sizes(self) -> list[int]:
        """How many numbers each trained tensor has."""
        return list(map(math.prod, self.trained.values()))


NOTHING = Beside({}, {})


def beside(arch: Architecture, config: AttachedConfig) -> Beside:
    """An attached method planned for a model. Raises ``ValueError`` for one without a decoder.

    >>> from .shapes import architecture
    >>> from ..methods.prompt_tuning import PromptTuningConfig
    >>> beside(architecture("llama-2-7b"), PromptTuningConfig(20)).sizes()
    [81920]
    """
    settings: Any = config  # by its type: one of three, whose modules bring torch
    kv_width = width_of_keys(arch)
    if config.peft_type == "PROMPT_TUNING":
        k = settings.num_virtual_tokens
        table = {"prompt_embeddings": (k, arch.hidden)}
        return Beside(table, table, rows=k)
    if config.peft_type == "PREFIX_TUNING":
        k, columns = settings.num_virtual_tokens, 2 * len(arch.blocks) * kv_width
        table = {"prompt_embeddings": (k, columns)}
        if not settings.prefix_projection:
            return Beside(table, table, cached=k)
        inner = settings.encoder_hidden_size or kv_width
        trained: Shapes = {"embedding": (k, kv_width), "up": (inner, kv_width), "up.bias": (inner,)}
        trained |= {"down": (columns, inner), "down.bias": (columns,)}
        return Beside(trained, table, cached=k)
    d = arch.hidden
    k = settings.size or max(1, d // 16)
    one = {"adapter_down.weight": (k, d), "adapter_down.bias": (k,)}
    one |= {"adapter_up.weight": (d, k), "adapter_up.bias": (d,)}
    places = [f"{block}.{name}" for block in arch.blocks for name in NAMES[settings.kind]]
    tensors = {f"{place}.{name}": shape for place in places for name, shape in one.items()}
    return Beside(tensors, tensors, kind=settings.kind, width=k)


def width_of_keys(arch: Architecture) -> int:
    """kv heads · head width of a decoder's layer; ``ValueError`` for a model that is not one."""
    block = next(iter(arch.blocks.values()), [])
    by_role = {linear.role: linear for linear in block}
    if not arch.hidden or "o" not in by_role or any("'" in x.role for x in arch.linears):
        raise ValueError(
            f"{arch.name} is not a decoder with layers: soft prompts, prefixes and bottlenecks "
            "are counted for those only"
        )
    if "k" in by_role:
        return by_role["k"].out_features
    return (by_role["qkv"].out_features - by_role["o"].in_features) // 2


def bottleneck_bytes(
    here: Beside, hidden: int, tokens: int, sizes: tuple[int, int], input_is_kept: bool
) -> int:
    """What one bottleneck keeps: its input, unless something else does, and what is inside.

    ``sizes``: bytes a number of the base and of the adapter, which computes in its own dtype.
    """
    size, adapter_size = sizes
    inside = here.width * (2 if here.kind == "houlsby" else 1)  # swish keeps what it read too
    kept_input = 0 if input_is_kept and size == adapter_size else hidden * adapter_size
    return tokens * (kept_input + inside * adapter_size)
