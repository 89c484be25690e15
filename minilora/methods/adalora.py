"""AdaLoRA: train too many ranks, and keep those that matter, wherever they are.

    ΔW = α / r₀ · B (E ∘ A)        A (r₀, in), B (out, r₀), E (r₀, 1); E = 0 at first, so ΔW = 0

One row of A, its E and its column of B are a triplet. Its importance is s(E) + mean s(A's row) +
mean s(B's column), where for every number w

    I = |w · ∂L/∂w|      Ī = β₁ Ī + (1 − β₁) I      Ū = β₂ Ū + (1 − β₂) |I − Ī|      s = Ī · Ū

After each step, over all modules at once, the least important triplets get E = 0, so that
``budget`` of them are left. It falls from init_r to target_r a module as a cubic (section 3.3). The
loss gets ½ · mean of ‖A Aᵀ − I‖ and ‖Bᵀ B − I‖ over all A and B, which keeps triplets comparable.

Source: arXiv 2303.10512, sections 3.1 to 3.3. Trains init_r (in + out + 1) a Linear; its file holds
the triplets that are left. α is divided by r₀ + 1e-5 also after pruning, as in PEFT.

Can: merge, PEFT's files, 4-bit bases, plain LoRA (``as_lora``). Cannot: run without total_step.

**Three differences to PEFT**, whose numbers are otherwise these:

- the orthogonality is part of every training loss here. PEFT adds it to ``outputs.loss``, which a
  model without ``task_type`` or labels does not have, and then nothing is added (#432);
- E is held at 0 between two allocations. There it grows back in the steps between (with deltaT = 5
  after 28 of 48 all 48 are used again), so a run that stops in between keeps more than its budget;
- init_r = target_r prunes nothing; there kthvalue raises.

Left out: embeddings and convolutions; the split of one file into several ranks for other libraries.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checks import check_number, check_whole
from ..lora.adapter_config import AdapterConfig
from ..lora.adapter_layer import AdapterLayer
from ..lora.hyperparameters import check_alpha, check_dropout, check_rank
from ..lora.layer import LoRALayer
from ..lora.linears import made_beside

if TYPE_CHECKING:
    from ..lora.matches import Site

PARTS = ("lora_A", "lora_B", "lora_E")


@dataclass(frozen=True)
class AdaLoraConfig(AdapterConfig):
    """AdaLoRA's settings, with PEFT's names (arXiv 2303.10512).

    - ``init_r``: ranks of a module at first; ``target_r``: their mean at the end.
    - ``total_step``: the steps of the whole run, which must be given; ``tinit``: steps before the
      first pruning; ``tfinal``: steps after the last; ``deltaT``: steps between two.
    - ``beta1``, ``beta2``: of the two averages; ``orth_reg_weight``: of the orthogonality.
    - ``rank_pattern``: of a file, which triplets are left, as ``{"path.lora_E": [True, …]}``.
    - The update is scaled by ``lora_alpha / init_r``. The fields about modules are LoraConfig's.

    Raises ``ValueError`` or ``TypeError`` on values that mean nothing.

    >>> config = AdaLoraConfig(total_step=100)
    >>> config.budget(0, modules=2), config.budget(50, modules=2), config.budget(100, modules=2)
    (24, 17, 16)
    """

    peft_type: ClassVar[str] = "ADALORA"
    init_r: int = 12
    target_r: int = 8
    lora_alpha: float = 16
    target_modules: str | Sequence[str] = ("q_proj", "v_proj")
    total_step: int | None = None
    tinit: int = 0
    tfinal: int = 0
    deltaT: int = 1
    beta1: float = 0.85
    beta2: float = 0.85
    orth_reg_weight: float = 0.5
    lora_dropout: float = 0.0
    rank_pattern: Mapping[str, Sequence[bool]] = field(default_factory=dict)
    exclude_modules: str | Sequence[str] = ()
    layers_to_transform: int | Sequence[int] | None = None
    layers_pattern: str | Sequence[str] | None = None

    def __post_init__(self) -> None:
        check_rank(self.init_r)
        check_alpha(self.lora_alpha)
        check_dropout(self.lora_dropout)
        for name, smallest in {"target_r": 0, "tinit": 0, "tfinal": 0, "deltaT": 1}.items():
            check_whole(name, getattr(self, name), smallest)
        check_number("beta1", self.beta1, 0, 1)
        check_number("beta2", self.beta2, 0, 1)
        check_number("orth_reg_weight", self.orth_reg_weight)
        self._set("rank_pattern", dict(self.rank_pattern or {}))
        if self.orth_reg_weight < 0:
            raise ValueError(f"orth_reg_weight must not be negative, got {self.orth_reg_weight}")
        if self.target_r > self.init_r:
            raise ValueError(
                f"target_r={self.target_r} is above init_r={self.init_r}: AdaLoRA only prunes"
            )
        if self.total_step is None:
            raise ValueError(
                "AdaLoRA needs total_step, the run's optimizer steps: its budget falls over them"
            )
        check_whole("total_step", self.total_step, 1)
        if self.tinit >= self.total_step - self.tfinal:
            raise ValueError(
                f"tinit={self.tinit} and tfinal={self.tfinal} leave no step of "
                f"total_step={self.total_step} to prune in: lower them"
            )
        self.check_targets()

    def rank_of(self, path: str) -> int:
        """``init_r``, or what a file's ``rank_pattern`` left of it."""
        pattern = self.rank_pattern.get(f"{path}.lora_E")
        return self.init_r if pattern is None else sum(pattern)

    def shapes(self, site: Site) -> dict[str, tuple[int, ...]]:
        """A (r, in), B (out, r), E (r, 1)."""
        r = self.rank_of(site.path)
        return {"lora_A": (r, site.in_features), "lora_B": (site.out_features, r), "lora_E": (r, 1)}

    def wrap(self, base: nn.Module, path: str) -> AdaLoRALayer:
        """The layer that goes in at ``path``."""
        return AdaLoRALayer(base, self, self.rank_pattern.get(f"{path}.lora_E"))

    @property
    def last_allocation(self) -> int:
        """The step after which no triplet comes or goes."""
        return (self.total_step or 0) - self.tfinal

    def budget(self, step: int, modules: int) -> int:
        """How many triplets of so many modules are left after a step (section 3.3, equation 11)."""
        first, last = self.init_r * modules, self.target_r * modules
        if step <= self.tinit:
            return first
        done = min(1.0, (step - self.tinit) / (self.last_allocation - self.tinit))
        return int((first - last) * (1 - done) ** 3 + last)


class AdaLoRALayer(AdapterLayer):
    """``base(x) + α/r₀ · B (E ∘ A x)`` around a Linear; ``pattern``: the triplets of a file.

    >>> layer = AdaLoRALayer(nn.Linear(6, 4), AdaLoraConfig(init_r=3, target_r=2, total_step=10))
    >>> torch.equal(layer(torch.ones(1, 6)), layer.base(torch.ones(1, 6)))
    True
    """

    alive: Tensor

    def __init__(
        self, base: nn.Module, config: AdaLoraConfig, pattern: Sequence[bool] | None = None
    ):
        super().__init__(base)
        self.config, self.best_from = config, config.last_allocation  # before it, too many triplets
        self.pattern = [True] * config.init_r if pattern is None else list(pattern)
        self.r, made = sum(self.pattern), made_beside(base)
        self.scaling = config.lora_alpha / (config.init_r + 1e-5)
        self.lora_A = nn.Parameter(torch.empty(self.r, self.in_features, **made))
        self.lora_B = nn.Parameter(torch.empty(self.out_features, self.r, **made))
        self.lora_E = nn.Parameter(torch.zeros(self.r, 1, **made))
        for factor in (self.lora_A, self.lora_B):
            nn.init.normal_(factor, std=0.02)
        self.register_buffer("alive", torch.ones(self.r, dtype=torch.bool, device=made["device"]))
        self.averages: dict[str, Tensor] = {}  # Ī and Ū of each part, once training asks for them
        base.requires_grad_(False)

    def adapt(self, base: nn.Module, x: Tensor) -> Tensor:
        """``y = base(x) + α/r₀ · B (E ∘ A x)``: (…, in) to (…, out)."""
        y, A = base(x), self.lora_A * self.lora_E  # (r, in)
        dropped = F.dropout(x.to(A.dtype), self.config.lora_dropout, self.training)
        low = F.linear(F.linear(dropped, A), self.lora_B)  # (…, out)
        return (y + low * self.scaling).to(y.dtype)

    def fold(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """``W0 + α/r₀ · B (E ∘ A)``; the bias stays."""
        delta = self.lora_B.detach() @ (self.lora_A * self.lora_E).detach() * self.scaling
        return weight.to(delta) + delta, bias

    def as_lora(self) -> LoRALayer:
        """The same update as plain LoRA: E ∘ A and B of the triplets that are left."""
        A, B, E = (self.tensors()[part].detach() for part in PARTS)
        empty = max(0, 1 - len(A))  # a LoRA has at least one rank
        A, B = F.pad(A * E, (0, 0, 0, empty)), F.pad(B, (0, empty))
        plain = LoRALayer(self.base, len(A), self.scaling * len(A), self.config.lora_dropout)
        plain.lora_A.data, plain.lora_B.data = A, B
        return plain

    def check_mergeable(self) -> None:
        """Raise ``ValueError`` where ``merge`` would, in training mode with dropout too."""
        super().check_mergeable()
        if self.training and self.config.lora_dropout > 0:
            raise ValueError(
                f"merging in training mode with lora_dropout={self.config.lora_dropout}: "
                "call model.eval() first"
            )

    def tensors(self) -> dict[str, Tensor]:
        """A, B and E, by PEFT's names; once triplets are pruned, copies of what is left."""
        if self.alive.all():
            return {"lora_A": self.lora_A, "lora_B": self.lora_B, "lora_E": self.lora_E}
        A, B, E = self.lora_A[self.alive], self.lora_B[:, self.alive], self.lora_E[self.alive]
        return {"lora_A": A, "lora_B": B, "lora_E": E}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over a file's A, B and E of the triplets that are left here."""
        for part in PARTS:
            at = (slice(None), self.alive) if part == "lora_B" else self.alive
            getattr(self, part).data[at] = tensors[part].to(getattr(self, part))

    def alive_of_all(self) -> list[bool]:
        """Which of the ``init_r`` triplets are left: an entry of ``rank_pattern``."""
        rest = iter(self.alive.tolist())
        return [was_left and next(rest) for was_left in self.pattern]

    def training_state(self) -> dict[str, Tensor]:
        """Which triplets are left, and the two averages of every number."""
        for part in PARTS:
            for average in ("mean", "spread"):
                if f"{average}_{part}" not in self.averages:
                    self.averages[f"{average}_{part}"] = torch.zeros_like(getattr(self, part).data)
        return {"alive": self.alive, **self.averages}

    @torch.no_grad()
    def observe(self) -> None:
        """Move Ī and Ū by this step's gradients."""
        state, config = self.training_state(), self.config
        for part in PARTS:
            parameter = getattr(self, part)
            if parameter.grad is not None:
                now = (parameter * parameter.grad).abs()
                mean, spread = state[f"mean_{part}"], state[f"spread_{part}"]
                mean.mul_(config.beta1).add_(now, alpha=1 - config.beta1)
                spread.mul_(config.beta2).add_((now - mean).abs(), alpha=1 - config.beta2)

    def importance(self) -> Tensor:
        """s(E) + mean s(A's row) + mean s(B's column) of each triplet, (r,)."""
        state = self.training_state()
        A, B, E = (state[f"mean_{part}"] * state[f"spread_{part}"] for part in PARTS)
        return E.view(-1) + A.mean(dim=1) + B.mean(dim=0)

    @classmethod
    def check_run(cls, layers: Sequence[AdaLoRALayer], steps: int) -> None:
        """Raise ``ValueError`` when the run is not as long as the config says."""
        if (expected := layers[0].config.total_step) != steps:
            raise ValueError(
                f"AdaLoraConfig has total_step={expected}, this run has steps={steps}: "
                "the budget falls over total_step, so give both the same number"
            )

    @classmethod
    def extra_loss(cls, layers: Sequence[AdaLoRALayer]) -> Tensor | None:
        """½ (``orth_reg_weight``) times the mean of ‖A Aᵀ − I‖ and ‖Bᵀ B − I‖ (equation 4)."""
        products = [layer.lora_A @ layer.lora_A.T for layer in layers if layer.r]
        products += [layer.lora_B.T @ layer.lora_B for layer in layers if layer.r]
        if not products:
            return None
        distances = [torch.norm(p - torch.eye(len(p)).to(p)) for p in products]
        return layers[0].config.orth_reg_weight * sum(distances) / len(distances)  # type: ignore[return-value]

    @classmethod
    @torch.no_grad()
    def update_and_allocate(cls, layers: Sequence[AdaLoRALayer], step: int) -> None:
        """Weigh every triplet by this step's gradients, and prune to the step's budget."""
        config = layers[0].config
        if step < config.last_allocation:
            for layer in layers:
                layer.observe()
        due = config.tinit < step < config.last_allocation and step % config.deltaT == 0
        if due or step == config.last_allocation:
            allocate(layers, config.budget(step, len(layers)))
        for layer in layers:
            layer.lora_E[~layer.alive] = 0  # between two allocations too

    def __repr__(self) -> str:
        c = self.config
        sizes = f"{self.in_features} -> {self.out_features}, r={self.r}, target_r={c.target_r}"
        rest = {name: getattr(c, name) for name in SCHEDULE}
        return f"AdaLoRALayer({sizes}, {rest}{', merged' * self.merged})"


SCHEDULE = (
    *("init_r", "lora_alpha", "lora_dropout", "total_step", "tinit", "tfinal", "deltaT"),
    *("beta1", "beta2", "orth_reg_weight"),
)


def allocate(layers: Sequence[AdaLoRALayer], budget: int) -> None:
    """Leave the ``budget`` most important triplets of all layers; of equals the first."""
    scores = torch.cat([layer.importance() for layer in layers])
    order = torch.sort(scores, descending=True, stable=True).indices
    left = torch.zeros_like(scores, dtype=torch.bool)
    left[order[:budget]] = True
    parts: Any = left.split([layer.r for layer in layers])
    for layer, part in zip(layers, parts, strict=True):
        layer.alive.copy_(part)
