"""Files of methods that stand beside the weights: soft prompts and prefixes in PEFT's form,
bottlenecks in ours.

    PROMPT_TUNING, PREFIX_TUNING    one tensor, ``prompt_embeddings``: PEFT's key, without a prefix
    BOTTLENECK                      <block>.<adapter>.adapter_down.weight, and so on

The two files are those of peft_files.py, with the same copy of the config and the same strictness:
one error names everything that does not fit, and the model stays as it was.
"""

from __future__ import annotations

import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..lora.adapter_config import AttachedConfig
from ..lora.attached import Attached, adapters_of, attach, attached_modules
from ..lora.paths import unwrapped
from ..methods.bottleneck import BottleneckConfig
from ..methods.prefix_tuning import PrefixTuningConfig
from ..methods.prompt_tuning import PromptTuningConfig
from ..text import listed
from .base_fingerprint import fingerprint
from .beside import adapter_config, misfit
from .mismatches import other_base
from .peft_files import META_BASE, AdapterFiles, write_adapter_files

KNOWN: dict[str, type[AttachedConfig]] = {
    kind.peft_type: kind for kind in (PromptTuningConfig, PrefixTuningConfig, BottleneckConfig)
}
READ = {  # the fields of a file that say how to build
    "PROMPT_TUNING": ("num_virtual_tokens",),
    "PREFIX_TUNING": ("num_virtual_tokens",),
    "BOTTLENECK": ("kind", "size"),
}


def save_attached(model: nn.Module, folder: Path, plain: bool, card: Any = None) -> Path:
    """Write a model's attached modules.

    Raises ``ValueError`` for values that are not finite, and for ``plain``, which is LoRA's.
    """
    config: AttachedConfig = adapter_config(model)
    if plain:
        raise ValueError(f"plain=True writes plain LoRA, this model has {config.peft_type}")
    tensors: dict[str, Tensor] = {}
    for _, part in attached_modules(model):
        tensors |= {name: t.detach() for name, t in part.tensors().items()}
    fields = {
        "peft_type": config.peft_type,
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": getattr(unwrapped(model), "name_or_path", "") or None,
        "inference_mode": True,
        **config.fields(model),
    }
    write_adapter_files(folder, fields, tensors, asdict(fingerprint(model)), card)
    return folder


def load_attached(model: nn.Module, files: AdapterFiles, strict: bool) -> nn.Module:
    """Put a file's modules into a model, or its values into those that the model has."""
    saved = files.config
    parts, wrong = parts_for(model, files)
    expected = {name: t for part in parts for name, t in part.tensors().items()}
    for name, tensor in expected.items():
        wrong += misfit(name, tuple(tensor.shape), files.tensors)
    if parts and (strange := [name for name in files.tensors if name not in expected]):
        wrong.append(f"unknown tensors {listed(strange, 5, ', ')}")
    other = other_base(lambda: fingerprint(model), files)
    if other and (strict or (wrong and META_BASE in files.metadata)):
        wrong.insert(0, other)
    if wrong:
        raise ValueError(
            f"the {saved['peft_type']} in {files.folder} does not fit this model: "
            f"{listed(wrong, 8)}. Nothing was changed"
        )
    if other and META_BASE in files.metadata:
        differs = f"the adapter in {files.folder} {other}"
        warnings.warn(f"{differs}: compare its answers before you rely on them", stacklevel=3)
    if not list(attached_modules(model)):
        with torch.random.fork_rng([]):  # the first values are thrown away
            attach(model, config_of(saved))
    for _, part in attached_modules(model):
        part.load(files.tensors)
    return model


def parts_for(model: nn.Module, files: AdapterFiles) -> tuple[list[Attached], list[str]]:
    """The modules that a file is for: those of the model, or new ones; and what is wrong."""
    saved, present = files.config, [part for _, part in attached_modules(model)]
    wrong = []
    if saved.get("modules_to_save"):
        wrong.append(f"modules_to_save={saved['modules_to_save']!r} is not supported with it")
    if saved.get("num_transformer_submodules") not in (None, 1):
        wrong.append("it is for an encoder and a decoder")
    if adapters_of(model):
        ours = adapter_config(model)
        if ours.peft_type != saved["peft_type"]:
            wrong.append(f"this model has {ours.peft_type}: unload(model) first")
        elif isinstance(ours, BottleneckConfig) and ours.kind != saved.get("kind"):
            # pfeiffer and parallel have the same names and shapes
            there = f"{saved.get('kind')!r} in the file"
            wrong.append(f"kind={ours.kind!r} in this model, {there}: unload(model) first")
        return present, wrong
    try:
        with torch.random.fork_rng([]):
            parts = config_of(saved).build(model)
    except (TypeError, ValueError) as error:
        return [], [*wrong, str(error)]
    for place, part in parts.items():
        part.place = place
    return list(parts.values()), wrong


def config_of(saved: dict[str, Any]) -> AttachedConfig:
    """A file's config as ours. Raises ``ValueError`` or ``TypeError`` as that does."""
    kind = saved["peft_type"]
    fields: Any = {name: saved.get(name) for name in READ[kind]}
    return KNOWN[kind](**fields)
