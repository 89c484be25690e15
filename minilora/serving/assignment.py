"""Who gets which adapter: an experiment's settings, and the draw.

experiments.toml, or ``POST /v1/experiments`` with the same fields::

    [greeting]
    model = "naval"                                      # who asks for this name may take part
    arms = { old = "naval@1.0.0", new = "naval@1.1.0" }  # the first is the control
    shares = { old = 0.5, new = 0.5 }                    # equal shares are the default
    ramp = 0.2                                           # the share of users who take part

A program may say two more things: ``tenant``, whose users take part (default: everybody's), and
``champion``, the version that the alias must mean: once it means another, nobody is drawn.

**The draw** is a pure function, so it needs no table and can be replayed::

    blake2b(salt, tenant, user) = u ‖ v, two numbers in [0, 1)
    takes part  ⇔  u < ramp                 arm = the one whose part of [0, 1) holds v

Two numbers instead of one: when the ramp grows, new users come in and nobody changes arms. A log
needs u ‖ v only, which hides the user's name from anyone who does not know the salt. Two
experiments draw independently of each other, since the salt is the experiment's name unless it is
given.

Left out: several experiments on one name at once, and arms that differ in more than the adapter.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

from ..files import parse_toml, read_text
from ..text import did_you_mean


@dataclass(frozen=True)
class Experiment:
    """Its settings; ``shares`` are of the users who take part, ``alpha`` is the error allowed.

    Raises ``ValueError``, which says what is wrong.

    >>> Experiment("greeting", "naval", {"old": "naval@1.0.0", "new": "naval@1.1.0"}).shares
    {'old': 0.5, 'new': 0.5}
    """

    name: str
    model: str
    arms: Mapping[str, str]
    shares: Mapping[str, float] = dataclasses.field(default_factory=dict)
    ramp: float = 1.0
    alpha: float = 0.05
    salt: str = ""
    tenant: str = ""
    champion: str = ""

    def __post_init__(self) -> None:
        arms, where = self.arms, f"experiment {self.name!r}: expected"
        if not (isinstance(arms, Mapping) and len(arms) > 1 and all(map(is_text, arms.values()))):
            raise ValueError(f"{where} two arms or more, name = adapter, got {arms!r:.80}")
        if not (is_text(self.name) and is_text(self.model) and isinstance(self.salt, str)):
            raise ValueError(f"{where} texts for name, model and salt, got {self.model!r:.80}")
        shares = dict(self.shares) or dict.fromkeys(arms, 1 / len(arms))
        numbers = [*shares.values(), self.ramp, self.alpha]
        if not all(isinstance(n, int | float) and 0 <= n <= 1 for n in numbers):
            raise ValueError(f"{where} shares, ramp and alpha from 0 to 1, got {numbers}")
        if shares.keys() != arms.keys() or min(shares.values()) <= 0:
            raise ValueError(f"{where} a share above 0 for each arm, got {shares}")
        if not math.isclose(sum(shares.values()), 1) or not 0 < self.alpha < 1:
            raise ValueError(f"{where} shares that sum to 1 and 0 < alpha < 1, got {numbers}")
        object.__setattr__(self, "shares", shares)

    @classmethod
    def of(cls, name: str, fields: Mapping[str, Any]) -> Experiment:
        """From the fields of a file or a request. Raises ``ValueError``."""
        known = [field.name for field in dataclasses.fields(cls)]
        for field in fields:
            if field not in known[1:]:
                hint = did_you_mean(field, known, f"known are {', '.join(known[1:])}")
                raise ValueError(f"experiment {name!r} has no {field!r}: {hint}")
        missing = {"model", "arms"} - fields.keys()
        if missing:
            raise ValueError(f"experiment {name!r} needs {' and '.join(sorted(missing))}")
        return cls(name, **fields)

    @property
    def fields(self) -> dict[str, Any]:
        """All but the name, for JSON; ``tenant`` and ``champion`` only where they are set."""
        fields = dataclasses.asdict(self)
        unset = {each for each in ("tenant", "champion") if not fields[each]}
        return {each: value for each, value in fields.items() if each not in {"name", *unset}}

    def unit(self, user: str, tenant: str = "local") -> str:
        """A user as the log has them: u ‖ v, 16 bytes in hexadecimal digits."""
        text = json.dumps([self.salt or self.name, tenant, user])  # unambiguous: not tenant + user
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def arm(self, unit: str) -> str | None:
        """The arm of a unit; None for one who does not take part.

        >>> old_and_new = Experiment("greeting", "naval", {"old": "a", "new": "b"}, ramp=0.5)
        >>> [old_and_new.arm(old_and_new.unit(user)) for user in ("ann", "bob", "eve", "joe")]
        ['old', None, None, 'old']
        """
        u, v = (int(half, 16) / 2**64 for half in (unit[:16], unit[16:]))
        if u >= self.ramp:
            return None
        ends = accumulate(self.shares.values())
        return next(
            (arm for arm, end in zip(self.arms, ends, strict=True) if v < end), [*self.arms][-1]
        )


def is_text(value: Any) -> bool:
    """Whether a value is a text that is not empty."""
    return isinstance(value, str) and value != ""


class Assignment(NamedTuple):
    """What was drawn for a request."""

    experiment: str
    arm: str
    adapter: str
    unit: str


def read_experiments(file: Path) -> list[Experiment]:
    """The experiments of a TOML file. Raises ``ValueError``."""
    text = read_text(file, "an experiments.toml")
    try:
        tables = parse_toml(text)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    if stray := [name for name, table in tables.items() if not isinstance(table, dict)]:
        raise ValueError(f"{file}: expected a table for each experiment, got {stray[0]} = …")
    return [Experiment.of(name, table) for name, table in tables.items()]
