"""LoRA's cousins and rivals: each method its equation, its paper, what it can and cannot do.

A method is a config (which modules, which shapes) and a layer (``adapt``, its equation, and
``fold``, the weight it merges into); ``lora.AdapterLayer`` owns the switch, the merge and the way
back. In reading order:

    ia3.py             (IA)³: one factor an output
    bitfit.py          BitFit: one bias an output
    norm_tuning.py     the norms' own weights
    vera.py            VeRA: shared random projections, two vectors a layer
    dora.py            DoRA: each output's length apart from its direction
    pissa.py           PiSSA, OLoRA: LoRA that starts from the weight
    loftq.py           LoftQ: on four bits, LoRA that starts from what was lost
    adalora.py         AdaLoRA: a budget of ranks, given to the modules that use them
    streams.py         what a method beside the stream needs to know of a model
    prompt_tuning.py   soft tokens before the text
    prefix_tuning.py   keys and values before the text, in every layer
    bottleneck.py      Houlsby, Pfeiffer, parallel: a small network beside each block
    injection.py       ``inject``: which layer a config means
    training_hooks.py  what the loop asks of a method; LoRA+

Imports ``lora`` and the ground.
"""

from typing import TYPE_CHECKING

from ..lazy import lazy_imports

if TYPE_CHECKING:
    from .adalora import AdaLoraConfig
    from .bitfit import BitFitConfig
    from .bottleneck import BottleneckConfig
    from .ia3 import IA3Config
    from .injection import inject
    from .loftq import replace_lora_weights_loftq
    from .norm_tuning import LNTuningConfig
    from .prefix_tuning import PrefixTuningConfig
    from .prompt_tuning import PromptTuningConfig
    from .vera import VeraConfig

__all__ = [
    "AdaLoraConfig",
    "BitFitConfig",
    "BottleneckConfig",
    "IA3Config",
    "LNTuningConfig",
    "PrefixTuningConfig",
    "PromptTuningConfig",
    "VeraConfig",
    "inject",
    "replace_lora_weights_loftq",
]
if not TYPE_CHECKING:  # or a type checker would take every name for there
    __getattr__, __dir__ = lazy_imports(__name__)
