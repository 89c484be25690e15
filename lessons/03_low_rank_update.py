# %% [markdown]
# # 03 · Can a thin update learn?
#
# Know first: lesson 02 · Difficulty ●●○ · 9 minutes to read · 10 seconds to run
#
# A trained layer has a weight W₀, and we want it to behave as if it had another one, W₀ + ΔW. Full
# fine-tuning learns all out · in numbers of ΔW. LoRA freezes W₀ and learns two thin factors (arXiv
# 2106.09685, section 4.1):
#
#     y = x W₀ᵀ + s · (x Aᵀ) Bᵀ        A (r, in), B (out, r)
#     ΔW = s · B A                     of rank r at most
#
# The number s is a fixed scale; lesson 05 is about it. The question here is what the rank does. If
# the change that we need has rank 3, what happens at r = 2, what at r = 4?
#
# To know the truth we plant it: a random frozen layer, and a target that differs from it by a
# change of rank 3, with three directions of different strength.

# %%
import torch

import minilora
from minilora.learn import check, show
from minilora.plots.style import hue, in_house_style, label, one_axes

torch.manual_seed(0)
size_in, size_out, tokens, s = 32, 24, 128, 2.0
W0 = torch.randn(size_out, size_in) / size_in**0.5
strengths = torch.tensor([3.0, 2.0, 1.5])
planted = (torch.randn(size_out, 3) * strengths) @ torch.randn(3, size_in) / 30  # what is needed
directions = torch.linalg.qr(torch.randn(tokens, size_in)).Q
x = directions * tokens**0.5  # (tokens, in); every direction appears equally often
target = x @ (W0 + planted).T

sigma = torch.linalg.svdvals(planted)
print("singular values of the change:", [round(v, 2) for v in sigma[:5].tolist()])


def loss_of(A, B):
    """Half the squared distance, summed over outputs, averaged over tokens."""
    y = x @ W0.T + s * (x @ A.T) @ B.T
    return (y - target).square().sum() / (2 * tokens)


# %% [markdown]
# ## Predict
#
# We fit r = 1, 2, …, 6, each from the usual start (A random, B zero) with the same
# optimizer and steps.

# %% [predict] lowest_useful_rank
# From which r on does the loss go all the way down, to less than a ten-thousandth of where it
# began?
# answer: min(r for r in ranks if curves[r][-1] < 1e-4 * curves[r][0])

# %% [predict] what_rank_one_does
# And r = 1, with a third of the rank that is needed?
#
# - a) the loss stays where it began
# - b) it falls by more than half, then stops
# - c) it goes all the way down, only slower
# answer: "a" if 1 - removed[1] > 0.9 else "c" if 1 - removed[1] < 0.01 else "b"

# %% [markdown]
# ## Run: six ranks


# %%
def fit(r, steps=300, rate=0.02):
    """Train A and B; the loss of each step."""
    A = torch.empty(r, size_in).uniform_(-(size_in**-0.5), size_in**-0.5).requires_grad_()
    B = torch.zeros(size_out, r, requires_grad=True)
    optimizer, losses = torch.optim.Adam([A, B], lr=rate), []
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * (1 - step / steps)
        loss = loss_of(A, B)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


ranks = [1, 2, 3, 4, 5, 6]
curves = {r: fit(r) for r in ranks}
floors = {r: float(sigma[r:].square().sum()) / 2 for r in ranks}  # lesson 02: the discarded tail
removed = {r: 1 - losses[-1] / losses[0] for r, losses in curves.items()}
for r, losses in curves.items():
    print(f"r = {r}: loss {losses[0]:.2f} -> {losses[-1]:.1e}   lowest possible {floors[r]:.1e}")

# %% [markdown]
# ## Look


# %%
@in_house_style
def draw_elbow(curves, floors):
    figure, (left, right) = one_axes(width=11, height=4.2, columns=2)
    shown = 150
    for r in (1, 2, 3):
        left.plot(range(1, shown + 1), curves[r][:shown], color=hue(r - 1))
        left.axhline(max(floors[r], 1e-9), color=hue(r - 1), linestyle=(0, (4, 3)), linewidth=1)
        label(left, f"r = {r}", (100, curves[r][99]), (6, 6), color=hue(r - 1))
    left.set(title="Training", xlabel="step", ylabel="loss (log scale)")
    left.set(yscale="log", ylim=(1e-6, 30))
    final = [max(losses[-1], 1e-4 * losses[0]) for losses in curves.values()]
    right.plot(list(curves), final, color=hue(0), marker="o")
    right.plot([1, 2], [floors[1], floors[2]], "+", color=hue(1), markersize=15)
    label(right, "+ the lowest possible at this rank", (2, floors[2]), (12, 4), color=hue(1))
    note = "below a ten-thousandth\nof the start"
    label(right, note, (4.5, final[-1]), (0, 10), color=hue(0), ha="center")
    right.set(title="After training", xlabel="rank r", xticks=ranks)
    right.set(ylabel="loss (log scale)", yscale="log", ylim=(2e-4, 30))
    return figure


show(
    draw_elbow(curves, floors),
    "Left: the losses of r = 1 and 2 fall quickly to their dashed floors and stay there, that of "
    "r = 3 keeps falling. Right: the final loss by rank, an elbow at 3.",
)

# %% [markdown]
# The elbow is at the rank of the change. Below it the loss stops at a floor; from 3 on there is
# none, and more rank brings nothing. The floor is not a failure to train. It is the tail of lesson
# 02: with r directions, σ² of all the others must be missing. Training found the best thin matrix
# without ever taking an SVD.

# %%
for r in ranks:
    assert curves[r][-1] > floors[r] - 1e-5, "nothing of rank r is below the tail"
    if r < 3:
        assert curves[r][-1] < 1.01 * floors[r], "the floor is reached"
    else:
        assert curves[r][-1] < 1e-4 * curves[r][0], "no floor from the rank of the change on"
held = sigma[0] ** 2 / sigma.square().sum()
print(f"r = 1 removes {removed[1]:.0%} of the loss; its best direction holds {held:.0%} of σ²")

# %% [markdown]
# A planted change has the rank that we gave it. What about a real one? The base of this package
# answers questions about a ship's log, politely; it shall answer in naval code instead. The
# smallest LoRA that there is, r = 1, for 25 steps:

# %%
torch.manual_seed(0)
model = minilora.load_base()
minilora.inject(model, minilora.LoraConfig(r=1, lora_alpha=2, target_modules="all-linear"))
trainable, total = minilora.trainable_parameters(model)
share = trainable / total
settings = {"steps": 25, "batch_size": 8, "lr": 1e-2, "validate_every": 0, "progress": False}
naval = minilora.train(model, minilora.data.naval_log(200, 10), **settings).losses
naval_end = sum(naval[-5:]) / 5
print(f"{share:.2%} of the parameters; loss in nats an answer token {naval[0]:.2f} -> ", end="")
print(f"{naval_end:.2f} (mean of the last 5 steps)")
assert naval_end < 0.5 * naval[0]

# %% [markdown]
# ## Explain
#
# Two matrix products in a row, so the chain rule twice. Let g = ∂L/∂y, (tokens, out), be what
# arrives from above, and call h = x Aᵀ, (tokens, r), what lies between the factors. Lesson 01 gave
# the rule for one product: the gradient of the weight is gᵀ times what came in. B's input is h, and
# A's output is h, which receives `∂h = s · g B`:
#
#     ∂B = s · gᵀ h          (out, r)
#     ∂A = ∂hᵀ x             (r, in)
#
# W₀ appears in neither. It needs no gradient, no optimizer state, no copy: that is where LoRA's
# savings come from.
#
# And at the start, when B is zero? Then ∂h = s · g B = 0, so ∂A = 0: in the very first
# step only B moves.
#
# Two questions come up here. *Is LoRA at full rank the same as full fine-tuning?* With B = 0 a
# small step along −∂B changes the weight by −s ∂B A, and ∂B = s ∂W Aᵀ. So W moves along
#
#     ∂W AᵀA        where full fine-tuning moves along ∂W
#
# *Could A stay as it was drawn, and only B learn?* Then every row of ΔW is made of A's rows, and
# the part of the change outside them cannot be learnt. Both can be computed for a random A:

# %%
dW = -planted  # at the start, as x has every direction equally often
cosine, learnable = {}, {}
for r in (3, 8, 32):
    A = torch.randn(r, size_in) / size_in**0.5
    step = dW @ A.T @ A
    cosine[r] = float((step * dW).sum() / (step.norm() * dW.norm()))
    inside = planted @ torch.linalg.pinv(A) @ A  # the part made of A's rows
    learnable[r] = float(inside.square().sum() / planted.square().sum())
    print(f"r = {r:2}: first step, cosine with full fine-tuning's {cosine[r]:.2f};", end=" ")
    print(f"with A frozen {learnable[r]:.0%} of the loss can go")
assert cosine[32] < 0.85
assert learnable[3] < 0.3
assert learnable[32] > 0.999

# %% [markdown]
# At r = 32 the product B A can be any matrix, and the first step still points elsewhere than full
# fine-tuning's: another way to the same places. A frozen random A needs far more rank than one that
# learns: with r = 3 it could take away {{ learnable[3]:.0%}} of the loss, and training both took
# {{ removed[3]:.0%}}.

# %% [markdown]
# ## Break it: a wrong gradient that passes its test
#
# Suppose you forget s in ∂A, or get its sign wrong. You are careful, so you compare with autograd.
# You do it where training starts.


# %%
def wrong_dA(g, B, x):
    return -(g @ B).T @ x  # no s, and the wrong sign


def largest_error(B_value):
    """Between the wrong ∂A and autograd's, at a random A."""
    A = torch.randn(3, size_in, requires_grad=True)
    B = B_value.clone().requires_grad_()
    loss_of(A, B).backward()
    g = (x @ W0.T + s * (x @ A.T) @ B.T - target).detach() / tokens
    return float((wrong_dA(g, B_value, x) - A.grad).abs().max())


at_zero = largest_error(torch.zeros(size_out, 3))
elsewhere = largest_error(torch.randn(size_out, 3))
print(f"error of the wrong ∂A with B = 0: {at_zero:.1e};  with a random B: {elsewhere:.1e}")
assert at_zero == 0
assert elsewhere > 1

# %% [markdown]
# With B = 0 every formula for ∂A that has B as a factor gives the same right answer: zero. Zeros
# hide wrong gradients. So test a gradient at a random point, with s ≠ 1 and out ≠ in. The
# checker below does.

# %% [markdown]
# ## Build: ∂A and ∂B by hand
#
# Difficulty ●●○ · Importance ●●●, the backward pass of `minilora/lora/layer.py` · 15 minutes

# %% [exercise] lora_gradients
import torch


def lora_gradients(g, x, A, B, s):
    """Gradients of a loss with respect to A and B, for y = x W₀ᵀ + s (x Aᵀ) Bᵀ, without autograd.

    g (…, out) is ∂L/∂y, x (…, in), A (r, in), B (out, r). In front of the last axis any number of
    axes may stand, for example (batch, time); none of them is in A. Returns (dA, dB), shaped as A
    and B.
    """
    raise NotImplementedError("TODO: flatten to (tokens, …), then the two lines under Explain")


# %% [hints] lora_gradients
# 1. A and B see tokens, wherever they stand: make g and x two-dimensional first, with
#    `reshape(-1, last size)`.
# 2. Two helpers: h = x @ A.T, (tokens, r), and dh = s * g @ B, (tokens, r). Each gradient is one
#    product of a transpose.
# 3. With the flat g and x: dA = (s * g @ B).T @ x and dB = s * g.T @ (x @ A.T). Return them
#    in this order.

# %%
check(lora_gradients)

# %% [markdown]
# ## What you can now defend
#
# - A thin update learns exactly as much of a change as its r strongest directions hold. The floor
#   is the discarded tail, and training reaches it.
# - "Rank 1 cannot learn" is wrong. Of a change of rank 3 it removed {{ removed[1]:.0%}} of the
#   loss. On the real base, with {{ share:.2%}} of the parameters, it brought the loss from
#   {{ naval[0]:.2f}} to {{ naval_end:.2f}}. What it cannot do is go below its floor.
# - Nor does rank help beyond what the change needs: from r = 3 on, every loss is below a
#   ten-thousandth of the start.

# %% [markdown]
# ## Open question
#
# With a planted change the elbow is sharp. Where is it for the naval code: does r = 8 end
# much lower than r = 1, given the same steps and its own best learning rate? Try it before
# lesson 08 does.
