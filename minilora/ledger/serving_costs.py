"""What serving takes: one base for all, an adapter for each tenant, keys and values for each text.

    bytes   = base + n · adapter + streams · (row + context · kv) + passing
    kv      = Σ (out of k + out of v) · bytes a number       over the layers, for one token
    adapter = Σ r (in + out) · 4                             A and B, float32
    row     = the same again: a text in flight has its own copy of its adapter (serving/layer.py)
    passing = logits of every stream, the widest tensors of one prefill, one 4-bit weight opened

``tests/ledger/test_serving_costs.py`` holds kv, adapter and row against the engine's own tensors
and kv against transformers' cache too; ``passing`` is an estimate from above.

Left out: the process itself (half a gigabyte on a card), a prefix that streams share, and windows:
of Mistral, Gemma 2 and Gemma 3 every layer is counted with the whole context.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..checks import check_whole
from ..lora.config import LoraConfig
from .dimensions import Architecture
from .estimate import DTYPES, GB, GPUS, added_by, check_choice, config_and_method
from .shapes import Source, architecture
from .storage import weight_bytes

NOT_DECODERS = ("bert", "roberta", "t5", "shapes")
ADAPTER_SIZE = 4  # bytes a number of A and B while they serve


@dataclass(frozen=True)
class ServingPlan:
    """Bytes of a base that serves, as ``plan_serving`` returns it.

    ``adapter``, ``kv``, ``logits``: of one adapter, of one token's keys and values, of one stream's
    next token. ``passing``: what lives during a pass only, without the logits.

    >>> plan_serving("llama-2-7b", adapters=100, streams=4).fits["24 GB"]
    True
    """

    model: str
    base: int
    adapter: int
    kv: int
    logits: int
    passing: int
    adapters: int
    streams: int
    context: int
    has_experts: bool = False  # which stay in the base's dtype when its Linears have four bits

    @property
    def stream(self) -> int:
        """Bytes of one text in flight: its row, its keys and values, its logits."""
        return self.adapter + self.context * self.kv + self.logits

    @property
    def bytes(self) -> dict[str, int]:
        """The parts of the total, by name."""
        return {
            "base": self.base,
            "adapters": self.adapters * self.adapter,
            "rows": self.streams * self.adapter,
            "KV cache": self.streams * self.context * self.kv,
            "passing": self.passing + self.streams * self.logits,
        }

    @property
    def total(self) -> int:
        """Bytes of all parts together."""
        return sum(self.bytes.values())

    @property
    def fits(self) -> dict[str, bool]:
        """Whether the total fits each card, in decimal GB."""
        return {name: self.total <= size * GB for name, size in GPUS.items()}

    def tenants(self, card: int) -> int:
        """Adapters in the memory of a card of so many bytes, while ``streams`` texts are written.

        >>> plan_serving("llama-2-7b", streams=4).tenants(24 * 10**9)
        365
        """
        return max(0, (card - self.total + self.adapters * self.adapter) // self.adapter)

    def speaking(self, card: int) -> int:
        """Tenants of whom each has an adapter there and a text in flight, all at the same time."""
        return max(0, (card - self.base - self.passing) // (self.adapter + self.stream))

    def alone(self, card: int) -> int:
        """Tenants of whom each has a base of its own beside one text: nothing is shared."""
        each = self.base + self.passing + self.context * self.kv + self.logits
        return max(0, card // each)


def plan_serving(
    source: Source,
    config: LoraConfig | None = None,
    *,
    four_bit: bool = False,
    dtype: str = "bfloat16",
    adapters: int = 1,
    streams: int = 1,
    context: int = 2048,
    prefill: int = 512,
) -> ServingPlan:
    """Predict the bytes of a server: ``adapters`` in memory, ``streams`` texts at the same time.

    ``context``: tokens of a text, prompt and answer; ``prefill``: of prompts that go in together.
    Without a ``config`` an adapter is rank 8 on q and v. Raises ``ValueError`` on a model that
    writes no text, and on numbers below 1 (``adapters`` may be 0).

    >>> plan_serving("llama-2-7b").kv
    524288
    """
    whole = {"streams": streams, "context": context, "prefill": prefill}
    for name, value, least in [("adapters", adapters, 0), *((*pair, 1) for pair in whole.items())]:
        check_whole(name, value, least)
    check_choice("dtype", dtype, DTYPES)
    arch = architecture(source)
    if arch.family in NOT_DECODERS:
        raise ValueError(
            f"{arch.name} is of the family {arch.family!r}, which does not write text token by "
            "token: expected a decoder, as llama-3-8b or gpt2"
        )
    chosen: Any = config_and_method(arch, config, "lora")[0]
    size = DTYPES[dtype]
    codes, constants, opened = weight_bytes(arch, size, four_bit, True)
    widest = max(max(x.in_features, x.out_features) for x in arch.linears if x.block)
    vocabulary = sum(linear.out_features for linear in arch.linears if linear.role == "head")
    return ServingPlan(
        model=arch.name,
        base=codes + constants,
        adapter=sum(added_by(arch, chosen).sizes) * ADAPTER_SIZE,
        kv=kv_numbers(arch) * size,
        logits=vocabulary * size,
        passing=3 * prefill * widest * size + opened,
        adapters=adapters,
        streams=streams,
        context=context,
        has_experts=bool(arch.experts),
    )


def kv_numbers(arch: Architecture) -> int:
    """Numbers that a token leaves in the cache: k and v of every layer.

    >>> kv_numbers(architecture("llama-3-8b"))
    65536
    """
    total = 0
    for block in arch.blocks.values():
        out = {linear.role: linear.out_features for linear in block}
        queries = next(linear.in_features for linear in block if linear.role == "o")
        total += out["qkv"] - queries if "qkv" in out else out["k"] + out["v"]
    return total
