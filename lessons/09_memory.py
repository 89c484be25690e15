# %% [markdown]
# # 09 · Where do the bytes go?
#
# Know first: lesson 06 · Difficulty ●●○ · 13 minutes to read · 10 seconds to run
#
# "Will it fit on my card?" is the first question of every fine-tune. A training step holds five
# kinds of numbers:
#
#     weights        every parameter: 4 bytes in float32, half of one in 4 bits
#     gradients      one number for each trained parameter
#     moments        two for each: AdamW's means of gradients and their squares
#     activations    what the layers keep of the forward, to be able to go back
#     temporary      what is alive for a moment only: the logits, their softmax
#
# We count them on a real step of the shipped base, predict the same from its shapes, and then
# predict models that would not fit into this machine.

# %%
import torch

import minilora
from minilora import LoraConfig
from minilora.learn import check, show
from minilora.ledger.estimate import CATEGORIES, GPUS, plan
from minilora.ledger.measurement import measure
from minilora.plots.charts import memory_chart
from minilora.plots.style import hue, in_house_style, one_axes

METHODS = {"full": "full", "LoRA": "lora", "QLoRA": "qlora"}
PARTS = ("weights", "gradients", "optimizer", "activations", "temporary")
everywhere = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear")
batch, time = 4, 64
ids = torch.randint(0, 1536, (batch, time + 1), generator=torch.Generator().manual_seed(0))


def measure_step(model):
    """Bytes of a training step, tensor by tensor (minilora/ledger/measurement.py)."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)

    def step(ids):
        logits = model(ids[:, :-1])  # (batch, time, vocab)
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)  # gradients stay, as when a step accumulates several

    step(ids[:1, :9])  # AdamW makes its moments in its first step, which may be a small one
    return measure(lambda: step(ids), model, optimizer)


def build(method):
    """The shipped base in float32, as each method trains it."""
    torch.manual_seed(0)
    model = minilora.load_base(quantize="nf4" if method == "QLoRA" else None).train()
    if method != "full":
        minilora.inject(model, everywhere)
    return model


# %% [markdown]
# ## Predict

# %% [predict] times_the_weights
# Full fine-tuning with AdamW, all in float32. Weights, gradients and moments together are how many
# times the weights?
# answer: sum(measured_mb["full"][:3]) / measured_mb["full"][0]

# %% [predict] lora_peak
# LoRA on all Linears of our small base trains one parameter in thirteen. How large is its step at
# the peak, next to that of full fine-tuning?
# - a) about a thirteenth
# - b) a quarter to a half
# - c) more than a half
# answer: "c" if ratio > 0.5 else "b" if ratio > 0.2 else "a"

# %% [markdown]
# ## Run: measured, and predicted from shapes
#
# `plan` is given no model at all, only its `config.json`, and adds up formulas
# (minilora/ledger/estimate.py and ledger/activations.py).

# %%
measured = {title: measure_step(build(title)) for title in METHODS}
settings = {"batch": batch, "seq": time, "dtype": "float32"}
planned = {title: plan("base", everywhere, method, **settings) for title, method in METHODS.items()}
ratio = measured["LoRA"].peak / measured["full"].peak
assert 12 < 1 / planned["LoRA"].share < 14


def megabytes(book):
    """The five kinds and their sum; adapters and 4-bit scales are weights too."""
    weights = book["weights"] + book["constants"] + book["adapters"]
    kinds = [weights / 1e6, *(book[part] / 1e6 for part in PARTS[1:])]
    return [*kinds, sum(kinds)]


measured_mb = {title: megabytes(step.at_peak) for title, step in measured.items()}
planned_mb = {title: megabytes(one.bytes) for title, one in planned.items()}
print("MB at the peak   " + "".join(f"{part:>12}" for part in (*PARTS, "together")))
for title in METHODS:
    print(f"{title:6} predicted " + "".join(f"{size:12.3f}" for size in planned_mb[title]))
    print(f"{'':6} measured  " + "".join(f"{size:12.3f}" for size in measured_mb[title]))
    for predicted, seen in zip(planned_mb[title], measured_mb[title], strict=True):
        assert abs(predicted / seen - 1) < 0.02

# %% [markdown]
# ## Look


# %%
@in_house_style
def draw(bars):
    figure, axes = one_axes(width=8, height=4.6)
    for color, part in enumerate(CATEGORIES):  # the colours of the second picture too
        sizes = [bar[part] / 1e6 for bar in bars.values()]
        below = [sum(bar[c] for c in CATEGORIES[:color]) / 1e6 for bar in bars.values()]
        axes.bar(range(len(bars)), sizes, bottom=below, color=hue(color), width=0.6, label=part)
    for x, bar in enumerate(bars.values()):
        total = sum(bar.values()) / 1e6
        at = (x, total), (0, 4), "data", "offset points"
        axes.annotate(f"{total:.1f} MB", *at, ha="center", weight="bold")
    axes.set(title=f"A step of the shipped base at its peak, {batch} × {time} tokens", ylabel="MB")
    axes.set(xticks=range(len(bars)), xticklabels=list(bars))
    axes.margins(y=0.08)
    axes.grid(axis="x", visible=False)
    handles, names = axes.get_legend_handles_labels()
    figure.legend(handles[::-1], names[::-1], loc="outside right center", frameon=False)
    return figure


show(
    draw({title: step.at_peak for title, step in measured.items()}),
    "Stacked bars of full, LoRA and QLoRA: on a tiny model activations are most of each bar and "
    "hardly shrink",
)

# %% [markdown]
# A small model with {{ batch * time }} tokens in a batch is mostly activations, and in float32 LoRA
# saves few of those: at the peak its step still holds {{ ratio:.0%}} of what full fine-tuning
# holds. Gradients have to travel back through frozen layers too, so what the layers between need
# for that is kept as before. (A loop that frees the gradients after each step makes the new ones
# while the activations go away, so its peak is lower.)
#
# Large models are trained on a base in bfloat16, with adapters in float32, so that small steps are
# not rounded away. PEFT and this package do so by themselves.

# %% [predict] half_precision
# Llama-3 8B in bfloat16, 2,048 tokens, nothing recomputed. Beside full fine-tuning, are the
# activations of LoRA with float32 adapters on all Linears
# - a) smaller by more than a tenth
# - b) about equal
# - c) larger by more than a tenth
# answer: "a" if kept[1] < 0.9 * kept[0] else "c" if kept[1] > 1.1 * kept[0] else "b"

# %%
everywhere16 = LoraConfig(r=16, target_modules="all-linear")
choices = (("full", None), ("lora", "float32"), ("lora", "bfloat16"))
kept = [
    plan("llama-3-8b", everywhere16, method, adapter_dtype=dtype).bytes["activations"] / 1e9
    for method, dtype in choices
]
for (method, dtype), size in zip(choices, kept, strict=True):
    print(f"{method:5}{f'with {dtype} adapters' if dtype else '':24}{size:5.1f} GB of activations")
assert kept[1] > 1.3 * kept[0] > 1.3 * kept[2]

# %% [markdown]
# They grow, from {{ kept[0]:.1f}} to {{ kept[1]:.1f}} GB: a float32 adapter keeps its input as a
# float32 copy, beside the bfloat16 tensors that the block keeps anyway. bfloat16 adapters keep no
# copy, {{ kept[2]:.1f}} GB. Gradient checkpointing, which throws activations away and computes them
# again, makes either small. What LoRA saves is gradients and moments.
#
# Activations grow with the tokens, everything else with the parameters. In a large model with a
# short batch and checkpointing it is the other way round:

# %%
big = {"batch": 1, "seq": 2048, "checkpointing": True}
llamas = {
    "Llama-3 8B": "llama-3-8b",
    "Llama-3 70B": "llama-3-70b",
    "Llama-3.1 405B": "llama-3.1-405b",
}
plans = {
    title: [plan(name, everywhere16, method, **big) for name in llamas.values()]
    for title, method in METHODS.items()
}
machines = {"8 × 80 GB": 640e9, "8 × 141 GB": 1128e9}
cards = {name: size * 10**9 for name, size in GPUS.items()} | machines
note = "bf16 base, r = 16 on all Linears, AdamW in float32, 1 × 2048 tokens, checkpointing"
bars = {title: [p.bytes for p in row] for title, row in plans.items()}
show(
    memory_chart(list(llamas), bars, cards, note),
    "Stacked bars for 8B to 405B: full fine-tuning is mostly gradients and moments, LoRA is "
    "weights, QLoRA a fraction of them",
)

# %% [markdown]
# ## Explain
#
# Say N parameters are frozen and M are trained, in float32. Then a step holds
#
#     N · (bytes a frozen weight)  +  M · (4 + 4 + 8)  +  activations
#
# where 4 are the weight, 4 its gradient and 8 its two moments.
#
# Full fine-tuning has N = 0, and so
# {{ planned["full"].bytes["optimizer"] // planned["full"].bytes["weights"] }} bytes of moments for
# each byte of weight. LoRA makes M small; QLoRA (arXiv 2305.14314) also makes the bytes of a frozen
# weight small. The third part is left to gradient checkpointing.
#
# ## Break it
#
# What if the base is not frozen? A and B stand beside it and learn, the loss falls,
# nothing complains.

# %%
careless = build("LoRA")
for parameter in careless.parameters():
    parameter.requires_grad_(True)  # inject froze the base; this takes it back
unfrozen = measure_step(careless)
print(f"peak: full {measured['full'].peak / 1e6:.1f} MB, LoRA {measured['LoRA'].peak / 1e6:.1f} MB")
print(f"LoRA with a base that was not frozen: {unfrozen.peak / 1e6:.1f} MB")
assert unfrozen.peaks["optimizer"] > measured["full"].peaks["optimizer"]
assert unfrozen.peak > measured["full"].peak > measured["LoRA"].peak

# %% [markdown]
# More than full fine-tuning: all of it, and the adapters on top. What saves is the `requires_grad =
# False` on everything else, so look at the number of trainable parameters before each run.
#
# ## Build: predict a 7B model
#
# Difficulty ●○○ · Importance ●●● · 5 minutes
#
# Activations aside, this walks through the memory of a step, one number after another:


# %%
def slow_training_bytes(frozen, bits, trainable):
    """Bytes of weights, gradients and AdamW's moments; right, and hours for a model of 7B."""
    held = 0.0
    for _ in range(frozen):
        held += bits / 8
    for _ in range(trainable):
        for _ in ("the number", "its gradient", "its mean", "its mean of squares"):
            held += 32 / 8
    return held


# %% [exercise] training_bytes
def training_bytes(frozen, bits, trainable):
    """The same as slow_training_bytes, at once. The rule: no loop.

    bits: what each frozen weight takes, such as 32, 16 or 4.127.
    """
    raise NotImplementedError("TODO: one term for the frozen, one for the trained")


# %% [hints] training_bytes
# 1. Each loop adds the same number each time. A frozen weight has neither a gradient nor moments.
# 2. A byte has 8 bits. A trained number is there four times, 4 bytes each.
# 3. `frozen * bits / 8 + trainable * (4 + 4 + 8)`

# %%
check(training_bytes)

# %% [markdown]
# ## Build: 24 GB are needed, 16 are there
#
# Difficulty ●●○ · Importance ●●●, everybody's first evening · 10 minutes
#
# This run does not fit on a card of 16 GB. Change two settings so that it does:

# %%
RUN = {"batch": 2, "seq": 448, "checkpointing": False, "optimizer": "adamw"}
RUN |= {"adapter_dtype": "float32", "dtype": "bfloat16"}
wide = LoraConfig(r=64, lora_alpha=128, target_modules="all-linear")
too_big = plan("llama-2-7b", wide, "lora", **RUN)
print(f"at the peak {too_big.peak / 1e9:.1f} GB, of these activations", end=" ")
print(f"{too_big.bytes['activations'] / 1e9:.1f} GB")
assert 23e9 < too_big.peak < 25e9


# %% [exercise] two_settings
def two_settings():
    """Two settings of RUN with new values, {name: value, name: value}: 16 GB are then enough.

    The rule: the run must stay the same run. So the base keeps its dtype and is not quantized, all
    tokens stay in the step, and the optimizer stays an AdamW (of "adamw", "adamw8bit" and "sgd").
    """
    raise NotImplementedError("TODO: which part of the peak is the largest? And which the next?")


# %% [hints] two_settings
# 1. Ask `plan("llama-2-7b", wide, "lora", **RUN | {"checkpointing": True}).bytes`, and so on.
# 2. The largest part after the weights is activations, and one setting makes them small. A little
#    is then still missing; it is in the moments, or in what each adapter keeps.
# 3. `{"checkpointing": True, "optimizer": "adamw8bit"}`, or bfloat16 adapters.

# %%
check(two_settings)

# %% [markdown]
# ## Run: popular claims, held against the envelope

# %%
llama = plan("llama-2-7b", everywhere16, "qlora", **big)
small_step = {"batch": 1, "seq": 512, "checkpointing": True, "optimizer": "adamw8bit"}
lean = plan("llama-2-70b", everywhere16, "qlora", **small_step)
times = [
    plan("llama-2-7b", None, "full", batch=rows, checkpointing=saving).total / (2 * 6_738_415_616)
    for rows, saving in ((1, True), (8, True), (8, False))
]
sizes = ("base", "llama-7b", "llama-3.1-405b")
shares = {name: plan(name, LoraConfig(r=8)).share for name in sizes}
flan = plan("flan-t5-base", LoraConfig(r=8, target_modules=["q", "v"]))
block = 4 * 4096**2 + 3 * 4096 * 11008
full_step, lora_step = (plan("llama-2-7b", None, method) for method in ("full", "lora"))
flops = {p.method: p.flops_forward + p.flops_backward for p in (full_step, lora_step)}
small = plan("llama-2-7b", LoraConfig(r=8)).trainable // 32
envelope = 6_738_415_616 * 4.127 / 8 + 16 * llama.trainable
print(f"7B with QLoRA: envelope {envelope / 1e9:.2f} GB, the plan {llama.total / 1e9:.2f} GB")
print(f"70B with QLoRA, as lean as can be: {lean.total / 1e9:.1f} GB")
print("share trained, q and v, r = 8:", {name: f"{share:.3%}" for name, share in shares.items()})
assert lean.total > 2 * 16e9
assert envelope < llama.total < 16e9
assert flan.trainable == 3 * 294_912
assert flops["lora"] < 0.8 * flops["full"]

# %% [markdown]
# ## What you can now defend
#
# - "QLoRA trains 70B in 16 GB": no. The codes alone are {{ lean.bytes["weights"] / 1e9:.1f}} GB,
#   and the leanest step holds {{ lean.total / 1e9:.0f}} GB. A 7B model it does train in 16 GB, with
#   room to spare: {{ llama.total / 1e9:.1f}} GB.
# - "Training takes 12–20× the weights' memory": a bf16 weight, its gradient and two float32 moments
#   are 12 *bytes*, which is 6 times the weight. With activations we get {{ times[0]:.1f}},
#   {{ times[1]:.1f}} or {{ times[2]:.1f}} times, for one sequence, for eight, and for eight without
#   checkpointing. A ratio without the number of tokens means nothing.
# - "PEFT trains under 0.1%": {{ shares["base"]:.2%}} of our base, {{ shares["llama-7b"]:.2%}} of a
#   7B, and {{ shares["llama-3.1-405b"]:.3%}} of a 405B model, with the same settings. The share is
#   a property of the model's size.
# - "67M against 131K in a block": {{ 4 * 4096**2 / 1e6:.0f}}M are the four attention matrices of a
#   7B block; the whole block has {{ block / 1e6:.0f}}M. The {{ small:,}} are adapters of two of the
#   four. Compare the same things.
# - "A LoRA step takes 1.1× a full one": it computes {{ flops["lora"] / flops["full"]:.2f}} of it. A
#   frozen weight needs no ∂W, which is a third of the products.
# - "flan-t5-base with q, v, r = 8 has 294,912 trainable": it has {{ flan.trainable:,}}. Its decoder
#   has two attentions a layer.
#
# ## Open question
#
# QLoRA's weights are so small that, with long sequences, activations are the largest part
# again. Which of them could be recomputed, which could be kept in fewer bits, and what would
# each cost in time?
