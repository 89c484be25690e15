"""``inject`` for every method: which layer a config means.

    LoraConfig                              LoRALayer          lora/layer.py
    LoraConfig(use_dora=True)               DoRALayer          dora.py
    LoraConfig(init_lora_weights="pissa")   ResidualLoRALayer  pissa.py
    any other config                        its own ``wrap_all``

Everything else is ``lora/injection.py``'s: what is checked, what is frozen, how it is taken back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from torch import nn

from ..lora import injection
from ..lora.adapter_config import AdapterConfig, AttachedConfig
from ..lora.adapter_layer import AdapterLayer
from ..lora.config import LoraConfig
from ..lora.linears import is_linear
from ..lora.selection import InjectReport, Match
from .dora import DoRALayer
from .pissa import ResidualLoRALayer


def inject(model: nn.Module, config: AdapterConfig | AttachedConfig | None = None) -> InjectReport:
    """Put a method's adapters into the modules that its config chooses, and freeze all the rest.

    ``config`` is a ``LoraConfig`` (the default), ``VeraConfig``, ``IA3Config``, ``AdaLoraConfig``,
    ``LNTuningConfig``, ``BitFitConfig``, ``PromptTuningConfig``, ``PrefixTuningConfig`` or
    ``BottleneckConfig``. Until it is trained, the model computes what it did, to the bit; the last
    three have no such start (but for the parallel bottleneck). Raises ``ValueError`` before
    anything changes: a target that matches nothing or is not of the method's kind, a tied or shared
    weight, a model that has adapters already; ``TypeError`` for anything but a config.

    >>> from minilora import IA3Config
    >>> model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    >>> inject(model, IA3Config(target_modules=["0", "1"], feedforward_modules=["1"])).trainable
    8
    """
    config = config or LoraConfig()
    if isinstance(config, AttachedConfig):
        return injection.inject(model, config)
    if not isinstance(config, AdapterConfig):
        raise TypeError(
            f"expected a config of a method, as LoraConfig(r=8), got {type(config).__name__}"
        )
    return injection.inject(model, config, partial(layers_of, config))


def layers_of(
    config: AdapterConfig, modules: Mapping[str, nn.Module], chosen: Sequence[Match]
) -> Mapping[str, AdapterLayer]:
    """The layer of every chosen module, by its path."""
    if not isinstance(config, LoraConfig) or (
        config.init_lora_weights is True and not config.use_dora
    ):
        return config.wrap_all(modules, chosen)
    return {match.name: variant(config, modules[match.name], match.name) for match in chosen}


def variant(config: LoraConfig, base: nn.Module, path: str) -> AdapterLayer:
    """The layer of a ``LoraConfig`` that asks for more than LoRA."""
    if not is_linear(base):
        raise ValueError(
            f"{path} is a {type(base).__name__}: use_dora and init_lora_weights are for Linears; "
            "leave it out of target_modules"
        )
    arguments = (*config.rank_and_alpha(path), config.lora_dropout, config.use_rslora)
    if config.use_dora:
        return DoRALayer(base, *arguments)
    return ResidualLoRALayer(base, *arguments, start=str(config.init_lora_weights))
