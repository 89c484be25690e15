"""The processes that train one model together, seen from the loop; here there is only one.

    own(parts)          which parts of a step's batch this rank computes          all
    add_up(…)           Σ over the ranks of gradients and losses                  what is there
    each(count, value)  values that ranks share out among them (validation)       computed here
    stopped()           whether a rank was told to stop                           whether this was
    writes              whether this rank writes files and shows the progress     yes

``Alone`` answers for one process. ``scale/distributed.py`` answers for several, and the loop, which
calls these few methods, does not know which of the two it has.

Dropout is seeded by part: it does not matter which rank computes a part.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .config import TrainConfig


class RankLost(ConnectionError):
    """Another rank ended or does not answer, so this one cannot take the next step.

    >>> raise RankLost("step 7: rank 1 is gone")
    Traceback (most recent call last):
    minilora.training.ranks.RankLost: step 7: rank 1 is gone
    """


class Alone:
    """One process: every part is its own, and the sum over the ranks is what it has.

    >>> Alone().own(3), Alone().add_up(nn.Identity(), [0.5, 0.25])
    (range(0, 3), [0.5, 0.25])
    """

    rank, world = 0, 1
    sharded = False  # whether the ranks hold the base together, and so compute in step

    def __init__(self) -> None:
        self.interrupted = threading.Event()

    @property
    def writes(self) -> bool:
        """Whether this rank writes files and shows the progress."""
        return self.rank == 0

    def divide(self, config: TrainConfig) -> TrainConfig:
        """The same settings with parts enough for every rank."""
        return config

    def own(self, parts: int) -> range:
        """Which of a step's parts this rank computes."""
        return range(self.rank, parts, self.world)

    def add_up(self, model: nn.Module, losses: list[float]) -> list[float]:
        """Sum the gradients of all ranks in place, and the losses (0 for a part of another's)."""
        return losses

    def each(self, count: int, value: Callable[[int], float]) -> list[float]:
        """``value`` of every number below ``count``, each computed by one of the ranks."""
        return [value(number) for number in range(count)]

    def stopped(self) -> bool:
        """Whether the run shall end before the next step: the same on every rank."""
        return self.interrupted.is_set()

    def check_same(self, identity: Mapping[str, Any]) -> None:
        """Raise ``ValueError``, on every rank, unless all ranks have the same."""

    @contextlib.contextmanager
    def copy_of(self, file: Path) -> Iterator[Path]:
        """The first rank's file, where this rank can read it."""
        yield file

    def notes(self, model: nn.Module, config: TrainConfig) -> list[str]:
        """What to know before the first step."""
        return []


def part_seeds(parts: int, generator: torch.Generator | None = None) -> list[int]:
    """A seed for each part of a step, drawn from the step's generator; none for a single part.

    >>> len(part_seeds(1)), len(set(part_seeds(4)))
    (0, 4)
    """
    if parts == 1:
        return []
    return torch.randint(2**62, (parts,), generator=generator).tolist()


def seed_part(seeds: Sequence[int], part: int) -> None:
    """Seed the dropout of a part."""
    if seeds:
        torch.manual_seed(seeds[part])
