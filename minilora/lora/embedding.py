"""LoRA beside an Embedding: new vectors for tokens that the base hardly knows.

    y = E[x] + scaling · A[:, x]ᵀ Bᵀ        E (tokens, d) frozen, A (r, tokens), B (d, r) trained
    ΔE = scaling · (B A)ᵀ

An Embedding is a Linear of one-hot rows, so this is LoRA's equation with a row of A in place of a
product. A is zero and B random, the other way round than beside a Linear: a token that never occurs
then keeps its vector exactly. The count is r (tokens + d), most of it for the tokens.

Source: PEFT 0.21 ``tuners/lora/layer.py``, ``Embedding`` (and loralib's before it): the same order
of operations, bit-equal. As there, ``lora_dropout`` is not applied to token ids.

Left out: tables that scale their output or renormalize their rows, and tied ones: all are refused.
A merge into a tied one would change the output head along (huggingface/peft #2018).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .adapter_layer import AdapterLayer
from .hyperparameters import check_all, scaling_of
from .linears import embedding_shape, made_beside


class LoRAEmbedding(AdapterLayer):
    """``base(x) + scaling · A[:, x]ᵀ Bᵀ`` around a frozen Embedding.

    Raises ``TypeError`` for a base that is not a plain Embedding, ``ValueError`` or ``TypeError``
    for values that ``LoraConfig`` refuses.

    >>> layer = LoRAEmbedding(nn.Embedding(10, 4), r=2, lora_alpha=4)
    >>> layer
    LoRAEmbedding(10 -> 4, r=2, scaling=2)
    >>> x = torch.tensor([[1, 2, 3]])
    >>> torch.equal(layer(x), layer.base(x))
    True
    """

    def __init__(
        self,
        base: nn.Module,
        r: int = 8,
        lora_alpha: float = 16,
        lora_dropout: float = 0.0,
        use_rslora: bool = False,
    ):
        check_all(r, lora_alpha, lora_dropout, use_rslora)
        super().__init__(base)
        self.r, self.lora_alpha = r, lora_alpha
        self.lora_dropout, self.use_rslora = lora_dropout, use_rslora
        self.scaling = scaling_of(r, lora_alpha, use_rslora)
        made = made_beside(base)
        self.lora_embedding_A = nn.Parameter(torch.zeros(r, self.in_features, **made))
        self.lora_embedding_B = nn.Parameter(torch.randn(self.out_features, r, **made))
        base.requires_grad_(False)

    @staticmethod
    def shape_of(base: nn.Module) -> tuple[int, int]:
        """(in, out) of a table."""
        return embedding_shape(base)

    def adapt(self, base: Any, x: Tensor) -> Tensor:
        """Token ids (…) to vectors (…, d)."""
        y, A, B = base(x), self.lora_embedding_A, self.lora_embedding_B
        rows = F.embedding(x, A.T, padding_idx=base.padding_idx)  # (…, r)
        return (y + (rows @ B.T) * self.scaling).to(y.dtype)

    def delta_weight(self) -> Tensor:
        """``scaling · B A``, (d, tokens), in the adapter's dtype."""
        return self.scaling * (self.lora_embedding_B.detach() @ self.lora_embedding_A.detach())

    def fold(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """``Eᵀ + ΔEᵀ``, (d, tokens); an Embedding has no bias."""
        delta = self.delta_weight()
        return weight.to(delta) + delta, bias

    def __repr__(self) -> str:
        sizes = f"{self.in_features} -> {self.out_features}, r={self.r}, scaling={self.scaling:g}"
        return f"LoRAEmbedding({sizes}{', merged' * self.merged})"
