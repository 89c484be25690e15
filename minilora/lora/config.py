"""What an adapter is to be: ``LoraConfig``, with PEFT's field names, checked when it is made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from .adapter_config import AdapterConfig
from .hyperparameters import check_all, check_alpha, check_rank, check_variant, scaling_of
from .patterns import check_patterns, check_values, first_fit

BIASES = ("none", "all", "lora_only")
TASK_TYPES = (
    "CAUSAL_LM", "SEQ_2_SEQ_LM", "SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION",
)  # fmt: skip

if TYPE_CHECKING:
    from torch import nn

    from .embedding import LoRAEmbedding
    from .layer import LoRALayer
    from .matches import Site


@dataclass(frozen=True)
class LoraConfig(AdapterConfig):
    """Rank, scale, dropout and targets of a LoRA adapter (arXiv 2106.09685 section 4.1).

    - ``r``: rank of the update, at least 1. A module gets ``r * (in + out)`` trainable parameters.
    - ``lora_alpha``: the update is scaled by ``lora_alpha / r``, with ``use_rslora`` by
      ``lora_alpha / sqrt(r)`` (arXiv 2312.03732).
    - ``lora_dropout``: share of the adapter's inputs that training drops, in [0, 1). The base's
      input is left alone.
    - ``target_modules``: a list of names, each matching a module of that name or one that ends in
      ``.name``; or one regular expression that must match a whole path; or ``"all-linear"``, every
      Linear but the output head.
    - ``exclude_modules``: a list or a regular expression likewise; a module that it matches stays
      as it is.
    - ``rank_pattern``, ``alpha_pattern``: another ``r`` or ``lora_alpha`` for some modules, as
      ``{"k_proj": 4}``. A key is a regular expression for a path or its end after a dot; the first
      key that fits counts.
    - ``bias``: which of the base's biases train along: ``"none"``, ``"all"``, or those of the
      adapted modules (``"lora_only"``).
    - ``modules_to_save``: names of modules that train whole and are saved with the adapter, such as
      a new head; ``task_type``: PEFT's word for what the model does. ``"SEQ_CLS"`` and
      ``"TOKEN_CLS"`` train the module ``classifier`` or ``score`` whole, ``"QUESTION_ANS"``
      ``qa_outputs``.
    - ``trainable_token_indices``: tokens whose rows of the embedding train, as ``[3, 5]``, or as
      ``{"embed_tokens": [3, 5]}`` for a table by name.
    - ``layers_to_transform``: only these layers, one number or several. The layer of a module is
      the first number in its path that has a name before it, or the number after
      ``layers_pattern`` (``"layers"``, ``"h"``; one or several). They narrow a *list* of targets
      only, and not an entry of it that is a whole path: as in PEFT.
    - ``use_dora``: magnitude and direction apart (methods/dora.py). ``init_lora_weights``: True for
      LoRA's own start, ``"pissa"`` or ``"olora"`` for one from the weight (methods/pissa.py).

    Raises ``ValueError`` on values outside these, ``TypeError`` on values of another kind.

    >>> LoraConfig(r=16, lora_alpha=32).scaling
    2.0
    """

    other_names: ClassVar[Mapping[str, str]] = {
        **{"alpha": "lora_alpha", "lora_r": "r", "rank": "r", "dropout": "lora_dropout"},
        **{"rslora": "use_rslora", "targets": "target_modules", "modules": "target_modules"},
    }
    peft_type: ClassVar[str] = "LORA"
    takes_embeddings: ClassVar[bool] = True
    pattern_fields: ClassVar[Sequence[str]] = ("rank_pattern", "alpha_pattern")
    r: int = 8
    lora_alpha: float = 16
    target_modules: str | Sequence[str] = ("q_proj", "v_proj")
    lora_dropout: float = 0.0
    use_rslora: bool = False
    exclude_modules: str | Sequence[str] = ()
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    layers_to_transform: int | Sequence[int] | None = None
    layers_pattern: str | Sequence[str] | None = None
    use_dora: bool = False
    init_lora_weights: bool | str = True
    bias: str = "none"
    task_type: str | None = None
    modules_to_save: Sequence[str] = ()
    trainable_token_indices: Sequence[int] | Mapping[str, Sequence[int]] = ()

    def __post_init__(self) -> None:
        check_all(self.r, self.lora_alpha, self.lora_dropout, self.use_rslora)
        check_variant(self.use_dora, self.init_lora_weights)
        ranks = check_values("rank_pattern", self.rank_pattern, check_rank)
        alphas = check_values("alpha_pattern", self.alpha_pattern, check_alpha)
        self._set("rank_pattern", ranks)
        self._set("alpha_pattern", alphas)
        self.check_targets()
        self._check_extras()

    def _check_extras(self) -> None:
        """What trains beside the adapters (extras.py)."""
        for name, choices in (("bias", BIASES), ("task_type", (*TASK_TYPES, None))):
            if (value := getattr(self, name)) not in choices:
                words = ", ".join(repr(choice) for choice in choices)
                raise ValueError(f"{name} must be one of {words}, got {value!r}")
        if isinstance(self.modules_to_save, str):
            raise TypeError(
                f"modules_to_save must be a list of names, as [{self.modules_to_save!r}]"
            )
        self._set("modules_to_save", check_patterns("modules_to_save", self.modules_to_save))
        tokens = self.trainable_token_indices
        if isinstance(tokens, Mapping):
            self._set("trainable_token_indices", {name: tuple(t) for name, t in tokens.items()})
        else:
            self._set("trainable_token_indices", tuple(tokens or ()))

    @property
    def scaling(self) -> float:
        """The factor in front of B A."""
        return scaling_of(self.r, self.lora_alpha, self.use_rslora)

    def rank_and_alpha(self, path: str) -> tuple[int, float]:
        """``r`` and ``lora_alpha`` of a module: those of a pattern that fits, else the config's.

        >>> config = LoraConfig(r=8, lora_alpha=16, rank_pattern={"1[.]k_proj": 2, "k_proj": 4})
        >>> config.rank_and_alpha("layers.1.k_proj"), config.rank_and_alpha("layers.2.k_proj")
        ((2, 16), (4, 16))
        """
        r = first_fit(path, self.rank_pattern, self.r)
        lora_alpha = first_fit(path, self.alpha_pattern, self.lora_alpha)
        return r, lora_alpha

    def rank_of(self, path: str) -> int:
        """``r`` of a module."""
        return self.rank_and_alpha(path)[0]

    def shapes(self, site: Site) -> dict[str, tuple[int, ...]]:
        """A (r, in) and B (out, r), under other names beside an Embedding; DoRA's magnitudes."""
        r, out_features = self.rank_of(site.path), site.out_features
        names = ("lora_A.weight", "lora_B.weight")
        A, B = names if site.is_linear else ("lora_embedding_A", "lora_embedding_B")
        factors = {A: (r, site.in_features), B: (out_features, r)}
        return factors | ({"lora_magnitude_vector": (out_features,)} if self.use_dora else {})

    def wrap(self, base: nn.Module, path: str) -> LoRALayer | LoRAEmbedding:
        """The layer that goes in at ``path``, around the module that is there."""
        from .embedding import LoRAEmbedding  # a config needs no torch until it builds a layer
        from .layer import LoRALayer
        from .linears import is_linear

        if self.use_dora or self.init_lora_weights is not True:
            raise ValueError(
                f"use_dora={self.use_dora}, init_lora_weights={self.init_lora_weights!r}: "
                "minilora.inject knows LoRA's variants, minilora.lora.inject only LoRA itself"
            )
        r, lora_alpha = self.rank_and_alpha(path)
        kind = LoRALayer if is_linear(base) else LoRAEmbedding
        return kind(base, r, lora_alpha, self.lora_dropout, self.use_rslora)


def read_targets(words: Sequence[str]) -> str | tuple[str, ...]:
    """``target_modules`` from a command line, where names are words or stand between commas.

    >>> read_targets(["q_proj,v_proj", "o_proj"]), read_targets(["all-linear"])
    (('q_proj', 'v_proj', 'o_proj'), 'all-linear')
    """
    names = tuple(name for word in words for name in word.split(",") if name)
    return "all-linear" if names == ("all-linear",) else names
