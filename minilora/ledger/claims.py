"""A table that is often repeated, and what the plan says of each of its rows.

    7B   trains on one A100 of 40 GB       serves on a T4
    13B  trains on one A100 of 80 GB       serves on an A10
    70B  trains on four A100 of 80 GB      serves on one

It leaves out what decides: how the base is stored. A row is planned with the base in 16 bits and in
four, LoRA of rank 16 on all Linears, 2,048 tokens, checkpointing; a server has one adapter and one
text of 2,048 tokens at a time. ``minilora plan --claims`` prints it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from ..lora.config import LoraConfig
from .cards import plan_cards
from .estimate import GB
from .serving_costs import plan_serving

TABLE = [  # model, use, card, GB of it, how many
    ("llama-2-7b", "train", "A100", 40, 1),
    ("llama-2-7b", "serve", "T4", 16, 1),
    ("llama-2-13b", "train", "A100", 80, 1),
    ("llama-2-13b", "serve", "A10", 24, 1),
    ("llama-2-70b", "train", "A100", 80, 4),
    ("llama-2-70b", "serve", "A100", 80, 1),
]
CONFIG = LoraConfig(16, 32, "all-linear")
STORED = {"16 bits": False, "4 bits": True}  # how the base is


class Claim(NamedTuple):
    """A row: what is claimed, and the bytes that each of the cards needs by the plan.

    >>> first = next(check_claims())
    >>> first.model, first.card, f"{first.needed['4 bits'] / 1e9:.1f} GB"
    ('llama-2-7b', 'A100', '6.0 GB')
    """

    model: str
    use: str
    card: str
    size: int
    cards: int
    needed: dict[str, int]  # by how the base is stored

    def holds(self, stored: str) -> bool:
        """Whether the claimed cards suffice with the base stored so."""
        return self.needed[stored] <= self.size * GB


def check_claims() -> Iterator[Claim]:
    """Every row of the table with what the plan says.

    >>> [claim.holds("16 bits") for claim in check_claims()]
    [True, True, True, False, True, False]
    """
    for model, use, card, size, count in TABLE:
        plan_use = training if use == "train" else serving
        needed = {stored: plan_use(model, four, count) for stored, four in STORED.items()}
        yield Claim(model, use, card, size, count, needed)


def training(model: str, four_bit: bool, count: int) -> int:
    """Bytes that a fine-tune takes of each of ``count`` cards, by FSDP where there are several."""
    method = "qlora" if four_bit else "lora"
    return plan_cards(model, CONFIG, method, checkpointing=True).shared(count)


def serving(model: str, four_bit: bool, count: int) -> int:
    """Bytes of a server."""
    return plan_serving(model, CONFIG, four_bit=four_bit).total // count
