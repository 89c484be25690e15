"""(IA)³: scale activations by one trained vector a Linear.

    y = l ∘ base(x)          keys and values: l (out,)        W' = l[:, None] · W,  b' = l · b
    y = base(l ∘ x)          feed-forward:    l (in,)         W' = W · l[None, :],  b' = b

l starts as 1, so the layer is its base to the bit. Trains out numbers a Linear, or in of a
feed-forward one: the fewest of all methods here.

Source: arXiv 2205.05638, section 3.3, which scales keys, values and the feed-forward's inner
activations.

Can: merge, files of PEFT, a base in four bits. Cannot: change a direction, only its size; an output
of zero stays zero.

**Three mistakes of peers.** A merge must scale the bias where the output is scaled, and taking it
back must undo that (PEFT multiplied a convolution's bias twice until huggingface/peft #3216).
``unmerge`` keeps W0; PEFT divides by l + 1e-8, which is not W0 and is nothing where l = 0. And
weight decay pulls l to 0, which is silence; here it pulls towards 1
(``neutral``), where the layer is its base.

Left out: convolutions, embeddings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from ..lora.adapter_config import AdapterConfig
from ..lora.adapter_layer import AdapterLayer
from ..lora.linears import made_beside
from ..lora.patterns import check_patterns, fits

if TYPE_CHECKING:
    from ..lora.matches import Site


@dataclass(frozen=True)
class IA3Config(AdapterConfig):
    """(IA)³'s settings, with PEFT's names (arXiv 2205.05638).

    - ``feedforward_modules``: those of ``target_modules`` whose *input* is scaled. A list of them
      must be a part of the targets; a regular expression is tried on a module's path.
    - The defaults are the paper's for a Llama: k, v and the MLP's down.

    Raises ``ValueError`` or ``TypeError`` on values that mean nothing.

    >>> IA3Config().feedforward_modules
    ('down_proj',)
    """

    peft_type: ClassVar[str] = "IA3"
    target_modules: str | Sequence[str] = ("k_proj", "v_proj", "down_proj")
    feedforward_modules: str | Sequence[str] = ("down_proj",)
    exclude_modules: str | Sequence[str] = ()

    def __post_init__(self) -> None:
        feedforward = check_patterns("feedforward_modules", self.feedforward_modules)
        self._set("feedforward_modules", feedforward)
        self.check_targets()
        if isinstance(self.target_modules, str) or isinstance(feedforward, str):
            return
        if strange := [name for name in feedforward if fits(name, self.target_modules) is None]:
            raise ValueError(
                f"feedforward_modules: {strange[0]!r} is no target; "
                f"target_modules are {', '.join(map(repr, self.target_modules))}"
            )

    def is_feedforward(self, path: str) -> bool:
        """Whether the input of this module is scaled, not its output."""
        return fits(path, self.feedforward_modules) is not None

    def shapes(self, site: Site) -> dict[str, tuple[int, ...]]:
        """l (out, 1), or (1, in) of a feed-forward module."""
        feedforward = self.is_feedforward(site.path)
        return {"ia3_l": (1, site.in_features) if feedforward else (site.out_features, 1)}

    def wrap(self, base: nn.Module, path: str) -> IA3Layer:
        """The layer that goes in at ``path``."""
        return IA3Layer(base, self.is_feedforward(path), self)


class IA3Layer(AdapterLayer):
    """``l ∘ base(x)``, or ``base(l ∘ x)`` with ``is_feedforward``, around a Linear.

    >>> layer = IA3Layer(nn.Linear(6, 4))
    >>> _ = nn.init.constant_(layer.ia3_l, 2.0)
    >>> torch.equal(layer(torch.ones(1, 6)), 2 * layer.base(torch.ones(1, 6)))
    True
    """

    neutral: ClassVar[Mapping[str, float | None]] = {"ia3_l": 1.0}

    def __init__(
        self, base: nn.Module, is_feedforward: bool = False, config: IA3Config | None = None
    ):
        super().__init__(base)
        self.is_feedforward, self.config = is_feedforward, config or IA3Config()
        shape = (1, self.in_features) if is_feedforward else (self.out_features, 1)
        self.ia3_l = nn.Parameter(torch.ones(shape, **made_beside(base)))
        base.requires_grad_(False)

    def adapt(self, base: nn.Module, x: Tensor) -> Tensor:
        """``y = l ∘ base(x)`` or ``base(l ∘ x)``: (…, in) to (…, out)."""
        vector = self.ia3_l.flatten()
        if self.is_feedforward:
            return base((x * vector).to(x.dtype))
        y = base(x)
        return (y * vector).to(y.dtype)

    def fold(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """``W · l``, broadcast over rows or columns; the bias is scaled with the output only."""
        scale = self.ia3_l.detach()
        if self.is_feedforward or bias is None:
            return weight * scale, bias
        return weight * scale, bias.detach() * scale.flatten()

    def __repr__(self) -> str:
        sizes = f"{self.in_features} -> {self.out_features}"
        return (
            f"IA3Layer({sizes}{', feed-forward' * self.is_feedforward}{', merged' * self.merged})"
        )
