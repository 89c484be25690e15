"""How many cards a fine-tune needs: every card a whole copy, or one base shared out over all.

    data parallel   a card holds the plan's total, and one flat buffer of gradients for the sum
    FSDP, n cards   a card holds  base / n + gathered + own
                    base     = weights + constants; where the base trains, also its gradients and
                               the optimizer's numbers
                    gathered = two blocks whole (one computes, the next arrives), what stands
                               outside the blocks, and where the base trains one block's gradients
                    own      = activations and temporary of the card's batch; adapters with their
                               gradients (twice, as above) and optimizer, whole on every card

FSDP (arXiv 2304.11277 section 3.1; ZeRO-3 of arXiv 1910.02054) divides what lives between steps and
nothing else, so a card that cannot hold ``gathered + own`` is too small whatever their number.
Adapters are left whole, as in scale/: they are small, and their gradients travel as one buffer.

On the wire, by ring algorithms, bytes that one card sends in a step:

    data parallel     2 (n-1)/n · gradients
    FSDP, adapters    2 (n-1)/n · (base + gradients)         the base forward, and again backward
    FSDP, full        (n-1)/n · (2 base + gradients)

``tests/ledger/test_cards.py`` shards a real model by ``fully_shard`` and counts a rank's bytes.

Left out: NCCL's buffers, fragmentation, tensor and pipeline parallelism. FSDP of 4-bit weights asks
for a storage that the library can split: check that yours does before you rent.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ..lora.adapter_config import AdapterConfig, AttachedConfig
from .dimensions import Architecture
from .estimate import DTYPES, Plan, Settings, plan
from .shapes import Source, architecture
from .storage import weight_bytes

MOST = 4096  # cards; beyond that, no number is given


@dataclass(frozen=True)
class Cards:
    """Bytes of a fine-tune on several cards, as ``plan_cards`` returns it.

    >>> seventy = plan_cards("llama-2-70b", checkpointing=True)
    >>> seventy.copies(80 * 10**9), seventy.shards(80 * 10**9)
    (False, 2)
    """

    plan: Plan
    gathered: int

    @property
    def trains_base(self) -> bool:
        """Whether everything trains, not an adapter."""
        return self.plan.config is None

    @property
    def divided(self) -> int:
        """Bytes that FSDP divides: the base, and what belongs to it."""
        own = ("gradients", "optimizer") if self.trains_base else ()
        return sum(self.plan.bytes[name] for name in ("weights", "constants", *own))

    @property
    def own(self) -> int:
        """Bytes that every card has for itself, under FSDP too."""
        buffer = 0 if self.trains_base else self.plan.bytes["gradients"]
        return self.plan.total - self.divided + buffer

    @property
    def whole(self) -> int:
        """Bytes of each card under data parallel, however many there are."""
        return self.plan.total + self.plan.bytes["gradients"]

    def copies(self, card: int) -> bool:
        """Whether a card of so many bytes holds all of it: then data parallel works."""
        return self.whole <= card

    def shared(self, cards: int) -> int:
        """Bytes of each card when so many share one base by FSDP; one alone holds the plan."""
        if cards == 1:
            return self.plan.total
        return -(-self.divided // cards) + self.gathered + self.own

    def shards(self, card: int) -> int | None:
        """The fewest cards of so many bytes that hold it by FSDP; None where none do."""
        if self.plan.total <= card:
            return 1
        left = card - self.gathered - self.own
        needed = max(2, -(-self.divided // left)) if left > 0 else MOST + 1
        return needed if needed <= MOST else None

    def sent(self, cards: int, shared: bool) -> int:
        """Bytes that one card sends in a step, by FSDP (``shared``) or by data parallel.

        >>> plan_cards("base", checkpointing=True, dtype="float32").sent(2, shared=False)
        86016
        """
        gradients = self.plan.bytes["gradients"]
        base = self.plan.bytes["weights"] + self.plan.bytes["constants"]
        moved = 2 * base * shared
        moved += gradients if shared and self.trains_base else 2 * gradients
        return moved * (cards - 1) // cards


def plan_cards(
    source: Source,
    config: AdapterConfig | AttachedConfig | None = None,
    method: str = "lora",
    settings: Settings | None = None,
    **changes: Any,
) -> Cards:
    """Predict a fine-tune on several cards; arguments and errors as those of ``plan``.

    ``batch`` is that of one card.

    >>> plan_cards("llama-3.1-405b", method="full", checkpointing=True).shards(80 * 10**9)
    122
    """
    planned = plan(source, config, method, settings, **changes)
    units = unit_bytes(architecture(source), planned.settings, method == "qlora")
    outside, largest = units.pop(""), max(units.values(), default=0)
    return Cards(planned, 2 * largest + outside + largest * (planned.config is None))


def unit_bytes(arch: Architecture, settings: Settings, four_bit: bool) -> dict[str, int]:
    """Bytes of each block, which is gathered as one; under "" of what stands outside them.

    >>> units = unit_bytes(architecture("llama-2-7b"), Settings(), four_bit=False)
    >>> len(units), units["model.layers.0"], units[""]
    (33, 404766720, 524296192)
    """
    linears = {**arch.blocks, "": [linear for linear in arch.linears if not linear.block]}
    units = {}
    for name, others in other_parameters(arch).items():
        inside = replace(arch, linears=tuple(linears[name]), others=((name, others),))
        parts = weight_bytes(inside, DTYPES[settings.dtype], four_bit, settings.double_quant)
        units[name] = parts[0] + parts[1]
    return units


def other_parameters(arch: Architecture) -> dict[str, int]:
    """How many parameters beside Linears each block has; under "" those outside the blocks."""
    numbers = {**dict.fromkeys(arch.blocks, 0), "": 0}
    for name, count in arch.others:
        prefixes = (name[:end] for end, letter in enumerate(name) if letter == ".")
        numbers[next((each for each in prefixes if each in numbers), "")] += count
    return numbers
