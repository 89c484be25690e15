"""fp16 and NF4 of A and B: how far off, how small, and under which name."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minilora.hub import Hub
from minilora.hub.compression import compressed, decompressed

from .adapters import make_adapter

shapes = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 70)), min_size=1, max_size=5)


@given(shapes, st.integers(0, 2**32))
def test_each_tensor_comes_back_within_its_own_bound(shapes, seed):
    """NF4: half the widest gap (0.152) of a block's largest value; float16: 2⁻¹¹ of each."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        f"t{i}": 10.0**i * torch.randn(shape, generator=generator) for i, shape in enumerate(shapes)
    }
    four, half = (decompressed(compressed(tensors, kind)) for kind in ("nf4", "fp16"))
    for name, tensor in tensors.items():
        assert four[name].shape == half[name].shape == tensor.shape
        # the scales are rounded too: by 1/127 of the spread of all scales
        largest = max(each.abs().max() for each in tensors.values())
        assert (four[name] - tensor).abs().max() <= 0.152 * tensor.abs().max() + largest / 127
        assert ((half[name] - tensor).abs() <= 2**-11 * tensor.abs() + 2**-25).all()


def test_four_bits_are_four_bits_and_a_version_of_their_own(tmp_path):
    hub = Hub(tmp_path / "hub")
    folder = make_adapter(tmp_path / "mine", r=8, width=512)
    first = hub.push("naval", folder, metadata={"metrics": {"exact": 1.0}})
    size = first.manifest.files["adapter_model.safetensors"][1]
    half, four = hub.compress("naval", "fp16"), hub.compress("naval@1.0.0", "nf4")
    assert (half.version, four.version) == ("1.0.0+fp16", "1.0.0+nf4")
    assert half.manifest.files["fp16.safetensors"][1] < 0.52 * size
    assert four.manifest.files["nf4.safetensors"][1] < 0.15 * size
    assert four.manifest.parent == "naval@1.0.0"
    assert four.manifest.metrics == {}, "its scores are its own"
    assert len({first.manifest.content, half.manifest.content, four.manifest.content}) == 3
    assert hub.show("naval") == hub.show("naval@1.0") == first, "a copy is meant only by its name"
    cosines = [pair.cosine for pair in hub.compare("naval", "naval@1.0.0+nf4").deltas]
    assert min(cosines) > 0.98
    assert hub.verify() == []
    with pytest.raises(ValueError, match=r"1.0.0\+nf4 exists"):
        hub.compress("naval", "nf4")


def test_a_copy_outlives_its_original_and_always_gives_the_same_bits(tmp_path):
    hub = Hub(tmp_path / "hub")
    hub.push("naval", make_adapter(tmp_path / "mine"))
    hub.compress("naval")
    hub.alias("naval@1.0.0+nf4", "small")
    before = (hub.pull("naval@small") / "adapter_model.safetensors").read_bytes()
    assert hub.prune(-1) == ("naval@1.0.0",)
    hub.gc()
    (hub.pull("naval@small") / "adapter_model.safetensors").unlink()
    assert (hub.pull("naval") / "adapter_model.safetensors").read_bytes() == before
    with pytest.raises(
        ValueError, match=r"no 'naval@1.0.0' in this hub; naval has 1.0.0\+nf4, small"
    ):
        hub.pull("naval@1.0.0")
    assert [each.version for each in hub.lineage("naval")] == ["1.0.0+nf4"]


def test_what_cannot_be_compressed_is_told():
    with pytest.raises(ValueError, match="expected a compression of fp16 or nf4, got 'int8'"):
        compressed({"a": torch.ones(2)}, "int8")
    with pytest.raises(ValueError, match="values above 65,504"):
        compressed({"a": torch.full((2,), 1e6)}, "fp16")
