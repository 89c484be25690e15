"""minilora: LoRA and QLoRA from scratch, small enough to read and checked against PEFT and bitsandbytes.

>>> import minilora
>>> from minilora import LoraConfig
>>> model = minilora.load_base()
>>> report = minilora.inject(model, LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"]))
>>> minilora.print_trainable_parameters(model)
trainable params: 21,504 || all params: 1,325,696 || trainable%: 1.6221
"""

from . import ledger, level0, nf4
from .formats.base_fingerprint import Fingerprint, fingerprint
from .formats.save_and_load import load_adapter, save_adapter
from .lora.config import LoraConfig
from .lora.injection import (
    disable_adapter,
    enable_input_grads,
    explain_match,
    inject,
    print_trainable_parameters,
    trainable_parameters,
    unload,
)
from .lora.layer import LoRALayer
from .lora.merging import combine, merge, merge_and_unload, unmerge
from .lora.selection import InjectReport
from .lora.weight_diff import audit
from .model import tokenizer as tokenizer
from .model.pretrained import load_base, save_model
from .model.transformer import Llama, LlamaConfig
from .nf4.linear import NF4Linear, dequantize_base, quantize_base
from .training import data
from .training.config import TrainConfig
from .training.data import Example, Task
from .training.evaluation import bits_per_byte, exact_match
from .training.history import History
from .training.loop import train

__version__ = "0.1.0"
__all__ = [
    "Example",
    "Fingerprint",
    "History",
    "InjectReport",
    "Llama",
    "LlamaConfig",
    "LoRALayer",
    "LoraConfig",
    "NF4Linear",
    "Task",
    "TrainConfig",
    "audit",
    "bits_per_byte",
    "combine",
    "data",
    "dequantize_base",
    "disable_adapter",
    "enable_input_grads",
    "exact_match",
    "explain_match",
    "fingerprint",
    "inject",
    "ledger",
    "level0",
    "load_adapter",
    "load_base",
    "merge",
    "merge_and_unload",
    "nf4",
    "print_trainable_parameters",
    "quantize_base",
    "save_adapter",
    "save_model",
    "train",
    "trainable_parameters",
    "unload",
    "unmerge",
]
