# %% [markdown]
# # 13 · When is merging free, when does it lie?
#
# Know first: lesson 12 · Difficulty ●●○ · 10 minutes to read · 10 seconds to run
#
# An adapter can be folded into its weight, and is then no extra work at all:
#
#     W = W₀ + ΔW        ΔW = (α / r) B A
#
# (LoRA, arXiv 2106.09685, section 4.1.) One sum. But a sum has to be *stored*, and what it is
# stored in decides how much of ΔW survives. The routes:
#
#     float32            W₀ + ΔW, a float32 weight
#     bfloat16           the same, rounded to 16 bits
#     onto dequantized   QLoRA: Ŵ + ΔW in floats; Ŵ is what the codes stand for
#     onto original      QLoRA: W₀ + ΔW in floats; the adapter never saw this W₀
#     requantized        QLoRA: Ŵ + ΔW, rounded to four bits again
#
# First, an adapter worth merging: the base in four bits learns naval code for a few seconds.

# %%
import copy

import torch

import minilora
from minilora import LoraConfig, data
from minilora.learn import check, show
from minilora.plots.style import hue, in_house_style
from minilora.training.batches import IGNORE, encode_all, pad

task = data.naval_log(400, 24)
original = minilora.load_base()
torch.manual_seed(0)
model = minilora.load_base(quantize="nf4")
targets = ["v_proj", "o_proj", "down_proj"]
minilora.inject(model, LoraConfig(r=4, lora_alpha=8, target_modules=targets))
history = minilora.train(model, task, steps=20, batch_size=8, validate_every=0, progress=False)
rows = pad(encode_all(model.tokenizer, task.valid, 512))


@torch.no_grad()
def held_out(model):
    logits, labels = model(rows.ids)[:, :-1], rows.labels[:, 1:]  # IGNORE where it is no answer
    flat, targets = logits.flatten(0, 1), labels.flatten()
    loss = torch.nn.functional.cross_entropy(flat, targets, ignore_index=IGNORE)
    return loss.item(), logits


loss_before = held_out(minilora.load_base(quantize="nf4"))[0]
loss_adapter, trained_logits = held_out(model.eval())
print(f"held-out loss: {loss_before:.2f} before, {loss_adapter:.2f} with the adapter")
assert loss_adapter < 0.5 * loss_before

# %% [markdown]
# ## Predict
# %% [predict] worst_route
# Which route moves the model's outputs furthest from what the trained model computes?
# - a) float32
# - b) bfloat16
# - c) onto dequantized
# - d) onto original
# - e) requantized
# answer: "abcde"[list(moved).index(max(moved, key=moved.get))]

# %% [markdown]
# ## Run: five routes
#
# The first two need a float base: we put Ŵ there as a plain float32 weight, so that all routes
# start from one model.

# %%
floats = minilora.dequantize_base(copy.deepcopy(model))  # the 4-bit model's numbers, plain Linears


def take(route):
    if route in ("float32", "bfloat16"):
        merged = minilora.merge(copy.deepcopy(floats))
        return merged.bfloat16().float() if route == "bfloat16" else merged  # rounded to 16 bits
    merged = copy.deepcopy(model)
    if route == "requantized":
        minilora.merge_and_requantize(merged)  # returns what was lost
    else:
        minilora.merge(merged, onto="dequantized" if route == "onto dequantized" else original)
    return merged


ROUTES = ("float32", "bfloat16", "onto dequantized", "onto original", "requantized")
moved, losses, weights, name = {}, {}, {}, "model.layers.4.self_attn.v_proj"
for route in ROUTES:
    merged = take(route)
    losses[route], logits = held_out(merged)
    moved[route] = ((logits - trained_logits).norm() / trained_logits.norm()).item()
    weights[route] = merged.get_submodule(name).weight.detach().float()
    print(f"{route:17} outputs moved by {moved[route]:.1e}   held-out loss {losses[route]:.3f}")

assert moved["float32"] < 1e-5 > moved["onto dequantized"]
assert 1e-5 < moved["bfloat16"] < min(0.02, moved["onto original"], moved["requantized"])

# %% [markdown]
# ## Look
#
# Where did the update go? For one matrix, each point is one weight: to the right how much ΔW wanted
# to move it, upwards how much it has moved. On the diagonal everything arrived.

# %%
layer = model.get_submodule(name)
start, delta = layer.base.weight, layer.delta_weight()
arrived = {route: weights[route] - start for route in ("bfloat16", "onto original", "requantized")}


def cosine(change):
    return ((change * delta).sum() / (change.norm() * delta.norm())).item()


@in_house_style
def draw(delta, arrived):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.9), layout="constrained")
    limit = 1.05 * delta.abs().max().item()
    dots = {"marker": ".", "linestyle": "", "markersize": 2.5, "alpha": 0.5, "rasterized": True}
    panels = figure.subplots(1, 3, sharey=True)
    for index, (axes, (route, change)) in enumerate(zip(panels, arrived.items(), strict=True)):
        axes.plot([-limit, limit], [-limit, limit], color=hue(6), linewidth=1, zorder=0)
        axes.plot(delta.flatten(), change.flatten(), color=hue(index), **dots)
        axes.set(title=f"{route}: cosine {cosine(change):.2f}", xlabel="wanted: entry of ΔW")
        axes.set(xlim=(-limit, limit), ylim=(-1.7 * limit, 1.7 * limit))
    figure.axes[0].set_ylabel("arrived: change of the stored weight")
    return figure


show(
    draw(delta, arrived),
    "Scatter plots of wanted against arrived change: bfloat16 on the diagonal, onto original a "
    "cloud, requantized in clumps",
)
steps = torch.from_numpy(minilora.level0.nf4_levels()).diff()  # gaps between NF4's levels
assert cosine(arrived["requantized"]) < 0.9 < 0.98 < cosine(arrived["bfloat16"])

# %% [markdown]
# Float32 is free: the outputs move by rounding, {{ moved["float32"]:.0e}} of their size. So is a
# merge onto Ŵ, for the same reason: it is the same sum. In bfloat16 the points leave the diagonal
# by a hair. "Onto original" is a cloud, since that weight differs from Ŵ by all that quantization
# lost, and the adapter had learnt to live with Ŵ. Requantized, the points lie in clumps: a weight
# stays at its level or jumps to the next.
#
# ## Explain
#
# What counts is the size of ΔW against the step of the grid that the sum is rounded to. In bfloat16
# neighbours are {{ 2.0**-8:.1%}} to {{ 2.0**-7:.1%}} of the weight apart. In NF4 they are
# {{ 100 * steps.min():.0f}} to {{ 100 * steps.max():.0f}} hundredths of the *block's largest*
# apart. A small update just falls back to where it came from.

# %%
sizes, cosines = [], []
for shrink in (1, 1 / 2, 1 / 4, 1 / 8, 1 / 16):
    again = minilora.nf4.quantize(start + shrink * delta)
    bytes_changed = (again.packed != layer.base.packed).float().mean().item()
    sizes.append((shrink * delta.norm() / start.norm()).item())
    cosines.append(cosine(again.dequantize() - start))
    arrival = f"bytes changed {bytes_changed:5.1%}, cosine of what arrived {cosines[-1]:.2f}"
    print(f"‖ΔW‖/‖W‖ = {sizes[-1]:5.1%}: {arrival}")
assert cosines[-1] < 0.3 * cosines[0]

# %% [markdown]
# The smaller the update, the larger the share that is lost; a float grid does not do that, because
# its step shrinks with the number. That is why `minilora.merge` refuses to merge into four bits,
# and `merge_and_requantize`, which does it, tells you what was lost. PEFT merges and warns that
# generations may differ; one who did so lost six points of AUC (huggingface/peft #2321).
#
# ## Break it
#
# Merging in place saves memory if W₀ is not kept: to swap adapters, subtract ΔW again. In float
# arithmetic W₀ + ΔW - ΔW is not W₀.

# %%
W0 = original.get_submodule(name).weight.detach().bfloat16()
W = W0.clone()
for _ in range(3):
    W = (W.float() + delta).bfloat16()  # merge
    W = (W.float() - delta).bfloat16()  # "unmerge"
changed = (W != W0).float().mean().item()
print(f"after three rounds {changed:.1%} of the bfloat16 weights are not what they were")
assert changed > 0.03

minilora.merge(floats)
minilora.unmerge(floats)  # puts the kept W₀ back, and so to the bit
assert torch.equal(floats.get_submodule(name).weight, start)

# %% [markdown]
# ## Build: round once
#
# Difficulty ●○○ · Importance ●●● · 5 minutes


# %% [exercise] merge_once
import torch


def merge_once(W, A, B, alpha):
    """W + (alpha / r) B A in W's own dtype, rounded to it only once, at the end.

    W (out, in) in float32 or bfloat16, A (r, in) and B (out, r) in float32. Returns (out, in); W is
    not changed.
    """
    raise NotImplementedError("TODO: the sum in float32, then the dtype of W")


# %% [hints] merge_once
# 1. r is `A.shape[0]`. The product that has W's shape is `B @ A`.
# 2. bfloat16 + float32 gives float32 in torch: convert W first, add, and convert back last.
# 3. `return (W.float() + alpha / A.shape[0] * B @ A).to(W.dtype)`

# %%
check(merge_once)

# %% [markdown]
# ## Build: choose a route
#
# Difficulty ●●○ · Importance ●●○ · 10 minutes
#
# Storage decides which routes there are; the outputs, not the weights, decide among them.


# %% [exercise] choose_route
def choose_route(routes, x, wanted, max_bits):
    """The name of the route with the outputs nearest to the wanted ones, at most max_bits a weight.

    routes: a dict from name to (weight (out, in), bits a weight). x (tokens, in), wanted (tokens,
    out). Nearest means the smallest ‖x Wᵀ - wanted‖ (Frobenius). None when no route is small
    enough.
    """
    raise NotImplementedError("TODO: throw out what is too large, measure the rest")


# %% [hints] choose_route
# 1. First a dict of errors, name to number, only of routes with `bits <= max_bits`; the outputs are
#    `x @ weight.T`.
# 2. `(x @ weight.T - wanted).norm().item()` is an error; the name of the smallest is
#    `min(errors, key=errors.get)`.
# 3. `errors = {name: … for name, (weight, bits) in routes.items() if bits <= max_bits}`; the
#    rest is in hint 2.

# %%
check(choose_route)

# %% [markdown]
# ## Run: what a merge saves
#
# "Unmerged inference costs 5%", one can read. Other work on the machine moves any single timing by
# more than that. So both models run in turn, 60 rounds, each round gives a ratio, and we take the
# median. In 19 of 20 such measurements the true median is no further than √60 ranks from the middle
# of the sorted ratios. If that reaches down to 1, nothing is measurable.

# %%
from time import perf_counter

unmerged, folded = floats.eval(), take("float32").eval()


@torch.no_grad()
def seconds(model, ids):
    start = perf_counter()
    model(ids)
    return perf_counter() - start


def extra_time(ids):
    """What the unmerged model takes more, in words."""
    ratios = sorted(seconds(unmerged, ids) / seconds(folded, ids) for _ in range(60))
    lowest, median = ratios[30 - 8], ratios[30]
    return f"{median - 1:.0%} more" if lowest > 1 else "nothing measurable"


many, one = rows.ids[:8, :64], rows.ids[:1, :1]
costs = [extra_time(ids) for ids in (many, one)]
print(f"unmerged over merged: {costs[0]} for {many.numel()} tokens at once, {costs[1]} for one")

audited = minilora.audit(original, minilora.Llama(original.config))
print("a random model, audited:", audited.changes[0])

# %% [markdown]
# ## What you can now defend
#
# - A merge into floats is free: {{ moved["float32"]:.0e}} in float32, {{ moved["bfloat16"]:.1%}} in
#   bfloat16. Onto the original or back into four bits the outputs moved by
#   {{ moved["onto original"]:.0%}} and {{ moved["requantized"]:.0%}}. The held-out loss went from
#   {{ loss_adapter:.3f}} to {{ losses["onto original"]:.3f}} and {{ losses["requantized"]:.3f}}:
#   another model, which may be good enough. Measure yours.
# - A requantized merge lies most about small updates. At ‖ΔW‖/‖W‖ = {{ sizes[-1]:.1%}} the cosine
#   of what arrived was {{ cosines[-1]:.2f}}.
# - "Unmerged inference costs 5%": here it cost {{ costs[0] }} with many tokens at once and
#   {{ costs[1] }} with one. Its products are {{ 4 * (128 + 128) / 128**2:.1%}} of a 128 ×
#   128 matrix's; the rest is the price of more, smaller operations. Quote it with the
#   shapes, or not at all.
# - "A delta norm above 1e-5 proves that fine-tuning worked": the last line above compares the base
#   with a *random* model. The norm is huge, the rank is full. What a LoRA leaves is small and of
#   low rank, and only the outputs say whether it works.
#
# ## Open question
#
# A merged model serves one task. A thousand adapters on one base cannot all be merged. What would
# you do for a batch in which every row wants another adapter?
