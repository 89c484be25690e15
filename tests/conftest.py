"""Settings of every test: one thread (or MINILORA_THREADS), hypothesis without deadlines, profiles.

    dev        10 cases a property, without the tests marked slow      make test-quick
    ci         50, the default                                         make test
    thorough   1,000; some properties go to tens of thousands          make test-thorough

pytest-xdist runs the files on two workers. A file stays on one of them, so that its tests' shared
values are made once; the slowest files start first, so that none is left over at the end.
"""

import os

# threads that spin while they wait slow everyone on a shared machine
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest
import torch
from hypothesis import HealthCheck, settings

from .profiles import EXAMPLES, PROFILE

# Two workers on two cores; tensors as small as these gain nothing from a second thread. make
# test-kernels asks for two.
THREADS = int(os.environ.get("MINILORA_THREADS", "1"))
torch.set_num_threads(THREADS)
patient = [HealthCheck.too_slow, HealthCheck.data_too_large]
for name, examples in EXAMPLES.items():
    settings.register_profile(
        name, max_examples=examples, deadline=None, suppress_health_check=patient
    )
settings.load_profile(PROFILE)
SLOWEST_FIRST = ["test_lessons", "test_demo", "test_release", "test_learn", "test_style"]
SLOWEST_FIRST += ["test_book", "test_estimate", "test_tensor", "test_benchmarks", "test_loop"]
SLOWEST_FIRST += ["test_charts", "test_cli", "test_readme", "test_peft_files"]


def pytest_collection_modifyitems(config, items):
    """The slowest files come first; what is marked long runs only where -m names it."""
    if "long" not in (config.option.markexpr or ""):
        left_out = [item for item in items if item.get_closest_marker("long")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
    order = {name: number for number, name in enumerate(SLOWEST_FIRST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


@pytest.fixture(autouse=True)
def few_values(monkeypatch):
    """Tests' layers are small: with this bound some take one path of lora/layer.py, some the other.

    Here and not at the top, so that whoever imports this file imports no minilora.
    """
    from minilora.lora import layer

    monkeypatch.setattr(layer, "FEW", 24)


@pytest.fixture
def base():
    """A fresh copy of the shipped base."""
    import minilora

    return minilora.load_base()


@pytest.fixture(autouse=True)
def process_as_it_was():
    """Training flushes denormal numbers, a benchmark sets threads: both are set back."""
    yield
    torch.set_flush_denormal(False)
    torch.set_num_threads(THREADS)
