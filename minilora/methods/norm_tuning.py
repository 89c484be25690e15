"""Norm tuning: train the norms' weights and nothing else.

    RMSNorm     y = x / rms(x) · w'                w' starts as the base's w
    LayerNorm   y = (x − mean) / σ · w' + b'

Trains the width of the model for every norm, twice that with biases. There is nothing to compute
besides: the trained norm stands in the base's place.

Source: LayerNorm tuning (arXiv 2312.11420), PEFT's ``LN_TUNING``.

Can: merge at no cost, files of PEFT. Cannot: mix directions; each channel gets a factor, before
every Linear that reads it.

Left out: norms whose weight is not a factor an element; a base whose norms compute with 1 + w
(Gemma's) trains the same w.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn
from torch.func import functional_call

from ..lora.adapter_config import AdapterConfig
from ..lora.adapter_layer import AdapterLayer
from ..lora.linears import is_norm

if TYPE_CHECKING:
    from ..lora.matches import Site


@dataclass(frozen=True)
class LNTuningConfig(AdapterConfig):
    """Which norms are trained, with PEFT's names (arXiv 2312.11420); by default a Llama's.

    Raises as ``LoraConfig`` on values that mean nothing.

    >>> LNTuningConfig().target_modules
    ('input_layernorm', 'post_attention_layernorm', 'norm')
    """

    peft_type: ClassVar[str] = "LN_TUNING"
    takes_norms: ClassVar[bool] = True
    target_modules: str | Sequence[str] = ("input_layernorm", "post_attention_layernorm", "norm")
    exclude_modules: str | Sequence[str] = ()

    def __post_init__(self) -> None:
        self.check_targets()

    def shapes(self, site: Site) -> dict[str, tuple[int, ...]]:
        """The weight (n,), and the bias if the norm has one."""
        names = ("weight", "bias") if site.bias else ("weight",)
        return {f"ln_tuning_layers.{name}": (site.in_features,) for name in names}

    def wrap(self, base: nn.Module, path: str) -> NormLayer:
        """The layer that goes in at ``path``."""
        return NormLayer(base, self)


class NormLayer(AdapterLayer):
    """A norm with weights of its own beside the frozen ones.

    Raises ``TypeError`` for a base that is not a norm.

    >>> layer = NormLayer(nn.LayerNorm(4))
    >>> sorted(layer.tensors())
    ['ln_tuning_layers.bias', 'ln_tuning_layers.weight']
    """

    def __init__(self, base: nn.Module, config: LNTuningConfig | None = None):
        super().__init__(base)
        self.config = config or LNTuningConfig()
        own: dict[str, Any] = {name: p for name, p in base.named_parameters()}
        for name, parameter in own.items():
            self.register_parameter(f"tuned_{name}", nn.Parameter(parameter.detach().clone()))
        base.requires_grad_(False)

    @staticmethod
    def shape_of(base: nn.Module) -> tuple[int, int]:
        """(n, n) of a norm; ``TypeError`` for anything else."""
        if not is_norm(base):
            raise TypeError(f"expected a norm with a weight, got {type(base).__name__}")
        size = len(base.weight)  # type: ignore[arg-type]
        return size, size

    def tensors(self) -> dict[str, Tensor]:
        """The trained weight, and the bias, by PEFT's names."""
        own = self._parameters.items()
        return {f"ln_tuning_layers.{name.removeprefix('tuned_')}": p for name, p in own}  # type: ignore[misc]

    def adapt(self, base: nn.Module, x: Tensor) -> Tensor:
        """The base's own computation with the trained weights."""
        own = {name.removeprefix("tuned_"): p for name, p in self._parameters.items()}
        return functional_call(base, own, (x,))  # type: ignore[arg-type]

    def fold(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The trained weight and bias, whatever the base's were."""
        own: Any = self._parameters
        trained = own.get("tuned_bias")
        return own["tuned_weight"].detach().clone(), (
            None if trained is None else trained.detach().clone()
        )

    def __repr__(self) -> str:
        return f"NormLayer({self.in_features}{', merged' * self.merged})"
