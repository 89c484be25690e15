# %% [markdown]
# # 01 · What does a linear layer do, and learn?
#
# Know first: nothing · Difficulty ●○○ · 5 minutes to read · 5 seconds to run
#
# Most of what a language model does is one operation, repeated: a matrix times a vector. Most of
# what it learns is one other operation: a second matrix, of the same shape, that says how to change
# the first. LoRA is about that second matrix. So we begin with both, in NumPy, with nothing hidden.
#
# A linear layer takes a row of numbers x and gives a row of numbers y:
#
#     y = x Wᵀ + b        x (tokens, in), W (out, in), b (out,), y (tokens, out)
#
# Row i of W belongs to output i. Column j belongs to input j. `W[i, j]` says how much input j
# counts for output i.

# %%
import numpy as np

from minilora.learn import check, show

draw = np.random.default_rng(9)
tokens, size_in, size_out = 200, 6, 4
x = draw.normal(size=(tokens, size_in))
W_right = draw.normal(size=(size_out, size_in))
b = draw.normal(size=size_out)


def forward(x, W, b):
    return x @ W.T + b  # (tokens, in) @ (in, out) -> (tokens, out)


target = forward(x, W_right, b)
print("x", x.shape, "times Wᵀ", W_right.T.shape, "gives y", target.shape)

# %% [markdown]
# Now we spoil one weight. `W_right` gave the targets; our layer has the same weights, except that
# somewhere one of them is off by one. The loss is half the squared distance to the target, averaged
# over the tokens:
#
#     L = 1 / (2 · tokens) · Σ (y − target)²

# %%
W = W_right.copy()
row, column = draw.integers(size_out), draw.integers(size_in)
W[row, column] += 1.0


def loss(W, b):
    return ((forward(x, W, b) - target) ** 2).sum() / (2 * tokens)


print(f"the loss is {loss(W, b):.4f}; with the right weights it is {loss(W_right, b):.4f}")

# %% [markdown]
# ## Predict
#
# The gradient ∂W is a matrix of the same shape as W. Entry (i, j) says how fast the loss grows when
# `W[i, j]` grows.

# %% [predict] rows_that_light_up
# W has four rows, and one weight in it is wrong. In how many rows of ∂W is anything
# different from zero?
# answer: int((abs(dW).max(axis=1) > 1e-12).sum())

# %% [markdown]
# ## Run
#
# Two steps back through the layer. First: how does the loss change with y? Then: how does y
# change with W?
#
#     ∂y = (y − target) / tokens        (tokens, out)
#     ∂W = ∂yᵀ x                        (out, in)

# %%
dy = (forward(x, W, b) - target) / tokens  # (tokens, out)
dW = dy.T @ x  # (out, tokens) @ (tokens, in) -> (out, in)
db = dy.sum(axis=0)  # (out,)
print(np.array2string(dW, precision=2, suppress_small=True))

# %% [markdown]
# Is it right? There is a way to know that needs no calculus. Move one weight a little up and a
# little down, and see how the loss answers. It takes two forward passes for each weight, so
# nobody trains like that. But it cannot be wrong in the same way as our formula, and that makes
# it a good judge.

# %%
step = 1e-5
measured = np.zeros_like(W)
for i in range(size_out):
    for j in range(size_in):
        nudge = np.zeros_like(W)
        nudge[i, j] = step
        measured[i, j] = (loss(W + nudge, b) - loss(W - nudge, b)) / (2 * step)

print(f"largest difference between formula and measurement: {abs(dW - measured).max():.1e}")
assert abs(dW - measured).max() < 1e-8

# %% [markdown]
# ## Look
#
# On the left, the weights. Can you see which one is wrong? On the right, the gradient, which has
# seen {{ tokens }} examples.

# %%
from matplotlib.figure import Figure

from minilora.plots.style import in_house_style


@in_house_style
def heat_maps(matrices):
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    panels = figure.subplots(1, len(matrices))
    for axes, (title, matrix) in zip(panels, matrices.items(), strict=True):
        limit = abs(matrix).max()
        image = axes.imshow(matrix, cmap="RdBu_r", vmin=-limit, vmax=limit)
        axes.set(title=title, xlabel="input j", ylabel="output i")
        axes.set(xticks=range(size_in), yticks=range(size_out))
        axes.grid(visible=False)
        figure.colorbar(image, ax=axes, shrink=0.8)
    return figure


show(
    heat_maps({"W: which weight is wrong?": W, "∂W knows": dW}),
    "Two heat maps of 4 by 6: the weights look random, the gradient has one strong cell where the "
    "wrong weight is",
)
largest = tuple(int(i) for i in np.unravel_index(abs(dW).argmax(), dW.shape))
print(f"the largest gradient is at {largest}, the wrong weight at {(int(row), int(column))}")
assert largest == (row, column)
assert (abs(np.delete(dW, row, axis=0)) < 1e-12).all()

# %% [markdown]
# ## Explain
#
# `∂yᵀ x` is a sum over the tokens. Each token adds an outer product: its error at the output
# times its input.
#
#     ∂W[i, j] = Σ over tokens of ∂y[t, i] · x[t, j]
#
# So an entry is large when output i was wrong just when input j was large. Here only output
# {{ row }} is ever wrong, so the other rows are zero, and in that row the error goes up and down
# with input {{ column }} alone. The faint cells beside it are chance: with {{ tokens }} tokens, the
# inputs are a little alike. This rule is back-propagation for one layer (Rumelhart, Hinton and
# Williams, Nature 323, 1986); autograd does nothing else, layer after layer.
#
# To learn is to take small steps against the gradient. The layer mends the one weight and leaves
# the others where they were.

# %%
learned = W.copy()
for _ in range(100):
    error = (forward(x, learned, b) - target) / tokens
    learned -= 0.3 * error.T @ x

changed = abs(learned - W) > 1e-3
print(f"loss {loss(W, b):.4f} -> {loss(learned, b):.1e}; {changed.sum()} of {W.size} weights moved")
assert loss(learned, b) < 1e-12
assert changed.sum() == 1

# %% [markdown]
# ## Break it
#
# What if we had written `xᵀ ∂y` instead of `∂yᵀ x`? It is the transpose. Our W is {{ W.shape }}, so
# NumPy would refuse to subtract it. But make the layer square, and nothing complains.

# %% [predict] transposed
# A square layer is trained with the transposed gradient. What does its loss do?
# - a) it falls, more slowly
# - b) it does not fall
# - c) NumPy raises an error
# answer: "b" if broken[-1] >= 0.9 * broken[0] else "a"


# %%
def train_square(transposed, steps=40):
    draw = np.random.default_rng(3)
    x, right = draw.normal(size=(tokens, 5)), draw.normal(size=(5, 5))
    learned, losses = right.copy(), []
    learned[1, 3] += 1.0
    for _ in range(steps):
        error = x @ (learned - right).T  # y − target
        losses.append((error**2).sum() / (2 * tokens))
        gradient = error.T @ x / tokens
        learned -= 0.05 * (gradient.T if transposed else gradient)
    return losses


right, broken = train_square(transposed=False), train_square(transposed=True)
print(f"∂W:            loss {right[0]:.2f} -> {right[-1]:.3f}")
print(f"its transpose: loss {broken[0]:.2f} -> {broken[-1]:.3f}")
assert right[-1] < 0.1 * right[0]
assert broken[-1] >= 0.9 * broken[0]


@in_house_style
def loss_curves(curves):
    from minilora.plots.style import hue, label_ends

    figure = Figure(figsize=(7.4, 3.4), layout="constrained")
    axes = figure.subplots()
    for index, losses in enumerate(curves.values()):
        axes.plot(losses, color=hue(index))
    axes.set(title="A shape that fits is no proof", xlabel="step")
    axes.set(ylabel="loss (log scale)", yscale="log")
    ends = {name: (losses[-1], hue(index)) for index, (name, losses) in enumerate(curves.items())}
    label_ends(axes, ends)
    return figure


show(
    loss_curves({"∂W": right, "transposed": broken}),
    "Loss by step of a square layer: with the gradient it falls steadily, with its transpose it "
    "does not fall",
)

# %% [markdown]
# ## Build: the gradient of a weight
#
# Difficulty ●○○ · Importance ●●● · 3 minutes
#
# In a language model x has a batch axis before the tokens, and sometimes more. Write ∂W for any
# number of leading axes.


# %% [exercise] weight_gradient
import numpy as np


def weight_gradient(dy, x):
    """The gradient of the loss with respect to W, for y = x Wᵀ + b.

    dy is (..., out), the gradient with respect to y; x is (..., in), with the same leading axes.
    Returns (out, in).
    """
    raise NotImplementedError("TODO: one sum over all leading axes")


# %% [hints] weight_gradient
# 1. Look at the cell under "Run". There x is (tokens, in) and dy is (tokens, out). Every leading
#    axis is just more tokens.
# 2. Make both arrays two-dimensional: x.reshape(-1, x.shape[-1]) has one row a token. Then use the
#    line that you have seen.
# 3. dy.reshape(-1, dy.shape[-1]).T @ x.reshape(-1, x.shape[-1]), and nothing is divided: the 1 /
#    tokens is in dy already.

# %%
check(weight_gradient)

# %% [markdown]
# ## What you can now defend
#
# A linear layer is `x Wᵀ + b`, and its gradient `∂yᵀ x` has the shape of W: {{ W.size }} weights,
# {{ dW.size }} numbers. Full fine-tuning computes and stores one such number for every weight of
# the model, and its optimizer keeps two more. You have checked the formula against {{ 2 * W.size }}
# forward passes, and seen that a product whose shape fits can still be wrong.
#
# ## Open question
#
# The change that our layer needed was one number out of {{ W.size }}. Real changes are not so kind:
# they touch every weight. But are they really {{ W.size }} independent numbers? How many numbers
# are in a matrix? That is lesson 02.
