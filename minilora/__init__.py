"""minilora: LoRA and QLoRA from scratch, small enough to read, checked against the peers.

>>> import minilora
>>> from minilora import LoraConfig
>>> model = minilora.load_base()
>>> config = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"])
>>> report = minilora.inject(model, config)
>>> minilora.print_trainable_parameters(model)
trainable params: 21,504 || all params: 1,325,696 || trainable%: 1.6221

The library, in reading order: ``level0`` (the truth in NumPy), ``nf4``, ``lora``, ``methods``,
``formats``, ``ledger``, ``model``, ``training``. The course stands above it: ``plots``,
``analysis``, ``bugs``, ``recipes``, ``learn``. Each folder's ``__init__.py`` says what is inside;
``commands`` is the command line.
"""

from typing import TYPE_CHECKING

from .lazy import lazy_imports

if TYPE_CHECKING:
    from . import ledger, level0, nf4
    from .formats import Fingerprint, fingerprint, load_adapter, save_adapter
    from .lora import (
        InjectReport,
        LoraConfig,
        LoRALayer,
        audit,
        combine,
        disable_adapter,
        enable_input_grads,
        explain_match,
        lora_layers,
        low_rank_parts,
        merge,
        merge_and_requantize,
        merge_and_unload,
        print_trainable_parameters,
        scale_adapter,
        swap_adapter,
        trainable_parameters,
        unload,
        unmerge,
    )
    from .methods import (
        AdaLoraConfig,
        BitFitConfig,
        BottleneckConfig,
        IA3Config,
        LNTuningConfig,
        PrefixTuningConfig,
        PromptTuningConfig,
        VeraConfig,
        inject,
    )
    from .model import (
        Llama,
        LlamaConfig,
        Tokenizer,
        add_tokenizer,
        export_adapter_gguf,
        export_gguf,
        load_base,
        save_model,
        tokenizer,
    )
    from .nf4 import NF4Linear, dequantize_base, quantize_base
    from .training import (
        Conversation,
        Document,
        Example,
        Examples,
        History,
        Job,
        Prose,
        SelfReplay,
        Task,
        TrainConfig,
        bits_per_byte,
        data,
        exact_match,
        read_examples,
        train,
        train_many,
    )

__version__ = "0.2.0"
__all__ = [
    "AdaLoraConfig",
    "BitFitConfig",
    "BottleneckConfig",
    "Conversation",
    "Document",
    "Example",
    "Examples",
    "Fingerprint",
    "History",
    "IA3Config",
    "InjectReport",
    "Job",
    "LNTuningConfig",
    "Llama",
    "LlamaConfig",
    "LoRALayer",
    "LoraConfig",
    "NF4Linear",
    "PrefixTuningConfig",
    "PromptTuningConfig",
    "Prose",
    "SelfReplay",
    "Task",
    "Tokenizer",
    "TrainConfig",
    "VeraConfig",
    "add_tokenizer",
    "audit",
    "bits_per_byte",
    "combine",
    "data",
    "dequantize_base",
    "disable_adapter",
    "enable_input_grads",
    "exact_match",
    "explain_match",
    "export_adapter_gguf",
    "export_gguf",
    "fingerprint",
    "inject",
    "ledger",
    "level0",
    "load_adapter",
    "load_base",
    "lora_layers",
    "low_rank_parts",
    "merge",
    "merge_and_requantize",
    "merge_and_unload",
    "nf4",
    "print_trainable_parameters",
    "quantize_base",
    "read_examples",
    "save_adapter",
    "save_model",
    "scale_adapter",
    "swap_adapter",
    "tokenizer",
    "train",
    "train_many",
    "trainable_parameters",
    "unload",
    "unmerge",
]
if not TYPE_CHECKING:  # or a type checker would take every name for there
    __getattr__, __dir__ = lazy_imports(__name__)
