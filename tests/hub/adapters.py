"""Small adapters on disk for these tests, made without a base: a config and random A and B."""

import json
from pathlib import Path

import torch

from minilora.files import write_json
from minilora.tensor_files import write_tensors

BASE = {"architecture": "a" * 16, "tensors": "b" * 16}


def make_adapter(folder, seed=0, r=2, targets=("q_proj",), base=BASE, width=8, **config):
    """Write PEFT's two files and return the folder."""
    generator, tensors = torch.Generator().manual_seed(seed), {}
    for layer in range(2):
        for target in targets:
            path = f"base_model.model.layers.{layer}.{target}"
            tensors[f"{path}.lora_A.weight"] = torch.randn(r, width, generator=generator)
            tensors[f"{path}.lora_B.weight"] = torch.randn(width, r, generator=generator)
    settings = {"peft_type": "LORA", "r": r, "lora_alpha": 2 * r, "target_modules": list(targets)}
    settings |= config
    metadata = {"minilora_base": json.dumps(base)} if base else {}
    write_json(Path(folder, "adapter_config.json"), settings)
    write_tensors(Path(folder, "adapter_model.safetensors"), tensors, metadata)
    return Path(folder)


def flip_bit(path, place=-1):
    """Change one bit of a file, in place, as a failing disk would."""
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)
