"""Tensors come back to the bit, and a file that is not sound is refused."""

import pytest
import torch

from minilora.tensor_files import read_tensors, write_tensors


def test_tensors_come_back_to_the_bit_with_shared_and_strided_ones(tmp_path):
    x = torch.randn(4, 6)
    tensors = {"strided": x.T, "half": x.to(torch.bfloat16), "part": x[1:3, ::2]}
    read = read_tensors(write_tensors(tmp_path / "t.safetensors", tensors))
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize(
    "content", [b"", b"\xff" * 100, b"\x80\x05pickle", b'\x10\x00\x00\x00\x00\x00\x00\x00{"a": 1}']
)
def test_damaged_tensors_are_refused(tmp_path, content):
    (tmp_path / "t.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"t.safetensors is not a readable safetensors file"):
        read_tensors(tmp_path / "t.safetensors")


def test_missing_tensors_are_refused(tmp_path):
    with pytest.raises(ValueError, match="none.safetensors does not exist"):
        read_tensors(tmp_path / "none.safetensors")
