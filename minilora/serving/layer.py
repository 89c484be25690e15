"""A Linear whose rows have adapters of their own, and the buffers that hold those adapters.

    y = x Wᵀ + b                       one product for all rows
    y[i] += (x[i] A[i]ᵀ) B[i]          lora/rows.py: row i's own A (R, in) and B (R, out)

**A row owns its copy.** Admission copies an adapter's factors into the row, so nothing that happens
to the adapter afterwards (unloaded, evicted, loaded anew under its old name) reaches a request in
flight: vLLM #47724 and sglang #7426 tell what happens otherwise. The copy takes a quarter of a
millisecond. Gathering the factors at every step would cost more than the products themselves.

**Whole rows are overwritten**, the ranks that the new adapter does not use too, and in every
module, also those that it does not adapt: nothing of the row's last tenant is left (sglang #8103).

**Ranks are filled up to one fixed R**, never to the batch's largest: another length of the inner
sum is another order of its terms, and then a row's last bits would depend on its neighbours.

A module gets its buffers when the first adapter that needs it is admitted. They take
``rows · R · (in + out)`` numbers a module.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..lora.linears import linear_shape, made_beside
from ..lora.rows import add_rows, add_rows_plainly
from ..lora.watchers import is_ours_alone


class Factors(NamedTuple):
    """One module's update as a row takes it: A (r, in), B (r, out), the scaling folded into B."""

    A: Tensor
    B: Tensor


Weighted = tuple[Mapping[str, Factors], float]  # an adapter's factors by module path, its weight


class RowLinear(nn.Module):
    """``base(x)`` plus each row's own update; ``base`` is a Linear, ``NF4Linear`` or ``Conv1D``.

    A and B are float32 when the base computes in half precision, as in ``LoRALayer``. The rows of a
    call are those of the window (``look_at``): x (rows, …, in), or flattened to (rows · time, in).

    >>> base = nn.Linear(2, 1, bias=False)
    >>> _ = nn.init.ones_(base.weight)
    >>> layer = RowLinear(base, rows=2, max_rank=4)
    >>> layer.put(1, [(Factors(torch.ones(1, 2), torch.full((1, 1), 3.0)), 1.0)])
    >>> with torch.no_grad():
    ...     layer(torch.tensor([[1.0, 2.0], [1.0, 2.0]]))
    tensor([[ 3.],
            [12.]])
    """

    A: Tensor
    B: Tensor

    def __init__(self, base: nn.Module, rows: int, max_rank: int):
        super().__init__()
        self.in_features, self.out_features = linear_shape(base)
        self.base = base
        made = made_beside(base)
        A = torch.zeros(rows, max_rank, self.in_features, **made)
        B = torch.zeros(rows, max_rank, self.out_features, **made)
        self.register_buffer("A", A, persistent=False)
        self.register_buffer("B", B, persistent=False)
        self.look_at(0, rows)

    def look_at(self, start: int, stop: int) -> None:
        """The next calls are about these rows."""
        self.seen = self.A[start:stop], self.B[start:stop]

    def forward(self, x: Tensor) -> Tensor:
        """(rows, …, in) to (rows, …, out)."""
        y, (A, B) = self.base(x), self.seen
        if x.dtype == y.dtype == A.dtype and is_ours_alone(self.base, y):
            return add_rows(y, x, A, B)
        return add_rows_plainly(y, x, A, B)

    def put(self, row: int, parts: Sequence[tuple[Factors, float]]) -> None:
        """Overwrite a whole row: ``Σ weight · ΔW``, the factors side by side, zeros after them."""
        end = 0
        for factors, weight in parts:
            start, end = end, end + len(factors.A)
            self.A[row, start:end] = factors.A
            self.B[row, start:end].copy_(factors.B).mul_(weight)
        self.A[row, end:] = 0  # a leftover A alone would do no harm; it costs nothing to be sure
        self.B[row, end:] = 0

    def move(self, source: int, target: int) -> None:
        """Copy a whole row onto another."""
        self.A[target], self.B[target] = self.A[source], self.B[source]

    @property
    def weight(self) -> Tensor:
        """The base's weight, for models that read it."""
        return self.base.weight  # type: ignore[return-value]

    @property
    def bias(self) -> Tensor | None:
        """The base's bias, or None."""
        return getattr(self.base, "bias", None)

    def __repr__(self) -> str:
        rows, rank, _ = self.A.shape
        return f"RowLinear({self.in_features} -> {self.out_features}, {rows} rows, R={rank})"


class AdapterRows:
    """The rows of a whole model: which adapter stands in which row of the next batch.

    ``model`` is changed: Linears become ``RowLinear`` as adapters need them. One thread at a time
    may use it, the one that calls the model.

    >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    >>> rows = AdapterRows(model, max_rank=4, size=8)
    >>> rows.admit(0, [({"1": Factors(torch.ones(1, 2), torch.ones(1, 2))}, 1.0)])
    >>> model
    Sequential(
      (0): Linear(in_features=2, out_features=2, bias=True)
      (1): RowLinear(2 -> 2, 8 rows, R=4)
    )
    """

    def __init__(self, model: nn.Module, max_rank: int, size: int):
        self.model, self.max_rank, self.size = model, max_rank, size
        self.layers: dict[str, RowLinear] = {}
        self.window = (0, size)

    def admit(self, row: int, parts: Iterable[Weighted]) -> None:
        """Give a row the weighted sum of adapters, or none (``[]``); raises nothing half-way.

        Raises ``ValueError`` when their ranks together are above ``max_rank``.
        """
        parts = list(parts)
        for path, rank in total_ranks(parts).items():
            if rank > self.max_rank:
                raise ValueError(
                    f"{path}: ranks of {rank} together, the bank's rows have max_rank="
                    f"{self.max_rank}: name fewer adapters, or make a bank of a higher max_rank"
                )
        for path in {path for factors, _ in parts for path in factors} - self.layers.keys():
            self.widen(path)
        with torch.no_grad():
            for path, layer in self.layers.items():  # all of them: see the head of the module
                own = [(factors[path], weight) for factors, weight in parts if path in factors]
                layer.put(row, own)

    def move(self, source: int, target: int) -> None:
        """Copy a row onto another, as when the last row fills a gap."""
        with torch.no_grad():
            for layer in self.layers.values():
                layer.move(source, target)

    def look_at(self, start: int, stop: int) -> None:
        """The next calls of the model are about the rows from ``start`` up to ``stop``."""
        if not 0 <= start < stop <= self.size:
            raise ValueError(f"expected rows within the {self.size} there are, got {start}:{stop}")
        if (start, stop) != self.window:
            self.window = (start, stop)
            for layer in self.layers.values():
                layer.look_at(start, stop)

    def resize(self, size: int) -> None:
        """Make room for another number of rows; they are empty afterwards."""
        self.size, self.window = size, (0, size)
        for path, layer in self.layers.items():
            self.layers[path] = RowLinear(layer.base, size, self.max_rank).train(layer.training)
            self.model.set_submodule(path, self.layers[path])

    def widen(self, path: str) -> None:
        """Put a ``RowLinear`` around one more Linear: zeros, so every row computes what it did."""
        base = self.model.get_submodule(path)
        layer = RowLinear(base, self.size, self.max_rank).train(base.training)
        layer.look_at(*self.window)
        self.model.set_submodule(path, layer)
        self.layers[path] = layer


def total_ranks(parts: Sequence[Weighted]) -> dict[str, int]:
    """The sum of the ranks in each module."""
    ranks: dict[str, int] = {}
    for factors, _ in parts:
        for path, pair in factors.items():
            ranks[path] = ranks.get(path, 0) + len(pair.A)
    return ranks
