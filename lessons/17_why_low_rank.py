# %% [markdown]
# # 17 · Why does it work at all?
#
# Know first: lesson 08 · Difficulty ●●○ · 12 minutes to read · 70 seconds to run
#
# A fine-tune may change every number of a model, and a LoRA of rank 8 does nearly as well. So what
# *is* in a full update? We train once without any adapter, take the update of every Linear
#
#     ΔW = W₁ − W₀ = Σ σᵢ uᵢ vᵢᵀ
#
# and take it apart: cut it to few directions, undo a layer, look at what the layers do. At the end
# we train the whole model through a thousand random knobs.

# %%
import torch

import minilora
from minilora import analysis, data
from minilora.learn import check, full_or_short, is_short, show
from minilora.plots.style import hue, in_house_style, label
from minilora.training.batches import IGNORE, encode_all, pad
from minilora.training.objective import summed_loss

STEPS, KNOB_STEPS, HELD_OUT = full_or_short((160, 100, 60), (12, 6, 6))
task = data.naval_log(1000, HELD_OUT)
base = minilora.load_base()
rows = pad(encode_all(base.tokenizer, task.valid, 512))
settings = {"batch_size": 8, "validate_every": 0, "progress": False}


@torch.no_grad()
def loss_of(model):
    """Loss on held-out logs, nats an answer token."""
    return summed_loss(model.eval(), rows).item() / rows.answer_tokens


tuned = minilora.load_base().requires_grad_(True)
minilora.train(tuned, task, steps=STEPS, lr=1e-3, **settings)
delta = analysis.weight_updates(base, tuned)
delta.pop("lm_head", None)  # tied to the embedding: no Linear of its own
start, whole = loss_of(base), loss_of(tuned)
print(f"held-out loss {start:.2f} before, {whole:.2f} after; {len(delta)} Linears changed")

# %% [markdown]
# ## Predict

# %% [predict] top_eight
# A matrix here has up to 128 directions. How much of a full update's energy, ‖ΔW‖², lies in its
# strongest 8?
# - a) about as much as in noise of that shape
# - b) at least twice as much
# - c) practically all
# answer: "c" if top8["ΔW"] > 0.95 else "b" if top8["ΔW"] > 2 * top8["noise"] else "a"

# %% [markdown]
# ## Run: how many directions?
#
# The energy of the top k directions is their share of ‖ΔW‖². A number like that says nothing
# alone: beside it stand noise of the same shape, and the weights themselves.

# %%
kinds = analysis.by_kind(delta)
weights = {path: base.get_submodule(path).weight.detach() for path in delta}
noise = {path: analysis.random_update(update) for path, update in delta.items()}
sources = {"ΔW": delta, "noise": noise, "W₀": weights}
singular = {
    name: {path: analysis.singular_values(matrix) for path, matrix in source.items()}
    for name, source in sources.items()
}


def energy_of(name, k, paths=()):
    """The mean share of the top k directions."""
    paths = paths or list(delta)
    return sum(analysis.energy(singular[name][path], k) for path in paths) / len(paths)


print("           in the top 8:  ΔW  noise   W₀    effective rank: ΔW  noise")
for kind, paths in kinds.items():
    shares = [energy_of(name, 8, paths) for name in sources]
    ranks = [analysis.effective_rank(singular[name][paths[0]]) for name in ("ΔW", "noise")]
    print("{:22} {:5.0%} {:6.0%} {:4.0%} {:21.0f} {:6.0f}".format(kind, *shares, *ranks))
top8 = {name: energy_of(name, 8) for name in sources}
if not is_short():
    assert top8["ΔW"] > 2 * top8["noise"]

# %% [markdown]
# A full update is not of low rank, but far from noise: {{ top8["ΔW"]:.0%}} of it lies in 8
# directions, of noise {{ top8["noise"]:.0%}}. (The *effective rank* says it in one number: n for n
# singular values that are equal, less the more they differ; here that of layer 0.) Energy is not
# function, though. So keep the top k directions of every update and measure; then take the top k
# *out*.

# %%
KEPT = (0, 1, 2, 4, 8, 16, 32)


def loss_with(changes, model=None):
    with analysis.with_updates(model or tuned, changes) as changed:
        return loss_of(changed)


cuts = {k: {path: analysis.cut(update, k) for path, update in delta.items()} for k in KEPT}
kept, removed = {}, {}
print("directions   loss with   loss without   energy that")
print("             only them   only them      is then left")
for k, cut in cuts.items():
    kept[k] = loss_with({path: cut[path] - delta[path] for path in delta})
    removed[k] = loss_with({path: -cut[path] for path in delta})
    left = 1 - energy_of("ΔW", k)
    print(f"top {k:2} {kept[k]:15.2f} {removed[k]:14.2f} {left:15.0%}")
if not is_short():
    assert kept[16] < whole + 0.15
    assert kept[4] < 0.5 * removed[4]

# %% [markdown]
# ## Look


# %%
@in_house_style
def draw_directions(energy_of, kept, removed, whole):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11.5, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    numbers = [1, 2, 4, 8, 16, 32, 64]
    for index, name in enumerate(sources):
        shares, color = [100 * energy_of(name, k) for k in numbers], hue((0, 6, 2)[index])
        left.plot(numbers, shares, "o-", color=color, markersize=4)
        label(left, name, (numbers[3], shares[3]), (8, -12), color=color)
    left.set(title="Energy in the top k directions", xscale="log", ylim=(0, 104))
    left.set(xlabel="k (log scale)", ylabel="% of ‖·‖², mean of the Linears")
    left.set(xticks=numbers, xticklabels=numbers)
    left.minorticks_off()
    places = range(len(kept))
    right.plot(places, list(removed.values()), "o-", color=hue(1))
    right.plot(places, list(kept.values()), "o-", color=hue(0))
    right.axhline(whole, color=hue(6), linewidth=1, linestyle=(0, (4, 3)))
    label(right, "only the top k", (0, kept[0]), (12, -6), color=hue(0))
    label(right, "all but the top k", (4, removed[8]), (0, 10), color=hue(1), ha="right")
    label(right, "the whole update", (0, whole), (4, -13), color=hue(6))
    right.set(title="Function of the top k directions", xlabel="k of every update")
    right.set(xticks=places, xticklabels=list(kept), ylim=(-0.6, None))
    right.set(ylabel="held-out loss, nats an answer token")
    return figure


show(
    draw_directions(energy_of, kept, removed, whole),
    "Left: energy by number of directions, the update's far above noise; right: the loss falls as "
    "directions are kept, and rises as the same ones are taken out",
)

# %% [markdown]
# With none of them the loss is {{ kept[0]:.2f}} and not {{ start:.2f}}: the embedding and the norms
# learnt too, and keep what they learnt. Four directions of each update, {{ energy_of("ΔW", 4):.0%}}
# of its energy, do most of the work: with them alone the loss is {{ kept[4]:.2f}}, without them
# {{ removed[4]:.2f}}, though {{ 1 - energy_of("ΔW", 4):.0%}} of the energy is still there. Rank 16
# of 128 is about as good as all ({{ kept[16]:.2f}} against {{ whole:.2f}}). That is LoRA's bet, and
# here it holds.
#
# ## Explain
#
# *Why* is the update thin? A gradient of one token is of rank one, ∂W = ∂y xᵀ; a batch sums as
# many of them as it has tokens, but prompts of one kind resemble each other, and so do their
# errors. The update collects what they have in common.
#
# And *where* is it? "Lower layers change least" goes around, often with a picture of CKA, which
# compares the hidden states of two models (Kornblith et al. 2019). Look at it twice.

# %% [predict] which_layer
# We set one layer of the fine-tuned model back to what it was, and leave the others. Which layer's
# loss costs most?
# - a) the first: layer 0
# - b) one in the middle
# - c) the last: layer 5
# answer: "a" if worst_layer == 0 else "c" if worst_layer == 5 else "b"

# %%
prompt = (rows.labels == IGNORE) & (rows.ids > 0)
similar = analysis.cumulative_similarity(base, tuned, rows.ids, prompt)[1:]
written = analysis.block_changes(base, tuned, rows.ids, prompt)
layers = analysis.by_layer(delta)
undone = analysis.without_parts(tuned, delta, layers, loss_of)
ratios = {path: (delta[path].norm() / weights[path].norm()).item() for path in delta}
sizes = {layer: sum(ratios[p] for p in paths) / len(paths) for layer, paths in layers.items()}
print("layer  ‖ΔW‖/‖W₀‖  CKA so far  what it adds changed by  loss without it")
for layer in layers:
    row = (layer, sizes[layer], similar[layer], written[layer], undone[layer])
    print("{:5}  {:9.1%}  {:10.2f}  {:23.0%}  {:15.2f}".format(*row))
worst_layer = max(undone, key=undone.get)
upper = [path for layer in layers if layer > 1 for path in layers[layer]]
upper_undone = analysis.without_parts(tuned, delta, {"upper": upper}, loss_of)["upper"]
if not is_short():
    assert undone[0] > undone[5] + 0.1
    assert similar[0] > similar[5]


@in_house_style
def draw_layers(similar, written, sizes, undone, whole):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11.5, 4.0), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1.35, 1])
    layers = list(sizes)
    for values, text, index in (
        ([1 - each for each in similar], "1 − CKA:\ncumulative", 0),
        (written, "what the block\nadds, changed", 1),
        (list(sizes.values()), "‖ΔW‖ / ‖W₀‖", 2),
    ):
        left.plot(layers, values, "o-", color=hue(index))
        label(left, text, (layers[-1], values[-1]), (8, -6), color=hue(index))
    left.set(title="Did the lower layers change least?", xlabel="layer", ylim=(0, None))
    left.set(xlim=(-0.2, layers[-1] + 2), xticks=layers, ylabel="share")
    right.bar(layers, [undone[layer] for layer in layers], color=hue(1), width=0.62)
    right.axhline(whole, color=hue(6), linewidth=1, linestyle=(0, (4, 3)))
    right.set(title="Undo one layer's update (dashed: none)", xlabel="layer", xticks=layers)
    right.set(ylabel="held-out loss, nats an answer token")
    right.grid(axis="x", visible=False)
    return figure


show(
    draw_layers(similar, written, sizes, undone, whole),
    "Left: CKA's distance grows with depth while the size of the updates stays about level and "
    "block 0 changed much already; right: undoing layer 0 costs most",
)

# %% [markdown]
# By CKA the lower layers changed less: {{ similar[0]:.2f}} after the first, {{ similar[5]:.2f}}
# after the last. But a block that never changed gets another input, and so gives another output:
# CKA with the base *adds up* along the way. Given the base's own inputs, block 0 adds something
# that is {{ written[0]:.0%}} different, less than the others but not little. Its weights moved by
# {{ sizes[0]:.1%}}, those of the last layer by {{ sizes[5]:.1%}}. And undoing it takes the loss
# from {{ whole:.2f}} to {{ undone[0]:.2f}}, the last one to {{ undone[5]:.2f}}.
#
# Undoing has a trap of its own: layers 2 to 5 look idle one by one, yet all four together cost
# {{ upper_undone:.2f}}. And what is needed *after* training is not what could have learnt it alone.
#
# ## Break it
#
# "A delta norm above 1e-5 proves that fine-tuning worked" is a check that people run. Give every
# Linear noise of exactly the norm that training gave it.

# %%
sized, trained = loss_with(noise, base), loss_with(delta, base)
size = sum(update.norm() ** 2 for update in delta.values()).sqrt().item()
print(f"‖ΔW‖ = {size:.1f} over all Linears; loss with noise of that norm {sized:.2f}, ", end="")
print(f"with the trained update {trained:.2f}, without any {start:.2f}")
if not is_short():
    assert trained < 0.2 * start < 0.8 * start < sized

# %% [markdown]
# The norm is the same to the last digit, and nothing was learnt. A norm proves that something was
# written. (`trained` is above {{ whole:.2f}}, since embedding and norms stay the base's here.)
#
# ## Run: random knobs
#
# Perhaps the right directions do not even matter. Fix d knobs, at random. Each weight θᵢ listens to
# one of them, hᵢ, with a random sign sᵢ, and only the knobs z are trained:
#
#     θ = θ₀ + s ⊙ z[h]        ∂L/∂z_k = Σ over hᵢ = k of sᵢ ∂L/∂θᵢ
#
# How large must d be? (Li et al. 2018, arXiv 1804.08838, call the d that reaches 90% of full
# training the *intrinsic dimension*; Aghajanyan et al. 2020, arXiv 2012.13255, measured it.)

# %%
COUNTS = full_or_short((100, 1_000, 10_000, 100_000), (100,))
full = minilora.load_base().requires_grad_(True)
minilora.train(full, task, steps=KNOB_STEPS, lr=1e-3, **settings)
knob_loss, knob_exact = {}, {}
full_loss, full_exact = loss_of(full), minilora.exact_match(full, task.valid)
for d in COUNTS:
    model = minilora.load_base()
    analysis.install_knobs(model, d)
    minilora.train(model, task, steps=KNOB_STEPS, lr=3e-3, **settings)
    analysis.fix_knobs(model)
    knob_loss[d], knob_exact[d] = loss_of(model), minilora.exact_match(model, task.valid)
    print(f"{d:7,} knobs: loss {knob_loss[d]:.2f}, exact {knob_exact[d]:.0%}")
print(f"all parameters: loss {full_loss:.2f}, exact {full_exact:.0%}, in the same steps")
if not is_short():
    assert start > knob_loss[100] > knob_loss[1_000] > knob_loss[10_000]
    assert knob_loss[1_000] < 0.25 * start

# %% [markdown]
# A *hundred* random knobs take the loss from {{ start:.2f}} to {{ knob_loss[COUNTS[0]]:.2f}}. No
# direction was chosen, not even a layer. What this fine-tune must find is small, and there are many
# places in which to find it: no wonder that rank 8 is enough, and that so many other ways "work".
#
# ## Build: train through knobs
#
# Difficulty ●●○ · Importance ●●○ · 15 minutes


# %% [exercise] train_through_knobs
import torch


def train_through_knobs(gradient, theta0, which, signs, d, steps, rate):
    """Gradient descent on d knobs; returns the weights θ (D,) that they end at.

    gradient(theta): ∂L/∂θ (D,) at a point. theta0 (D,) is where training starts; which (D,) the
    knob of each weight, 0 to d - 1; signs (D,) are +1 or -1. z starts at zero, and each of the
    steps subtracts rate · ∂L/∂z. theta0 is not changed.
    """
    raise NotImplementedError("TODO: θ from z, the gradient back to z, a step; repeat")


# %% [hints] train_through_knobs
# 1. `theta0 + signs * z[which]` are the weights. The gradient must be taken *there*, in every step.
# 2. Several weights listen to one knob, so their signed gradients add up; `g[which] += …` would
#    keep only one of them.
# 3. `torch.zeros(d, dtype=theta0.dtype).index_add(0, which, signs * gradient(theta))`

# %%
check(train_through_knobs)

# %% [markdown]
# ## What you can now defend
#
# - A full update is no low-rank matrix, but it works like one: rank 16 of it has the loss
#   {{ kept[16]:.2f}}, all of it {{ whole:.2f}}; without its top four it has {{ removed[4]:.2f}}.
# - "Lower layers change least": say by what. By CKA, which accumulates, yes; by the size of ΔW, no;
#   and undone, layer {{ worst_layer }} costs most.
# - "The intrinsic dimension is in the hundreds": here a hundred knobs reached
#   {{ knob_loss[COUNTS[0]]:.2f}}, {{ COUNTS[-1]:,}} reached {{ knob_loss[COUNTS[-1]]:.2f}}, full
#   training {{ full_loss:.2f}}. Exact answers: {{ knob_exact[COUNTS[0]]:.0%}},
#   {{ knob_exact[COUNTS[-1]]:.0%}} and {{ full_exact:.0%}}. The paper's hundreds are for models a
#   hundred times as large.
# - "A delta norm above 1e-5 proves that fine-tuning worked": noise has any norm you like, and left
#   the loss at {{ sized:.2f}}.
# - What you cannot defend: that your task is as thin. Cut *your* update and measure.
#
# ## Open question
#
# Rank is room. A style needs little of it. What if the task is to *know* forty facts, or more?
