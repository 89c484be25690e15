# %% [markdown]
# # 08 · Which layers, what rank?
#
# Know first: lesson 07 · Difficulty ●●○ · 14 minutes to read · 90 seconds to run
#
# A LoRA of rank r beside one matrix costs r · (in + out) numbers. So one budget buys a high rank
# beside a few matrices or a low rank beside many. Which matrices, and which rank? The LoRA paper
# tried it on attention and found many matrices at a low rank better (arXiv 2106.09685, section 7.1,
# table 5); the QLoRA paper says that all Linears are needed to match full fine-tuning (arXiv
# 2305.14314, section 4). We ask our base, one question at a time:
#
#     where?             places compared at one rate      Run, Look, Explain
#     how high a rank?   each rank at its own best rate   Break it
#     how much data?     30 to 2,000 examples             the second Run

# %%
from operator import itemgetter

import torch

import minilora
from minilora import LoraConfig, data
from minilora.files import read_json
from minilora.learn import check, show
from minilora.learn.course import lessons_folder
from minilora.ledger.estimate import plan
from minilora.plots.panels import panels_of, small_multiples
from minilora.plots.style import hue, in_house_style, label, one_axes
from minilora.training.batches import encode_all, pad
from minilora.training.objective import summed_loss

PLACES = {
    "q": ["q_proj"],
    "k": ["k_proj"],
    "v": ["v_proj"],
    "o": ["o_proj"],
    "q, v": ["q_proj", "v_proj"],
    "gate, up, down": ["gate_proj", "up_proj", "down_proj"],
    "all seven": "all-linear",
}
ASKED = ("q", "v", "q, v", "all seven")
BUDGETS = (14_016, 56_064)


def count(place, r):
    """Trainable parameters, from shapes alone."""
    return plan("base", LoraConfig(r=r, lora_alpha=2 * r, target_modules=PLACES[place])).trainable


ranks = {place: [budget // count(place, 1) for budget in BUDGETS] for place in PLACES}
for place, two in ranks.items():
    print(f"{place:15}", ", ".join(f"r = {r:2} has {count(place, r):6,} parameters" for r in two))
    assert count(place, two[1]) == two[1] * count(place, 1)  # linear in the rank, exactly

# %% [markdown]
# Each row has two ranks. The first is the highest that {{ BUDGETS[0]:,}} parameters pay for, the
# second the highest for four times as many.
#
# ## Predict

# %% [predict] best_place
# Each setting is trained for a few steps, with three seeds. Which one place, with the small budget,
# has the lowest loss?
# - a) q at r = 9: one matrix, a high rank
# - b) v at r = 12
# - c) q and v at r = 5, as most tutorials do
# - d) all seven matrices at r = 1
# answer: "abcd"[ASKED.index(min(ASKED, key=lambda place: mean[place, 0]))]

# %% [markdown]
# ## Run: where?

# %%
task = data.naval_log(400, 40)
rows = pad(encode_all(minilora.load_base().tokenizer, task.valid, 512))
STEPS = 14


@torch.no_grad()
def loss_of(model):
    """Loss on held-out logs, nats an answer token."""
    return summed_loss(model.eval(), rows).item() / rows.answer_tokens


def held_out_loss(place, r, seed, rate=5e-3):
    """What a few steps of training reach."""
    torch.manual_seed(seed)
    model = minilora.load_base()
    report = minilora.inject(model, LoraConfig(r=r, lora_alpha=2 * r, target_modules=PLACES[place]))
    assert report.trainable == count(place, r)  # the ledger and the model agree
    settings = {"steps": STEPS, "batch_size": 8, "lr": rate, "seed": seed, "validate_every": 0}
    minilora.train(model, task, **settings, progress=False)
    return loss_of(model)


losses = {
    (place, column): [held_out_loss(place, ranks[place][column], seed) for seed in range(3)]
    for place in PLACES
    for column in range(2)
}
mean = {cell: sum(of_seeds) / 3 for cell, of_seeds in losses.items()}
spread = max(max(of_seeds) - min(of_seeds) for of_seeds in losses.values())
assert mean["q", 1] > mean["v", 0]  # four times the parameters in the wrong place …
assert mean["k", 1] > mean["o", 0]  # … lose
assert all(mean[place, 1] < mean[place, 0] for place in PLACES)

# %% [markdown]
# ## Look


# %%
@in_house_style
def draw(losses, mean, ranks):
    figure, axes = one_axes(width=7.4, height=4.8)
    for row, place in enumerate(ranks):
        for j, budget in enumerate(BUDGETS):
            high = row - 0.16 + 0.32 * j
            axes.hlines(high, min(losses[place, j]), max(losses[place, j]), color=hue(j), lw=2)
            name = None if row else f"{budget:,} parameters"
            axes.plot(mean[place, j], high, "o", color=hue(j), label=name)
            label(axes, f"r = {ranks[place][j]}", (max(losses[place, j]), high), va="center")
    axes.set(title="Held-out loss: mean and range of 3 seeds", xlabel="nats an answer token")
    axes.set(yticks=range(len(ranks)), yticklabels=list(ranks), ylim=(len(ranks) - 0.5, -0.6))
    axes.margins(x=0.12)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return figure


show(
    draw(losses, mean, ranks),
    "Dots of loss by place, small and large budget: q and k far to the right of v, o and the MLP",
)

# %% [markdown]
# The seeds of one setting are up to {{ spread:.2f}} apart, so two whose ranges overlap are not
# known to differ. Two things stand out all the same. q and k are far behind with either budget:
# with a quarter of the parameters v reaches {{ mean["v", 0]:.2f}}, and q with all of them
# {{ mean["q", 1]:.2f}}. And four times the parameters help in every row.
#
# ## Explain
#
# q and k meet only inside the attention score, `(Wq x)ᵀ (Wk x')`: they decide *where* a token
# looks. v and o carry what is found there, and the MLP works on it. A likely reason for the two
# high rows: our task asks for the same readings in other words. Where to look is known already,
# what to say is new. On another task the order may be another.
#
# ## Break it: how high a rank?
#
# Four times the rank helped in every row. Was it the rank? AdamW moves every entry of B by about
# the learning rate in each step, whatever its gradient. The update sums r products,
#
#     ΔW = s · (b₁ a₁ᵀ + b₂ a₂ᵀ + … + bᵣ aᵣᵀ)
#
# so with s = α / r held fixed, as here, a higher rank also *moves further in each step*. One rate
# for all ranks is no fair comparison. Give each setting three:

# %%
RATES = (5e-3, 1e-2, 2e-2)


def mean_of_two(place, column, rate):
    return sum(held_out_loss(place, ranks[place][column], seed, rate) for seed in range(2)) / 2


settings = (("all seven", 0), ("all seven", 1), ("q", 0))
tuned = {cell: [mean_of_two(*cell, rate) for rate in RATES] for cell in settings}
for (place, column), of_rates in tuned.items():
    row = "   ".join(f"rate {rate}: {loss:.2f}" for rate, loss in zip(RATES, of_rates, strict=True))
    print(f"{place:9} r = {ranks[place][column]}   {row}")
one_rate = tuned["all seven", 0][0] - tuned["all seven", 1][0]
best_rates = min(tuned["all seven", 0]) - min(tuned["all seven", 1])
print(f"r = 1 is behind r = 4 by {one_rate:.2f} at one rate,", end=" ")
print(f"by {best_rates:.2f} at each one's best")
assert one_rate > 0.5
assert best_rates < 0.5 * one_rate
assert min(tuned["q", 0]) > min(tuned["all seven", 0]) + 0.5

# %% [markdown]
# Of the {{ one_rate:.2f}} at one rate, {{ best_rates:.2f}} is left when each has its best: most of
# what looked like the rank was the rate. The place is another matter: q stays behind at every rate.
#
# ## Run: how much data?
#
# "Few parameters cannot learn examples by heart, so LoRA does not overfit." Does it? First a short
# run of rank 8, with 30 examples and with 300.

# %%
live = {}
for examples in (30, 300):
    torch.manual_seed(0)
    model, few = minilora.load_base(), data.naval_log(examples, 60)
    minilora.inject(model, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"))
    settings = {"steps": 75, "batch_size": 8, "validate_every": 25, "keep_best": False}
    history = minilora.train(model, few, lr=5e-3, **settings, progress=False)
    live[examples] = [sum(history.losses[-10:]) / 10, history.validations[-1]["valid_loss"]]
    held = "  ".join(f"{v['valid_loss']:.2f}" for v in history.validations)
    print(f"{examples:3} examples: trained on {live[examples][0]:.2f}, held out {held}")
assert live[30][1] - live[30][0] > 2 * (live[300][1] - live[300][0])

# %% [predict] who_overfits
# Now 250 steps, in which each of 30 examples is seen 67 times. The loss on held-out logs falls at
# first, then rises. For whom does it rise most, in nats?
# - a) full fine-tuning, as it has the most parameters
# - b) LoRA with r = 1
# - c) LoRA with r = 8
# - d) LoRA with r = 64
# answer: "abcd"[list(rises).index(max(rises, key=rises.get))]

# %% [markdown]
# These runs take half an hour, so they are recorded (benchmarks/overfitting.py). One seed and 50
# held-out logs each: neighbours are not known to differ.

# %%
file = lessons_folder() / "data" / "cpu" / "overfitting.json"
recorded = sorted(read_json(file)["rows"], key=lambda run: (run["decay"], run["dropout"]))
NAMES = {0: "full", 1: "r = 1", 8: "r = 8", 64: "r = 64"}
for run in recorded:
    run["name"] = NAMES[run["r"]]
    run["way"] = "dropout 0.1" if run["dropout"] else "decay 0.1" if run["decay"] else "nothing"
by_examples = [run for run in recorded if run["sweep"] == "data"]
plain = {(run["examples"], run["name"]): run for run in by_examples if run["way"] == "nothing"}
curves = {f"{size:,} examples": {} for size, _ in plain}
for (size, name), run in plain.items():
    curves[f"{size:,} examples"][name] = run["step"], run["held"]
    trained = [max(1e-3, loss) for loss in run["train"]]  # the picture ends there
    curves[f"{size:,} examples"][f"{name}, trained on"] = run["step"], trained
few = {name: plain[30, name] for name in NAMES.values()}
rises = {name: run["held"][-1] - min(run["held"]) for name, run in few.items()}
assert all(run["train"][-1] < 0.1 < 1 < run["held"][-1] for run in few.values())
loss, kinds = "loss, nats an answer token", "Solid: held-out logs. Dashed: the examples trained."
show(
    small_multiples(curves, ("step", loss), log="y", dashed=", trained on", note=kinds),
    "Losses by step in four panels of 30 to 2,000 examples: with few the held-out loss turns and "
    "stays high while the trained one falls; with many it follows",
)

# %% [markdown]
# All four learn 30 examples by heart, and are wrong on others. From its lowest point the held-out
# loss rose by {{ rises["full"]:.2f}} with full, {{ rises["r = 1"]:.2f}} with r = 1,
# {{ rises["r = 8"]:.2f}} with r = 8 and {{ rises["r = 64"]:.2f}} with r = 64; stopping there is
# free (`keep_best`).
#
# Against this people use *dropout* (here a tenth of what A reads is dropped, with full of what each
# Linear reads), *weight decay*, which shrinks what trains in each step, or more examples:

# %%
keys, last = (itemgetter("name"), itemgetter("way"), "examples"), lambda run: run["held"][-1]
by_size = panels_of(by_examples, *keys, last)
table = {(name, kind): ends[1] for name, ways in by_size.items() for kind, ends in ways.items()}
sizes = "".join(f"{n:8,}" for n in by_size["full"]["nothing"][0])
print(f"{'held-out loss after the last step, by examples':49}{sizes}")
for (name, kind), ends in table.items():
    print(f"{name:14}{kind:35}" + "".join(f"{loss:8.2f}" for loss in ends))
bare, *others = (
    torch.tensor([ways[kind][1] for ways in by_size.values()]) for kind in by_size["r = 8"]
)
lower = [int((ends < bare).sum()) for ends in others]  # of dropout, of decay
not_lower = [row for row, ends in table.items() if list(ends) != sorted(ends, reverse=True)]
fast = [run for run in recorded if run["sweep"] == "grid" and run["r"] == 64]
_, own_rate, too_fast, *_, decayed = (run["held"][-1] for run in fast)  # decay 0, then 1
assert not_lower == [("full", "dropout 0.1")]
assert too_fast > 2 * own_rate
assert all(0 < n < bare.numel() for n in lower)
show(
    small_multiples(by_size, ("examples (log scale)", "held-out loss (log scale)"), log="xy"),
    "Held-out loss by number of examples: it falls in 11 of 12 rows; dropout moves it either way",
)

# %% [markdown]
# Dropout and decay move the last loss up in some runs and down in others: dropout ended lower in
# {{ lower[0]}} of {{ bare.numel()}}, decay in {{ lower[1]}}. More data lowers it in all rows but
# {{ " with ".join(not_lower[0])}}, and with much of it small ranks are behind after so many steps.
#
# The rate matters more than either. On 100 examples r = 64 ended at {{ own_rate:.2f}}, and with a
# rate three times too high at {{ too_fast:.2f}}; a decay of 1 brought that to {{ decayed:.2f}}.
#
# ## Build: the largest rank
#
# Difficulty ●○○ · Importance ●●● · 5 minutes


# %% [exercise] largest_rank
def largest_rank(shapes, budget):
    """The largest rank, the same for all matrices, whose adapters have at most budget parameters.

    shapes: a list of (in, out), one for each adapted matrix. A rank above min(in, out) of any of
    them buys nothing, so the answer never exceeds that. 0 when not even rank 1 is affordable.
    """
    raise NotImplementedError("TODO: what does rank 1 cost, and how often does it fit?")


# %% [hints] largest_rank
# 1. An adapter has `r * (size_in + size_out)` parameters; r is the same for all, so sum
#    the rest first.
# 2. How often a cost fits into a budget is `budget // cost`. The cap is the smallest side
#    of any matrix.
# 3. `min(budget // sum(i + o for i, o in shapes), min(min(shape) for shape in shapes))`

# %%
check(largest_rank)

# %% [markdown]
# ## Build: the best use of 5,000 parameters
#
# Difficulty ●●○ · Importance ●●○ · 15 minutes
#
# There are many right answers. The checker counts what you spend, for several budgets, then trains
# your choice for 5,000 for {{ STEPS }} steps. It must end clearly lower than q and v at r = 1.


# %% [exercise] spend
from minilora import LoraConfig


def spend(budget):
    """A LoraConfig for the shipped base that trains at most budget parameters, at least 60% of it.

    Use target_modules (a list of names) and r; set lora_alpha to twice r. layers_to_transform=[0,
    …, 5] may narrow it to some layers. budget is between 3,000 and 60,000.
    """
    raise NotImplementedError("TODO: choose a place, then the largest rank that fits")


# %% [hints] spend
# 1. The dots say which places work. For each rank q and o cost `6 * (128 + 128)`, k and v cost
#    `6 * (128 + 64)`.
# 2. Choose one place that is good on its own, such as v_proj or o_proj, and put all that you have
#    into its rank.
# 3. `r = budget // 1152`, and `return LoraConfig(r=r, lora_alpha=2 * r, target_modules=["v_proj"])`

# %%
check(spend)

# %% [markdown]
# ## What you can now defend
#
# - Where is worth more than how many: q with {{ count("q", ranks["q"][1]):,}} parameters ended at
#   {{ mean["q", 1]:.2f}}, o with {{ count("o", ranks["o"][0]):,}} at {{ mean["o", 0]:.2f}}. With
#   all seven matrices you need not know where, which is the best reason for QLoRA's advice.
# - "k needs no adapter": alone, k ended at {{ mean["k", 1]:.2f}} and q at {{ mean["q", 1]:.2f}}. On
#   this task it is as true of q, which every tutorial adapts.
# - "Rank 1 cannot learn": at its best rate rank 1 on all seven ended at
#   {{ min(tuned["all seven", 0]):.2f}}, rank 4 at {{ min(tuned["all seven", 1]):.2f}}.
# - "LoRA prevents overfitting": on 30 examples r = 64 ended at {{ few["r = 64"]["held"][-1]:.1f}},
#   full at {{ few["full"]["held"][-1]:.1f}}. "How much data?" Full on 300 examples ended at
#   {{ plain[300, "full"]["held"][-1]:.2f}}, on 2,000 at {{ plain[2000, "full"]["held"][-1]:.2f}}.
# - What you cannot defend: that any of this holds after 500 steps, or on your task. {{ STEPS }}
#   steps show what learns *fast*.
#
# ## Open question
#
# Could the training find out which matrices deserve a higher rank? (AdaLoRA: arXiv 2303.10512.)
