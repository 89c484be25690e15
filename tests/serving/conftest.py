"""Three adapters on disk, made once: ranks, targets and scalings differ."""

import pytest

import minilora
from minilora.serving import AdapterBank

from .adapters import make_adapter

KINDS = {
    "qv": {"r": 4},
    "mlp": {"r": 8, "lora_alpha": 24, "target_modules": ["up_proj", "down_proj"]},
    "rs": {"r": 2, "use_rslora": True, "target_modules": ["o_proj", "q_proj"]},
}


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """{name: folder}; tests do not write there."""
    root = tmp_path_factory.mktemp("adapters")
    return {
        name: make_adapter(root / name, seed, **kind)
        for seed, (name, kind) in enumerate(KINDS.items())
    }


@pytest.fixture
def bank(folders):
    """A bank with the three."""
    made = AdapterBank(minilora.load_base())
    for name, folder in folders.items():
        made.load(name, folder)
    return made
