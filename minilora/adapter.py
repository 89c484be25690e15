"""Adapters on disk, as PEFT writes them: ``adapter_config.json`` and ``adapter_model.safetensors`` in one folder.

    base_model.model.<path of the Linear>.lora_A.weight    (r, in)
    base_model.model.<path of the Linear>.lora_B.weight    (out, r)

A folder written here opens in PEFT, and the other way round. PEFT is lenient where a user would rather know: with wrong
keys it loads nothing and warns once, so the base is served as if it were the fine-tune (huggingface/peft #2699). Here
everything that does not fit is named in one error, and the model stays as it was.

Left out so far: ``rank_pattern`` and ``alpha_pattern``, DoRA, trained biases, ``modules_to_save``; a file that needs one of
them is refused by name.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .config import LoraConfig
from .files import json_writer, read_json, read_tensors, tensor_writer, write_together
from .inject import inject, lora_layers, require_lora
from .lora import LoRALayer, is_conv1d, linear_shape

CONFIG, TENSORS, PREFIX = "adapter_config.json", "adapter_model.safetensors", "base_model.model."
# Features that change what the tensors mean, and the value at which they change nothing.
UNSUPPORTED = {
    "use_dora": False,
    "use_qalora": False,
    "bias": "none",
    "rank_pattern": {},
    "alpha_pattern": {},
    "modules_to_save": None,
    "layer_replication": None,
    "alora_invocation_tokens": None,
    "trainable_token_indices": None,
    "target_parameters": None,
    "lora_bias": False,
    "megatron_config": None,
    "arrow_config": None,
}
CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


def save_adapter(model: nn.Module, folder: str | Path) -> Path:
    """Write a model's adapters as PEFT's two files; nothing of the base goes with them.

    Both are written under temporary names; then the old config goes and the new tensors and config are renamed into place,
    in this order, so that a folder with a config is whole.
    Raises ``ValueError`` without adapters or when they differ in rank or scale, ``OSError`` when the folder cannot be written.
    """
    layers = require_lora(model)
    settings = {(la.r, la.lora_alpha, la.lora_dropout, la.use_rslora) for _, la in layers}
    if len(settings) > 1:
        raise ValueError(f"adapters of different settings in one model cannot be saved as one: {sorted(settings)}")
    r, lora_alpha, lora_dropout, use_rslora = next(iter(settings))
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM" if hasattr(model, "generate") else None,  # with a task, PEFT asks for generate()
        "base_model_name_or_path": None,
        "inference_mode": True,
        "r": r,
        "lora_alpha": lora_alpha,
        "lora_dropout": lora_dropout,
        "use_rslora": use_rslora,
        "use_dora": False,
        "bias": "none",
        "fan_in_fan_out": any(is_conv1d(layer.base) for _, layer in layers),
        "target_modules": short_names(model, [name for name, _ in layers]),
        "rank_pattern": {},
        "alpha_pattern": {},
    }
    folder = Path(folder)
    write_together(folder, {TENSORS: tensor_writer(adapter_tensors(layers)), CONFIG: json_writer(config)}, remove=[CONFIG])
    return folder


def load_adapter(model: nn.Module, folder: str | Path) -> nn.Module:
    """Put a saved adapter into a model, injecting first if it has none; returns the model.

    Raises one ``ValueError`` that names everything that does not fit (missing and unknown tensors, shapes, values that
    are not finite, unsupported features, a base without such modules); the model is then as it was.
    """
    folder = Path(folder)
    found = read_json(folder / CONFIG)
    config = lora_config(found, folder)
    tensors = read_tensors(folder / TENSORS)
    layers = dict(lora_layers(model))
    names = adapted_names(tensors, folder)
    check_fit(model, names, tensors, config, layers, folder)
    if not layers:
        exactly = "|".join(name.replace(".", r"\.") for name in names)
        inject(model, LoraConfig(config.r, config.lora_alpha, exactly, config.lora_dropout, config.use_rslora))
        layers = dict(lora_layers(model))
    with torch.no_grad():
        for name, layer in layers.items():
            layer.lora_A.copy_(tensors[f"{PREFIX}{name}.lora_A.weight"])
            layer.lora_B.copy_(tensors[f"{PREFIX}{name}.lora_B.weight"])
    return model


def adapter_tensors(layers: list[tuple[str, LoRALayer]]) -> dict[str, Tensor]:
    """A and B of every layer under PEFT's keys."""
    tensors = {}
    for name, layer in layers:
        tensors[f"{PREFIX}{name}.lora_A.weight"] = layer.lora_A.detach()
        tensors[f"{PREFIX}{name}.lora_B.weight"] = layer.lora_B.detach()
    return tensors


def short_names(model: nn.Module, names: list[str]) -> list[str]:
    """Last parts of the names if they mean just these modules in this model, else the whole names."""
    short = sorted({name.rsplit(".", 1)[-1] for name in names})
    meant = [name for name, _ in model.named_modules() if name.rsplit(".", 1)[-1] in short]
    return short if sorted(meant) == sorted(names) else sorted(names)


def lora_config(found: dict[str, Any], folder: Path) -> LoraConfig:
    """PEFT's config as ours. Raises ``ValueError`` naming each feature that would change what the tensors mean."""
    wrong = []
    if found.get("peft_type") != "LORA":
        wrong.append(f"peft_type is {found.get('peft_type')!r}, needed 'LORA'")
    for name, neutral in UNSUPPORTED.items():
        if (value := found.get(name, neutral)) not in (neutral, None, {}, [], ()):
            wrong.append(f"{name}={value!r} is not supported")
    if any(word in str(found.get("init_lora_weights", "")).lower() for word in CHANGES_BASE):
        wrong.append(
            f"init_lora_weights={found['init_lora_weights']!r} changes the base: convert it to plain LoRA with PEFT first"
        )
    if wrong:
        raise ValueError(f"{folder / CONFIG} is no adapter that minilora can load: {'; '.join(wrong)}")
    try:
        return LoraConfig(
            r=found.get("r", 8),
            lora_alpha=found.get("lora_alpha", 8),
            lora_dropout=found.get("lora_dropout", 0.0),
            use_rslora=found.get("use_rslora", False),
        )
    except (TypeError, ValueError) as error:
        raise ValueError(f"{folder / CONFIG}: {error}") from error


def adapted_names(tensors: dict[str, Tensor], folder: Path) -> list[str]:
    """Paths of the Linears that the file has tensors for. Raises ``ValueError`` on keys of another form."""
    ends = (".lora_A.weight", ".lora_B.weight")
    if strange := [key for key in tensors if not (key.startswith(PREFIX) and key.endswith(ends))]:
        raise ValueError(
            f"{folder / TENSORS}: unknown tensors {', '.join(strange[:5])}{' …' * (len(strange) > 5)}; "
            f"needed {PREFIX}<module>.lora_A.weight and .lora_B.weight"
        )
    if not tensors:
        raise ValueError(f"{folder / TENSORS} holds no tensors")
    return list(dict.fromkeys(key[len(PREFIX) : -len(ends[0])] for key in tensors))


def check_fit(
    model: nn.Module,
    names: list[str],
    tensors: dict[str, Tensor],
    config: LoraConfig,
    layers: dict[str, LoRALayer],
    folder: Path,
) -> None:
    """Raise one ``ValueError`` with everything about the file that does not fit the model."""
    modules = dict(model.named_modules()) | {name: layer.base for name, layer in layers.items()}
    wrong = [f"{name} has an adapter here but not in the file" for name in layers if name not in names]
    for name in names:
        if layers and name not in layers:
            wrong.append(f"{name} is in the file, but has no adapter here")
            continue
        if name not in modules:
            wrong.append(f"the base has no module {name}")
            continue
        try:
            in_features, out_features = linear_shape(modules[name])
        except TypeError:
            wrong.append(f"{name} is a {type(modules[name]).__name__} here, no Linear")
            continue
        r = layers[name].r if layers else config.r
        for factor, shape in (("lora_A", (r, in_features)), ("lora_B", (out_features, r))):
            tensor = tensors.get(f"{PREFIX}{name}.{factor}.weight")
            if tensor is None:
                wrong.append(f"{name}.{factor} is missing")
            elif tuple(tensor.shape) != shape:
                wrong.append(f"{name}.{factor} has shape {tuple(tensor.shape)}, needed {shape}")
            elif not torch.isfinite(tensor).all():
                wrong.append(f"{name}.{factor} holds values that are not finite")
    if layers:
        theirs = (config.r, config.scaling)
        if differs := [name for name, layer in layers.items() if (layer.r, layer.scaling) != theirs or layer.merged]:
            layer = layers[differs[0]]
            here = f"r={layer.r}, scaling={layer.scaling:g}{', merged' * layer.merged}"
            wrong.append(f"{differs[0]} has {here} here; the file r={theirs[0]}, scaling={theirs[1]:g}")
    if wrong:
        more = f"; and {len(wrong) - 8} more" if len(wrong) > 8 else ""
        raise ValueError(f"the adapter in {folder} does not fit this model: {'; '.join(wrong[:8])}{more}. Nothing was changed")
