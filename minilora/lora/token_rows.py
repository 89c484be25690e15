"""A few tokens' vectors, trained: what a new special token needs, and nothing else of the table.

    E'[i] = row_i  for the chosen tokens i,    E'[j] = E[j]  for all others

A full embedding in ``modules_to_save`` costs tokens × d parameters, saved in every adapter; k rows
cost k d. The rows begin as the table's own, so the model computes what it did, to the bit.

Where the output head is tied to the table, a token's vector is also what its logit is computed
with; so the head follows (``TiedHead``), as in PEFT:

    logits[i] += h · (row_i − E[i])

Source: PEFT 0.21 ``tuners/trainable_tokens/layer.py``. It copies the whole table in every forward
pass; here only the chosen rows are touched.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checks import is_number
from .adapter_layer import AdapterLayer
from .linears import embedding_shape, is_linear, linear_shape, made_beside, weight_of


def row_shape(module: nn.Module) -> tuple[int, int]:
    """(in, out) of a table whose rows are tokens: an Embedding or an output head."""
    return linear_shape(module) if is_linear(module) else embedding_shape(module)


def width_of(module: nn.Module) -> int:
    """Numbers in one token's row."""
    return row_shape(module)[not is_linear(module)]


class TokenRows(AdapterLayer):
    """An Embedding, or an output head, some of whose tokens have trained rows.

    The rows are float32 beside half precision, as in PEFT: small steps vanish in bf16. Raises
    ``ValueError`` for tokens that are none of the table's, or named twice.

    >>> layer = TokenRows(nn.Embedding(10, 4), [3, 7])
    >>> layer
    TokenRows(10 -> 4, tokens=[3, 7])
    >>> _ = nn.init.zeros_(layer.rows)
    >>> layer(torch.tensor([3, 4])).abs().sum(dim=-1) == 0
    tensor([ True, False])
    """

    neutral: ClassVar[Mapping[str, float | None]] = {"rows": None}  # decay would forget the tokens

    def __init__(self, base: nn.Module, tokens: Sequence[int]):
        super().__init__(base)
        self.tokens = list(tokens)
        table: Tensor = base.weight.detach()  # type: ignore[operator, union-attr, assignment]
        check_tokens(self.tokens, len(table))
        slots = torch.full((len(table),), -1, device=table.device)
        slots[self.tokens] = torch.arange(len(self.tokens), device=table.device)
        self.register_buffer("slots", slots, persistent=False)  # (tokens,) of the table: row or -1
        rows = table[self.tokens].to(**made_beside(base), copy=True)  # (k, d)
        self.rows = nn.Parameter(rows)
        base.requires_grad_(False)

    @staticmethod
    def shape_of(base: nn.Module) -> tuple[int, int]:
        """(in, out) of an Embedding or a head."""
        return row_shape(base)

    @property
    def is_head(self) -> bool:
        """Whether the base gives logits, not vectors."""
        return not isinstance(self.base, nn.Embedding)

    def adapt(self, base: nn.Module, x: Tensor) -> Tensor:
        """Ids (…) to vectors (…, d); a head's hidden states (…, d) to logits (…, tokens)."""
        return add_to_logits(self, base, x) if self.is_head else self.look_up(base, x)

    def look_up(self, base: nn.Module, ids: Tensor) -> Tensor:
        """The table's vectors, and the trained ones of the chosen tokens."""
        slots: Tensor = self.slots[ids]  # type: ignore[index]
        chosen, vectors = (slots >= 0).unsqueeze(-1), base(ids)
        return torch.where(chosen, self.rows[slots.clamp(min=0)].to(vectors.dtype), vectors)

    def fold(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The weight (out, in) with the trained rows in place."""
        folded, rows = weight.clone(), self.rows.detach().to(weight)
        if self.is_head:
            folded[self.tokens] = rows
        else:
            folded[:, self.tokens] = rows.T
        return folded, bias

    def __repr__(self) -> str:
        sizes = f"{self.in_features} -> {self.out_features}, tokens={self.tokens}"
        return f"{type(self).__name__}({sizes}{', merged' * self.merged})"


class TiedHead(AdapterLayer):
    """An output head that shares its weight with an Embedding, and follows that one's rows.

    It has no parameters of its own. A merge writes into the shared weight once, by the Embedding's
    layer; here it only turns the extra term off.
    """

    def __init__(self, base: nn.Module, leader: TokenRows):
        super().__init__(base)
        self.leads = (leader,)  # a tuple, so no submodule

    @property
    def rows(self) -> nn.Parameter:
        """The Embedding's trained rows (k, d)."""
        return self.leads[0].rows

    @property
    def tokens(self) -> list[int]:
        """The tokens that they belong to."""
        return self.leads[0].tokens

    def adapt(self, base: nn.Module, x: Tensor) -> Tensor:
        """Hidden states (…, d) to logits (…, tokens)."""
        return add_to_logits(self, base, x)

    def fold(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The weight (tokens, d) with the trained rows in place."""
        folded = weight.clone()
        folded[self.tokens] = self.rows.detach().to(weight)
        return folded, bias

    def put(self, merged_base: nn.Module, keep_base: bool = True) -> None:
        """Note the merge; the Embedding's layer has written it into the shared weight."""
        self.kept, self.merged = ((self.base,) if keep_base else ()), True

    def swap(self) -> None:
        """The Embedding's layer does it."""

    def original_base(self) -> nn.Module | None:
        """The Embedding's, whose weight is the shared one."""
        return self.leads[0].original_base()

    def __repr__(self) -> str:
        sizes = f"{self.in_features} -> {self.out_features}, tokens={self.tokens}"
        return f"TiedHead({sizes}{', merged' * self.merged})"


def add_to_logits(layer: TokenRows | TiedHead, base: Any, x: Tensor) -> Tensor:
    """``y[…, i] += x · (row_i − W[i])`` for the chosen tokens; nothing at all before training."""
    y, tokens = base(x), torch.tensor(layer.tokens, device=x.device)
    difference = layer.rows - weight_of(base)[tokens]  # (k, d)
    return y.index_add(-1, tokens, F.linear(x, difference.to(x.dtype)).to(y.dtype))


def check_tokens(tokens: Sequence[int], size: int | None = None) -> None:
    """Raise unless these are different tokens, of a table with ``size`` rows if it is given.

    >>> check_tokens([3, 3])
    Traceback (most recent call last):
    ValueError: trainable_token_indices names token 3 twice
    """
    seen: set[int] = set()
    if not tokens:
        raise ValueError("trainable_token_indices is empty: name at least one token")
    for token in tokens:
        if not is_number(token, int) or token < 0:
            raise TypeError(f"trainable_token_indices must be token ids from 0, got {token!r}")
        if size is not None and token >= size:
            raise ValueError(
                f"trainable_token_indices names token {token}, but the table has {size}: "
                "resize it first (transformers: model.resize_token_embeddings)"
            )
        if token in seen:
            raise ValueError(f"trainable_token_indices names token {token} twice")
        seen.add(token)
