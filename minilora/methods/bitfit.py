"""BitFit: train the biases and nothing else.

    y = base(x) + b            b (out,) starts as 0, added to the base's own bias if it has one
    W' = W,  b' = b0 + b

Trains out numbers a Linear. The merged model is the base with other biases.

Source: arXiv 2106.10199. It trains the biases that BERT has. **A Llama has none**: PEFT's way to
BitFit, ``LoraConfig(bias="all")``, then trains nothing, and its file of biases for such a base is
dropped in silence when it is loaded. Here every chosen Linear gets a bias, and the file says so
(``peft_type: "BITFIT"``, which PEFT refuses by name instead of ignoring it). A merged Llama needs
``attention_bias`` and ``mlp_bias`` in its config.

Can: merge, a base in four bits, one batch with other such adapters. Cannot: depend on the input.

Left out: the biases of LayerNorms (``LNTuningConfig`` trains norms), BitFit's variant with two
kinds of bias.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from ..lora.adapter_config import AdapterConfig
from ..lora.adapter_layer import AdapterLayer
from ..lora.linears import made_beside

if TYPE_CHECKING:
    from ..lora.matches import Site


@dataclass(frozen=True)
class BitFitConfig(AdapterConfig):
    """Which Linears get a trained bias (arXiv 2106.10199); by default all but the output head.

    The fields about modules are ``LoraConfig``'s. Raises as ``LoraConfig`` on values that mean
    nothing.

    >>> BitFitConfig().target_modules
    'all-linear'
    """

    peft_type: ClassVar[str] = "BITFIT"
    target_modules: str | Sequence[str] = "all-linear"
    exclude_modules: str | Sequence[str] = ()
    layers_to_transform: int | Sequence[int] | None = None
    layers_pattern: str | Sequence[str] | None = None

    def __post_init__(self) -> None:
        self.check_targets()

    def shapes(self, site: Site) -> dict[str, tuple[int, ...]]:
        """b (out,)."""
        return {"bias_delta": (site.out_features,)}

    def wrap(self, base: nn.Module, path: str) -> BitFitLayer:
        """The layer that goes in at ``path``."""
        return BitFitLayer(base, self)


class BitFitLayer(AdapterLayer):
    """``base(x) + b`` around a Linear, whether it has a bias or not.

    >>> layer = BitFitLayer(nn.Linear(6, 4, bias=False))
    >>> torch.equal(layer(torch.ones(1, 6)), layer.base(torch.ones(1, 6)))
    True
    """

    def __init__(self, base: nn.Module, config: BitFitConfig | None = None):
        super().__init__(base)
        self.config = config or BitFitConfig()
        self.bias_delta = nn.Parameter(torch.zeros(self.out_features, **made_beside(base)))
        base.requires_grad_(False)

    def adapt(self, base: nn.Module, x: Tensor) -> Tensor:
        """``y = base(x) + b``: (…, in) to (…, out)."""
        y = base(x)
        return (y + self.bias_delta).to(y.dtype)

    def fold(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The same weight, and ``b0 + b``."""
        delta = self.bias_delta.detach()
        return weight, delta if bias is None else bias.detach() + delta

    def __repr__(self) -> str:
        sizes = f"{self.in_features} -> {self.out_features}"
        return f"BitFitLayer({sizes}{', merged' * self.merged})"
