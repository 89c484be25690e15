# %% [markdown]
# # 10 · What is lost at 4 bits?
#
# Know first: lesson 01 · Difficulty ●○○ · 9 minutes to read · 10 seconds to run
#
# A frozen weight need not be kept as exactly as one that is trained. Four bits can say sixteen
# different things, so we keep, instead of each weight, the number of the nearest of at most sixteen
# values. The simplest such scheme takes evenly spaced values, as far out as the largest weight:
#
#     q = round(7 · w / absmax)      a whole number from -7 to 7
#     ŵ = q · absmax / 7             what we get back; absmax is the largest |w|
#
# This is absmax quantization to int4. All that can be lost is lost in that rounding. How much is
# it, and what decides?

# %%
import torch

import minilora
from minilora.learn import check, show
from minilora.plots.style import hue, in_house_style, one_axes
from minilora.training.evaluation import PROSE


def int4(weight, block_size):
    """Absmax int4, block by block: codes (n,), scales (blocks,), and the weights that come back."""
    blocks = weight.reshape(-1, block_size)  # (blocks, block_size)
    absmax = blocks.abs().amax(dim=1, keepdim=True)  # (blocks, 1)
    codes = torch.round(7 * blocks / absmax)
    return codes.flatten(), absmax.flatten(), (codes * absmax / 7).view(weight.shape)


def furthest(weight):
    """The largest |w|, in standard deviations."""
    return (weight.abs().max() / weight.std()).item()


def relative_error(restored, weight):
    """Root mean square of the error, over that of the weights."""
    return ((restored - weight).norm() / weight.norm()).item()


base = minilora.load_base()
weight = base.get_submodule("model.layers.2.mlp.up_proj").weight.detach()  # (352, 128), trained
_, _, back = int4(weight, weight.numel())
error = relative_error(back, weight)
print(f"one scale for all {weight.numel():,} weights: relative error {error:.3f}")

# %% [markdown]
# ## Predict
#
# One scale for the whole matrix means that the largest weight sets the step for all. How large is
# the largest? In this matrix {{ furthest(weight):.1f}} standard deviations. Training makes larger
# ones, as we shall see. First we plant one that is larger than any of this base's, so that its
# effect is plain.

# %% [predict] outlier
# We set one single weight to 50 times the standard deviation of the others. What happens to the
# error of the *other* weights?
# - a) next to nothing: it is one weight in 45,056
# - b) it grows a little, by a tenth or so
# - c) nearly all of them become zero: all that they said is lost
# answer: "c" if planted_error > 0.9 else "b" if planted_error > 1.05 * plain_error else "a"

# %% [markdown]
# ## Run: one planted outlier

# %%
planted = weight.clone()
planted[100, 60] = 50 * weight.std()
others = torch.ones_like(weight, dtype=torch.bool)
others[100, 60] = False

codes, absmax, planted_back = int4(planted, planted.numel())
plain_error = relative_error(back[others], weight[others])
planted_error = relative_error(planted_back[others], weight[others])
zeros = (codes == 0).float().mean().item()
print(f"relative error of the other weights: {plain_error:.3f} before, {planted_error:.3f} after")
print(f"weights that became zero: {zeros:.2%}")
assert planted_error > 0.9
assert zeros > 0.95

linears = {n: m.weight.detach() for n, m in base.named_modules() if isinstance(m, torch.nn.Linear)}
found_in = max(linears, key=lambda name: furthest(linears[name]))
real = linears[found_in]  # (64, 128)
real_error = relative_error(int4(real, real.numel())[2], real)
print(f"the furthest that training made: {furthest(real):.1f} standard deviations, in {found_in};")
print(f"with one scale for that matrix the relative error is {real_error:.3f}")
assert 7 < furthest(real) < 50
assert real_error > 1.5 * plain_error

# %% [markdown]
# A relative error of 1 is what you get by throwing the weights away. One number did that to all the
# others: the step became {{ absmax.item() / 7 / weight.std().item():.1f}} standard deviations wide,
# and nearly everything rounds to zero. Fifty is our choice, to make it plain. The furthest weight
# of this small base is {{ furthest(real):.0f}} standard deviations out, and costs its matrix an
# error of {{ real_error:.0%}}.
#
# The cure is to give each *block* of weights a scale of its own. An outlier then spoils its own
# block and no other.
#
# ## Run: by block

# %%
sizes = [16, 32, 64, 128, 256, 512, 1024, 2816, 11264, 45056]
plain = [relative_error(int4(weight, size)[2], weight) for size in sizes]
spoilt = [relative_error(int4(planted, size)[2][others], weight[others]) for size in sizes]
bits = [4 + 32 / size for size in sizes]  # each block brings a float32 scale
real_sizes = [*(size for size in sizes if size <= 1024), real.numel()]
real_errors = [relative_error(int4(real, size)[2], real) for size in real_sizes]

print("block    bits a weight    error    error with the outlier")
for row in zip(sizes, bits, plain, spoilt, strict=True):
    print("{:6,}   {:13.3f}    {:.3f}    {:.3f}".format(*row))

# %% [markdown]
# ## Look


# %%
@in_house_style
def draw(sizes, curves, bits):
    figure, (left, right) = one_axes(width=11.4, columns=2)
    for i, (name, (xs, errors)) in enumerate(curves.items()):
        left.plot(xs, errors, color=hue(i), marker="o", markersize=4)
        side, shift = (("right", (-8, 8)), ("left", (8, -16)), ("right", (-8, 0)))[i]
        at = (xs[-1], errors[-1]), shift, "data", "offset points"
        left.annotate(name, *at, color=hue(i), ha=side)
    left.set(
        title="Error of the weights (not of the planted one)",
        ylabel="RMS error / RMS of the weights",
    )
    left.set(ylim=(0, 1.05))
    right.plot(sizes, bits, color=hue(3), marker="o", markersize=4)
    right.set(title="What the scales cost", ylabel="bits a weight, scales included", ylim=(0, 6.4))
    for axes in (left, right):
        axes.set(xlabel="weights that share a scale (log scale)", xscale="log")
        axes.axvline(64, color=hue(6), linewidth=1, linestyle=(0, (4, 3)))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    right.annotate("64, QLoRA's choice", (64, 0.25), (6, 0), "data", "offset points", color=hue(6))
    return figure


curves = {
    "up_proj, as trained": (sizes, plain),
    f"a k_proj, as\ntrained ({furthest(real):.0f} σ)": (real_sizes, real_errors),
    "up_proj, 50 σ planted": (sizes, spoilt),
}
show(
    draw(sizes, curves, bits),
    "Left: error against block size; with a planted outlier it climbs to 1, with a real one less, "
    "without it rises slowly. Right: bits a weight fall to 4.",
)

# %% [markdown]
# Two prices, in opposite directions. Small blocks keep the error low and an outlier locked in; each
# brings a scale, 32 bits that its weights share. At 64 that is half a bit a weight, and the outlier
# costs the whole matrix {{ spoilt[2] / plain[2] - 1:.1%}} more error instead of everything. QLoRA
# takes 64 (arXiv 2305.14314, section 3).
#
# ## Explain
#
# Two neighbouring values are `absmax / 7` apart. Rounding goes to the nearer one, so no weight
# moves by more than half of that:
#
#     |w - ŵ| ≤ absmax / 14
#
# Where in its step a weight falls is as good as random, and the square of a number drawn evenly
# from ±step/2 is `step² / 12` on average. So the error of a whole matrix can be told in advance
# from its scales alone:
#
#     RMS error ≈ √( mean of (absmax / 7)² / 12 )

# %%
block_size = 64
codes, absmax, back = int4(weight, block_size)
blocks, restored = weight.view(-1, block_size), back.view(-1, block_size)
worst = ((blocks - restored).abs() / absmax[:, None]).max().item()
measured = (weight - back).square().mean().sqrt().item()
foretold = ((absmax / 7).square().mean() / 12).sqrt().item()
print(f"largest |w - ŵ| / absmax: {worst:.4f}, the bound is {1 / 14:.4f}")
print(f"RMS error: {measured:.5f}, foretold from the scales {foretold:.5f}")
assert worst <= 1 / 14 + 1e-6
assert abs(measured / foretold - 1) < 0.05

# %% [markdown]
# ## Break it
#
# Round down instead of to the nearest: `floor` for `round`, one word. No weight is off by more than
# one step. What can go wrong?

# %%
floored = (torch.floor(7 * blocks / absmax[:, None]) * absmax[:, None] / 7).view(weight.shape)
for name, restored in (("round", back), ("floor", floored)):
    error, bias = relative_error(restored, weight), (restored - weight).mean() / weight.std()
    print(f"{name}: relative error {error:.3f}, mean error {bias:+.4f} standard deviations")

torch.manual_seed(0)
x = torch.rand(1000, 128)  # inputs with a mean, as they come out of a ReLU
rounded_output, floored_output = (relative_error(x @ w.T, x @ weight.T) for w in (back, floored))
print(f"error of the outputs: {rounded_output:.3f} with round, {floored_output:.3f} with floor")
assert relative_error(floored, weight) < 2.5 * relative_error(back, weight)  # weights: twice, …
assert floored_output > 4 * rounded_output  # … outputs: far more

# %% [markdown]
# The weights are {{ relative_error(floored, weight) / relative_error(back, weight):.1f}} times as
# wrong, the outputs {{ floored_output / rounded_output:.0f}} times. An output is a sum over
# {{ weight.shape[1] }} weights. Errors that go up as often as down mostly cancel in it: their sum
# grows like √n. A bias never cancels: its sum grows like n. A rounding that is off by a little,
# always to the same side, does more harm than a coarse one that is fair.
#
# And a whole model? Every Linear but the head in int4, in blocks of 64:

# %%
prose = PROSE.read_text(encoding="utf-8")[:4000]
in_floats = minilora.bits_per_byte(base, prose)
in_int4 = minilora.bits_per_byte(minilora.load_base(quantize="int4"), prose)
print(f"bits for a byte of prose: {in_floats:.3f} in floats, {in_int4:.3f} in int4")
assert in_floats < in_int4 < 1.1 * in_floats

# %% [markdown]
# ## Build: two codes in a byte
#
# Difficulty ●○○ · Importance ●●○ · 10 minutes
#
# No computer addresses half a byte. So two codes share one: the first in the *high* half, the
# second in the low half. With codes from 0 to 15 that is `16 · first + second`. (Add 7 to our q,
# which starts at -7.) An odd number of codes leaves the last low half empty: fill it with 7, the
# code of zero in minilora and in bitsandbytes.


# %% [exercise] pack_nibbles
import torch


def pack_nibbles(codes):
    """Two 4-bit codes a byte: codes (n,) int64, each 0 to 15, to (⌈n/2⌉,) uint8.

    Element 0 goes into the high half of byte 0, element 1 into its low half, element 2 into the
    high half of byte 1 … When n is odd, the last low half is 7.
    """
    raise NotImplementedError("TODO: pad to an even length, then put two codes into each byte")


# %% [hints] pack_nibbles
# 1. `codes[::2]` are the elements 0, 2, 4 …, `codes[1::2]` the elements 1, 3, 5 …; both must be
#    of one length.
# 2. Append a 7 when `len(codes)` is odd. Then the byte is `16 * high + low`, or `high << 4 | low`.
# 3. `if len(codes) % 2: codes = torch.cat([codes, torch.tensor([7])])`, then
#    `return (16 * codes[::2] + codes[1::2]).to(torch.uint8)`

# %%
check(pack_nibbles)

# %% [markdown]
# ## Build: and back
#
# Difficulty ●○○ · Importance ●○○ · 5 minutes


# %% [exercise] unpack_nibbles
import torch


def unpack_nibbles(packed, n):
    """The n codes in packed (⌈n/2⌉,) uint8, in order: (n,) int64, each 0 to 15.

    The inverse of pack_nibbles.
    """
    raise NotImplementedError("TODO: take the halves apart, put them in turn, cut to n")


# %% [hints] unpack_nibbles
# 1. The high half is `packed >> 4`, the low half `packed & 15`. Each is (⌈n/2⌉,); the answer takes
#    one of each in turn.
# 2. Stack the two as columns, (⌈n/2⌉, 2), and flatten: rows come out one after another. Cut
#    the padding off.
# 3. `torch.stack([packed >> 4, packed & 15], dim=1).flatten()[:n].long()`

# %%
check(unpack_nibbles)

# %% [markdown]
# ## What you can now defend
#
# - Rounding to four bits moves no weight by more than 1/14 of its block's largest, and the RMS
#   error can be told from the scales. On a trained matrix in blocks of 64 it is {{ plain[2]:.1%}}
#   of the weights.
# - The block is what makes it work. With one scale for all, one planted outlier turned
#   {{ zeros:.2%}} of the weights into zero; the furthest of the trained ones cost its matrix
#   {{ real_error:.0%}}.
# - "Four bits are a quarter of sixteen" is not quite the sum: the scales count. In blocks of 64,
#   16-bit weights shrink {{ 16 / bits[2]:.2f}} times, not 4.
# - The model feels it: {{ in_int4 / in_floats - 1:.1%}} more bits for a byte of prose,
#   before any training.
# - Symmetric int4 wastes a code. From -7 to 7 there are {{ len(codes.unique()) }} values, and four
#   bits could tell 16 apart.
#
# ## Open question
#
# Int4 spends its values evenly from -absmax to absmax. But most weights lie near zero, and hardly
# any near the ends. Would you put the values where the weights are? That is lesson 11.
