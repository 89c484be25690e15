"""Prefix tuning: k trained keys and values before every text, in every layer.

    softmax(q [K_p; K]ᵀ / √d) [V_p; V]        K_p, V_p (k, kv_heads · head_dim): a pair a layer

A soft prompt has to become keys and values through all layers' weights; a prefix writes them at
once. So it is a cache that is filled before the text comes. It trains k · 2 · layers · kv_heads ·
head_dim numbers. They stand after the rotation: no position is turned into them.

Source: arXiv 2101.00190, section 4.2. Section 4.3 trains a smaller matrix through a two-layer MLP
(``prefix_projection``) for stability; what is kept is the result, so a file holds no MLP, and a
loaded prefix trains as a plain one. PEFT's order of the columns: k₀ v₀ k₁ v₁ …

Can: PEFT's files; generation with its cache. Cannot: merge; pack; train with gradient checkpointing
(a block that is computed again would find the cache full: huggingface/peft #869). **Zero is no
identity**: a key of zeros still takes its share of the softmax, so no start computes the base.

Left out: PEFT's ``init_weights="zero"``, for that reason; encoder-decoders.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..checks import check_switch, check_whole
from ..lora.adapter_config import AttachedConfig
from ..lora.attached import Attached
from .streams import check_room, check_text, decoder_of, has_past


@dataclass(frozen=True)
class PrefixTuningConfig(AttachedConfig):
    """Prefix tuning's settings, with PEFT's names (arXiv 2101.00190).

    - ``num_virtual_tokens``: k, the keys and values before each text.
    - ``prefix_projection``: train them through an MLP of ``encoder_hidden_size`` (default: as wide
      as a layer's keys).

    Raises ``ValueError`` or ``TypeError`` on values that mean nothing.

    >>> import minilora
    >>> model = minilora.load_base()
    >>> minilora.inject(model, PrefixTuningConfig(num_virtual_tokens=4)).trainable
    3072
    """

    peft_type: ClassVar[str] = "PREFIX_TUNING"
    num_virtual_tokens: int
    prefix_projection: bool = False
    encoder_hidden_size: int | None = None

    def __post_init__(self) -> None:
        check_whole("num_virtual_tokens", self.num_virtual_tokens, 1)
        check_switch("prefix_projection", self.prefix_projection)
        if self.encoder_hidden_size is not None:
            check_whole("encoder_hidden_size", self.encoder_hidden_size, 1)

    def build(self, model: nn.Module) -> dict[tuple[str, str], Attached]:
        """One prefix in the decoder."""
        path, decoder = decoder_of(model, "prefix tuning")
        check_room(self.num_virtual_tokens, decoder, "a prefix")
        check_no_checkpointing(decoder)
        c = decoder.config
        width = c.num_key_value_heads * c.head_dim
        hidden = (self.encoder_hidden_size or width) if self.prefix_projection else None
        prefix = Prefix(self.num_virtual_tokens, c.num_hidden_layers, width, c.head_dim, hidden)
        return {(path, "prefix"): prefix.to(decoder.embed_tokens.weight.device)}

    def fields(self, model: nn.Module) -> dict[str, Any]:
        """As PEFT writes them."""
        _, decoder = decoder_of(model, "prefix tuning")
        c = decoder.config
        width = c.num_key_value_heads * c.head_dim
        return {
            "num_virtual_tokens": self.num_virtual_tokens,
            "token_dim": width,
            "num_layers": c.num_hidden_layers,
            "num_attention_heads": c.num_key_value_heads,
            "num_transformer_submodules": 1,
            "prefix_projection": self.prefix_projection,
            "encoder_hidden_size": self.encoder_hidden_size or width,
        }


class Prefix(Attached):
    """Keys and values in every layer's cache before the text.

    >>> Prefix(k=3, layers=2, width=8, head_dim=4).keys_and_values()[0].shape
    torch.Size([2, 3, 4])
    """

    why_not_mergeable = "a prefix is keys and values in the cache, not a weight"
    puts_rows_before = True
    neutral: ClassVar[Mapping[str, float | None]] = {"embedding.weight": None}

    def __init__(self, k: int, layers: int, width: int, head_dim: int, hidden: int | None = None):
        super().__init__()
        self.layers, self.head_dim = layers, head_dim
        columns = layers * 2 * width
        self.embedding = nn.Embedding(
            k, columns if hidden is None else width
        )  # N(0, 1), as in PEFT
        self.transform: nn.Module = nn.Identity()
        if hidden is not None:
            first, last = nn.Linear(width, hidden), nn.Linear(hidden, columns)
            self.transform = nn.Sequential(first, nn.Tanh(), last)

    def table(self) -> Tensor:
        """All keys and values, (k, layers · 2 · kv_heads · head_dim): what a file holds."""
        return self.transform(self.embedding.weight)

    def keys_and_values(self) -> Tensor:
        """k₀ v₀ k₁ v₁ …, each (kv_heads, k, head_dim), in one tensor."""
        rows = self.table()
        split = rows.view(len(rows), 2 * self.layers, -1, self.head_dim)  # (k, 2L, heads, head_dim)
        return split.permute(1, 2, 0, 3)

    def hook(self, host: nn.Module) -> None:
        """Before the decoder."""
        self.handles = [host.register_forward_pre_hook(self.before, with_kwargs=True)]

    def before(self, decoder: Any, arguments: Any, named: Any) -> Any:
        """Fill an empty cache, or one made for this pass."""
        ids, segments, cache, vectors = (*arguments, named.get("inputs_embeds"))[:4]
        batch, time = (ids if vectors is None else vectors).shape[:2]
        if not self.enabled or (cache is not None and has_past(cache, batch)):
            return None
        check_no_checkpointing(decoder)
        check_text(len(self.embedding.weight), time, segments, decoder, "a prefix")
        cache = decoder.new_cache() if cache is None else cache
        pairs = self.keys_and_values().to(decoder.embed_tokens.weight.dtype)
        rows = [pair.expand(batch, -1, -1, -1) for pair in pairs]  # (batch, heads, k, head_dim)
        cache.fill(rows[0::2], rows[1::2])
        return (ids, segments, cache, vectors), {}

    def tensors(self) -> dict[str, Tensor]:
        """The table, by PEFT's name."""
        return {"prompt_embeddings": self.table().detach()}

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """The table of a file; an MLP that made it is not needed any more."""
        table = tensors["prompt_embeddings"].to(self.embedding.weight)
        trains = self.embedding.weight.requires_grad
        self.embedding = nn.Embedding.from_pretrained(table.clone(), freeze=not trains)
        self.transform = nn.Identity()

    def __repr__(self) -> str:
        k, columns = len(self.embedding.weight), self.embedding.weight.shape[1]
        return f"Prefix({k} x {columns}{', projected' * bool(list(self.transform.children()))})"


def check_no_checkpointing(decoder: Any) -> None:
    """Raise ``ValueError`` where blocks would be computed twice with one cache."""
    if decoder.gradient_checkpointing:
        raise ValueError(
            "a prefix fills the cache, and gradient checkpointing computes each block a second "
            "time, which would find it full: set model.model.gradient_checkpointing = False"
        )
