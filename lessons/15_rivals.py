# %% [markdown]
# # 15 · Soft prompts, prefixes, bottlenecks, biases, or LoRA?
#
# Know first: lesson 07 · Difficulty ●●○ · 12 minutes to read · 90 seconds to run
#
# LoRA changes weights. There are three other places where a frozen model can be given something to
# train, and each has a method with a name:
#
#     input    [P; E[tokens]]           a soft prompt: k vectors before the text
#     cache    [K_p; K], [V_p; V]       a prefix: k keys and values in each layer
#     output   h + W_up relu(W_down h)  a bottleneck beside each block
#     bias     W x + b, b trained       BitFit
#
# (From the top: arXiv 2104.08691; 2101.00190; 1902.00751 and 2005.00247; 2106.10199.)
# Which one should you take? We train each a little, and then ask what each cannot do.

# %%
import copy
import statistics
import time
from unittest.mock import patch

import torch

import minilora
from minilora import (
    BitFitConfig,
    BottleneckConfig,
    LoraConfig,
    PrefixTuningConfig,
    PromptTuningConfig,
    data,
)
from minilora.learn import check, full_or_short, is_short, show
from minilora.lora.attached import attached_modules
from minilora.model import transformer
from minilora.plots.style import hue, in_house_style, label, one_axes
from minilora.training.batches import encode_all, pad
from minilora.training.objective import summed_loss

TEXT = "Read the ship's log and report the state of every system, one after the other. "
METHODS = {  # and the rate at which each was found to learn
    "LoRA q, v r=8": (LoraConfig(r=8, lora_alpha=16), 5e-3),
    "bottleneck k=8": (BottleneckConfig("pfeiffer", size=8), 5e-3),
    "BitFit": (BitFitConfig(), 2e-2),
    "prefix k=16": (PrefixTuningConfig(16), 3e-2),
    "soft prompt k=64": (PromptTuningConfig(64, "TEXT", TEXT), 1e-1),
    "soft prompt k=8": (PromptTuningConfig(8, "SAMPLE_VOCAB"), 1e-1),
}
STEPS = full_or_short(60, 3)

# %% [markdown]
# ## Predict

# %% [predict] where_to_act
# {{ STEPS }} steps of naval code, each method at its own rate. Where does the lowest held-out loss
# come from?
# - a) the weights or outputs of every layer: LoRA, bottleneck, BitFit
# - b) the cache of every layer: the prefix
# - c) the input: a soft prompt of 64 rows, as a model is made to read what stands before
# - d) everywhere alike, within a tenth
# answer: "d" if max(lowest) < 1.1 * min(lowest) else "abc"[lowest.index(min(lowest))]

# %% [markdown]
# ## Run: one task, six ways

# %%
task = data.naval_log(2000, 40)
rows = pad(encode_all(minilora.load_base().tokenizer, task.valid, 512))


@torch.no_grad()
def held_out(model):
    """Loss on held-out logs, nats an answer token."""
    return summed_loss(model.eval(), rows).item() / rows.answer_tokens


settings = {"steps": STEPS, "batch_size": 16, "validate_every": 0, "keep_best": False}
models, loss, trained = {}, {}, {}
for name, (config, rate) in METHODS.items():
    torch.manual_seed(0)
    model = minilora.load_base()
    trained[name] = minilora.inject(model, config).trainable
    minilora.train(model, task, lr=rate, progress=False, **settings)
    models[name], loss[name] = model, held_out(model)
    print(f"{name:17} trains {trained[name]:6,} numbers, held-out loss {loss[name]:.2f}")

untrained = held_out(minilora.load_base())
print(f"the base has a loss of {untrained:.2f}")
inside = ["LoRA q, v r=8", "bottleneck k=8", "BitFit"]  # they act on every layer's products
before = [name for name in METHODS if name not in inside]
best, worst = min(loss[name] for name in inside), max(loss[name] for name in inside)
lowest = [best, loss["prefix k=16"], loss["soft prompt k=64"]]
if not is_short():
    assert worst < min(loss[name] for name in before)
    assert loss["soft prompt k=64"] < loss["soft prompt k=8"]
    assert max(loss.values()) < untrained

# %% [markdown]
# ## Look


# %%
@in_house_style
def draw(loss, trained):
    figure, axes = one_axes(width=7.4, height=3.4)
    names = sorted(loss, key=loss.get, reverse=True)
    colors = {"LoRA": 0, "bottleneck": 1, "BitFit": 2, "prefix": 3, "soft": 4}
    for row, name in enumerate(names):
        axes.barh(row, loss[name], color=hue(colors[name.split()[0]]), height=0.6)
        label(axes, f"{loss[name]:.2f}, trains {trained[name]:,}", (loss[name], row), (5, -4))
    axes.set(yticks=range(len(names)), yticklabels=names, xlabel="held-out loss, nats a token")
    axes.set_title(f"Naval code after {STEPS} steps: shorter is better")
    axes.set_xlim(0, 1.35 * max(loss.values()))
    axes.grid(axis="y", visible=False)
    return figure


show(draw(loss, trained), "Bars of held-out loss of six methods, the best at the top")

# %% [markdown]
# The three that act on every layer's products lie between {{ best:.2f}} and {{ worst:.2f}}: one
# seed and {{ STEPS }} steps do not rank them. The other two places are far behind, and a prompt of
# few rows hardly learns at all. That is how fast they learn, not what they can learn.
# `docs/soft_tokens.md` trains prompts and prefixes up to fifty times as long; there the prefix
# passes the prompt, and both are still behind LoRA.
#
# ## Explain
#
# Count what each trains, with d the width, L layers, k rows or width of the bottleneck:
#
#     LoRA          Σ r (in + out)            merges: W + s B A is one weight
#     BitFit        Σ out                     merges: into the bias
#     bottleneck    L (2 d k + k + d)         cannot: relu stands between
#     prefix        2 L k · kv_heads · head_dim   cannot: it is a cache
#     soft prompt   k d                       cannot: it is input
#
# Merging is what makes a method free at inference. The others pay in every call. A prompt and a
# prefix also take k of the model's positions, and a bottleneck adds two products to each layer.

# %%
ids = torch.randint(5, 900, (1, 64), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def seconds(model):
    began = time.perf_counter()
    model(ids)
    return time.perf_counter() - began


def times_the_base(model):
    """The median over rounds in which model and base take turns: other work hits both."""
    rounds = full_or_short(21, 5)
    return statistics.median(seconds(model) / seconds(bare) for _ in range(rounds))


def merges(model):
    """Whether it can be merged, by trying; an error changes nothing."""
    try:
        minilora.merge(copy.deepcopy(model))
    except ValueError:
        return False
    return True


can_merge = {name: merges(model) for name, model in models.items()}
bare = minilora.load_base().eval()
print(f"{'':17} KB to ship  merges  positions  time of a call, base = 1")
for name, model in models.items():
    parts = [part for _, part in attached_modules(model) if part.puts_rows_before]
    positions = int(name.split("=")[1]) if parts else 0
    cost = times_the_base(model)
    kilobytes = 4 * trained[name] / 1000
    print(
        f"{name:17} {kilobytes:10.1f}  {'yes' if can_merge[name] else 'no':6}  {positions:9}"
        f"  {cost:.2f}"
    )

assert [name for name in METHODS if can_merge[name]] == ["LoRA q, v r=8", "BitFit"]

# %% [markdown]
# The third thing is to travel. LoRA, prefix and soft prompt have a file format that PEFT reads.
# PEFT has no place for biases that the base does not have, and a Llama has none, so BitFit travels
# merged. A bottleneck opens in the library that wrote it.
#
# ## Break it
#
# Rows of a batch have different lengths, so short ones are padded on the left. Rotary positions are
# relative: if *everything* in a row moves by the same distance, nothing changes. That is why most
# code counts positions from the left edge of the batch, padding included. With a soft prompt, not
# everything moves: the prompt stands at the left edge, the padding comes between it and the text.

# %% [predict] padding
# A row of 10 tokens is answered alone, and in a batch beside a row of 40 tokens, with positions
# counted from the left edge. How do its last logits change?
# - a) not at all: the padding is masked
# - b) without a soft prompt not, with one they do
# - c) in both cases they do
# answer: "b" if moved["soft prompt k=64"] > 100 * moved["no prompt"] else "a"


# %%
def from_the_left_edge(segments, time, device):
    """The wrong rule: padding counts."""
    return torch.arange(time, device=device)[None]


short, long = ids[:, :10], ids[:, 10:50]
padding = long.shape[1] - short.shape[1]
batch = torch.cat([torch.nn.functional.pad(short, (padding, 0)), long])  # (2, 40)
mask = torch.ones_like(batch)
mask[0, :padding] = 0


@torch.no_grad()
def moves(model):
    """How far a row's last logits are, in a padded batch, from those it has alone."""
    return (model(batch, mask)[0, -1] - model(short)[0, -1]).abs().max().item()


moved, right = {}, {}
cases_of = {"no prompt": minilora.load_base().eval()}
cases_of |= {name: models[name] for name in ("prefix k=16", "soft prompt k=64")}
for name, model in cases_of.items():
    right[name] = moves(model)
    with patch.object(transformer, "positions_of", from_the_left_edge):
        moved[name] = moves(model)
    print(f"{name:17} from the mask {right[name]:.0e}, from the left edge {moved[name]:.0e}")

assert max(right.values()) < 1e-3
assert moved["no prompt"] < 1e-3
assert moved["soft prompt k=64"] > 100 * moved["no prompt"]

# %% [markdown]
# The logits of one row moved by {{ moved["soft prompt k=64"]:.2f}}, because another row was longer.
# Nothing fails; in tests with one row it never shows. The prefix is safe here: it stands in the
# cache, and the cache counts each row's own tokens. The cure is one line: positions from the mask.
#
# ## Build: the soft prompt's inputs
#
# Difficulty ●●○ · Importance ●●● · 10 minutes


# %% [exercise] with_prompt
import torch


def with_prompt(P, x, mask):
    """Put a soft prompt before each row; give the mask and the positions that belong to it.

    P (k, d), x (batch, time, d), mask (batch, time) of 1 for a token and 0 for padding, on either
    side. Returns inputs (batch, k + time, d), mask (batch, k + time), and positions
    (batch, k + time): 0 … k-1 for P, k, k+1 … for the tokens of a row; padding may have any.
    """
    raise NotImplementedError("TODO: three tensors")


# %% [hints] with_prompt
# 1. `SoftPrompt.before` in minilora/methods/prompt_tuning.py and `positions_of` in
#    minilora/model/transformer.py do this.
# 2. `P.expand(batch, -1, -1)` is P for every row; k ones belong before each row of the mask.
# 3. A token's position is the number of ones up to it, less one: `mask.cumsum(1) - 1`, over the
#    longer mask.

# %%
check(with_prompt)

# %% [markdown]
# ## Build: the bottleneck
#
# Difficulty ●○○ · Importance ●●○ · 5 minutes


# %% [exercise] bottleneck
import torch


def bottleneck(h, down, b, up, c):
    """h + up(relu(down(h))): h (…, d), down (k, d) with bias b (k,), up (d, k) with bias c (d,)."""
    raise NotImplementedError("TODO: (…, d)")


# %% [hints] bottleneck
# 1. `Bottleneck.up` and `Bottleneck.behind` in minilora/methods/bottleneck.py do this.
# 2. Weights are (out, in), so a product is `h @ down.T + b`.
# 3. `h + torch.relu(h @ down.T + b) @ up.T + c`

# %%
check(bottleneck)

# %% [markdown]
# ## What you can now defend
#
# - Only what is linear in a weight merges: {{ ", ".join(n for n in METHODS if can_merge[n]) }}. The
#   rest costs something in every call.
# - Where a method acts decides how fast it learns. On every layer's products all three came to
#   {{ worst:.2f}} or less; before the text none came below {{ min(loss[n] for n in before):.2f}}. A
#   soft prompt needs rows: with 64 it reached {{ loss["soft prompt k=64"]:.2f}}, with 8
#   {{ loss["soft prompt k=8"]:.2f}}.
# - A soft prompt needs positions from the mask. Counted from the left edge, an answer depends on
#   the lengths of its neighbours.
#
# ## Open question
#
# On SmolLM2, a hundred times as large, twenty rows are enough (`docs/soft_tokens.md`). What has to
# be in a base already, so that a prompt can call it up?
