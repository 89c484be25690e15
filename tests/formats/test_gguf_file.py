"""GGUF files hold what was written: the library of llama.cpp's authors reads them back."""

import builtins

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from gguf.quants import dequantize

from minilora.formats.gguf_file import write_gguf

FIELDS = {"a.int": 7, "a.float": 0.5, "a.bool": True, "a.text": "é 🦙", "a.list": ["x", "", "y"]}


def read(path):
    """Tensors by name as float32, with how each was stored; and the fields."""
    reader = GGUFReader(path)
    tensors = {
        t.name: (t.tensor_type.name, torch.from_numpy(dequantize(t.data, t.tensor_type).copy()))
        for t in reader.tensors
    }
    return tensors, {name: field.contents() for name, field in reader.fields.items()}


def write(path, kind, **tensors):
    getters = {name: lambda tensor=tensor: tensor for name, tensor in tensors.items()}
    return write_gguf(path, "llama", FIELDS, getters, kind)


@pytest.mark.parametrize("kind", ["f32", "f16", "q8_0"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_is_written_is_read_within_the_types_rounding(tmp_path, kind, dtype):
    torch.manual_seed(0)
    tensors = {"wide": torch.randn(5, 64), "odd": torch.randn(7, 9), "norm": torch.randn(64)}
    tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    back, fields = read(write(tmp_path / "x.gguf", kind, **tensors))
    stored = {"f32": ("F32", "F32"), "f16": ("F16", "F16"), "q8_0": ("Q8_0", "F16")}[kind]
    assert [how for how, _ in back.values()] == [*stored, "F32"]
    assert torch.equal(back["norm"][1], tensors["norm"].float())
    odd = tensors["odd"].float() if kind == "f32" else tensors["odd"].half().float()
    assert torch.equal(back["odd"][1], odd)
    blocks = tensors["wide"].float().view(5, 2, 32)
    step = blocks.abs().amax(-1, keepdim=True) / 127  # q8_0: half a step, and the scale's rounding
    bound = {"f32": 0 * step, "f16": step * 127 * 2**-11, "q8_0": step * (0.5 + 127 * 2**-11)}
    assert ((back["wide"][1].view(5, 2, 32) - blocks).abs() <= bound[kind] * 1.001).all()
    assert {name: fields[name] for name in FIELDS} == FIELDS
    assert fields["general.architecture"] == "llama"
    assert fields["general.file_type"] == {"f32": 0, "f16": 1, "q8_0": 7}[kind]


def test_values_that_do_not_fit_and_unknown_types_are_refused_and_nothing_is_written(tmp_path):
    file, high = tmp_path / "x.gguf", torch.full((2, 32), 7e4)
    with pytest.raises(ValueError, match=r"w holds values up to 70000, which f16 cannot hold"):
        write(file, "f16", w=high)
    write(file, "q8_0", w=high)
    before = file.read_bytes()
    with pytest.raises(ValueError, match=r"w holds values up to nan, which q8_0 cannot hold"):
        write(file, "q8_0", w=high * np.nan)
    with pytest.raises(ValueError, match="type must be one of f32, f16, q8_0, got 'q4_k_m'"):
        write(file, "q4_k_m", w=high)
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


def test_without_the_library_it_says_what_to_install(tmp_path, monkeypatch):
    real = builtins.__import__

    def without_gguf(name, *rest):
        if name == "gguf":
            raise ImportError("no", name=name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without_gguf)
    with pytest.raises(ValueError, match="writing GGUF needs gguf: pip install gguf"):
        write(tmp_path / "x.gguf", "f16", w=torch.ones(2, 2))
