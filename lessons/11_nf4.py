# %% [markdown]
# # 11 · Why uneven levels?
#
# Know first: lesson 10 · Difficulty ●●○ · 11 minutes to read · 10 seconds to run
#
# Four bits number sixteen levels. Where should the levels lie? Int4 lays them out evenly, like the
# marks on a ruler. But the weights of a trained matrix are not spread evenly: they crowd around
# zero. NF4, the number format of QLoRA, puts its levels where the weights are (arXiv 2305.14314,
# section 3). Is that better, always, and by how much?
#
# All formats below work alike: divide a block of 64 weights by its largest magnitude, so that all
# lie in [-1, 1]; take the nearest level; multiply back. Only the levels differ.

# %%
from statistics import NormalDist

import torch

import minilora
from minilora import nf4
from minilora.learn import check, show
from minilora.level0 import nf4_levels
from minilora.plots.style import hue, in_house_style

quantile = NormalDist().inv_cdf  # Φ⁻¹: the number with a share p of a normal distribution below
positive = [quantile(float(p)) for p in torch.linspace(0.9677083, 0.5, 9)[:-1]]  # 8, falling
negative = [-quantile(float(p)) for p in torch.linspace(0.9677083, 0.5, 8)[:-1]]  # 7
NF4 = torch.tensor(sorted([*positive, 0.0, *negative])) / max(positive)
INT4 = torch.arange(-7, 8) / 7  # 15 levels, one of them zero
EVEN = torch.linspace(-1, 1, 16)  # 16 levels, none of them zero
print("NF4:", *(f"{level:.3f}" for level in NF4))
assert torch.equal(NF4, torch.from_numpy(nf4_levels()))  # bitsandbytes' table, to the bit


def quantize(weights, levels):
    """Codes (blocks, 64), the number of the nearest level each, and absmax (blocks, 1)."""
    blocks = weights.view(-1, 64)
    absmax = blocks.abs().amax(dim=1, keepdim=True)
    midpoints = (levels[:-1] + levels[1:]) / 2
    return torch.bucketize(blocks / absmax, midpoints), absmax  # how many midpoints lie below


def to_levels(weights, levels):
    """Each weight replaced by its block's largest magnitude times the nearest level."""
    codes, absmax = quantize(weights, levels)
    return (levels[codes] * absmax).view(weights.shape)


def relative_error(restored, weights):
    """RMS error over RMS."""
    return ((restored - weights).norm() / weights.norm()).item()


# %% [markdown]
# The recipe reads: take numbers that cut a normal distribution into shares of equal size, eight on
# the positive side, seven on the negative one, put an exact zero between them, and divide by the
# largest. (The outermost share, `0.9677083`, lies half-way between the last of 32 and the last of
# 30 equal shares: `1 - (1/32 + 1/30) / 2`.)
#
# ## Predict
#
# We try three sets of levels on four distributions, and on every weight of the shipped base.

# %% [predict] winner
# NF4 was made for normal weights. Where does plain int4 beat it?
# - a) nowhere
# - b) on uniform weights
# - c) on weights with heavy tails
# - d) on the trained weights of the base
# answer: "b" if errors["uniform"]["int4"] < errors["uniform"]["NF4"] else "a"

# %% [markdown]
# ## Run

# %%
torch.manual_seed(0)
n = 64 * 8192
base = minilora.load_base()
matrices = [m.weight.detach() for name, m in base.named_modules() if name.endswith("_proj")]
weights = {
    "normal": torch.randn(n),
    "uniform": 2 * torch.rand(n) - 1,
    "Laplace": torch.distributions.Laplace(0.0, 1.0).sample((n,)),
    "heavy tails": torch.distributions.StudentT(3.0).sample((n,)),
    "our base": torch.cat([matrix.flatten() for matrix in matrices]),
}
formats = {"NF4": NF4, "int4": INT4, "16 even": EVEN}


def errors_of(values):
    return {title: relative_error(to_levels(values, f), values) for title, f in formats.items()}


errors = {name: errors_of(values) for name, values in weights.items()}
print("relative error   " + "".join(f"{title:>9}" for title in formats))
for name, row in errors.items():
    print(f"{name:17}" + "".join(f"{error:9.4f}" for error in row.values()))

for name in ("normal", "our base"):
    assert errors[name]["NF4"] < errors[name]["16 even"] < errors[name]["int4"]
assert errors["uniform"]["int4"] < errors["uniform"]["NF4"]

# %% [markdown]
# ## Look


# %%
@in_house_style
def draw(weights, formats, errors):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 6.6), layout="constrained")
    for axes, (name, values) in zip(figure.subplots(2, 2).flat, weights.items(), strict=True):
        blocks = values.view(-1, 64)
        scaled = (blocks / blocks.abs().amax(dim=1, keepdim=True)).flatten().numpy()
        axes.hist(scaled, bins=100, color=hue(0), alpha=0.5)
        top = axes.get_ylim()[1]
        for row, (title, levels) in enumerate(formats.items()):
            low, high, color = top * (1.04 + 0.17 * row), top * (1.16 + 0.17 * row), hue(row + 1)
            axes.vlines(levels, low, high, color=color, linewidth=1.8)
            text, at = f"{title}  {errors[name][title]:.3f}", (1.05, (low + high) / 2)
            axes.annotate(text, at, color=color, va="center", annotation_clip=False)
        axes.set(title=name, xlabel="weight / largest of its block of 64", yticks=[])
        axes.set(ylim=(0, top * 1.4), xlim=(-1.02, 1.02))
        axes.spines["left"].set_visible(False)
        axes.grid(visible=False)
    return figure


chosen = ("normal", "our base", "heavy tails", "uniform")
show(
    draw({name: weights[name] for name in chosen}, {"NF4": NF4, "int4": INT4}, errors),
    "Four histograms of weights, the levels of NF4 and int4 above with their errors: NF4's levels "
    "are dense in the middle",
)

# %% [markdown]
# Each mark is a level, and the number behind a row of marks is its relative error. The histograms
# are of weights *after* the division by their block's largest, which is what meets the levels; one
# weight in 64 is its block's largest and stands at ±1. Where the heap is in the middle, NF4's
# dense levels pay. On a flat histogram they are in the wrong place: the wide gaps outside catch as
# many weights as the narrow ones inside. (One more thing to see in the table: on heavy tails
# sixteen even levels do worse than int4's fifteen. They have no zero, and zero is where most of
# such a block lies.)
#
# ## Explain
#
# A level is well placed when it is used. With levels at quantiles each is the nearest for about the
# same share of normal weights; the information in the codes, their entropy, is then near the four
# bits that they cost:
#
#     entropy = -Σ share(code) · log₂ share(code)        at most log₂ 16 = 4 bits


# %%
def entropy(values, levels):
    """Bits of information in a code."""
    share = quantize(values, levels)[0].unique(return_counts=True)[1] / len(values)
    return -(share * share.log2()).sum().item()


used = {title: entropy(weights["normal"], levels) for title, levels in formats.items()}
print({title: round(bits, 2) for title, bits in used.items()})
assert used["NF4"] > used["16 even"] > used["int4"]

# %% [markdown]
# Equal use is not least error, though. "NF4's levels are Φ⁻¹((i + ½) / 16)", one can read: the
# sixteen middles of sixteen equal shares. They are not, and NF4 is not even the better of the two
# on normal weights:

# %%
NAIVE = torch.tensor([quantile((i + 0.5) / 16) for i in range(16)])
NAIVE = NAIVE / NAIVE.max()
naive_error = relative_error(to_levels(weights["normal"], NAIVE), weights["normal"])
nf4_error = errors["normal"]["NF4"]
print(f"largest difference of the levels: {(NAIVE - NF4).abs().max():.3f}")
print(f"error on normal weights: NF4 {nf4_error:.4f}, Φ⁻¹((i + ½)/16) {naive_error:.4f}")
assert (NAIVE - NF4).abs().max() > 0.03
assert 0.98 < naive_error / nf4_error < 1.0

# %% [markdown]
# ## Break it
#
# So why not take that simpler grid? Try it on a matrix in which half of the weights are exactly
# zero: pruned, or padded.

# %%
sparse = weights["normal"] * (torch.rand(n) < 0.5)
zeros = sparse == 0
for title, levels in (("NF4", NF4), ("naive", NAIVE)):
    back = to_levels(sparse, levels)
    stay, error = (back[zeros] == 0).float().mean(), relative_error(back, sparse)
    print(f"{title:5}: zeros that stay zero {stay:.0%}, error {error:.4f}")
assert (to_levels(sparse, NF4)[zeros] == 0).all()
assert not (to_levels(sparse, NAIVE)[zeros] == 0).any()

# %% [markdown]
# No level of the naive grid is zero, so every zero comes back as {{ NAIVE.abs().min():.3f}} of its
# block's largest weight, always on the same side: pruned connections are alive again, and their
# errors add up as in lesson 10. That is what the odd recipe buys: an exact zero, at the price of a
# lopsided table with seven levels below it and eight above.
#
# ## Build: the scales are numbers too
#
# Difficulty ●●○ · Importance ●●○ · 10 minutes
#
# One float32 a block of 64 is half a bit a weight. *Double quantization* puts the scales into 8
# bits. They are all positive, so their mean is taken off first, else half of the codes would never
# be used. Then it is the absmax scheme of lesson 10, in blocks of 256 scales, with codes from -127
# to 127. (bitsandbytes reads the codes through a table with finer steps near zero.) The
# specification is code that is right, and takes a minute for the scales of one large layer:


# %%
def slow_quantize_scales(absmax):
    """Scales (blocks,) ≥ 0 in 8 bits: codes (blocks,) int8, absmax2 (⌈blocks/256⌉,), offset ()."""
    offset, codes, absmax2 = absmax.mean(), [], []
    for start in range(0, len(absmax), 256):  # the last run may be shorter
        run = [float(scale - offset) for scale in absmax[start : start + 256]]
        largest = max(abs(centred) for centred in run)
        absmax2.append(largest)
        for centred in run:  # the code that gives back the nearest value
            codes.append(min(range(-127, 128), key=lambda c: abs(c / 127 * largest - centred)))
    return torch.tensor(codes, dtype=torch.int8), torch.tensor(absmax2), offset


# %% [exercise] quantize_scales
import torch


def quantize_scales(absmax):
    """(codes, absmax2, offset), the same as slow_quantize_scales gives. The rule: no loop.

    Where all scales of a run are equal, any code gives them back; return 0 there.
    """
    raise NotImplementedError("TODO: take off the mean, then absmax by runs of 256")


# %% [hints] quantize_scales
# 1. After `absmax - offset` the shape is still (blocks,). Pad it with zeros to a multiple of 256
#    and view it as (runs, 256).
# 2. `absmax2` is `amax(dim=1)` of the magnitudes; give it back to each scale with
#    `repeat_interleave(256)[:blocks]`.
# 3. `codes = torch.round(127 * centred / spread.clamp(min=1e-30)).to(torch.int8)`, where `spread`
#    is that repeated absmax2.

# %%
check(quantize_scales)

# %% [markdown]
# ## Build: count the bits
#
# Difficulty ●○○ · Importance ●●● · 5 minutes


# %% [exercise] bits_per_weight
def bits_per_weight(n, block_size):
    """Bits that n weights take each, with double quantization, all bytes counted.

    4-bit codes, two a byte (an odd last one has a byte for itself); one byte for each block of
    block_size weights (the last may be shorter); 4 bytes for each 256 blocks or part of them; 4
    bytes for the offset.
    """
    raise NotImplementedError("TODO: add up the bytes, times 8, over n")


# %% [hints] bits_per_weight
# 1. Four sums of bytes: codes, scales, scales of the scales, the offset. Everything that is begun
#    is paid for whole.
# 2. ⌈n / k⌉ is `-(-n // k)` in Python. The number of blocks is ⌈n / block_size⌉, that of absmax2 is
#    ⌈blocks / 256⌉.
# 3. `blocks = -(-n // block_size)`, then
#    `8 * (-(-n // 2) + blocks + 4 * -(-blocks // 256) + 4) / n`

# %%
check(bits_per_weight)

# %% [markdown]
# ## Run: what double quantization saves

# %%
once = nf4.quantize(weights["our base"], double_quant=False)
twice = nf4.quantize(weights["our base"], double_quant=True)
bits_once, bits_twice = once.bits_per_weight, twice.bits_per_weight
error_once = relative_error(once.dequantize(), weights["our base"])
error_twice = relative_error(twice.dequantize(), weights["our base"])
scales_shrink = (bits_once - 4) / (bits_twice - 4)
print(f"bits a weight {bits_once:.3f} -> {bits_twice:.3f}", end="; ")
print(f"the scales alone shrink {scales_shrink:.2f} times")
print(f"relative error {error_once:.5f} -> {error_twice:.5f}")
assert abs(bits_once - 4.5) < 1e-9
assert 4.126 < bits_twice < 4.13
assert error_twice < 1.01 * error_once

# %% [markdown]
# ## What you can now defend
#
# - NF4's error on normal weights is {{ 1 - errors["normal"]["NF4"] / errors["normal"]["int4"]:.0%}}
#   smaller than int4's, on our base's weights
#   {{ 1 - errors["our base"]["NF4"] / errors["our base"]["int4"]:.0%}}, which look normal. On
#   uniform weights it is {{ errors["uniform"]["NF4"] / errors["uniform"]["int4"] - 1:.0%}}
#   *larger*. "Optimal" is a statement about a distribution.
# - "NF4's levels are Φ⁻¹((i + ½) / 16)": no. That grid's error on normal weights is even
#   {{ 1 - naive_error / nf4_error:.1%}} smaller. But it has no zero.
# - "Double quantization saves 32×": it makes the scales {{ scales_shrink:.1f}} times smaller and
#   the whole {{ 1 - bits_twice / bits_once:.1%}}, from {{ bits_once:.1f}} to {{ bits_twice:.3f}}
#   bits a weight. It costs nearly nothing: {{ error_twice / error_once - 1:.2%}} more error.
#
# ## Open question
#
# All of this rounds each weight by itself and asks how far it moved. A layer's *output* is what
# counts. Could you round one weight up because its neighbour was rounded down? (GPTQ does:
# arXiv 2210.17323.)
