"""Bottleneck adapters: a small two-layer network beside each block, trained; the block is frozen.

    up(x) = s (W_up f(W_down x + b_down) + b_up)        W_down (k, d), W_up (d, k)

    houlsby     y + up(y)            y the output of attention, and of the MLP: two a layer; swish
    pfeiffer    h + up(h)            h the whole block's output: one a layer; relu
    parallel    MLP(norm h) + up(h)  h before the MLP's norm: one a layer; relu, s = 4

Each trains 2 d k + k + d numbers. The first two start near zero, N(0, 0.02), so the model is not
quite its base; the parallel one has W_up = 0 and is.

Sources: arXiv 1902.00751 section 2.1 (Houlsby), 2005.00247 (Pfeiffer), 2110.04366 section 3.3
(parallel: "beside" beats "behind", and the MLP is the place). Equal to ``adapters`` 1.3.0's
DoubleSeqBnConfig, SeqBnConfig and ParBnConfig in forward and gradients
(tests/methods/test_bottleneck.py); PEFT has none. That library keeps them in a pickle unless told
otherwise; the file here is ours, and opens here.

Can: pack, checkpoint, batch. Cannot: merge (f is in between); be free: two more products a layer in
every forward pass, forever.

Left out: layer norms and gates inside the adapter, AdapterFusion, Compacter.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checks import check_whole
from ..lora.adapter_config import AttachedConfig
from ..lora.attached import Attached
from ..lora.linears import made_beside
from .streams import decoder_of

PLACES = {  # of each kind: the adapter's name in a block, and where it reads and writes
    "houlsby": {"attention_adapter": "self_attn", "output_adapter": "mlp"},
    "pfeiffer": {"output_adapter": ""},
    "parallel": {"output_adapter": "post_attention_layernorm"},
}


@dataclass(frozen=True)
class BottleneckConfig(AttachedConfig):
    """Which bottleneck, and how narrow.

    - ``kind``: ``"houlsby"`` (two a layer), ``"pfeiffer"`` or ``"parallel"`` (one).
    - ``size``: k, the width inside; default: the model's width / 16, at least 1.

    Raises ``ValueError`` or ``TypeError`` on values that mean nothing.

    >>> import minilora
    >>> model = minilora.load_base()
    >>> minilora.inject(model, BottleneckConfig(kind="pfeiffer", size=8)).trainable
    13104
    """

    peft_type: ClassVar[str] = "BOTTLENECK"
    kind: str = "pfeiffer"
    size: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in PLACES:
            raise ValueError(f"kind must be one of {', '.join(PLACES)}, got {self.kind!r}")
        if self.size is not None:
            check_whole("size", self.size, 1)

    def build(self, model: nn.Module) -> dict[tuple[str, str], Attached]:
        """One or two in every layer."""
        path, decoder = decoder_of(model, "a bottleneck")
        d = decoder.config.hidden_size
        k = self.size or max(1, d // 16)
        return {
            (f"{path}.layers.{i}", name): Bottleneck(layer.mlp.up_proj, d, k, self.kind, place)
            for i, layer in enumerate(decoder.layers)
            for name, place in PLACES[self.kind].items()
        }

    def fields(self, model: nn.Module) -> dict[str, Any]:
        """The settings."""
        return {"kind": self.kind, "size": self.size}


class Bottleneck(Attached):
    """``up(x) = s (W_up f(W_down x))`` in one place of a block.

    >>> part = Bottleneck(nn.Linear(8, 8), d=8, k=2, kind="parallel", place="")
    >>> part.up(torch.ones(1, 8)).abs().max().item()
    0.0
    """

    why_not_mergeable = "a bottleneck has a nonlinearity inside, so no weight does what it does"

    def __init__(self, beside: nn.Module, d: int, k: int, kind: str, place: str):
        super().__init__()
        self.kind, self.where = kind, place
        made = made_beside(beside)
        self.adapter_down, self.adapter_up = nn.Linear(d, k, **made), nn.Linear(k, d, **made)
        self.scale = 4.0 if kind == "parallel" else 1.0
        self.waiting: Tensor | None = None  # what the parallel kind read, until the MLP is done
        nn.init.zeros_(self.adapter_down.bias)
        nn.init.zeros_(self.adapter_up.bias)
        if kind == "parallel":
            nn.init.kaiming_uniform_(self.adapter_down.weight, a=math.sqrt(5))
            nn.init.zeros_(self.adapter_up.weight)
        else:
            nn.init.normal_(self.adapter_down.weight, std=0.02)
            nn.init.normal_(self.adapter_up.weight, std=0.02)

    def up(self, x: Tensor) -> Tensor:
        """(…, d) to (…, d)."""
        inside = self.adapter_down(x.to(self.adapter_down.weight.dtype))  # (…, k)
        inside = F.silu(inside) if self.kind == "houlsby" else F.relu(inside)
        return (self.adapter_up(inside) * self.scale).to(x.dtype)

    def hook(self, host: nn.Module) -> None:
        """Into the block that it hangs in."""
        module = host.get_submodule(self.where)
        if self.kind == "parallel":
            self.handles = [
                module.register_forward_pre_hook(self.read),
                host.get_submodule("mlp").register_forward_hook(self.write),
            ]
        else:
            self.handles = [module.register_forward_hook(self.behind)]

    def behind(self, module: nn.Module, arguments: Any, y: Tensor) -> Tensor:
        """``y + up(y)``."""
        return y + self.up(y) if self.enabled else y

    def read(self, norm: nn.Module, arguments: Any) -> None:
        """The stream before the MLP's norm."""
        self.waiting = self.up(arguments[0]) if self.enabled else None

    def write(self, mlp: nn.Module, arguments: Any, y: Tensor) -> Tensor:
        """``y + up(h)``."""
        waiting, self.waiting = self.waiting, None
        return y if waiting is None else y + waiting

    def tensors(self) -> dict[str, Tensor]:
        """Both matrices and their biases, under this adapter's path."""
        prefix = ".".join(part for part in self.place if part)
        return {f"{prefix}.{name}": p for name, p in self.named_parameters()}

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Those of a file."""
        for name, parameter in self.tensors().items():
            parameter.copy_(tensors[name])

    def __repr__(self) -> str:
        d, k = self.adapter_down.in_features, self.adapter_down.out_features
        return f"Bottleneck({self.kind}, {d} -> {k} -> {d})"
