# %% [markdown]
# # 04 · Why one zero factor, never two?
#
# Know first: lesson 03 · Difficulty ●●○ · 7 minutes to read · 5 seconds to run
#
# An adapter starts with A random and B zero. So ΔW = s · B A is zero, and the model that we begin
# with is the model that we were given. Other starts come to mind. Zero in A instead of B. Zero in
# neither, as in any other network. Zero in both: simple, and ΔW is zero as well.
#
# That makes four. Each is tried on the shipped base, with the same four examples of naval code
# in every step.

# %% [markdown]
# ## Predict

# %% [predict] keeps_the_base
# Before the first step, in how many of the four starts does the model still compute exactly, to the
# bit, what the base does?
# answer: sum(change == 0 for change in changes.values())

# %% [predict] never_learns
# In one of the four, the loss after 10 steps is what it was before. Which?
#
# - a) A random, B zero
# - b) A zero, B random
# - c) both random
# - d) both zero
# answer: "abcd"[[abs(losses[-1] - losses[0]) < 1e-4 for losses in curves.values()].index(True)]

# %% [predict] first_to_move
# With A random and B zero: which factor gets a gradient that is not zero in the very first step?
# Write A, B, or both.
# answer: moved["A random, B zero"]

# %% [markdown]
# ## Run: four starts

# %%
import copy

import torch

import minilora
from minilora.learn import check, show
from minilora.lora.layer import lora_layers
from minilora.plots.style import hue, in_house_style, label_ends, one_axes

STARTS = {
    "A random, B zero": (True, False),
    "A zero, B random": (False, True),
    "both random": (True, True),
    "both zero": (False, False),
}
examples = minilora.data.naval_log(4, 1).train
base = minilora.load_base()
prompt = torch.tensor([base.tokenizer.encode("Fellow citizens of the Senate and of the House")])


def adapted(start, seed=0):
    """The base with r = 8 adapters on q and v, started in one of the four ways."""
    torch.manual_seed(seed)
    model = copy.deepcopy(base)
    config = minilora.LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"])
    minilora.inject(model, config)
    bound = model.config.hidden_size**-0.5
    for _, layer in lora_layers(model):
        for factor, random in zip((layer.lora_A, layer.lora_B), STARTS[start], strict=True):
            width = bound if random else 0.0
            torch.nn.init.uniform_(factor, -width, width)
    return model


with torch.no_grad():
    expected = base(prompt)
changes, curves, moved = {}, {}, {}
settings = {"batch_size": 4, "lr": 5e-3, "validate_every": 0, "progress": False}
for start in STARTS:
    model = adapted(start)
    with torch.no_grad():
        changes[start] = float((model(prompt) - expected).norm() / expected.norm())
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    curves[start] = minilora.train(model, examples, steps=1, **settings).losses
    after = dict(model.named_parameters())
    changed = {name[-1] for name, p in before.items() if not torch.equal(p, after[name])}  # A, B
    moved[start] = "both" if len(changed) == 2 else "".join(changed) or "none"
    curves[start] += minilora.train(model, examples, steps=9, **settings).losses
for start, losses in curves.items():
    told = f"outputs off by {changes[start]:.1%}; moves first: {moved[start]}"
    print(f"{start:16} {told:39} loss {losses[0]:.3f} -> {losses[-1]:.3f}")

# %% [markdown]
# ## Look


# %%
@in_house_style
def draw_starts(curves, changes):
    figure, (left, right) = one_axes(width=11.4, height=4.2, columns=2)
    ends = {}
    for i, (start, losses) in enumerate(curves.items()):
        left.plot(range(len(losses)), losses, color=hue(i))
        ends[start] = (losses[-1], hue(i))
    left.set(title="Loss on four examples", xlabel="step")
    left.set(ylabel="nats an answer token", ylim=(0, None))
    label_ends(left, ends)
    rows, colors = range(len(changes))[::-1], [hue(i) for i in range(len(changes))]
    right.barh(rows, [100 * change for change in changes.values()], color=colors, height=0.55)
    for row, change in zip(rows, changes.values(), strict=True):
        text = "exactly 0" if change == 0 else f"{100 * change:.0f}%"
        right.annotate(text, (100 * change, row), (5, 0), "data", "offset points", va="center")
    right.set(title="Outputs before any step", xlabel="change against the base, %")
    right.set(yticks=rows, yticklabels=list(changes), xlim=(0, 125 * max(changes.values())))
    right.grid(axis="y", visible=False)
    return figure


show(
    draw_starts(curves, changes),
    "Left: three starts learn, the loss of both zero is a horizontal line. Right: before any step, "
    "three starts give exactly the outputs of the base, both random does not.",
)

# %% [markdown]
# One zero factor keeps the base and learns. Two keep it forever. Without any it learns too, but it
# begins with another model than the one you were given: its outputs are off by
# {{ changes["both random"]:.0%}} before any example has been seen.

# %%
assert [change == 0 for change in changes.values()] == [True, True, False, True]
assert changes["both random"] > 0.01
assert [moved[start] for start in STARTS] == ["B", "A", "both", "none"]
for start, losses in curves.items():
    if start == "both zero":  # the order of a sum changes with the order of the examples
        assert max(losses) - min(losses) < 1e-4
    else:
        assert losses[-1] < 0.7 * losses[0]

# %% [markdown]
# ## Explain
#
# The gradients of lesson 03, with what each contains:
#
#     ∂B = s · gᵀ (x Aᵀ)         A is a factor of it
#     ∂A = s · (g B)ᵀ x          B is a factor of it
#
# Each gradient has the *other* matrix as a factor. With B zero, ∂A is zero in the first step and ∂B
# is not. So B moves, and from the second step on A has a gradient too. With both zero, both
# gradients are zero, the step changes nothing, and the next step finds the same. Such a point is a
# saddle: the loss is lower nearby, and no gradient says so.
#
# The paper's start is a random Gaussian A and B = 0 (arXiv 2106.09685, section 4.1). PEFT and this
# package draw A uniformly between −1/√in and 1/√in. That is what `kaiming_uniform_` with a = √5
# gives, the default of every `torch.nn.Linear`.
#
# Is B = 0 better than A = 0? Both keep the base. They are not the same: Hayou and others (arXiv
# 2406.08447) argue that a random A with B = 0 bears larger learning rates. The curves above are too
# short, and too few, to settle it.

# %% [markdown]
# ## Break it: the fan-in of the wrong axis
#
# `kaiming_uniform_` takes the *second* size of its argument for the number of inputs. Store A as
# (in, r), as some do to save a transpose, and it takes r for it. There is no error.

# %%
size_in, r = 768, 16
torch.manual_seed(0)
right_A = torch.nn.init.kaiming_uniform_(torch.empty(r, size_in), a=5**0.5)
wrong_A = torch.nn.init.kaiming_uniform_(torch.empty(size_in, r), a=5**0.5).T
tokens = torch.randn(256, size_in)
sizes = [float((tokens @ A.T).square().mean().sqrt()) for A in (right_A, wrong_A)]
for axis, A, size in zip(("right", "wrong"), (right_A, wrong_A), sizes, strict=True):
    print(f"the {axis} axis: largest |A| {A.abs().max():.3f}, size of x Aᵀ {size:.2f}")
first_step = (sizes[1] / sizes[0]) ** 2  # A is in ∂B, and then once more in ΔW = s · B A
assert abs(right_A.abs().max() - size_in**-0.5) < 1e-3
assert abs(wrong_A.abs().max() - r**-0.5) < 1e-2
assert 0.8 * size_in / r < first_step < 1.25 * size_in / r

# %% [markdown]
# A is √(in/r) times too large. It enters ∂B, and then ΔW = s · B A once more: the first step of
# plain gradient descent is {{ first_step:.0f}} times too long. The usual cure is a smaller learning
# rate, and nobody learns why.

# %% [markdown]
# ## Build: the start
#
# Difficulty ●○○ · Importance ●●● · 5 minutes

# %% [exercise] init_factors
import torch


def init_factors(size_in, size_out, r):
    """The start of an adapter: A (r, in) uniform between −1/√in and 1/√in, B (out, r) all zero.

    Returns (A, B).
    """
    raise NotImplementedError("TODO: draw A within its bound, make B")


# %% [hints] init_factors
# 1. Two tensors: `torch.empty` or `torch.rand` of shape (r, in), `torch.zeros` of shape (out, r).
#    The bound uses in, not r.
# 2. `uniform_(-bound, bound)` fills a tensor in place. `torch.rand` is between 0 and 1: it must be
#    moved and scaled.
# 3. bound = size_in ** -0.5, then torch.empty(r, size_in).uniform_(-bound, bound) and
#    torch.zeros(size_out, r).

# %%
check(init_factors)

# %% [markdown]
# ## Build: predict all four
#
# Difficulty ●●○ · Importance ●●○, it is the argument itself · 5 minutes


# %% [exercise] first_two_steps
def first_two_steps(a_is_zero, b_is_zero):
    """Which factors move in the first and in the second step, for any of the four starts.

    Both arguments are bools. Returns a pair of strings, the first step's and the second's, each "",
    "A", "B" or "AB". Take it that the steps are gradient descent's, x and g are never zero, and no
    lucky cancellation happens.
    """
    raise NotImplementedError("TODO: A moves where B is not zero, and the other way; twice")


# %% [hints] first_two_steps
# 1. Look at the two gradients in Explain: what must not be zero for ∂A? What for ∂B?
# 2. After the first step, a factor that moved is no longer zero. The same question decides
#    the second step.
# 3. One zero: the other-named factor waits one step, then "AB". No zero: "AB" twice. Two zeros:
#    nothing, twice.

# %%
check(first_two_steps)

# %% [markdown]
# ## What you can now defend
#
# - One zero factor: the base to the bit at the start, and a gradient. Two: the base forever. None:
#   noise from the first token.
# - The bound of A comes from the number of *inputs*. On the wrong axis it is √(in/r) too
#   large, silently.
# - "Initialise everything to zero to be safe" is wrong: the loss was
#   {{ curves["both zero"][0]:.3f}} before training and is {{ curves["both zero"][-1]:.3f}} after
#   it.
# - B = 0 is no recipe for the fastest start. Here both random ended lowest, at
#   {{ curves["both random"][-1]:.2f}} against {{ curves["A random, B zero"][-1]:.2f}}: it moves
#   both factors from the first step. What B = 0 buys is a known beginning.

# %% [markdown]
# ## Open question
#
# PiSSA (arXiv 2404.02948) starts with neither factor zero, and still with the base's outputs. How
# can that be? Think of what could be taken out of W₀, and of lesson 02.
