"""The three ways to train, measured: QLoRA holds the least, full fine-tuning the most."""

import pytest
import torch

from minilora import LoraConfig, TrainConfig, data
from minilora.commands.footprint import footprint_table, measure_footprints


@pytest.fixture(scope="module")
def footprints():
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    measured = measure_footprints(data.naval_log(64, 4), LoraConfig(), TrainConfig(batch_size=4))
    assert torch.equal(torch.random.get_rng_state(), before), (
        "measuring must not move the random state of the run to come"
    )
    return measured


def test_resident_is_weights_adapters_and_moments(footprints):
    """Counted by hand: 1,304,192 weights in float32, or in four bits but for embedding and norms.

    AdamW holds two moments of every number that trains.
    """
    full, lora, qlora = (footprints[name].resident for name in ("full", "LoRA", "QLoRA"))
    weights, adapters = 4 * 1_304_192, 4 * 21_504
    in_floats = 4 * (1536 * 128 + 13 * 128)
    assert full["weights"] == lora["weights"] == weights
    assert 2 * weights <= full["optimizer"] <= 2 * weights + 4 * 200
    assert lora["adapters"] == qlora["adapters"] == adapters
    assert 2 * adapters <= lora["optimizer"] == qlora["optimizer"] <= 2 * adapters + 4 * 200
    packed = qlora["weights"] + qlora["constants"] - in_floats
    assert packed == pytest.approx((weights - in_floats) / 32 * 4.13, rel=1e-3)


def test_the_peaks_are_ordered_as_the_papers_say(footprints):
    """All hold the same activations or fewer; what differs is gradients, moments and weights."""
    peaks = [footprints[name].peak for name in ("full", "LoRA", "QLoRA")]
    assert peaks == sorted(peaks, reverse=True)
    assert footprints["QLoRA"].peak < 0.75 * footprints["full"].peak


def test_the_table_has_a_row_for_each(footprints):
    lines = footprint_table(footprints).splitlines()
    assert [line.split()[0] for line in lines] == ["MB", "full", "LoRA", "QLoRA"]
    assert f"{footprints['LoRA'].peak / 1e6:.1f}" in lines[2]


def test_an_unknown_method_is_refused():
    with pytest.raises(ValueError, match="unknown method 'lora'"):
        measure_footprints(data.naval_log(8, 2), LoraConfig(), TrainConfig(), methods=["lora"])
