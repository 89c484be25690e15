"""Strategies of the property tests: layers, models, configs, adapters, weights, damaged files."""

import json
import struct
from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from minilora import LoraConfig, level0
from minilora.lora.combining import LowRank
from minilora.lora.layer import LoRALayer

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
KINDS = ("normal", "heavy", "uniform", "constant", "zero blocks", "outlier", "ties", "zero")
EXTREMES = ("subnormal", "huge")  # below the smallest normal float32, and near the largest
sizes = st.integers(1, 40)
ranks = st.integers(1, 12)
alphas = st.floats(0.25, 64, width=32)
seeds = st.integers(0, 2**31 - 1)


@dataclass
class Case:
    """A layer whose A and B are both filled, as after training, and an input for it."""

    layer: LoRALayer
    x: Tensor

    @property
    def parts(self):
        """x, W, A, B, scaling, bias: the arguments of the tolerances."""
        layer = self.layer
        return self.x, layer.weight, layer.lora_A, layer.lora_B, layer.scaling, layer.bias


@st.composite
def cases(draw, dtypes=DTYPES, dropout=False, fresh=False, wild=False):
    """Linears with bias or none, batched inputs or single rows, α ≠ r, rsLoRA or not.

    ``fresh`` leaves B zero. ``wild`` weights may be heavy-tailed, constant, subnormal or large, or
    have an outlier; then |W| goes up to 1e4.
    """
    torch.manual_seed(draw(seeds))
    dtype = draw(st.sampled_from(dtypes))
    base = nn.Linear(draw(sizes), draw(sizes), bias=draw(st.booleans())).to(dtype)
    if wild:
        base.weight.data = wild_values(draw(st.sampled_from(WILD)), base.weight.shape).to(dtype)
    layer = LoRALayer(
        base,
        r=draw(ranks),
        lora_alpha=draw(alphas),
        lora_dropout=draw(st.sampled_from([0.0, 0.3])) if dropout else 0.0,
        use_rslora=draw(st.booleans()),
    )
    if not fresh:
        nn.init.normal_(layer.lora_B, std=0.3)
    batch = draw(st.sampled_from([(), (1,), (3,), (2, 5), (2, 1, 3)]))
    return Case(layer, torch.randn(*batch, base.in_features).to(dtype))


WILD = ("normal", "heavy", "constant", "outlier", "subnormal", "large", "zero")


def wild_values(kind: str, shape: torch.Size) -> Tensor:
    """Float32 values of one kind, drawn from torch's own generator."""
    x = torch.randn(shape)
    if kind == "heavy":
        return (x / torch.randn(shape)).clamp(-1e4, 1e4)
    if kind == "constant":
        return torch.full(shape, x.flatten()[0].item())
    if kind == "outlier":
        x.flatten()[0] = 1e4
    return x * {"subnormal": 1e-40, "large": 1e3, "zero": 0.0}.get(kind, 1.0)


@st.composite
def models(draw):
    """Small nested models: a few named Linears in blocks, with norms between them."""
    torch.manual_seed(draw(seeds))
    width, depth = draw(st.integers(2, 12)), draw(st.integers(1, 3))

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.LayerNorm(width)
            self.q_proj = nn.Linear(width, width)
            self.up_proj = nn.Linear(width, 2 * width, bias=False)
            self.down_proj = nn.Linear(2 * width, width)

        def forward(self, x):
            x = x + self.q_proj(self.norm(x))
            return x + self.down_proj(torch.relu(self.up_proj(x)))

    blocks = [Block() for _ in range(depth)]
    return nn.Sequential(nn.Linear(width, width), *blocks, nn.Linear(width, 3))


LINEARS = ["q_proj", "up_proj", "down_proj"]
targets = st.lists(st.sampled_from(LINEARS), min_size=1, max_size=3, unique=True)


@st.composite
def configs(draw):
    """Configs for ``models``: names, a regular expression or all-linear; patterns; exclusions."""
    names = draw(targets)
    chosen = draw(st.sampled_from([names, rf".*\.({'|'.join(names)})", "all-linear"]))
    present, exclude = names, []
    if chosen == "all-linear":
        present = LINEARS
        exclude = [name for name in present if draw(st.booleans())][1:]
    pattern = st.dictionaries(st.sampled_from(present), ranks, max_size=2)
    return LoraConfig(
        r=draw(ranks),
        lora_alpha=draw(alphas),
        target_modules=chosen,
        lora_dropout=draw(st.sampled_from([0.0, 0.1])),
        use_rslora=draw(st.booleans()),
        exclude_modules=exclude,
        rank_pattern={key: r for key, r in draw(pattern).items() if key not in exclude},
        alpha_pattern={key: float(r) for key, r in draw(pattern).items() if key not in exclude},
    )


@st.composite
def adapters(draw, shapes):
    """Factors by module path, of any rank: ``shapes`` maps a path to (in, out)."""
    torch.manual_seed(draw(seeds))
    factors = {}
    for name, (columns, rows) in shapes.items():
        r = draw(ranks)
        factors[name] = LowRank(torch.randn(r, columns), torch.randn(rows, r), draw(alphas) / r)
    return factors


@st.composite
def nested(draw):
    """Modules in modules, to any depth: Linears, norms, embeddings, buffers, ties, mixed dtypes."""
    torch.manual_seed(draw(seeds))
    width, dtype = st.integers(1, 9), st.sampled_from([torch.bfloat16, torch.float64])
    leaf = st.one_of(
        st.builds(nn.Linear, width, width, bias=st.booleans()),
        st.builds(nn.Embedding, width, width),
        st.builds(nn.BatchNorm1d, width),
        st.builds(nn.Linear, width, width, dtype=dtype),
    )

    def sequences(inner):
        return st.lists(inner, min_size=1, max_size=3).map(lambda parts: nn.Sequential(*parts))

    tree = st.recursive(leaf, sequences, max_leaves=9)
    model = nn.Sequential(draw(tree), draw(tree))
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if len(linears) > 1 and draw(st.booleans()):
        linears[-1].weight = linears[0].weight
    for parameter in model.parameters():
        parameter.requires_grad_(draw(st.booleans()))
    return model


SCALES = (1e-30, 1e-10, 1e-3, 1.0, 1e3, 1e30)


@st.composite
def weights(draw, dtypes=DTYPES, scales=SCALES, most=700, kinds=(*KINDS, *EXTREMES)):
    """Weights that a quantizer may meet, of all ``KINDS`` and ``EXTREMES``."""
    generator = torch.Generator().manual_seed(draw(seeds))
    n = draw(st.one_of(st.integers(1, 140), st.integers(1, most)))
    weight = torch.randn(n, generator=generator)
    kind = draw(st.sampled_from(kinds))
    if kind == "heavy":
        weight = weight / torch.randn(n, generator=generator)
    if kind == "uniform":
        weight = torch.rand(n, generator=generator) - 0.5
    if kind == "constant":  # EXTREMES has the tiny ones
        size, sign = draw(st.floats(2**-10, 1, width=32)), draw(st.sampled_from([-1, 1]))
        weight = torch.full((n,), size * sign)
    if kind == "zero blocks":
        weight[: draw(st.integers(0, n))] = 0
    if kind == "outlier":
        weight[draw(st.integers(0, n - 1))] = 1000.0
    if kind == "ties":
        levels = torch.from_numpy(level0.nf4_levels())
        weight = ((levels[:-1] + levels[1:]) / 2)[torch.randint(15, (n,), generator=generator)]
        weight[::32] = 1.0  # so that every block's scale is one, and the ties stay ties
    if kind == "zero":
        weight = torch.zeros(n)
    dtype = draw(st.sampled_from(dtypes))
    if kind in EXTREMES:
        subnormal = 6e-8 if dtype == torch.float16 else 1e-39
        size = subnormal if kind == "subnormal" else torch.finfo(dtype).max / 2.1
        return (weight.clamp(-2, 2) * size).to(dtype)
    scale = 1.0 if kind == "ties" or dtype == torch.float16 else draw(st.sampled_from(scales))
    scaled = weight * scale
    if scale == 1.0:
        scaled = scaled.nan_to_num(0, 0, 0).clamp(-6e4, 6e4)
    return scaled.to(dtype)


def second_level_is_defined(absmax: Tensor) -> bool:
    """Whether 8-bit scales of these float32 scales are defined: a finite sum, no tiny differences.

    minilora refuses a sum that overflows (tests/nf4/test_tensor.py). For 256 scales that differ
    from their mean by less than 1e-38, bitsandbytes takes an infinite reciprocal, and writes code
    255 where we write 0: the same number for any use.
    """
    mean = absmax.mean()
    padded = torch.nn.functional.pad(absmax - mean, (0, -len(absmax) % 256))
    largest = padded.view(-1, 256).abs().amax(dim=1)
    defined = (largest == 0) | torch.isfinite(1 / largest)
    return bool(torch.isfinite(mean)) and bool(defined.all())


STRANGE = [0, -1, 1, 2, 3, 7.5, 1e308, 10**400, float("nan"), float("inf"), True, False, None]
STRANGE += [[], {}, ["0"], ["0", "1"], {"0": 2}, {"1": 2.5}, [[]], {"": 1}, "all-linear", "r"]
STRANGE += ["LORA", "..", "(a+)+", "", "\ud800", "F32", "I64", "\x00"]
HOSTILE_FLOATS = [struct.pack("<f", value) for value in (float("nan"), float("inf"), 1e30, 0.0)]


@st.composite
def damaged(draw, files: dict[str, bytes]) -> dict[str, bytes]:
    """One to three changes somewhere in a folder's files (name → bytes).

    A change cuts, shortens or lengthens a file, flips a bit, writes a hostile float, another header
    length of a safetensors file, or another value of a JSON field.
    """
    files = dict(files)
    for _ in range(draw(st.integers(1, 3))):
        name = draw(st.sampled_from(sorted(files)))
        files[name] = bytes(draw(damaged_bytes(bytearray(files[name]), name.endswith(".json"))))
        if not files[name] or name.endswith(".json"):
            break
    return files


@st.composite
def damaged_bytes(draw, data: bytearray, is_json: bool) -> bytearray:
    """One change of a file's content."""
    at, size = draw(st.integers(0, len(data))), draw(st.integers(1, 40))
    kinds = ["cut", "shorten", "lengthen", "float", "flip", "flip"]
    kinds += ["field"] * 4 if is_json else ["length", "flip"]
    kind = draw(st.sampled_from(kinds))
    if kind == "cut":
        del data[at:]
    if kind == "shorten":
        del data[at : at + size]
    if kind == "lengthen":
        data[at:at] = draw(st.binary(min_size=size, max_size=size))
    if kind == "float":
        data[at : at + 4] = draw(st.sampled_from(HOSTILE_FLOATS))
    if kind == "flip" and at < len(data):
        data[at] ^= 1 << draw(st.integers(0, 7))
    if kind == "length":
        lengths = st.sampled_from([0, 1, 2**31, 2**64 - 1, len(data), max(0, len(data) - 8)])
        data[:8] = struct.pack("<Q", draw(st.one_of(lengths, st.integers(0, 2000))))
    if kind == "field":
        fields = json.loads(data)
        extra = ["alpha_pattern", "rank_pattern", "exclude_modules", "peft_type"]
        fields[draw(st.sampled_from([*fields, *extra]))] = draw(st.sampled_from(STRANGE))
        data = bytearray(json.dumps(fields).encode())
    return data
