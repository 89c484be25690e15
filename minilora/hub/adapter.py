"""An adapter's folder read strictly, and its identity: what it computes, not how its file happens
to lie on the disk.

    content id = sha256 over the config, then (name, dtype, shape, bytes) of each tensor by name

A file's hash would not do: safetensors writes the keys of the metadata in random order (safetensors
#584), so equal adapters have unequal files; and PEFT writes a list of targets in the order of a
Python set. Here the config is read as a ``LoraConfig`` first, so that an omitted field and its
default are the same, and lists that mean sets are sorted. Of ``alpha_pattern`` the first key that
fits a module counts, so its order belongs to the identity where another order would mean another α.

For the store the two files are written again in one canonical form: keys and lists are sorted, and
a pattern where its order does not count. So the same config in another order is equal bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..files import json_text
from ..formats.attached_files import KNOWN
from ..formats.base_fingerprint import Fingerprint
from ..formats.factors import adapted_paths
from ..formats.method_files import CONFIGS
from ..formats.mismatches import beyond_linears, misshapen, strange_keys
from ..formats.peft_files import (
    CONFIG,
    META_BASE,
    META_CONFIG,
    PREFIX,
    TENSORS,
    lora_config,
    metadata_object,
    packed,
    read_adapter_files,
)
from ..lora.config import LoraConfig
from ..lora.hyperparameters import scaling_of
from ..lora.patterns import first_fit
from ..text import listed

__all__ = ["CONFIG", "PREFIX", "TENSORS", "Adapter", "read_adapter"]


LATER = (
    *("bias", "task_type", "modules_to_save", "trainable_token_indices"),
    *("use_dora", "init_lora_weights"),
)


@dataclass(frozen=True)
class Adapter:
    """The config as PEFT's JSON says it and as ours, tensors by PEFT's keys, and the base (None:
    the files do not say).
    """

    json: dict[str, Any]
    config: LoraConfig
    tensors: dict[str, Tensor]
    base: Fingerprint | None

    @property
    def modules(self) -> list[str]:
        """Paths of the Linears that have an A and a B here, sorted."""
        return sorted(adapted_paths(self.tensors))

    def factors(self, module: str) -> tuple[Tensor, Tensor, float]:
        """A (r, in), B (out, r) and the scaling of one module."""
        r, lora_alpha = self.config.rank_and_alpha(module)
        A, B = (
            self.tensors[f"{PREFIX}{module}.{factor}.weight"] for factor in ("lora_A", "lora_B")
        )
        return A, B, scaling_of(r, lora_alpha, self.config.use_rslora)

    @property
    def settings(self) -> dict[str, Any]:
        """The config in canonical form: ``LoraConfig``'s fields, sets sorted.

        A field that came after version 0.1 counts where it says something, so that an adapter keeps
        its identity.
        """
        plain = {**asdict(LoraConfig()), "task_type": self.config.task_type}
        fields = {"peft_type": "LORA", **asdict(self.config)}
        fields = {n: v for n, v in fields.items() if n not in LATER or v != plain[n]}
        settings = {name: canonical(value) for name, value in sorted(fields.items())}
        pattern = settings["alpha_pattern"]
        if self.order_counts(pattern):
            settings["alpha_pattern"] = [[key, alpha] for key, alpha in pattern.items()]
        return settings

    def order_counts(self, pattern: Mapping[str, Any]) -> bool:
        """Whether a module would have another value if the pattern's keys were sorted."""
        turned = by_key(pattern)
        return any(first_fit(m, pattern, 0) != first_fit(m, turned, 0) for m in self.modules)

    @property
    def content_id(self) -> str:
        """The identity of the module's head, 64 hexadecimal digits."""
        total = hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode())
        for name, tensor in sorted(self.tensors.items()):
            total.update(f"\n{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
            total.update(tensor_bytes(tensor))
        return total.hexdigest()

    def files(self) -> dict[str, bytes]:
        """Both files in canonical form, by name."""
        config = in_order(self.json)
        for name in self.config.pattern_fields:
            pattern = config.get(name)
            if pattern and not self.order_counts(pattern):
                config[name] = by_key(pattern)
        return {
            CONFIG: json_text(config).encode(),
            TENSORS: tensor_file(config, self.tensors, self.base),
        }


def read_adapter(folder: Path, base: Fingerprint | None = None) -> Adapter:
    """Read PEFT's two files; ``base`` is for files that do not say what they were trained on, as
    PEFT's.

    Raises one ``ValueError`` that names everything that is wrong: a missing or damaged file,
    unknown tensors, shapes that do not fit the config, values that are not finite, features that
    minilora does not have; and one for a ``base`` that the file contradicts.
    """
    files = read_adapter_files(Path(folder))
    if files.config.get("peft_type") in (*CONFIGS, *KNOWN):
        raise ValueError(
            f"{folder} holds {files.config['peft_type']}; the hub stores A and B of Linears only "
            "(peft_type LORA). load_adapter reads the folder as it is"
        )
    config, wrong = lora_config(files.config)
    modules = adapted_paths(files.tensors)
    wrong += strange_keys(files.tensors, known=())
    if config is not None:
        wrong += beyond_linears(config, files.tensors)
        wrong += [each for module in modules for each in misfits(module, config, files.tensors)]
    if wrong or config is None:
        raise ValueError(f"{folder} holds no adapter that can be trusted: {listed(wrong, 8)}")
    named = metadata_object(files.metadata, META_BASE) or {}
    if isinstance(named.get("architecture"), str):
        written = Fingerprint(named["architecture"], str(named.get("tensors", "")))
        if base is not None and base != written:
            raise ValueError(f"{folder} was trained on {written}, not on {base}: leave out base")
        base = written
    return Adapter(files.config, config, files.tensors, base)


def misfits(module: str, config: LoraConfig, tensors: Mapping[str, Tensor]) -> list[str]:
    """What is wrong with one module's A and B; the base's Linear, which is not here, takes their
    shape.
    """
    A, B = (tensors.get(f"{PREFIX}{module}.{factor}.weight") for factor in ("lora_A", "lora_B"))
    in_features = 1 if A is None or A.dim() == 0 else A.shape[-1]
    out_features = 1 if B is None or B.dim() == 0 else len(B)
    linear = nn.Linear(in_features, out_features, device="meta")
    return misshapen(module, linear, config.rank_and_alpha(module)[0], tensors)


def tensor_file(
    config: dict[str, Any], tensors: Mapping[str, Tensor], base: Fingerprint | None
) -> bytes:
    """``adapter_model.safetensors`` in canonical form, with the metadata of ``save_adapter``."""
    metadata = {"format": "pt", META_CONFIG: json.dumps(in_order(config))}
    if base is not None:
        metadata[META_BASE] = json.dumps(asdict(base))
    return packed(tensors, metadata)


def by_key(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The same with sorted keys."""
    return dict(sorted(settings.items()))


def in_order(config: Mapping[str, Any]) -> dict[str, Any]:
    """PEFT's config with keys and lists sorted; a pattern inside it keeps its order.

    >>> in_order({"target_modules": ["v", "q"], "r": 8, "alpha_pattern": {"v": 1, "q": 2}})
    {'alpha_pattern': {'v': 1, 'q': 2}, 'r': 8, 'target_modules': ['q', 'v']}
    """
    return {n: sorted(v, key=str) if isinstance(v, list) else v for n, v in by_key(config).items()}


def canonical(value: Any) -> Any:
    """Lists that mean sets sorted, whole numbers as floats, so that 16 and 16.0 are the same.

    >>> canonical(("v_proj", "q_proj")), canonical(16), canonical(True)
    (['q_proj', 'v_proj'], 16.0, True)
    """
    if isinstance(value, Mapping):
        return {key: canonical(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return sorted(map(canonical, value))
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The values as they are stored, in row order."""
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data
