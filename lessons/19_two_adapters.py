# %% [markdown]
# # 19 · Can two adapters be added?
#
# Know first: lesson 13 · Difficulty ●●○ · 11 minutes to read · 80 seconds to run
#
# Two adapters of one base are two small updates of the same matrices. So add them:
#
#     W = W₀ + ΔA + ΔB
#
# Two questions hide in this. Is the *sum* made correctly? That is arithmetic, and can be exact. And
# does the sum do *both tasks*? That is not arithmetic at all, though it is often argued so: "low
# rank, so there is room", "nearly orthogonal, so they do not interfere".
#
# One adapter answers in naval code, the other with the names alone. A key before the question says
# which is asked for, so the tasks do not contradict each other.

# %%
from dataclasses import replace

import torch

import minilora
from minilora import LoraConfig, data
from minilora.analysis import adapter_updates, additivity, cosine, with_updates
from minilora.learn import check, full_or_short, is_short, show
from minilora.plots.style import hue, in_house_style, label
from minilora.training.batches import IGNORE, encode_all, pad

STEPS, ASKED = full_or_short((160, 50), (12, 4))


def keyed(key, style):
    """Ship's logs answered in a style, where the key stands before the question."""
    task = data.ship_log(key, style, 400, ASKED, seed=0)
    sides = [
        tuple(replace(each, instruction=f"{key}: {each.instruction}") for each in side)
        for side in (task.train, task.valid)
    ]
    return minilora.Task(key, *sides)


def names_only(readings):
    return ", ".join(name for name, _ in readings) + "."


code, names = keyed("Naval code", data.naval), keyed("Names only", names_only)
for example in (code.train[0], names.train[0]):
    print(f"{example.input}  {example.instruction}  {example.output}")


def tuned(task, seed, steps=None):
    torch.manual_seed(seed)
    model = minilora.load_base()
    minilora.inject(model, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"))
    settings = {"batch_size": 8, "lr": 4e-3, "seed": seed, "validate_every": 0}
    minilora.train(model, task, steps=steps or STEPS, **settings, progress=False)
    return model.eval()


def both_scores(model):
    """The share answered to the letter: naval code, names."""
    return [minilora.exact_match(model, task.valid) for task in (code, names)]


one, other = tuned(code, seed=0), tuned(names, seed=1)
mixture = minilora.Task("both", code.train + names.train, ())
score = {"A alone": both_scores(one), "B alone": both_scores(other)}
score["trained on both"] = both_scores(tuned(mixture, seed=0, steps=2 * STEPS))
for name, scores in score.items():
    print(f"{name:16} naval code {scores[0]:4.0%}, names {scores[1]:4.0%}")
if not is_short():
    assert min(score["A alone"][0], score["B alone"][1]) > 0.4 > 0.1 > score["A alone"][1]

# %% [markdown]
# ## Predict

# %% [predict] after_adding
# Each adapter is good at its task, alone. Added exactly, each with its full weight: how good is the
# sum at the two tasks?
# - a) nearly as good as each alone
# - b) about half as good at both
# - c) one task survives in part, the other is lost
# answer: "c" if min(score["cat"]) < 0.15 else "b" if min(score["cat"]) < 0.6 else "a"

# %% [markdown]
# ## Run: one model from both
#
# `combine` takes PEFT's names: `cat` adds exactly, `svd` cuts that sum to rank 8, `linear` sums A
# with A and B with B. TIES (arXiv 2306.01708) keeps the largest entries, lets each place elect a
# sign and averages those that have it; DARE (arXiv 2311.03099) drops entries at random.

# %%
base = minilora.load_base()
parts = [minilora.low_rank_parts(model) for model in (one, other)]


def updates_of(combined):
    return {path: part.scaling * part.B @ part.A for path, part in combined.items()}


WAYS = {
    "cat": ([1, 1], "cat", {}),
    "svd to rank 8": ([1, 1], "svd", {"svd_rank": 8}),
    "linear": ([1, 1], "linear", {}),
    "TIES, 20%": ([1, 1], "ties_svd", {"density": 0.2, "svd_rank": 64}),
    "DARE, 50%": ([1, 1], "dare_linear_svd", {"density": 0.5, "svd_rank": 64}),
}
for name, (weights, how, settings) in WAYS.items():
    combined = minilora.combine(parts, weights, how, **settings)
    with with_updates(base, updates_of(combined)):
        score[name] = both_scores(base)
    print(f"{name:16} naval code {score[name][0]:4.0%}, names {score[name][1]:4.0%}")
best_merge = max(min(score[name]) for name in WAYS)
worst_alone = min(score["A alone"][0], score["B alone"][1])
if not is_short():
    assert best_merge < min(0.5 * worst_alone, *score["trained on both"])

# %% [markdown]
# Perhaps the weights are wrong? Give the second adapter less, from nothing to everything.

# %%
DOSES = full_or_short((0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0), (0.0, 1.0))
swept = []
for dose in DOSES:
    with with_updates(base, updates_of(minilora.combine(parts, [1, dose]))):
        swept.append(both_scores(base))
best_swept = max(min(scores) for scores in swept)

# %% [markdown]
# ## Look


# %%
@in_house_style
def draw_scores(score, doses, swept, asked):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11.5, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1.25, 1])
    rows = list(score)
    for index, name in enumerate(("naval code", "names")):
        places = [row + (index - 0.5) * 0.36 for row in range(len(rows))]
        values = [100 * score[row][index] for row in rows]
        left.barh(places, values, height=0.34, color=hue(index), label=name)
        right.plot(doses, [100 * scores[index] for scores in swept], "o-", color=hue(index))
    left.set(yticks=range(len(rows)), yticklabels=rows, xlim=(0, 104))
    left.set(title="Two adapters, one model", xlabel=f"% of {asked} held-out logs")
    left.axhline(2.5, color=hue(6), linewidth=1, linestyle=(0, (4, 3)))
    left.invert_yaxis()
    left.legend(loc="lower right", frameon=False)
    right.set(title="A, and some of B", xlabel="weight of B", ylim=(-4, 104))
    right.set_ylabel(f"% of {asked} held-out logs")
    return figure


show(
    draw_scores(score, DOSES, swept, ASKED),
    "Bars of both tasks: alone each adapter has one, trained on both has both, and in every merge "
    "at least one is nearly lost; beside it the two scores cross as the weight of B grows",
)

# %% [markdown]
# Above the dashed line are models that were trained, below it merges. The best merge has
# {{ best_merge:.0%}} at its worse task, over all weights of B the best is {{ best_swept:.0%}}; one
# adapter trained on both, in as many steps as the two together, has
# {{ min(score["trained on both"]):.0%}}. The sum was never the problem: `cat` is exact.
#
# ## Explain
#
# "They are nearly orthogonal": true, and no help.

# %%
updates = [adapter_updates(model) for model in (one, other)]
cosines = [cosine(updates[0][path], updates[1][path]) for path in updates[0]]
mean_cosine = sum(cosines) / len(cosines)
print(f"cosine of ΔA and ΔB: {mean_cosine:.2f} on average, {max(cosines):.2f} at most")

rows = pad(encode_all(base.tokenizer, code.valid[:16], 512))
prompt = (rows.labels == IGNORE) & (rows.ids > 0)  # what stands before the answer
AMOUNTS = (1.0, 0.3, 0.1, 0.03)
excess = {dose: additivity(base, *updates, rows.ids, prompt, dose) for dose in AMOUNTS}
for dose, by_block in excess.items():
    print(f"both times {dose:4}: not additive " + " ".join(f"{each:.2f}" for each in by_block))
if not is_short():
    assert abs(mean_cosine) < 0.15
    assert max(excess[0.03]) < 0.15 < excess[1.0][-1]


@in_house_style
def draw_additivity(excess):
    from minilora.plots.style import one_axes

    figure, axes = one_axes(height=3.9)
    for index, (dose, by_block) in enumerate(excess.items()):
        axes.plot(range(len(by_block)), [100 * each for each in by_block], "o-", color=hue(index))
        place = (len(by_block) - 1, 100 * by_block[-1])
        label(axes, f"both × {dose:g}", place, (9, -3), color=hue(index))
    axes.set(title="What the sum does beyond the sum of what each does", xlabel="block")
    axes.set(ylabel="% of the sum's effect on hidden states", ylim=(0, None))
    axes.margins(x=0.16)
    return figure


show(
    draw_additivity(excess),
    "The part of the effect that is not additive, by block: large from the first blocks on at full "
    "dose, and a few hundredths at a thirtieth of it",
)

# %% [markdown]
# A cosine compares two *matrices*. The tasks meet in the *activations*: both updates read the same
# stream, each was trained on a stream that the other had not changed, and from the first softmax or
# SwiGLU on effects do not add. `additivity` measures it,
#
#     ‖Δh(A + B) − Δh(A) − Δh(B)‖ / ‖Δh(A + B)‖
#
# At full dose {{ excess[1.0][-1]:.0%}} of what the sum does to the last block is neither A's nor
# B's doing. A thirtieth of the dose leaves {{ excess[0.03][-1]:.0%}}: a smooth function is linear
# for small steps, and useful updates are not small.
#
# ## Break it
#
# The arithmetic can go wrong as well. Whoever averages the *files* averages A with A and B with B,
# and the product of two sums has four terms:
#
#     (B₁ + B₂)(A₁ + A₂) = B₁A₁ + B₂A₂ + B₁A₂ + B₂A₁
#
# The last two were trained by nobody.

# %%
path = "model.layers.0.self_attn.q_proj"
first, second = (part[path] for part in parts)
exact = first.scaling * first.B @ first.A + second.scaling * second.B @ second.A
stacked = updates_of(minilora.combine(parts))[path]
of_sums = first.scaling * (first.B + second.B) @ (first.A + second.A)
error = {
    name: ((each - exact).norm() / exact.norm()).item()
    for name, each in (("side by side", stacked), ("sums of factors", of_sums))
}
for name, each in error.items():
    print(f"{name:16} is {each:.1e} of the sum away from it")
assert error["side by side"] < 1e-5
assert error["sums of factors"] > 0.3

# %% [markdown]
# PEFT calls this `linear`, and "a very rough approximation" (see huggingface/peft #3004). Of
# `use_rslora` adapters its release `0.21.2` makes combinations that are √r too strong (#3761).
#
# ## Build: add them exactly
#
# Difficulty ●●○ · Importance ●●● · 10 minutes


# %% [exercise] combine_exactly
import torch


def combine_exactly(parts, weights):
    """One adapter (A, B) with B @ A = Σ weight · scaling · B_i @ A_i, of rank Σ r_i.

    parts: a list of (A, B, scaling), A (r_i, in) and B (out, r_i), ranks may differ. weights: one
    number for each, of either sign. Returns A (Σ r_i, in) and B (out, Σ r_i).
    """
    raise NotImplementedError("TODO: no sums of factors; put them beside each other")


# %% [hints] combine_exactly
# 1. A product of block matrices: [B₁ B₂] times A₁ above A₂ is B₁A₁ + B₂A₂.
# 2. `torch.cat` stacks the A's along dim 0 and the B's along dim 1. Weight and scaling go to one
#    side only.
# 3. `B = torch.cat([w * s * B for (A, B, s), w in zip(parts, weights)], dim=1)`

# %%
check(combine_exactly)

# %% [markdown]
# ## Build: TIES in ten lines
#
# Difficulty ●●○ · Importance ●○○ · 15 minutes
#
# It did not help here; its name is in every list all the same.


# %% [exercise] ties
def ties(updates, density):
    """Trim, elect signs, average those that agree (arXiv 2306.01708, algorithm 1).

    updates: a list of tensors (out, in). Of each keep the int(density · entries) entries largest in
    magnitude and set the others to 0. Each place elects the sign of the sum of what was kept (a sum
    of 0 elects plus). The result at a place is the mean of the kept entries that have that sign,
    and 0 where there is none.
    """
    raise NotImplementedError("TODO: three steps, each a line or two")


# %% [hints] ties
# 1. Trim: `u.abs().flatten().topk(k).indices` are the places to keep. Then `torch.stack`.
# 2. `elected = torch.where(kept.sum(0) >= 0, 1, -1)`; who agrees: `kept.sign() == elected`. A zero
#    has the sign 0 and agrees with nobody.
# 3. `(kept * agree).sum(0) / agree.sum(0).clamp(min=1)`

# %%
check(ties)

# %% [markdown]
# ## What you can now defend
#
# - Adding is exact if the factors are put side by side: {{ error["side by side"]:.0e}} from the
#   sum, at the price of rank. Summing the factors is off by {{ error["sums of factors"]:.0%}}.
# - "Adapters add up": their weights do, their effects do not. {{ excess[1.0][-1]:.0%}} of the sum's
#   effect in the last block was neither one's.
# - "Orthogonal updates do not interfere": the mean cosine here was {{ mean_cosine:.2f}}, and the
#   best merge of {{ len(WAYS) }} had {{ best_merge:.0%}} at its worse task, where each adapter
#   alone had {{ worst_alone:.0%}} or more.
# - If you need both, train on both, or keep both and choose one for each request. Small doses may
#   add up: measure yours with `additivity`, and with the tasks themselves.
# - What you cannot defend: that merges never work. These tasks want *different answers to nearly
#   the same text*, on a small model; two seeds, one size.
#
# ## Open question
#
# A thousand adapters on one base, and a request that belongs to one of them. Who decides to which?
