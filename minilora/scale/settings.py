"""The settings of a federation: ``Rounds``, checked when they are made."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace

from ..checks import check_positive, is_number
from ..lora.config import LoraConfig
from ..text import did_you_mean
from ..training.config import TrainConfig
from .federated import AGGREGATORS

ANY_RANK = ("stack", "svd")  # ways that take clients whose ranks differ


@dataclass(frozen=True)
class Rounds:
    """How a federation learns. Raises ``ValueError`` on values that mean nothing.

    - ``how``: ``factors``, ``svd``, ``stack`` or ``frozen_a`` (federated.py); ``fewest``: of fewer
      clients no round is made.
    - ``rounds``, and ``steps`` that a client takes in each, with ``lr`` and ``batch_size``.
    - ``r``, ``lora_alpha``, ``targets``: the adapter; targets as names with commas, or
      ``all-linear``. Under ``stack`` and ``svd`` a client may take a smaller rank (``of_rank``).
    - ``clipping_norm`` (0: none) and ``noise_multiplier``: a client's change of all its factors is
      clipped to that length C, and gets noise of σ = noise_multiplier · 2 C (privacy.py).

    >>> Rounds(r=4, targets="q_proj,v_proj").lora().target_modules
    ('q_proj', 'v_proj')
    """

    how: str = "stack"
    rounds: int = 3
    steps: int = 30
    lr: float = 5e-3
    batch_size: int = 16
    r: int = 4
    lora_alpha: float = 8
    targets: str = "q_proj,v_proj"
    seed: int = 0
    fewest: int = 1
    clipping_norm: float = 0.0
    noise_multiplier: float = 0.0

    def __post_init__(self) -> None:
        if self.how not in AGGREGATORS:
            hint = did_you_mean(self.how, AGGREGATORS, f"known are {', '.join(AGGREGATORS)}")
            raise ValueError(f"no how={self.how!r}: {hint}")
        for name in ("rounds", "fewest"):
            value = getattr(self, name)
            if not is_number(value, int) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
        for name in ("clipping_norm", "noise_multiplier"):
            if getattr(self, name):
                check_positive(name, getattr(self, name))
        if self.noise_multiplier and not self.clipping_norm:
            raise ValueError("noise without a clipping_norm promises nothing: give both")
        self.lora()
        self.settings("", 0)

    def of_rank(self, r: int | None) -> Rounds:
        """What a client that cannot afford ``r`` trains: a smaller rank, the same scaling α / r.

        Raises ``ValueError`` for more than the run's ``r``, and where factors are averaged, which
        takes one rank for all.

        >>> own = Rounds(r=8, lora_alpha=16).of_rank(2)
        >>> own.r, own.lora_alpha
        (2, 4.0)
        """
        if r is None or r == self.r:
            return self
        if self.how not in ANY_RANK:
            raise ValueError(
                f"how={self.how!r} takes one rank for all clients: expected r={self.r}, got {r}; "
                "'stack' and 'svd' take others"
            )
        if not is_number(r, int) or not 1 <= r <= self.r:
            raise ValueError(f"a client's r must be from 1 to the run's r={self.r}, got {r!r}")
        return replace(self, r=r, lora_alpha=self.lora_alpha * r / self.r)

    def lora(self) -> LoraConfig:
        """The adapter's config."""
        names = [name.strip() for name in self.targets.split(",")]
        targets = self.targets if names == ["all-linear"] else names
        return LoraConfig(r=self.r, lora_alpha=self.lora_alpha, target_modules=targets)

    def settings(self, client: str, number: int) -> TrainConfig:
        """How a client trains in a round; its order of examples is its own."""
        seed = zlib.crc32(f"{self.seed} {client} {number}".encode())
        return TrainConfig(
            steps=self.steps, lr=self.lr, batch_size=self.batch_size, seed=seed,
            validate_every=0, keep_best=False, progress=False,
        )  # fmt: skip
