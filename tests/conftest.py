"""Settings that every test shares: two threads, hypothesis without deadlines (the machines are shared and noisy)."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that spin while they wait slow everyone on a shared machine

import pytest
import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(2)
for name, examples in (("dev", 10), ("ci", 50), ("thorough", 1000)):
    settings.register_profile(
        name, max_examples=examples, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
    )
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


@pytest.fixture
def base():
    """A fresh copy of the shipped base."""
    import minilora

    return minilora.load_base()


@pytest.fixture(autouse=True)
def denormal_numbers():
    """Training flushes them to zero for the whole process; the next test gets them back."""
    yield
    torch.set_flush_denormal(False)
