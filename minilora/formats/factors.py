"""A and B of every layer that has them, by their names in PEFT's files.

beside a Linear       <path>.lora_A.weight (r, in)         <path>.lora_B.weight (out, r)
DoRA's besides        <path>.lora_magnitude_vector (out,)
beside an Embedding   <path>.lora_embedding_A (r, tokens)  <path>.lora_embedding_B (d, r)
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor, nn

from ..lora.adapter_layer import adapter_layers
from ..lora.embedding import LoRAEmbedding
from ..lora.layer import LoRALayer
from .peft_files import PREFIX

Layer = LoRALayer | LoRAEmbedding
MAGNITUDE = "lora_magnitude_vector"
LINEAR = ("lora_A.weight", "lora_B.weight")
EMBEDDING = ("lora_embedding_A", "lora_embedding_B")
FACTORS = re.compile(r"(.+)\.(lora_[AB]\.weight|lora_embedding_[AB])")


def low_rank_layers(model: nn.Module) -> dict[str, Layer]:
    """Every layer with an A and a B, by its path."""
    return {path: la for path, la in adapter_layers(model) if isinstance(la, Layer)}


def factors_of(layer: Layer) -> dict[str, Tensor]:
    """A and B, and DoRA's magnitudes, by the ends of their keys."""
    if isinstance(layer, LoRALayer):
        return layer.tensors()
    return dict(zip(EMBEDDING, (layer.lora_embedding_A, layer.lora_embedding_B), strict=True))


def adapted_paths(tensors: Mapping[str, Tensor]) -> list[str]:
    """Paths of the Linears and Embeddings that a file has an A or a B for.

    >>> import torch
    >>> adapted_paths({"base_model.model.q.lora_A.weight": torch.ones(1, 2)})
    ['q']
    """
    keys = [key.removeprefix(PREFIX) for key in tensors if key.startswith(PREFIX)]
    matches = [match for key in keys if (match := FACTORS.fullmatch(key))]
    return list(dict.fromkeys(match[1] for match in matches))
