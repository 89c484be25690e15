"""Four-bit weights in files: bitsandbytes' own layout, and nothing in it is trusted unread."""

import json

import pytest
import torch
from bitsandbytes.functional import QuantState, dequantize_4bit, quantize_4bit
from hypothesis import given
from hypothesis import strategies as st

from minilora import nf4
from minilora.formats.bitsandbytes_4bit import from_checkpoint, to_checkpoint

from ..strategies import seeds, sizes

STATE = "w.quant_state.bitsandbytes__nf4"
UNREADABLE = "describes a weight that minilora cannot read"


def make(double_quant=True):
    torch.manual_seed(0)
    return nf4.quantize(torch.randn(40, 64), double_quant=double_quant)


kinds, block_sizes = st.sampled_from(["nf4", "fp4"]), st.sampled_from([32, 64, 256])


@given(seeds, sizes, sizes, st.booleans(), kinds, block_sizes)
def test_the_tensors_are_those_that_bitsandbytes_writes(
    seed, rows, columns, double_quant, kind, block_size
):
    torch.manual_seed(seed)
    weight = torch.randn(rows, columns)
    packed, state = quantize_4bit(
        weight, blocksize=block_size, quant_type=kind, compress_statistics=double_quant
    )
    parts = state.as_dict(packed=True)
    theirs = {"w": packed} | {f"w.{name}": part for name, part in parts.items()}
    ours = to_checkpoint("w", nf4.quantize(weight, block_size, double_quant, kind))
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        if "quant_state" in name:
            assert json.loads(bytes(ours[name].tolist())) == json.loads(bytes(tensor.tolist()))
        else:
            assert torch.equal(ours[name], tensor), name


def test_bitsandbytes_reads_ours():
    quantized = make()
    tensors = to_checkpoint("w", quantized)
    packed = tensors.pop("w")
    parts = {name.removeprefix("w."): tensor for name, tensor in tensors.items()}
    state = QuantState.from_dict(parts, device=torch.device("cpu"))
    assert torch.equal(dequantize_4bit(packed, state), quantized.dequantize())


@given(seeds, sizes, sizes, st.booleans(), kinds)
def test_written_and_read_is_the_same_to_the_bit(seed, rows, columns, double_quant, kind):
    torch.manual_seed(seed)
    quantized = nf4.quantize(torch.randn(rows, columns).bfloat16(), 64, double_quant, kind)
    again = from_checkpoint("w", to_checkpoint("w", quantized), (rows, columns))
    assert again.tensors.keys() == quantized.tensors.keys()
    assert all(torch.equal(part, again.tensors[name]) for name, part in quantized.tensors.items())
    for field in ("dtype", "kind", "block_size"):
        assert getattr(again, field) == getattr(quantized, field)


def described(**changes):
    about = json.loads(bytes(to_checkpoint("w", make())[STATE].tolist())) | changes
    about = {key: value for key, value in about.items() if value is not None}
    return torch.tensor(list(json.dumps(about).encode()), dtype=torch.uint8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"w": torch.zeros(9, 1, dtype=torch.uint8)}, r"w: packed must be \(1280,\) torch.uint8"),
        ({"w": None}, "the 4-bit weight w lacks w$"),
        ({"w.absmax": None}, "the 4-bit weight w lacks w.absmax"),
        (
            {"w.nested_absmax": None, "w.nested_quant_map": None},
            "lacks w.nested_absmax, w.nested_quant_map",
        ),
        ({"w.nested_absmax": torch.tensor([float("nan")])}, "the scales hold .* not finite"),
        ({"w.absmax": torch.zeros(3, dtype=torch.uint8)}, r"w: absmax must be \(40,\)"),
        ({"w.quant_map": torch.linspace(-1, 1, 16)}, "w.quant_map does not hold the levels of nf4"),
        (
            {"w.nested_quant_map": torch.linspace(-1, 1, 256)},
            "does not hold the signed dynamic map",
        ),
        ({STATE: torch.zeros(8, dtype=torch.uint8)}, "holds no description of a 4-bit weight"),
        ({STATE: torch.tensor(list(b"[1, 2]"), dtype=torch.uint8)}, UNREADABLE),
        ({STATE: described(shape=[64, 40])}, r"has shape \(64, 40\), expected \(40, 64\)"),
        ({STATE: described(blocksize=48)}, "power of two"),
        ({STATE: described(blocksize="64")}, UNREADABLE),
        ({STATE: described(dtype="int8")}, UNREADABLE),
        ({STATE: described(shape=None)}, "holds no description"),
        ({STATE: described(nested_offset="x")}, "holds no description"),
        ({STATE: described(nested_blocksize=64)}, UNREADABLE),
        ({STATE: None}, "has no quant_state.bitsandbytes__nf4 beside it"),
    ],
)
def test_what_does_not_fit_is_named(changes, message):
    changed = {**to_checkpoint("w", make()), **changes}
    tensors = {name: tensor for name, tensor in changed.items() if tensor is not None}
    with pytest.raises(ValueError, match=message):
        from_checkpoint("w", tensors, (40, 64))


def test_int4_and_float64_have_no_format():
    int4 = nf4.quantize(torch.ones(4, 32), kind="int4")
    float64 = nf4.quantize(torch.ones(4, 32).double())
    message = "only nf4 and fp4 of 16- or 32-bit floats have a file format, got "
    for weight, kind in ((int4, "int4 of float32"), (float64, "nf4 of float64")):
        with pytest.raises(ValueError, match=message + kind):
            to_checkpoint("w", weight)
