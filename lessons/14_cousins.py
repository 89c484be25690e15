# %% [markdown]
# # 14 · What do DoRA, rsLoRA, PiSSA, AdaLoRA, LoRA+, VeRA change?
#
# Know first: lessons 05 and 08 · Difficulty ●●● · 14 minutes to read · 120 seconds to run
#
# LoRA has many cousins, and each paper has a table in which it wins. All of them write W₀ + ΔW in
# some way. Each changes one thing:
#
#     rsLoRA     the scale: α/√r instead of α/r
#     LoRA+      the rates: B learns 16 times as fast as A
#     DoRA       the form: W = m · (W₀ + s B A) / ‖W₀ + s B A‖, row by row
#     PiSSA      the start: A, B begin as the largest part of W₀, which is taken off
#     AdaLoRA    the ranks: ΔW = B (E ∘ A), and where E matters least it becomes 0
#     VeRA       what trains: ΔW = diag(b) B diag(d) A, A and B random, shared
#
# A fair comparison gives each the same task, the same steps, and *its own rate*: a method that is
# scaled otherwise wants another one, and "method X beats LoRA" is often "X's scale suits LoRA's
# rate". Then we look at what each did to ΔW.

# %% [markdown]
# ## Predict

# %% [predict] pissas_start
# PiSSA's A and B start as the largest part of the weight, nothing is zero. How large is its ΔW
# before the first step, over ‖W₀‖?
# - a) about as large as the weight itself: that is what A and B hold
# - b) zero, to the bit
# answer: "b" if start_size == 0 else "a"

# %% [predict] veras_share
# LoRA of rank 8 trains 21,504 numbers here. What percentage of that does VeRA train, with 256
# random directions?
# answer: 100 * trained["VeRA"] / trained["LoRA"]

# %% [markdown]
# ## Run: one task, the same steps, one search
#
# q and v of every layer. (Not the same numbers: rsLoRA is meant for high ranks and has four times
# LoRA's, AdaLoRA half as many again.) For each method three rates are tried with a few steps, by
# the loss on held-out logs; then one run at the best. The rates tried are a factor of 2 apart,
# around a first guess.
# Where the best is the first or the last of the three, the search was too narrow.

# %%
import copy

import torch

import minilora
from minilora import AdaLoraConfig, LoraConfig, VeraConfig, data
from minilora.learn import check, full_or_short, is_short, show
from minilora.lora.adapter_layer import adapter_layers
from minilora.plots.style import hue, in_house_style, label, one_axes
from minilora.training.batches import encode_all, pad
from minilora.training.evaluation import PROSE
from minilora.training.objective import summed_loss

STEPS, SEARCH, LOGS = full_or_short((80, 15, 40), (3, 2, 3))
task = data.naval_log(n_train=1500, n_valid=LOGS)
prose = PROSE.read_text(encoding="utf-8")[:5000]
original = minilora.load_base()
known = minilora.bits_per_byte(original, prose)


def adaptive(steps):
    """AdaLoRA needs to know the length of the run: its budget falls over it."""
    phases = {"tinit": steps // 5, "tfinal": steps // 5}
    return AdaLoraConfig(init_r=12, target_r=8, total_step=steps, **phases)


METHODS = {  # a config of the run's length, a first guess of the rate, LoRA+'s ratio
    "LoRA": (lambda steps: LoraConfig(r=8), 1e-2, 1),
    "rsLoRA r=32": (lambda steps: LoraConfig(r=32, lora_alpha=16, use_rslora=True), 5e-3, 1),
    "LoRA+": (lambda steps: LoraConfig(r=8), 2.5e-3, 16),
    "DoRA": (lambda steps: LoraConfig(r=8, use_dora=True), 1e-2, 1),
    "PiSSA": (lambda steps: LoraConfig(r=8, init_lora_weights="pissa"), 2.5e-3, 1),
    "AdaLoRA": (adaptive, 1e-2, 1),
    "VeRA": (lambda steps: VeraConfig(r=256), 5e-2, 1),
}
quiet = {"batch_size": 16, "validate_every": 0, "keep_best": False, "progress": False}


def fresh(name, steps):
    torch.manual_seed(0)
    model = copy.deepcopy(original)
    minilora.inject(model, METHODS[name][0](steps))
    return model


def trained_model(name, steps, rate):
    model = fresh(name, steps)
    ratio = METHODS[name][2]
    minilora.train(model, task, steps=steps, lr=rate, loraplus_ratio=ratio, **quiet)
    return model


@torch.no_grad()
def held_out(model):
    batch = pad(encode_all(model.tokenizer, task.valid, 512))
    return summed_loss(model.eval(), batch).item() / batch.answer_tokens


models, runs, trained = {}, {}, {}
for name, (_, guess, _) in METHODS.items():
    rates = [guess / 2, guess, 2 * guess]
    losses = [held_out(trained_model(name, SEARCH, rate)) for rate in rates]
    best = rates[losses.index(min(losses))]
    model = models[name] = trained_model(name, STEPS, best)
    trained[name] = minilora.trainable_parameters(model)[0]
    lost = minilora.bits_per_byte(model, prose) - known
    runs[name] = {"rate": best, "edge": best != guess, "loss": held_out(model), "lost": lost}
    rate = f"rate {best:g}{' (at the edge)' * runs[name]['edge']}"
    print(f"{name:12}{trained[name]:>7,} trained, held-out loss {runs[name]['loss']:.3f}, {rate}")

untouched = fresh("PiSSA", STEPS)
start_size = max(layer.delta_weight().norm().item() for _, layer in adapter_layers(untouched))

# %% [markdown]
# ## Look: what each did to ΔW
#
# Whatever the method, W − W₀ can be computed: merge a copy and subtract. Three numbers a weight:
# its size ‖ΔW‖/‖W₀‖; how many directions it uses (the *stable rank*, ‖ΔW‖²/σ₁²); and how much of
# it is a change of the rows' *lengths*, as DoRA would have it, and not of their directions.


# %%
def look(model):
    merged = minilora.merge_and_unload(copy.deepcopy(model))
    sizes, ranks, lengths = [], [], []
    for path, _ in adapter_layers(model):
        before = original.get_submodule(path).weight.detach()
        delta = merged.get_submodule(path).weight.detach() - before
        sizes.append((delta.norm() / before.norm()).item())
        singular = torch.linalg.svdvals(delta)
        ranks.append((singular.square().sum() / singular[0].square()).item())
        rows = before.norm(dim=1), (before + delta).norm(dim=1)
        lengths.append(((rows[1] - rows[0]).norm() / delta.norm()).item())
    return {key: sum(v) / len(v) for key, v in zip(LOOKS, (sizes, ranks, lengths), strict=True)}


LOOKS = ("size", "stable rank", "lengths")
looks = {name: look(model) for name, model in models.items()}
print(f"{'':12}‖ΔW‖/‖W₀‖  stable rank  of it lengths")
for name, each in looks.items():
    print(f"{name:12}{each['size']:9.3f}{each['stable rank']:13.2f}{each['lengths']:14.0%}")

ids = torch.arange(12)[None]
same = [torch.equal(fresh(name, STEPS)(ids), original(ids)) for name in METHODS]
print("before the first step each computes its base, to the bit:", all(same))
assert all(same)


# %%
@in_house_style
def draw(runs, looks):
    figure, (left, right) = one_axes(width=11.6, height=4.6, columns=2)
    for i, (name, run) in enumerate(runs.items()):
        # to one side or the other, so that neighbours do not write over each other
        aside, style = ((7, 5), "left") if i % 2 else ((-7, -11), "right")
        left.plot(run["loss"], run["lost"], "o", color=hue(i))
        label(left, name, (run["loss"], run["lost"]), aside, color=hue(i), ha=style)
        size, rank = looks[name]["size"], looks[name]["stable rank"]
        right.barh(-i, size, color=hue(i), height=0.6)
        label(right, f"stable rank {rank:.1f}", (size, -i), va="center")
    left.set(title="Learnt and forgotten", xlabel="loss on held-out logs, nats an answer token")
    left.set(ylabel="bits a byte lost on prose")
    left.margins(x=0.4, y=0.16)
    right.set(title="What became of ΔW", xlabel="‖ΔW‖ / ‖W₀‖, mean of q and v")
    right.set(yticks=[-i for i in range(len(runs))], yticklabels=list(runs))
    right.set_xlim(0, 1.5 * max(each["size"] for each in looks.values()))
    right.grid(axis="y", visible=False)
    return figure


show(
    draw(runs, looks),
    "Left: prose lost against held-out loss, a dot a method. Right: a bar for the relative size of "
    "each update, with its stable rank: VeRA's uses more directions than those of low rank.",
)

# %% [markdown]
# VeRA trains {{ 100 * trained["VeRA"] / trained["LoRA"]:.0f}}% of LoRA's numbers, and its ΔW is no
# smaller for it: {{ looks["VeRA"]["size"]:.2f}} of ‖W₀‖ against {{ looks["LoRA"]["size"]:.2f}}, in
# {{ looks["VeRA"]["stable rank"]:.1f}} directions against {{ looks["LoRA"]["stable rank"]:.1f}}.
# Few numbers do not mean a small change. And a dot further left is not a better method: these are
# {{ STEPS }} steps, one seed, three rates. `benchmarks/methods.py` asks the question at length.

# %%
assert trained["VeRA"] < trained["LoRA"] / 4
assert trained["DoRA"] - trained["LoRA"] == sum(
    layer.out_features for _, layer in adapter_layers(models["DoRA"])
)
assert trained["LoRA+"] == trained["PiSSA"] == trained["LoRA"]
assert start_size == 0
if not is_short():
    assert all(run["loss"] < 4 for run in runs.values()), "each has learnt something"
    assert all(each["size"] > 0 for each in looks.values())

# %% [markdown]
# ## Explain
#
# Why is PiSSA's ΔW zero at the start? With A₀ and B₀ from the SVD of W₀, it is
#
#     ΔW = s (B A − B₀ A₀)
#
# PEFT puts W₀ − s B₀ A₀ in the base's place, so that the model is W₀ again only up to rounding, and
# is another base when the adapter is switched off. minilora takes s B₀ A₀ x off instead. That form
# is also its own conversion: [A; A₀] and [B, −B₀] are plain LoRA of rank 2r, and that is its file.
#
# What does a file need besides its tensors? rsLoRA's needs one word, `use_rslora`, and a reader
# that ignores it serves the adapter at another scale. LoRA+'s needs nothing: rates are not in it.
#
# And what merges? All of them: each is some W in the end. But only what has the form B A can be
# added to another adapter, or share a batch with others as two thin products:

# %%
for name, model in models.items():
    try:
        parts = minilora.low_rank_parts(model)
        update = f"B A, of rank {max(len(part.A) for part in parts.values())}"
    except ValueError as error:
        update = str(error).partition(": ")[2].partition(". Nothing")[0]
    print(f"{name:12}{update}")

# %% [markdown]
# ## Break it: a row of zeros
#
# DoRA divides each row by its length. The base's first q_proj has rows of zeros: outputs that
# nothing has ever used.

# %%
layer = original.get_submodule("model.layers.0.self_attn.q_proj")
lengths = layer.weight.detach().norm(dim=1)
empty = int((lengths == 0).sum())
as_written = lengths / lengths  # m / ‖W₀ + s B A‖ before the first step, in words of the paper
print(
    f"{empty} of {len(lengths)} rows are zero; g is NaN in {int(as_written.isnan().sum())} of them"
)
assert as_written.isnan().sum() == empty > 0
x = torch.randn(3, layer.in_features)
y = as_written * layer(x)
assert y.isnan().any(), "one NaN row is enough: attention mixes it into every token"

# %% [markdown]
# This has happened: in huggingface/peft #2049 somebody counts 434 such rows in a released model,
# whose loss is NaN in the first step. (The thread's first report was another thing, a broken
# download.) Where the norm is zero there is no direction to keep apart, so the honest factor is 1:
# leave the row as it is.
#
# ## Build: DoRA's magnitude
#
# Difficulty ●○○ · Importance ●●○ · 5 minutes


# %% [exercise] row_factor
import torch


def row_factor(weight, update, magnitude):
    """g = m / ‖W₀ + ΔW‖ of each row, and 1 where that norm is 0.

    weight, update: (out, in) tensors; magnitude: (out,). Returns (out,). No NaN and no infinity
    comes out, whatever rows are zero, and no small number is added to a norm: where it is not
    zero, g is exactly the quotient.
    """
    raise NotImplementedError("TODO: one norm a row, and a row of zeros")


# %% [hints] row_factor
# 1. `torch.linalg.norm(..., dim=1)` gives one norm a row of (out, in). The norm is of the *sum*.
# 2. Dividing first and repairing afterwards leaves NaN in the gradient: make the divisor safe
#    first, as `norm.masked_fill(norm == 0, 1.0)`.
# 3. `torch.where(norm == 0, 1.0, magnitude / safe)`.

# %%
check(row_factor)

# %% [markdown]
# ## Build: AdaLoRA's importance
#
# Which of 96 directions in 12 matrices should go? AdaLoRA asks each number w how much the loss
# would move without it, I = |w · ∂L/∂w|, smooths that over the steps, and trusts what varies:
#
#     Ī ← β₁ Ī + (1 − β₁) I        Ū ← β₂ Ū + (1 − β₂) |I − Ī|        s = Ī · Ū
#
# A direction is a row of A, one E, and a column of B, and scores s(E) + mean s(A's row) + mean
# s(B's column). Here is who kept theirs:

# %%
kept = {"q_proj": 0, "v_proj": 0}
for path, layer in adapter_layers(models["AdaLoRA"]):
    kept[path.rpartition(".")[2]] += int(layer.alive.sum())
print(f"of {sum(kept.values())} directions q has {kept['q_proj']}, v has {kept['v_proj']}")
assert sum(kept.values()) == 8 * len(list(adapter_layers(models["AdaLoRA"])))

# %% [markdown]
# Difficulty ●●○ · Importance ●○○ · 10 minutes


# %% [exercise] importance
def importance(parts, grads, means, spreads, beta1, beta2):
    """One step of AdaLoRA's importance; returns the score of each direction, (r,).

    parts and grads: dicts of "A" (r, in), "B" (out, r), "E" (r, 1), a part and its gradient; means
    and spreads: dicts of the same shapes, Ī and Ū before the step. First Ī of every number moves,
    then Ū, with the *new* Ī; then s = Ī · Ū. A direction's score is s(E), plus the mean of s over
    its row of A, plus the mean over its column of B.
    """
    raise NotImplementedError("TODO: sensitivity, its spread, and one score a direction")


# %% [hints] importance
# 1. For each name: `now = (parts[name] * grads[name]).abs()`. Do not change the dicts that you got.
# 2. `mean = beta1 * means[name] + (1 - beta1) * now`, then
#    `spread = beta2 * spreads[name] + (1 - beta2) * (now - mean).abs()`.
# 3. `s["E"].flatten() + s["A"].mean(dim=1) + s["B"].mean(dim=0)`.

# %%
check(importance)

# %% [markdown]
# ## What you can now defend
#
# - Each of these methods starts as its base, to the bit, and merges into one weight.
# - The number of trained parameters says little of the size of the change: VeRA's
#   {{ trained["VeRA"]:,}} numbers moved W by {{ looks["VeRA"]["size"]:.2f}} of its norm.
# - A comparison at one rate compares rates. Here the best ones reach from
#   {{ min(run["rate"] for run in runs.values()):g}} to
#   {{ max(run["rate"] for run in runs.values()):g}}.
# - A formula with a division needs its zero: DoRA's 0/0 is a row that nothing uses.

# %% [markdown]
# ## Open question
#
# Take the method that did best here, and give LoRA its rate range, twice its rank or twice its
# steps, whichever costs the same. What is left of the difference?
