"""Keys and values of all past positions: a new token costs one row, not the whole prefix.

A text's tokens are given one after the other, and each attends to all before it. Their keys and
values do not change any more, so they are kept, one slot a row of the batch::

    keys, values    for each layer (rows, kv_heads, capacity, head_dim)
    lengths         how many positions of each row are filled

A pass over new tokens has three moments::

    positions = cache.open(rows, time, kept)     where the new tokens stand in their rows
    k, v = cache.write(layer, k, v)              in every layer: keep the new, get all
    cache.close()                                the new tokens belong to the past

The new keys are written in place. (Joining old and new by ``cat`` copies the whole past for every
token.) A row that is full gets twice the room, so copies stay rare. Each row has a length of its
own: padding gets no place, on whichever side it stands, so a row's tokens take the positions
0, 1, 2 … and see each other as if the row were alone. ``mask`` hides what lies behind a row's end.
One block a row was the usual form before pages (arXiv 2309.06180 section 3 says what it wastes).

Serving needs three things more. ``first`` chooses the rows of a pass; ``move`` and ``clear`` keep
the rows in use side by side, so that a pass reads a slice of them; ``multiple`` pads what attention
reads. Its kernels then see few different sizes, and a row's numbers do not depend on how long its
neighbours are.

Left out: pages that rows share, and forgetting what no window reaches any more.
"""

from __future__ import annotations

import torch
from torch import Tensor

ROOM = 64  # a row's capacity is a multiple of this


class KVCache:
    """Slots for keys and values, written in place; ``lengths`` says how far each row is filled.

    Its shapes are those of the first tokens; ``model(ids, mask, cache)`` does the rest.
    ``multiple``: attention reads so many positions, or a multiple of it; ``rows``: how many slots
    to make at least.

    >>> from minilora.model.transformer import Llama, LlamaConfig
    >>> model, cache = Llama(LlamaConfig(vocab_size=9, hidden_size=8)), KVCache()
    >>> with torch.no_grad():
    ...     whole = model(torch.tensor([[1, 2, 3]]))
    ...     parts = [model(torch.tensor([part]), cache=cache) for part in ([1, 2], [3])]
    >>> torch.allclose(whole, torch.cat(parts, dim=1), atol=1e-6)
    True
    >>> cache.lengths
    [3]
    """

    def __init__(self, multiple: int = 1, rows: int = 0) -> None:
        self.multiple, self.least_rows = multiple, rows
        self.first = 0  # a pass is about the rows from here on
        self.lengths: list[int] = []
        self.keys: list[Tensor] = []  # of a layer: (rows, kv_heads, capacity, head_dim)
        self.values: list[Tensor] = []

    def open(
        self,
        rows: int,
        time: int,
        kept: Tensor | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """Begin a pass over (rows, time) new tokens; returns their positions, (rows or 1, time).

        ``kept`` (rows, time) is 0 for padding, on either side or between; None keeps all.
        """
        self.rows = slice(self.first, self.first + rows)
        self.lengths += [0] * (self.rows.stop - len(self.lengths))
        past = self.lengths[self.rows]
        self.new = [time] * rows if kept is None else kept.count_nonzero(dim=1).tolist()
        self.fresh = not any(past) and (kept is None or pads_right(kept))
        self.in_line = self.fresh or (kept is None and len(set(past)) == 1)
        if self.in_line:  # every row writes the same places, padding on the right behind its end
            positions = torch.arange(past[0], past[0] + time, device=device)[None]
            end = past[0] + time
        else:
            start = torch.tensor(past, device=device)[:, None]
            kept = torch.ones(rows, time, device=device) if kept is None else kept != 0
            behind = start + torch.tensor(self.new, device=device)[:, None]
            # padding goes behind the row's end, where the next token will take its place
            positions = torch.where(kept != 0, start + kept.long().cumsum(dim=1) - 1, behind)
            end = 1 + max(old + new for old, new in zip(past, self.new, strict=True))
        self.positions = positions
        self.size = time if self.fresh else -(-end // self.multiple) * self.multiple
        self.end = end
        return positions

    def mask(self, window: int | None, dtype: torch.dtype) -> Tensor | None:
        """What is added to the scores, (rows or 1, 1, time, keys): 0 for a key that is seen, or -∞.

        A token sees its row up to itself, and with a ``window`` the last so many tokens only. None
        where the causal order says it all.
        """
        window = window if window is not None and window < self.end else None
        single = self.in_line and self.positions.shape[1] == 1 and self.multiple == 1
        if window is None and (self.fresh or single):
            return None
        keys = torch.arange(self.size, device=self.positions.device)
        places = self.positions[:, None, :, None]  # (rows or 1, 1, time, 1)
        hidden = keys > places
        if window is not None:
            hidden |= keys <= places - window
        scores = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device)
        return scores.masked_fill_(hidden, -torch.inf)

    def write(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keep the new (rows, kv_heads, time, head_dim) keys and values; return those of all."""
        self.make_room(layer, k)
        keys, values = self.keys[layer], self.values[layer]
        first, rows, time = self.rows.start, k.shape[0], k.shape[2]
        if rows != keys.shape[0]:
            keys, values = keys.narrow(0, first, rows), values.narrow(0, first, rows)
        if self.in_line:
            keys.narrow(2, self.end - time, time).copy_(k)
            values.narrow(2, self.end - time, time).copy_(v)
        else:
            places = self.positions[:, None, :, None].expand(k.shape)
            keys.scatter_(2, places, k.to(keys.dtype))
            values.scatter_(2, places, v.to(keys.dtype))
        if self.fresh:
            return k, v
        return keys.narrow(2, 0, self.size), values.narrow(2, 0, self.size)

    def close(self) -> None:
        """End the pass: its tokens are the past of the next one."""
        for row, new in enumerate(self.new, self.first):
            self.lengths[row] += new

    def make_room(self, layer: int, k: Tensor) -> None:
        """Slots for this pass: of twice the size where they are too few or too short."""
        if layer == len(self.keys):
            self.keys.append(k.new_zeros(0, k.shape[1], 0, k.shape[3]))
            self.values.append(self.keys[-1])
        rows, _, capacity, _ = self.keys[layer].shape
        needed = max(self.size, self.end)
        if self.rows.stop <= rows and needed <= capacity:
            return
        if needed > capacity:
            capacity = -(-max(needed + ROOM // 2, 2 * capacity) // ROOM) * ROOM
        rows = max(rows, self.rows.stop, self.least_rows)
        for kept in (self.keys, self.values):
            old = kept[layer]
            kept[layer] = old.new_zeros(rows, old.shape[1], capacity, old.shape[3])
            kept[layer][: old.shape[0], :, : old.shape[2]] = old

    def fill(self, keys: list[Tensor], values: list[Tensor]) -> None:
        """Put keys and values of one's own before what follows: (rows, kv_heads, k, head_dim) each.

        That is a prefix (prefix tuning, arXiv 2101.00190), one pair a layer.
        """
        rows, _, time, _ = keys[0].shape
        self.open(rows, time, device=keys[0].device)
        for layer, (k, v) in enumerate(zip(keys, values, strict=True)):
            self.write(layer, k, v)
        self.close()

    def move(self, source: int, target: int) -> None:
        """Copy a row over another, and clear it: a finished row's gap is closed by the last."""
        for slots in (*self.keys, *self.values):
            slots[target] = slots[source]
        self.lengths[target] = self.lengths[source]
        self.clear(source)

    def clear(self, row: int) -> None:
        """Empty a row. Its numbers go too: a NaN behind the end of the next row would reach it."""
        for slots in (*self.keys, *self.values):
            if row < slots.shape[0]:
                slots[row] = 0
        if row < len(self.lengths):
            self.lengths[row] = 0


def pads_right(kept: Tensor) -> bool:
    """Whether each row's padding stands at its end."""
    return bool((kept[:, 1:] <= kept[:, :-1]).all())
