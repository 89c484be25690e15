"""One data set dealt to several clients: alike, or each with a taste of its own.

    p_k ~ Dirichlet(c, …, c)        for each label k, the shares of the clients

Large c: every client has the same mixture. Small c: most of a label lies with one client, and
clients differ in size too (arXiv 1909.06335, section 2, deals a client's labels so; here it is a
label's clients, as in arXiv 1905.12022). The label of a ship's log is what its answer begins with:
a system, or the engines' order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from ..training.examples import Example

TRIES = 1000
SMALLEST = 0.01  # far below, gamma variates stop at the smallest float and all shares are *equal*


def first_word(example: Example) -> str:
    """What an answer begins with.

    >>> first_word(Example("Status?", "Hull 90%. All stop.", "Log: Hull 90%, Engines stop."))
    'Hull'
    """
    return (example.output.split() or [""])[0]


def split_among(
    examples: Sequence[Example],
    clients: int,
    *,
    concentration: float = math.inf,
    seed: int = 0,
    least: int = 1,
    label: Callable[[Example], str] = first_word,
) -> dict[str, tuple[Example, ...]]:
    """Every example to one client; ``concentration`` is the c above, infinite for a plain deal.

    No client gets fewer than ``least`` examples: the shares are drawn again until it is so. Raises
    ``ValueError`` where that cannot be.

    >>> from minilora import data
    >>> dealt = split_among(data.naval_log(100, 1).train, 4)
    >>> [len(own) for own in dealt.values()]
    [25, 25, 25, 25]
    """
    if clients < 1 or least < 1 or clients * least > len(examples):
        raise ValueError(
            f"expected at least {least} of {len(examples)} examples for each of {clients} clients"
        )
    if not concentration >= SMALLEST:
        raise ValueError(
            f"concentration must be at least {SMALLEST}, where nearly all of a label lies with one "
            f"client, got {concentration}"
        )
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(examples), generator=generator).tolist()
    if concentration == math.inf:
        return named([order[client::clients] for client in range(clients)], examples)
    for _ in range(TRIES):
        owners = deal(examples, order, clients, concentration, label, generator)
        if min(map(len, owners)) >= least:
            return named(owners, examples)
    raise ValueError(
        f"no deal with concentration={concentration} gave each of {clients} clients {least} "
        "examples: take a larger concentration, or fewer clients"
    )


def deal(
    examples: Sequence[Example],
    order: Sequence[int],
    clients: int,
    concentration: float,
    label: Callable[[Example], str],
    generator: torch.Generator,
) -> list[list[int]]:
    """One draw of each label's shares; then its examples in the order, cut at those shares."""
    rows: dict[str, list[int]] = {}
    for row in order:
        rows.setdefault(label(examples[row]), []).append(row)
    owners: list[list[int]] = [[] for _ in range(clients)]
    for own in (rows[name] for name in sorted(rows)):
        gammas = torch._standard_gamma(torch.full((clients,), concentration).double(), generator)
        ends = (gammas.cumsum(0) / gammas.sum() * len(own)).round().int().tolist()
        for client, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
            owners[client] += own[start:end]
    return owners


def named(
    owners: Sequence[Sequence[int]], examples: Sequence[Example]
) -> dict[str, tuple[Example, ...]]:
    """Rows as examples, by a client's name."""
    return {
        f"client {number}": tuple(examples[row] for row in sorted(rows))
        for number, rows in enumerate(owners)
    }
