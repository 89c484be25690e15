"""Four-bit weights in files: bitsandbytes' own layout, and nothing in it is believed unread."""

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


def make(double_quant=True):
    torch.manual_seed(0)
    return nf4.quantize(torch.randn(40, 64), double_quant=double_quant)


@given(
    seeds,
    sizes,
    sizes,
    st.booleans(),
    st.sampled_from(["nf4", "fp4"]),
    st.sampled_from([32, 64, 256]),
)
def test_the_tensors_are_those_that_bitsandbytes_writes(
    seed, rows, columns, double_quant, kind, block_size
):
    torch.manual_seed(seed)
    weight = torch.randn(rows, columns)
    packed, state = quantize_4bit(
        weight, blocksize=block_size, quant_type=kind, compress_statistics=double_quant
    )
    theirs = {"w": packed} | {
        f"w.{name}": part for name, part in state.as_dict(packed=True).items()
    }
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
    state = QuantState.from_dict(
        {name.removeprefix("w."): t for name, t in tensors.items()}, device=torch.device("cpu")
    )
    assert torch.equal(dequantize_4bit(packed, state), quantized.dequantize())


@given(seeds, sizes, sizes, st.booleans(), st.sampled_from(["nf4", "fp4"]))
def test_written_and_read_is_the_same_to_the_bit(seed, rows, columns, double_quant, kind):
    torch.manual_seed(seed)
    quantized = nf4.quantize(torch.randn(rows, columns).bfloat16(), 64, double_quant, kind)
    again = from_checkpoint("w", to_checkpoint("w", quantized), (rows, columns))
    assert again.tensors.keys() == quantized.tensors.keys()
    assert all(torch.equal(part, again.tensors[name]) for name, part in quantized.tensors.items())
    assert (again.dtype, again.kind, again.block_size) == (
        quantized.dtype,
        quantized.kind,
        quantized.block_size,
    )


def described(**changes):
    about = json.loads(bytes(to_checkpoint("w", make())[STATE].tolist())) | changes
    about = {key: value for key, value in about.items() if value is not None}
    return torch.tensor(list(json.dumps(about).encode()), dtype=torch.uint8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"w": torch.zeros(9, 1, dtype=torch.uint8)}, r"w: packed must be \(1280,\) torch.uint8"),
        ({"w": None}, "w missing: the 4-bit weight w cannot be read without"),
        ({"w.absmax": None}, "w.absmax missing"),
        (
            {"w.nested_absmax": None, "w.nested_quant_map": None},
            "w.nested_absmax, w.nested_quant_map missing",
        ),
        (
            {"w.nested_absmax": torch.tensor([float("nan")])},
            "its scales hold values that are not finite",
        ),
        ({"w.absmax": torch.zeros(3, dtype=torch.uint8)}, r"w: absmax must be \(40,\)"),
        ({"w.quant_map": torch.linspace(-1, 1, 16)}, "w.quant_map is not the levels of nf4"),
        ({"w.nested_quant_map": torch.linspace(-1, 1, 256)}, "is not the signed dynamic map"),
        ({STATE: torch.zeros(8, dtype=torch.uint8)}, "holds no description of a 4-bit weight"),
        (
            {STATE: torch.tensor(list(b"[1, 2]"), dtype=torch.uint8)},
            "describes what minilora cannot read",
        ),
        ({STATE: described(shape=[64, 40])}, r"says shape \(64, 40\), needed \(40, 64\)"),
        ({STATE: described(blocksize=48)}, "power of two"),
        ({STATE: described(blocksize="64")}, "describes what minilora cannot read"),
        ({STATE: described(dtype="int8")}, "describes what minilora cannot read"),
        ({STATE: described(shape=None)}, "holds no description"),
        ({STATE: described(nested_offset="x")}, "holds no description"),
        ({STATE: described(nested_blocksize=64)}, "describes what minilora cannot read"),
        ({STATE: None}, "has no quant_state.bitsandbytes__nf4 beside it"),
    ],
)
def test_what_does_not_fit_is_named(changes, message):
    tensors = {
        name: t for name, t in {**to_checkpoint("w", make()), **changes}.items() if t is not None
    }
    with pytest.raises(ValueError, match=message):
        from_checkpoint("w", tensors, (40, 64))


def test_int4_and_float64_have_no_format():
    for weight in (
        nf4.quantize(torch.ones(4, 32), kind="int4"),
        nf4.quantize(torch.ones(4, 32).double()),
    ):
        with pytest.raises(
            ValueError, match="only nf4 and fp4 of 16- or 32-bit floats have a file format"
        ):
            to_checkpoint("w", weight)
