"""Which examples a step gets, and how they lie in its tensors: padded, packed or grouped.

    waste = cells computed / cells needed

Real examples differ in length: a batch that is padded to its longest example may compute three
times the cells it needs. Two cures, either of which keeps the order a function of (seed, step), so
a resumed run sees the same batches as an uninterrupted one:

    packed    several examples share a row as long as the longest of them; the batches stay as
              random as padded ones, but the model must keep the examples of a row apart
    grouped   batches are cut from pools of examples that are sorted by length, and come in random
              order; any model can take them, but the examples of a batch are alike

``TrainConfig.pack=None`` takes the first where the model allows it, the second elsewhere, and
neither where padding costs little (``WORTHWHILE``). Grouping is what transformers calls
``group_by_length``; packing without one example seeing another is section 3 of arXiv 2107.02027.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .batches import Batch, Encoded, pack, pad
from .config import TrainConfig

WORTHWHILE = 1.5  # of ``waste``; below it padding is simpler, and about as fast
LOOKED_AT = 32  # steps whose waste decides
POOL = 50  # batches of examples that are sorted together


@dataclass(frozen=True)
class Layout:
    """How a run's examples lie: one a row, ``packed`` into rows of ``room`` tokens, or ``grouped``.

    A room of 0 is as long as the longest example of the part.

    >>> Layout(packed=True).collate([Encoded([1] * n, [1] * n) for n in (4, 3, 1)]).ids.shape
    torch.Size([2, 4])
    """

    packed: bool = False
    grouped: bool = False
    room: int = 0

    def collate(self, rows: Sequence[Encoded]) -> Batch:
        """Examples as one batch."""
        if not self.packed:
            return pad(rows)
        return pack(rows, self.room or max(len(row.ids) for row in rows))

    def notes(self) -> list[str]:
        """What this does to the examples, where it was not asked for."""
        if self.packed and not self.room:
            return ["examples of uneven length: several share a row (pack=False pads them)"]
        uneven = "examples of uneven length: a batch holds those that are alike"
        return [f"{uneven} (pack=False mixes them)"] if self.grouped else []

    def indices(self, lengths: tuple[int, ...], config: TrainConfig, step: int) -> list[int]:
        """Which of the examples of these lengths make up the batch of a step."""
        alike = lengths if self.grouped else None
        return batch_indices(len(lengths), config.batch_size, step, config.seed, alike)


def choose_layout(rows: Sequence[Encoded], config: TrainConfig, can_pack: bool) -> Layout:
    """The layout that the settings ask for, or else the one that these examples need."""
    if config.pack is not None:
        return Layout(packed=config.pack, room=config.max_length)
    cure = Layout(packed=True) if can_pack else Layout(grouped=True)
    padded = cells(rows, config, Layout())
    return cure if padded >= WORTHWHILE * cells(rows, config, cure) else Layout()


def cells(rows: Sequence[Encoded], config: TrainConfig, layout: Layout) -> int:
    """Places of the tensors of the first steps."""
    lengths = tuple(len(row.ids) for row in rows)
    total = 0
    for step in range(min(config.steps, LOOKED_AT)):
        chosen = [rows[i] for i in layout.indices(lengths, config, step)]
        total += sum(layout.collate(part).ids.numel() for part in in_parts(chosen, config))
    return total


def in_parts(chosen: Sequence[Encoded], config: TrainConfig) -> list[Sequence[Encoded]]:
    """The examples of a step, cut into the parts that are computed one after the other."""
    size = config.part_size
    return [chosen[i : i + size] for i in range(0, len(chosen), size)]


def batch_indices(
    count: int, batch_size: int, step: int, seed: int, lengths: tuple[int, ...] | None = None
) -> list[int]:
    """Which of ``count`` examples make up the batch of a step; with ``lengths`` those alike.

    Every example comes once an epoch, and each epoch has an order of its own.

    >>> sorted(batch_indices(4, 2, 0, seed=1) + batch_indices(4, 2, 1, seed=1))
    [0, 1, 2, 3]
    """
    start, stop = step * batch_size, (step + 1) * batch_size
    return indices_between(count, start, stop, seed, lengths, batch_size)


def indices_between(
    count: int,
    start: int,
    stop: int,
    seed: int,
    lengths: tuple[int, ...] | None = None,
    batch_size: int = 1,
) -> list[int]:
    """The examples from one position to another of an endless row, epoch after epoch.

    >>> sorted(indices_between(3, 0, 3, seed=0)), indices_between(3, 5, 5, seed=0)
    ([0, 1, 2], [])
    """
    chosen: list[int] = []
    for position in range(start, stop):
        epoch, offset = divmod(position, count)
        if not chosen or offset == 0:
            order = (
                random_order(count, epoch, seed)
                if lengths is None
                else grouped_order(lengths, batch_size, epoch, seed)
            )
        chosen.append(order[offset])
    return chosen


@functools.lru_cache(maxsize=4)
def random_order(count: int, epoch: int, seed: int) -> list[int]:
    """An epoch's order."""
    random = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return torch.randperm(count, generator=random).tolist()


@functools.lru_cache(maxsize=4)
def grouped_order(lengths: tuple[int, ...], batch_size: int, epoch: int, seed: int) -> list[int]:
    """An epoch's order in which the examples of a batch are of about the same length.

    The first few complete the last batch of the epoch before.
    """
    count = len(lengths)
    order = random_order(count, epoch, seed)
    first = -epoch * count % batch_size
    batches: list[list[int]] = []
    for start in range(first, count, POOL * batch_size):
        pool = sorted(order[start : start + POOL * batch_size], key=lambda i: lengths[i])
        batches += [pool[i : i + batch_size] for i in range(0, len(pool), batch_size)]
    whole = [batch for batch in batches if len(batch) == batch_size]
    rest = [batch for batch in batches if len(batch) < batch_size]  # the next epoch completes it
    shuffled = [whole[i] for i in random_order(len(whole), epoch, seed + 1)]
    return order[:first] + [i for batch in shuffled + rest for i in batch]
