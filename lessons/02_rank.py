# %% [markdown]
# # 02 · How many numbers are in a matrix?
#
# Know first: lesson 01 · Difficulty ●○○ · 8 minutes to read · 5 seconds to run
#
# A matrix of 96 rows and 64 columns stores {{ 96 * 64 :,}} numbers. It may *say* far less.
#
# Take a column of 96 numbers and a row of 64. Multiply every number of the one with every number of
# the other: that fills the whole matrix, and it was made of only {{ 96 + 64 }} numbers. Such a
# matrix has rank 1. Add up r of them and you have
#
#     W = B A        B (out, r), A (r, in)        r (in + out) numbers
#
# a matrix of rank r, at most. LoRA's update is exactly such a product (arXiv 2106.09685, section
# 4.1). Before we train one, this lesson asks what fits into it: which matrices are thin, and what
# is lost when one that is not thin is made so.

# %% [markdown]
# ## Predict
#
# `torch.linalg.svd` takes any matrix apart into directions, each with a strength, a *singular
# value*, the strongest first.

# %% [predict] count_directions
# We multiply a random (96, 4) matrix by a random (4, 64) one, and look at the 64 singular values of
# the product. How many of them are more than rounding noise?
# answer: thin_rank

# %% [markdown]
# ## Run: three matrices
#
# One that we plant, thin by construction. One of pure chance. And one that was trained: `up_proj`
# in layer 3 of the model that ships with this package.

# %%
import torch

import minilora
from minilora.learn import check, show
from minilora.plots.style import hue, in_house_style, label_ends, one_axes
from minilora.training.evaluation import PROSE

torch.manual_seed(0)
model = minilora.load_base()
matrices = {
    "planted, rank 4": torch.randn(96, 4) @ torch.randn(4, 64),
    "random": torch.randn(352, 128),
    "trained up_proj": model.get_submodule("model.layers.3.mlp.up_proj").weight.detach(),
}
spectra = {name: torch.linalg.svdvals(W.double()) for name, W in matrices.items()}  # descending

thin_rank = int((spectra["planted, rank 4"] > 1e-5 * spectra["planted, rank 4"][0]).sum())
assert thin_rank == 4

for name, s in spectra.items():
    strengths = f"largest {s[0]:6.2f} fifth {s[4]:7.1e} smallest {s[-1]:7.1e}"
    print(f"{name:15} {tuple(matrices[name].shape)!s:10} {strengths}")

# %% [markdown]
# To cut a matrix down to rank r, keep the r strongest directions and drop the rest. The *relative
# error* is what is missing, as a share of the whole: `‖W − W_r‖ / ‖W‖`, where ‖W‖ is the root of
# the sum of all squared entries.

# %% [predict] directions_to_keep
# To keep nine tenths of the trained matrix (of its squared size, ‖W‖²), how many of its 128
# directions are needed?
#
# - a) about 8
# - b) about 30
# - c) more than 60
# answer: "a" if needed["trained up_proj"] < 16 else "b" if needed["trained up_proj"] < 60 else "c"


# %%
def truncate(W, r):
    """W with only its r strongest directions."""
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)  # W = U diag(S) Vh
    return (U[:, :r] * S[:r]) @ Vh[:r]


ranks = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64]
errors = {
    name: [float((W - truncate(W, r)).norm() / W.norm()) for r in ranks]
    for name, W in matrices.items()
}
energies = {name: s.square().cumsum(0) for name, s in spectra.items()}
needed = {name: int((e < 0.9 * e[-1]).sum()) + 1 for name, e in energies.items()}
print("directions for nine tenths of the squared size:", needed)

# %% [markdown]
# ## Look


# %%
@in_house_style
def draw_spectra(spectra, ranks, errors):
    figure, (left, right) = one_axes(width=11, height=4.2, columns=2)
    ends = {}
    for i, (name, s) in enumerate(spectra.items()):
        seen = s[s > 1e-5 * s[0]]
        left.plot(range(1, len(seen) + 1), seen / s[0], color=hue(i), marker="o", markersize=3)
        right.plot(ranks, [100 * e for e in errors[name]], color=hue(i), marker="o", markersize=4)
        ends[name] = (100 * errors[name][-1], hue(i))
    left.set(title="Singular values", xlabel="which one, strongest first")
    left.set(ylabel="relative to the strongest", ylim=(0, 1.05))
    left.annotate("the planted one\nends at 4", (4, 0.62), (9, 0.2), color=hue(0), va="center")
    right.set(title="What is lost at rank r", xlabel="rank r that is kept")
    right.set(ylabel="relative error, %", ylim=(-3, 105))
    label_ends(right, ends)
    return figure


show(
    draw_spectra(spectra, ranks, errors),
    "Left, singular values: the planted matrix has four and then nothing, the trained one falls "
    "slowly, the random one slower still. Right, error by rank: zero from rank 4 on for the "
    "planted matrix, large for both others.",
)

# %% [markdown]
# The planted matrix ends at 4. The other two go on to the last direction. Training did leave a
# mark: nine tenths of the trained matrix need {{ needed["trained up_proj"] }} directions, where
# pure chance needs {{ needed["random"] }}. But it is nowhere near thin.
#
# Does a model mind? We cut *every* Linear of the blocks to rank r, and let the model read a page of
# held-out prose. The measure is bits a byte: how many yes-or-no questions it needs for one letter.
# Lower is better.

# %%
prose = PROSE.read_text(encoding="utf-8")[:2000]
bits = {"all": minilora.bits_per_byte(model, prose)}
cut = minilora.load_base()
# each cut goes on from the last: the strongest 32 are among the strongest 64
for r in (64, 32, 16):
    for name, module in cut.named_modules():
        if isinstance(module, torch.nn.Linear) and name != "lm_head":
            module.weight.data = truncate(module.weight.data, r)
    bits[r] = minilora.bits_per_byte(cut, prose)
for r, value in bits.items():
    print(f"directions kept: {r!s:>3}   bits a byte: {value:.2f}")
assert bits["all"] < bits[64] < bits[32] < bits[16]
assert bits[16] > 2 * bits["all"]

# %% [markdown]
# ## Explain
#
# Every matrix is a sum of rank-1 pieces, the *singular value decomposition*:
#
#     W = σ₁ u₁ v₁ᵀ + σ₂ u₂ v₂ᵀ + …        σ₁ ≥ σ₂ ≥ … ≥ 0
#
# The u's are orthogonal to each other, and so are the v's.
#
# Because the pieces are orthogonal, squared sizes simply add: ‖W‖² = σ₁² + σ₂² + … So what is lost
# by stopping after r pieces is the part of that sum which you dropped, the tail:
#
#     ‖W − W_r‖² = σ²_{r+1} + σ²_{r+2} + …
#
# And no other matrix of rank r is closer (Eckart and Young, 1936). That makes it a yardstick: a
# thin update that reaches this error has done all that its rank allows. Lesson 03 uses it. Here the
# equation is checked, for each matrix and each rank:

# %%
for name, s in spectra.items():
    for r, error in zip(ranks, errors[name], strict=True):
        tail = float((s[r:].square().sum() / s.square().sum()).sqrt())
        assert abs(error - tail) < 1e-5, f"{name} at rank {r}: lost {error}, the tail says {tail}"
print("error = discarded tail, at", len(ranks) * len(spectra), "places")


def numbers(rows, columns, r):
    """Numbers in B and A."""
    return r * (rows + columns)


rows, columns = matrices["trained up_proj"].shape
break_even = rows * columns / (rows + columns)
of_rank_8 = numbers(rows, columns, 8)
print(f"{rows} × {columns} = {rows * columns:,} numbers; factors of rank 8 have {of_rank_8:,}")

# %% [markdown]
# The factors cost r (in + out) numbers instead of in · out. For this matrix they are the smaller
# way to write it down while r is below {{ break_even:.1f}}, and at r = 8 they are
# {{ rows * columns / of_rank_8:.1f}} times smaller.
#
# A subtle point: even r (in + out) counts too many. Put any invertible (r, r) matrix M between the
# factors and the product is the same, `(B M⁻¹)(M A) = B A`. So r² of the numbers say nothing, and a
# matrix of rank r has r (in + out − r) in it. It also means that A and B alone have no meaning:
# only their product does. Remember that when you compare two adapters.

# %% [markdown]
# ## Break it: columns for rows
#
# `torch.linalg.svd` returns Vh: its *rows* are the directions. The older `torch.svd` returned V,
# with the directions in its *columns*. Code that was written for one and runs on the other fails in
# silence where the matrix is square.

# %%
W = model.get_submodule("model.layers.3.self_attn.q_proj").weight.detach()  # (128, 128)
U, S, Vh = torch.linalg.svd(W)
right_cut = (U[:, :32] * S[:32]) @ Vh[:32]
wrong_cut = (U[:, :32] * S[:32]) @ Vh[:, :32].T  # no error, the shapes fit
right_error, wrong_error = (float((W - cut).norm() / W.norm()) for cut in (right_cut, wrong_cut))
print(f"rank 32, rows of Vh: error {right_error:.2f};  columns of Vh: {wrong_error:.2f}")
print("no matrix at all:    error 1.00")
assert right_error < 0.6
assert wrong_error > 1

# %% [markdown]
# The wrong one has the right rank, the right size and the right strengths. It is further from W
# than an empty matrix would be, for its directions on the input side are arbitrary ones. A shape
# that fits proves little; compare the error with the tail.

# %% [markdown]
# ## Build: the best rank-r factors
#
# Difficulty ●○○ · Importance ●●●, PiSSA and every adapter compression start from it · 10 minutes
#
# Give back the two factors, in LoRA's shapes, instead of the product.

# %% [exercise] best_factors
import torch


def best_factors(W, r):
    """The best approximation of W (out, in) of rank r, as two factors.

    B is (out, r) and A (r, in), with B @ A closest to W. Returns (B, A). Any pair with the right
    product counts.
    """
    raise NotImplementedError("TODO: keep the r strongest directions, split them into two factors")


# %% [hints] best_factors
# 1. Look at `truncate` above: it has everything, it only multiplies too early. Which factor is
#    (out, r), which is (r, in)?
# 2. The strengths S[:r] belong into the product once. Give them to one factor, or their
#    square root to each.
# 3. U, S, Vh = torch.linalg.svd(W, full_matrices=False), then B = U[:, :r] * S[:r], and A is the
#    first r rows of Vh.

# %%
check(best_factors)

# %% [markdown]
# ## Build: how much rank is enough
#
# Difficulty ●○○ · Importance ●●○, the tool for looking at any update · 5 minutes

# %% [exercise] rank_that_keeps
import torch


def rank_that_keeps(W, share):
    """The smallest r for which the best rank-r approximation keeps at least `share` of ‖W‖².

    W is (out, in) and not zero, 0 < share < 1. Returns an int, from 1 to min(out, in).
    """
    raise NotImplementedError("TODO: add up squared singular values until there are enough")


# %% [hints] rank_that_keeps
# 1. Only singular values are needed: `torch.linalg.svdvals(W)`, descending. The line that fills
#    `needed` above does this.
# 2. Square them, and take running sums with `cumsum(0)`. Count how many sums are still too small.
# 3. energy = torch.linalg.svdvals(W).square().cumsum(0), then 1 + the number of entries of energy
#    below share * energy[-1].

# %%
check(rank_that_keeps)

# %% [markdown]
# ## What you can now defend
#
# - A matrix of rank r has r (in + out − r) numbers in it, however large it looks. The planted one
#   of {{ 96 * 64 :,}} entries has {{ 4 * (96 + 64 - 4) }}.
# - Cutting to rank r loses exactly the discarded tail of σ², and nothing of rank r does better.
# - "LoRA works because weights are low-rank" is wrong. These weights are not: cut to a quarter of
#   their directions, the model falls from {{ bits["all"]:.2f}} to {{ bits[32]:.2f}} bits a byte.
#   LoRA leaves W₀ whole. What it makes thin is the *update*.

# %% [markdown]
# ## Open question
#
# So are updates thin? Fine-tune everything, take ΔW = W − W₀, and look at its singular values: how
# many directions hold nine tenths of it? Lesson 07 trains such a model. Try it on each kind of
# Linear: are they all alike?
