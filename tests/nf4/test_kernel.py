"""The compiled kernel: bit for bit what tensors compute, and never beyond the arrays it was given.

Each property is tried with every variant that this processor has; the library is compiled anew, so
that the source is tested and not what was installed before.
"""

import itertools
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from minilora import NF4Linear, dequantize_base, nf4
from minilora.nf4 import kernel
from minilora.nf4.tensor import BLOCK_SIZES, dequantize_by_tensors

from ..strategies import seeds, weights
from ..tolerance import gamma, unit_roundoff

ROOT = Path(__file__).parents[2]
block_sizes = st.sampled_from(BLOCK_SIZES)
codebooks = st.sampled_from(["nf4", "fp4", "int4"])
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


@pytest.fixture(scope="session")
def library(tmp_path_factory):
    """kernel.c, compiled for this run."""
    try:
        return kernel.build(tmp_path_factory.mktemp("kernel") / kernel.LIBRARY.name)
    except RuntimeError as error:
        if "no C compiler" not in str(error):
            raise  # kernel.c does not compile
        pytest.skip(f"no compiled kernel here: {error}")


@pytest.fixture(scope="session")
def kernels(library):
    """One kernel a variant."""
    best = kernel.load("", library)[1].variant
    names = kernel.VARIANTS[: kernel.VARIANTS.index(best) + 1]
    return [kernel.load(name, library)[0] for name in names]


@pytest.fixture
def use(monkeypatch):
    """``use(kernel)`` makes it the one in use until the test ends; ``use(None)`` is without one."""

    def replace(chosen):
        status = kernel.Status(chosen and chosen.variant, "this test")
        monkeypatch.setattr(kernel, "active", lambda: (chosen, status))
        return chosen

    return replace


@pytest.fixture
def two_threads():
    """torch on two threads, until the test ends."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


class Using:
    """The same as ``use`` for the length of a with: hypothesis shares fixtures among its cases."""

    def __init__(self, chosen):
        self.chosen = chosen

    def __enter__(self):
        self.before, status = kernel.active, kernel.Status(None, "this test")
        kernel.active = lambda: (self.chosen, status)

    def __exit__(self, *_):
        kernel.active = self.before


def shifted(part, by):
    """The same values, stored ``by`` elements behind the start of a longer array."""
    return None if part is None else torch.cat([part.new_zeros(by), part.flatten()])[by:]


def misaligned(quantized, by):
    """The same tensor with every part at an odd place of memory."""
    offset = quantized.offset
    return nf4.NF4Tensor(
        shifted(quantized.packed, by),
        shifted(quantized.absmax, by),
        shifted(quantized.absmax2, by),
        None if offset is None else torch.cat([offset.new_zeros(by), offset.view(1)])[by],
        quantized.shape,
        quantized.dtype,
        quantized.block_size,
        quantized.kind,
    )


def by_tensors(quantized, dtype):
    """The definition's values."""
    out = torch.empty(quantized.shape.numel(), dtype=dtype)
    dequantize_by_tensors(quantized, out)
    return out.view(quantized.shape)


def same_bits(a, b):
    """Whether all bits agree; of NaNs only that they are there (torch writes several)."""
    whole = {2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    return torch.equal(a.isnan(), b.isnan()) and torch.equal(
        a.nan_to_num(7, 8, 9).view(whole), b.nan_to_num(7, 8, 9).view(whole)
    )


@given(weights(), block_sizes, st.booleans(), codebooks, st.sampled_from(DTYPES), st.integers(0, 3))
def test_values_equal_those_of_tensors_to_the_bit(
    kernels, weight, block_size, double_quant, kind, dtype, by
):
    """Odd sizes, partial blocks, scales from subnormal to huge, parts at odd addresses."""
    try:
        quantized = nf4.quantize(weight, block_size, double_quant, kind)
    except ValueError:  # the sum of huge scales overflows
        quantized = nf4.quantize(weight, block_size, False, kind)
    quantized = misaligned(quantized, by)
    expected = by_tensors(quantized, dtype)
    for each in kernels:
        with Using(each):
            assert same_bits(quantized.dequantize(dtype), expected), each.variant


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("block_size", [32, 64, 4096])
def test_large_tensors_on_two_threads(kernels, use, two_threads, block_size, dtype):
    """More weights than a thread takes at a time, and for other dtypes than one piece."""
    weight = torch.randn(kernel.CHUNK + 2**16 + 33, generator=torch.Generator().manual_seed(0))
    quantized = nf4.quantize(weight, block_size)
    expected = by_tensors(quantized, dtype)
    for each in kernels:
        use(each)
        for _ in range(3):
            assert same_bits(quantized.dequantize(dtype), expected), each.variant


@pytest.mark.parametrize("dtype", DTYPES[:2])
def test_what_is_too_large_for_the_caches_has_the_same_bits_wherever_it_lies(
    kernels, use, two_threads, dtype
):
    """More than 4 MB are written past the caches, which takes addresses that 64 divides."""
    n = 4 * 2**20 // dtype.itemsize + 33
    quantized = nf4.quantize(torch.randn(n, generator=torch.Generator().manual_seed(0)))
    expected = by_tensors(quantized, dtype)
    parts = tuple(getattr(quantized, name) for name in nf4.tensor.PARTS)
    for each, start in itertools.product(kernels, [0, 1, 8, 32]):
        use(each)
        room = torch.full((n + 64,), 7, dtype=dtype)
        assert kernel.dequantize(kernel.Weight(parts, 64, "nf4"), room[start : start + n])
        assert same_bits(room[start : start + n], expected), (each.variant, start)
        assert (room[:start] == 7).all()
        assert (room[start + n :] == 7).all()


@given(seeds, st.integers(1, 700), block_sizes, st.data())
def test_a_piece_may_start_anywhere(kernels, seed, n, block_size, data):
    torch.manual_seed(seed)
    quantized = nf4.quantize(torch.randn(n), block_size)
    parts = tuple(getattr(quantized, name) for name in nf4.tensor.PARTS)
    start = data.draw(st.integers(0, n - 1))
    expected = by_tensors(quantized, torch.float32)[start:]
    for each in kernels:
        job, out = (
            kernel.job_for(kernel.Weight(parts, block_size, "nf4"), n),
            torch.empty(n - start),
        )
        job.start, job.count, job.floats = start, n - start, out.data_ptr()
        each.run(job)
        assert same_bits(out, expected), each.variant


@pytest.mark.parametrize("dtype", DTYPES[:2])
def test_scales_that_are_no_numbers_spread_as_with_tensors(kernels, use, dtype):
    """A damaged file may hold any: NaN stays NaN, infinity times the level zero is NaN."""
    scales = torch.tensor([torch.nan, torch.inf, -torch.inf, 3e38, 1e-45, -0.0, 1e-39, 0.1])
    codes = torch.arange(256, dtype=torch.uint8).repeat(2)[: 8 * 32]
    for kind in ("nf4", "fp4", "int4"):
        quantized = nf4.NF4Tensor(codes, scales, None, None, torch.Size([512]), kind=kind)
        for each in kernels:
            use(each)
            assert same_bits(quantized.dequantize(dtype), by_tensors(quantized, dtype))


def layer_for(seed, features, columns, bias, block_size, double_quant, kind):
    """A 4-bit layer of random weights."""
    torch.manual_seed(seed)
    linear = nn.Linear(columns, features, bias=bias)
    return NF4Linear.from_linear(linear, block_size, double_quant, kind)


def assert_product(layer, x, y):
    """Within the bound of a float32 dot product (tests/tolerance.py), rounded once to x's dtype."""
    inputs, weight = x.double(), layer.weight.double()
    truth, size = inputs @ weight.T, inputs.abs() @ weight.abs().T
    if layer.bias is not None:
        truth, size = truth + layer.bias.double(), size + layer.bias.double().abs()
    columns = layer.in_features
    bound = gamma(columns + 2, torch.float32) * size + columns * torch.finfo(torch.float32).tiny
    if x.dtype != torch.float32:
        bound += unit_roundoff(x.dtype) * (truth.abs() + bound) + torch.finfo(x.dtype).tiny
    assert y.dtype == x.dtype
    assert y.shape == truth.shape
    assert ((y.double() - truth).abs() <= bound).all()


@given(
    seeds,
    st.integers(1, 20),
    st.one_of(st.integers(1, 200), st.sampled_from([64, 96, 128, 352])),
    st.booleans(),
    block_sizes,
    st.booleans(),
    codebooks,
    st.sampled_from(DTYPES[:3]),
    st.sampled_from([(), (1,), (2,), (3,), (2, 2), (1, 7), (16,)]),
)
def test_products_of_few_rows_err_as_a_float32_dot_product_may(
    kernels, seed, features, columns, bias, block_size, double_quant, kind, dtype, batch
):
    layer = layer_for(seed, features, columns, bias, block_size, double_quant, kind)
    x = torch.randn(*batch, columns).to(dtype)
    parts = tuple(getattr(layer, name) for name in nf4.tensor.PARTS)
    for each in kernels:
        with Using(each), pytest.MonkeyPatch.context() as patch:
            patch.setattr(kernel, "FEW_ROWS", dict.fromkeys(kernel.VARIANTS, 16))
            weight = kernel.Weight(parts, block_size, kind)
            y = kernel.product(x, layer.bias, weight, features)
        assert_product(layer, x, y)


def test_a_row_has_the_same_bits_whatever_stands_beside_it(kernels, use, monkeypatch, two_threads):
    """And on one thread as on two."""
    monkeypatch.setattr(kernel, "FEW_ROWS", dict.fromkeys(kernel.VARIANTS, 16))
    layer, x = layer_for(0, 700, 352, True, 64, True, "nf4"), torch.randn(16, 352)
    for each in kernels:
        use(each)
        with torch.no_grad():
            whole = layer(x)
            for rows in (1, 2, 3, 4, 5, 7, 11):
                assert torch.equal(layer(x[:rows]), whole[:rows])
            torch.set_num_threads(1)
            assert torch.equal(layer(x), whole)
            torch.set_num_threads(2)


def test_inputs_in_another_order_of_memory_are_read_rightly(kernels, use):
    layer = layer_for(0, 32, 64, True, 64, True, "nf4")
    x = torch.randn(64, 2).T
    for each in kernels:
        use(each)
        with torch.no_grad():
            assert torch.equal(layer(x), layer(x.contiguous()))
            assert torch.equal(layer(x[:1].expand(2, 64))[1], layer(x[:1])[0])


def test_threads_of_python_may_call_at_once(kernels, use, two_threads):
    """The library holds no state: each call has its own job, and a team of threads of its own."""
    tensors = [nf4.quantize(torch.randn(2**17 + k)) for k in range(8)]
    expected = [by_tensors(each, torch.float32) for each in tensors]
    layers = [layer_for(seed, 512 + seed, 352, True, 64, True, "nf4") for seed in range(8)]
    x = torch.randn(1, 352)
    use(kernels[-1])

    @torch.no_grad()  # which holds for one thread
    def multiply(layer):
        return layer(x)

    alone = [multiply(layer) for layer in layers]
    with ThreadPoolExecutor(4) as pool:
        for made, right in zip(pool.map(nf4.NF4Tensor.dequantize, tensors), expected, strict=True):
            assert torch.equal(made, right)
        for y, right in zip(pool.map(multiply, layers), alone, strict=True):
            assert torch.equal(y, right)
    for layer, y in zip(layers, alone, strict=True):
        assert_product(layer, x, y)


DEFAULTS = """
import sys
import torch

kind, value = sys.argv[1:]
before = torch.get_default_dtype()
if kind == "dtype":
    torch.set_default_dtype(getattr(torch, value))
else:
    torch.set_default_device(value)
from minilora import nf4
from minilora.nf4 import kernel
from minilora.nf4.tensor import dequantize_by_tensors

kernel.active = lambda made=kernel.load("", kernel.Path(sys.argv[0])): made
cpu, single = torch.device("cpu"), torch.float32
weight = torch.linspace(-1, 1, 64 * 200, dtype=single, device=cpu).view(200, 64).sin()
x = torch.linspace(-1, 1, 64, dtype=single, device=cpu)[None].cos()
found = {}
for kind in ("nf4", "fp4", "int4"):
    quantized = nf4.quantize(weight, kind=kind)
    layer = nf4.NF4Linear.from_quantized(quantized)
    found |= {f"{kind} {name}": part for name, part in quantized.tensors.items()}
    for dtype in (single, torch.bfloat16, torch.float16):
        tensors = torch.empty(weight.numel(), dtype=dtype, device=cpu)
        dequantize_by_tensors(quantized, tensors)
        found[f"{kind} {dtype}"], found[f"{kind} {dtype} by tensors"] = (
            quantized.dequantize(dtype),
            tensors,
        )
        with torch.no_grad():
            found[f"{kind} {dtype} product"] = layer(x.to(dtype))
torch.set_default_device(None)
torch.set_default_dtype(before)
sys.stdout.buffer.write(repr({n: (str(t.dtype), t.tolist()) for n, t in found.items()}).encode())
"""


@pytest.fixture(scope="session")
def plain_defaults(library):
    """What torch's own defaults give: codes, scales, weights and products."""
    return values_under(library, "dtype", "float32")


def values_under(library, kind, value):
    code = DEFAULTS.replace("sys.argv[0]", repr(str(library)))
    said = child("-c", code, kind, value)
    assert said.returncode == 0, said.stderr[-2000:]
    return said.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "value"),
    [("dtype", "bfloat16"), ("dtype", "float16"), ("dtype", "float64"), ("device", "meta")],
)
def test_the_values_do_not_depend_on_torchs_defaults(library, plain_defaults, kind, value):
    """C writes four bytes a value, and the tables are kept: neither may ask torch's defaults.

    In processes of their own: a table made under another default stays for good.
    """
    assert values_under(library, kind, value) == plain_defaults


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64, torch.bool])
def test_an_input_of_no_floats_is_refused(kernels, use, dtype):
    """As nn.Linear refuses it. Converted, a complex number would lose half of itself."""
    layer, x = layer_for(0, 8, 64, True, 64, True, "nf4"), torch.ones(1, 64).to(dtype)
    parts = tuple(getattr(layer, name) for name in nf4.tensor.PARTS)
    for each in (None, kernels[-1]):
        use(each)
        with torch.no_grad(), pytest.raises(TypeError, match="floating-point input, got torch"):
            layer(x)
    assert kernel.product(x, None, kernel.Weight(parts, 64, "nf4"), 8) is None


def test_a_trace_says_what_to_trace_instead(kernels, use):
    """torch.jit.trace records operations of torch; it would not see what C writes."""
    layer, x = layer_for(0, 8, 64, True, 64, True, "nf4"), torch.randn(3, 64)
    for each in (None, kernels[-1]):
        use(each)
        with torch.no_grad(), pytest.raises(ValueError, match=r"trace dequantize_base\(model\)"):
            torch.jit.trace(layer, x)
    traced = torch.jit.trace(dequantize_base(nn.Sequential(layer)), torch.randn(3, 64))
    torch.testing.assert_close(traced(x), layer(x))


def test_gradients_go_the_old_way_and_decoding_the_new(kernels, use, monkeypatch):
    """With gradients Ŵ is made, forward and backward; without, few rows never make it."""
    calls, product, dequantize = [], kernel.product, nf4.NF4Tensor.dequantize

    def watched_product(*arguments):
        y = product(*arguments)
        calls.append("nothing" if y is None else "product")
        return y

    def watched_dequantize(self, dtype=None):
        calls.append("dequantize")
        return dequantize(self, dtype)

    monkeypatch.setattr(kernel, "product", watched_product)
    monkeypatch.setattr(nf4.NF4Tensor, "dequantize", watched_dequantize)
    few = kernel.FEW_ROWS[use(kernels[-1]).variant]
    layer, x = layer_for(0, 8, 64, True, 64, True, "nf4"), torch.randn(few + 1, 64)
    layer(x[:1].requires_grad_()).sum().backward()
    assert calls == ["dequantize", "dequantize"]
    with torch.no_grad():
        layer(x[:few])
        assert calls[2:] == ["product"]
        layer(x)
        assert calls[3:] == ["nothing", "dequantize"]
    use(None)
    with torch.no_grad():
        layer(x[:1])
        assert calls[5:] == ["nothing", "dequantize"]


@pytest.mark.parametrize("compute_dtype", [None, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", DTYPES)
def test_decoding_returns_the_inputs_dtype_or_autocasts(kernels, use, dtype, compute_dtype):
    use(kernels[-1])
    layer = NF4Linear.from_linear(nn.Linear(96, 32), compute_dtype=compute_dtype)
    x = torch.randn(1, 96).to(dtype)
    with torch.no_grad():
        assert layer(x).dtype == dtype
        torch.testing.assert_close(layer(x).double(), layer(x.double()), rtol=0.02, atol=0.02)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert layer(x).dtype == torch.bfloat16
    with torch.no_grad(), pytest.raises((RuntimeError, IndexError)):
        layer(torch.randn(1, 97))


def bad_parts():
    """Parts that look right to NF4Tensor's checks, or did once, and must not reach C."""
    good = nf4.quantize(torch.randn(64, 64))
    packed, absmax = good.packed, good.absmax
    yield "too short", {"packed": packed[:-1]}
    yield "another dtype", {"packed": packed.view(torch.int8)}
    yield "not contiguous", {"packed": packed.repeat_interleave(2)[::2]}
    yield "not in memory", {"packed": packed.to("meta")}
    yield "too few scales", {"absmax": absmax[1:]}
    yield "float scales with a second level", {"absmax": absmax.float()}
    yield "no mean", {"offset": None}
    yield "too few second scales", {"absmax2": good.absmax2[:0]}
    yield "a subclass", {"packed": packed.as_subclass(type("Odd", (torch.Tensor,), {}))}
    odd = torch.frombuffer(bytearray(9), dtype=torch.float32, offset=1, count=1)
    yield "an odd address", {"offset": odd.view(())}


@pytest.mark.parametrize(("name", "change"), bad_parts())
def test_what_does_not_fit_never_reaches_c(name, change):
    good = nf4.quantize(torch.randn(64, 64))
    parts = {part: getattr(good, part) for part in nf4.tensor.PARTS}
    assert kernel.job_for(kernel.Weight(tuple(parts.values()), 64, "nf4"), 4096) is not None
    parts |= change
    assert kernel.job_for(kernel.Weight(tuple(parts.values()), 64, "nf4"), 4096) is None


@pytest.mark.parametrize("block_size", [0, 16, 48, 63, 8192])
def test_a_block_size_that_c_does_not_know_never_reaches_it(block_size):
    """The parts may fit it: C goes in steps of 32, and shifts in place of dividing."""
    blocks = -(-4096 // block_size) if block_size else 0
    parts = torch.zeros(2048, dtype=torch.uint8), torch.ones(blocks), None, None
    assert kernel.job_for(kernel.Weight(parts, block_size, "nf4"), 4096) is None


def test_a_weight_that_shrank_after_its_checks_is_not_read(kernels, use):
    """A storage can be resized under a frozen dataclass."""
    use(kernels[-1])
    quantized = nf4.quantize(torch.randn(64, 64))
    quantized.packed.resize_(8)
    parts = tuple(getattr(quantized, name) for name in nf4.tensor.PARTS)
    assert not kernel.dequantize(kernel.Weight(parts, 64, "nf4"), torch.empty(4096))


def test_compiled_graphs_leave_the_kernel_out(kernels, use, monkeypatch):
    """torch.compile cannot look into C: it traces the tensors instead."""
    use(kernels[-1])
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    layer = layer_for(0, 8, 64, True, 64, True, "nf4")
    parts = tuple(getattr(layer, name) for name in nf4.tensor.PARTS)
    weight = kernel.Weight(parts, 64, "nf4")
    assert not kernel.dequantize(weight, torch.empty(512))
    assert kernel.product(torch.ones(1, 64), None, weight, 8) is None


def test_off_absent_and_broken_libraries_leave_the_work_to_tensors(tmp_path, library):
    def reason(choice, path):
        loaded, (variant, why) = kernel.load(choice, path)
        assert loaded is None
        assert variant is None
        return why

    assert reason("off", library) == "MINILORA_KERNEL=off"
    assert "not compiled (nothing.so is missing): python -m" in reason("", tmp_path / "nothing.so")
    (tmp_path / "text.so").write_text("no library")
    assert "text.so cannot be loaded (" in reason("avx2", tmp_path / "text.so")


def test_a_library_of_another_version_is_not_used(library, monkeypatch):
    monkeypatch.setattr(kernel, "INTERFACE", 0)
    assert "is of another version" in kernel.load("", library)[1].reason


def test_a_variant_that_is_unknown_or_beyond_the_processor_is_refused(library, monkeypatch):
    with pytest.raises(ValueError, match="must be off, plain, avx2, avx512 or unset, got 'sse'"):
        kernel.load("sse", library)
    monkeypatch.setattr(kernel, "FLAGS", (*kernel.FLAGS, "-DNF4_PLAIN"))
    plain = kernel.build(library.with_name("plain.so"))
    assert kernel.load("", plain)[1].variant == "plain"
    with pytest.raises(ValueError, match="KERNEL=avx2, but the best on this processor is plain"):
        kernel.load("avx2", plain)


def test_without_a_compiler_building_says_so(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("CC", "a-compiler-that-nobody-has")
    assert kernel.main(["--build"]) == 1
    assert "no C compiler" in capsys.readouterr().err


def test_a_wrong_name_ends_the_command_with_a_message(monkeypatch, capsys):
    monkeypatch.setenv(kernel.SWITCH, "sse")
    kernel.active.cache_clear()
    try:
        assert kernel.main([]) == 1
    finally:
        kernel.active.cache_clear()
    assert "must be off, plain, avx2, avx512 or unset, got 'sse'" in capsys.readouterr().err


def test_a_compiler_that_fails_leaves_the_old_library(library, monkeypatch):
    before = library.read_bytes()
    monkeypatch.setattr(kernel, "FLAGS", ("--no-such-flag",))
    with pytest.raises(RuntimeError, match="no-such-flag"):
        kernel.build(library)
    assert library.read_bytes() == before
    assert [file.name for file in library.parent.iterdir() if file.is_dir()] == []


def test_building_and_saying_so(library, monkeypatch, capsys):
    """``--build`` looks again at what is there."""
    monkeypatch.setattr(kernel, "build", lambda: library)
    monkeypatch.setenv(kernel.SWITCH, "off")
    try:
        assert kernel.main(["--build"]) == 0
    finally:
        kernel.active.cache_clear()
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"compiled {library.name}", "tensors: MINILORA_KERNEL=off"]


def child(*arguments, **variables):
    """Run Python in a process of its own."""
    environment = {**os.environ, **variables}
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.slow
def test_the_command_says_what_is_in_use_and_importing_loads_nothing():
    said = child("-W", "error", "-m", "minilora.nf4.kernel", MINILORA_KERNEL="off")
    assert (said.stdout, said.returncode) == ("tensors: MINILORA_KERNEL=off\n", 0), said.stderr
    code = (
        "import sys, minilora as m; print('minilora.nf4.kernel' in sys.modules, m.nf4.kernel.Job)"
    )
    assert child("-c", code).stdout.startswith("False <class")


@pytest.mark.slow
@pytest.mark.parametrize(("choice", "extensions"), [("off", "0"), ("", "1")])
def test_a_wheel_for_every_machine_holds_no_kernel(choice, extensions):
    """An extension, even an optional one, ties a wheel to one system and one Python."""
    pytest.importorskip("setuptools")
    code = (
        "import setuptools, distutils.core as core;"
        "made = core.run_setup('setup.py', stop_after='init'); print(len(made.ext_modules))"
    )
    said = child("-c", code, MINILORA_KERNEL=choice)
    assert said.stdout.split()[-1:] == [extensions], said.stderr[-2000:]


@pytest.mark.slow
def test_four_bits_pass_their_tests_without_the_kernel():
    """And with it, where there is one: that is how this suite runs."""
    files = ["tests/nf4/test_tensor.py", "tests/nf4/test_linear.py"]
    options = ["-n0", "-q", "-m", "not slow", "-p", "no:cacheprovider"]
    said = child("-m", "pytest", *options, *files, MINILORA_KERNEL="off", HYPOTHESIS_PROFILE="dev")
    assert said.returncode == 0, said.stdout[-3000:]


@pytest.mark.slow
def test_no_read_or_write_beyond_an_array(tmp_path):
    """A small program in C, under AddressSanitizer and UBSan (kernel_driver.c)."""
    program = tmp_path / "driver"
    flags = ["-O1", "-g", "-ffp-contract=off", "-fsanitize=address,undefined"]
    flags += ["-fno-sanitize-recover=all", "-o", str(program)]
    driver = Path(__file__).with_name("kernel_driver.c")
    compiler, empty = os.environ.get("CC", "cc"), tmp_path / "empty.c"
    empty.write_text("int main(void) { return 0; }")
    try:
        tried = subprocess.run([compiler, *flags, empty], capture_output=True, text=True)
    except OSError:
        pytest.skip("no C compiler here")
    if tried.returncode:
        pytest.skip(f"the compiler has no sanitizers: {tried.stderr[-200:]}")
    made = subprocess.run([compiler, *flags, driver], capture_output=True, text=True)
    assert made.returncode == 0, made.stderr[-3000:]
    said = subprocess.run([program], capture_output=True, text=True)
    assert said.returncode == 0, said.stderr[-3000:]
    assert "variants" in said.stdout
