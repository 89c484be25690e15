"""VeRA: random projections that all layers share, and two trained vectors a layer.

    y = base(x) + b ∘ (B (d ∘ (A x)))       A (r, in), B (out, r) random, frozen; d (r,), b (out,)
    ΔW = diag(b) B diag(d) A                d starts as 0.1, b as 0, so ΔW = 0

One A and one B serve every layer: as large as the largest, and each layer reads a corner. They come
from a seed (``projection_prng_key``), so a file need not hold them. Trains r + out a Linear, ten
times less than LoRA of rank 8 here, with r = 256 random directions to choose from.

Source: arXiv 2310.11454, section 3. A and B are uniform within ±√(6 / fan-in) (Kaiming), drawn from
``torch.Generator().manual_seed(key)`` on the CPU, A first: PEFT's to the bit.

Can: merge, files of PEFT, a base in four bits; be written as LoRA of rank r (``as_lora``), a file
many times its own. Cannot: be small in compute, as r is large; be moved to other targets with the
same seed, since other shapes draw another A and B. ``save_projection=True``, PEFT's default, writes
both, and a load takes them.

Left out: several adapters on one model, and ``bias``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checks import check_number, check_switch, check_whole
from ..lora.adapter_config import AdapterConfig
from ..lora.adapter_layer import AdapterLayer
from ..lora.hyperparameters import check_dropout, check_rank
from ..lora.layer import LoRALayer
from ..lora.linears import dtype_of, linear_shape, made_beside

if TYPE_CHECKING:
    from ..lora.matches import Match, Site


@dataclass(frozen=True)
class VeraConfig(AdapterConfig):
    """VeRA's settings, with PEFT's names (arXiv 2310.11454).

    - ``r``: random directions; a Linear gets ``r + out`` trainable parameters.
    - ``projection_prng_key``: the seed of A and B; ``save_projection``: whether a file holds them.
    - ``d_initial``: where d starts. ``vera_dropout``: share of the adapter's inputs that training
      drops. The fields about modules are ``LoraConfig``'s.

    Raises ``ValueError`` or ``TypeError`` on values that mean nothing.

    >>> VeraConfig(r=64).projection_prng_key
    0
    """

    peft_type: ClassVar[str] = "VERA"
    r: int = 256
    target_modules: str | Sequence[str] = ("q_proj", "v_proj")
    projection_prng_key: int = 0
    save_projection: bool = True
    vera_dropout: float = 0.0
    d_initial: float = 0.1
    exclude_modules: str | Sequence[str] = ()
    layers_to_transform: int | Sequence[int] | None = None
    layers_pattern: str | Sequence[str] | None = None

    def __post_init__(self) -> None:
        check_rank(self.r)
        check_dropout(self.vera_dropout)
        check_whole("projection_prng_key", self.projection_prng_key, 0)
        check_number("d_initial", self.d_initial)
        check_switch("save_projection", self.save_projection)
        self.check_targets()

    def rank_of(self, path: str) -> int:
        """``r``, everywhere."""
        return self.r

    def shapes(self, site: Site) -> dict[str, tuple[int, ...]]:
        """b (out,) and d (r,)."""
        return {"vera_lambda_b": (site.out_features,), "vera_lambda_d": (self.r,)}

    def wrap_all(
        self, modules: Mapping[str, nn.Module], chosen: Sequence[Match]
    ) -> dict[str, AdapterLayer]:
        """Every layer, around one shared pair of projections."""
        bases = {match.name: modules[match.name] for match in chosen}
        widths = [linear_shape(base) for base in bases.values()]
        sizes = max(i for i, _ in widths), max(o for _, o in widths)
        first = next(iter(bases.values()))
        projection = VeraProjection(self.r, *sizes, self.projection_prng_key)
        projection.to(dtype_of(first)).to(**made_beside(first))  # PEFT rounds them to the base too
        return {path: VeraLayer(base, self, projection) for path, base in bases.items()}


class VeraProjection(nn.Module):
    """A (r, largest in) and B (largest out, r), random and frozen; every layer holds this one.

    >>> VeraProjection(2, 4, 3).vera_B.shape
    torch.Size([3, 2])
    """

    vera_A: Tensor
    vera_B: Tensor

    def __init__(self, r: int, in_features: int, out_features: int, key: int = 0):
        super().__init__()
        generator = torch.Generator().manual_seed(key)
        for name, shape in (("vera_A", (r, in_features)), ("vera_B", (out_features, r))):
            bound = math.sqrt(6 / shape[1])
            values = torch.empty(shape).uniform_(-bound, bound, generator=generator)
            # a state dict would repeat them for every layer
            self.register_buffer(name, values, persistent=False)


class VeraLayer(AdapterLayer):
    """``base(x) + b ∘ (B (d ∘ (A x)))`` around a Linear.

    >>> model = nn.Sequential(nn.Linear(6, 4))
    >>> layer = VeraLayer(model[0], VeraConfig(r=8), VeraProjection(8, 6, 4))
    >>> torch.equal(layer(torch.ones(1, 6)), layer.base(torch.ones(1, 6)))
    True
    """

    def __init__(self, base: nn.Module, config: VeraConfig, projection: VeraProjection):
        super().__init__(base)
        self.config, self.projection = config, projection
        made = made_beside(base)
        self.vera_lambda_b = nn.Parameter(torch.zeros(self.out_features, **made))
        self.vera_lambda_d = nn.Parameter(torch.full((config.r,), config.d_initial, **made))
        base.requires_grad_(False)

    def corner(self) -> tuple[Tensor, Tensor]:
        """A (r, in) and B (out, r): this layer's part of the shared projections."""
        A, B = self.projection.vera_A, self.projection.vera_B
        return A[:, : self.in_features], B[: self.out_features]

    def adapt(self, base: nn.Module, x: Tensor) -> Tensor:
        """``y = base(x) + b ∘ (B (d ∘ (A x)))``: (…, in) to (…, out)."""
        y, (A, B) = base(x), self.corner()
        dropped = F.dropout(x.to(A.dtype), self.config.vera_dropout, self.training)
        h = self.vera_lambda_d * F.linear(dropped, A)  # (…, r)
        return (y + self.vera_lambda_b * F.linear(h, B)).to(y.dtype)

    def fold(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """``W0 + diag(b) B diag(d) A``; the bias stays."""
        A, B = self.corner()
        b, d = self.vera_lambda_b.detach(), self.vera_lambda_d.detach()
        return weight.to(A) + (b[:, None] * B) @ (d[:, None] * A), bias

    def as_lora(self) -> LoRALayer:
        """The same update as plain LoRA of rank r: d ∘ A and b ∘ B, with scaling 1."""
        (A, B), r = self.corner(), self.config.r
        plain = LoRALayer(self.base, r, r, self.config.vera_dropout)
        plain.lora_A.data = self.vera_lambda_d.detach()[:, None] * A
        plain.lora_B.data = self.vera_lambda_b.detach()[:, None] * B
        return plain

    def check_mergeable(self) -> None:
        """Raise ``ValueError`` where ``merge`` would, in training mode with dropout too."""
        super().check_mergeable()
        if self.training and self.config.vera_dropout > 0:
            raise ValueError(
                f"merging in training mode with vera_dropout={self.config.vera_dropout}: "
                "call model.eval() first"
            )

    def __repr__(self) -> str:
        c = self.config
        sizes = f"{self.in_features} -> {self.out_features}, r={c.r}, key={c.projection_prng_key}"
        dropout = f", dropout={c.vera_dropout:g}" if c.vera_dropout else ""
        return f"VeraLayer({sizes}{dropout}{', merged' * self.merged})"
