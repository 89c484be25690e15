# %% [markdown]
# # 21 · A thousand adapters on one base?
#
# Know first: lesson 13 · Difficulty ●●● · 12 minutes to read · 30 seconds to run
#
# A thousand users, a thousand adapters, one frozen base. A batch comes in, and every row of it
# wants another adapter. For one Linear that is
#
#     y[i] = x[i] Wᵀ + s[i] · (x[i] A[i]ᵀ) B[i]ᵀ
#
# W is the same for all rows, so its product can be one. What to do with the rest? Four ways:
#
#     loop       the base once, then adapter by adapter, each for its own rows
#     swap       for each adapter W + ΔW, then its rows: a merge per request
#     gathered   in each call A and B of all rows copied, then two batched products
#     own rows   the same products; a row gets its copy once, when it is admitted
#
# PEFT's mixed batches are the loop (its maintainer says in huggingface/peft #2283 that it does not
# parallelize there). Gathering is the idea of Punica (arXiv 2310.18547), whose GPU kernel reads the
# factors where they lie.

# %%
import time
from functools import partial

import torch

import minilora
from minilora.learn import check, full_or_short, show
from minilora.plots.style import hue, in_house_style, label_ends, one_axes

torch.manual_seed(0)
d, r, rows = 576, 8, 64
W = torch.randn(d, d) / d**0.5
x = torch.randn(rows, 1, d)  # one new token for each of 64 requests


def loop(A, B, ids):
    y = x @ W.T
    for k in ids.unique():
        mine = ids == k
        y[mine] += (x[mine] @ A[k].T) @ B[k]
    return y


def swap(A, B, ids):
    y = torch.empty_like(x)
    for k in ids.unique():
        mine = ids == k
        y[mine] = x[mine] @ (W + (A[k].T @ B[k]).T).T
    return y


def gathered(A, B, ids):
    return torch.baddbmm(x @ W.T, torch.bmm(x, A[ids].mT), B[ids])


def own_rows(A_rows, B_rows):
    return torch.baddbmm(x @ W.T, torch.bmm(x, A_rows.mT), B_rows)


# %% [markdown]
# ## Predict
# %% [predict] flat
# With 1,000 adapters in the bank instead of one, a step of "own rows" takes …
# - a) about as long
# - b) two to ten times as long
# - c) more than ten times as long
# answer: "abc"[(growth["own rows"] > 1.7) + (growth["own rows"] > 10)]

# %% [markdown]
# ## Run: the price against the number of adapters
#
# Each row draws one of N adapters. B is kept as (r, out), the scaling folded in. Processor time of
# one thread (a second one that waits would count too), the lower quartile of many calls.


# %%
def cost(run, seconds=0.25):
    """Processor microseconds of a call."""
    run()
    times, end = [], time.thread_time() + seconds
    while time.thread_time() < end or len(times) < 5:
        start = time.thread_time()
        run()
        times.append(time.thread_time() - start)
    return 1e6 * sorted(times)[len(times) // 4]


threads = torch.get_num_threads()
torch.set_num_threads(1)
counts = full_or_short((1, 4, 16, 64, 250, 1000), (1, 1000))
microseconds = {"loop": [], "swap": [], "gathered": [], "own rows": []}
with torch.inference_mode():
    for n in counts:
        A, B = torch.randn(n, r, d) / d**0.5, torch.randn(n, r, d) / 8
        ids = torch.randint(n, (rows,))
        right = loop(A, B, ids)
        kinds = {"loop": loop, "swap": swap, "gathered": gathered}
        ways = {name: partial(kind, A, B, ids) for name, kind in kinds.items()}
        ways["own rows"] = partial(own_rows, A[ids], B[ids])  # copied once a request, not a token
        for name, way in ways.items():
            torch.testing.assert_close(way(), right, rtol=1e-3, atol=1e-3)
            microseconds[name].append(cost(way))
    base_alone = cost(lambda: x @ W.T)
torch.set_num_threads(threads)
growth = {name: values[-1] / values[0] for name, values in microseconds.items()}
print("µs of", "".join(f"{n:7,}" for n in counts), "adapters")
for name, values in microseconds.items():
    per = "".join(f"{value:7.0f}" for value in values)
    print(f"{name:8}{per}, {values[-1] / base_alone:.1f} × the base alone")
assert growth["own rows"] < 3 < growth["loop"]
assert microseconds["swap"][-1] > 3 * microseconds["own rows"][-1]

# %% [markdown]
# ## Run: requests of uneven length
#
# Rows do not end together. A batch that waits for its longest answer keeps finished rows, which
# compute nothing. *Continuous batching* (Orca, OSDI 2022, section 3) gives a freed row to the next
# request at once. Same requests, same eight slots:

# %%
lengths = torch.randint(8, 65, (40,), generator=torch.Generator().manual_seed(1)).tolist()
slots = 8


def waits_for_all(lengths):
    """(slot, start, tokens) of each request."""
    spans, now = [], 0
    for first in range(0, len(lengths), slots):
        batch = lengths[first : first + slots]
        spans += [(slot, now, tokens) for slot, tokens in enumerate(batch)]
        now += max(batch)
    return spans


def continuous(lengths):
    """The same with the next request in the first slot that is free."""
    spans, free_at = [], [0] * slots
    for tokens in lengths:
        slot = min(range(slots), key=free_at.__getitem__)
        spans.append((slot, free_at[slot], tokens))
        free_at[slot] += tokens
    return spans


plans = {"waits for all": waits_for_all(lengths), "continuous": continuous(lengths)}
steps = {name: max(start + tokens for _, start, tokens in spans) for name, spans in plans.items()}
busy = {name: sum(lengths) / (slots * count) for name, count in steps.items()}
for name in plans:
    print(f"{name:14} {steps[name]} steps, rows busy {busy[name]:.0%} of the time")
assert steps["continuous"] < 0.8 * steps["waits for all"]

# %% [markdown]
# ## Look


# %%
@in_house_style
def draw():
    figure, (left, right) = one_axes(width=11, height=4, columns=2)
    ends = {"base alone": (base_alone, hue(6))}
    for index, (name, values) in enumerate(microseconds.items()):
        left.plot(counts, values, marker="o", color=hue(index))
        ends[name] = values[-1], hue(index)
    left.axhline(base_alone, color=hue(6), linestyle="--", linewidth=1)
    left.set(xscale="log", yscale="log", xlabel="adapters in the bank", ylabel="µs a step")
    left.set_title("64 rows, one Linear of 576 × 576")
    label_ends(left, ends)
    for offset, (name, spans) in enumerate(plans.items()):
        for slot, start, tokens in spans:
            place = offset * (slots + 2) + slot
            right.barh(place, tokens - 1, left=start, height=0.8, color=hue(offset), alpha=0.85)
        right.text(0, offset * (slots + 2) - 0.9, f"{name}: {steps[name]} steps", va="bottom")
    right.set(xlabel="decode step", yticks=[], ylabel="slot", title="40 requests, eight slots")
    right.set_ylim(2 * slots + 2, -2.5)  # the first slot on top
    return figure


show(
    draw(),
    "Left: loop and swap rise with the number of adapters, gathered and own rows stay flat, own "
    "rows near the base. Right: gaps in the slots that wait for all, none in the continuous ones",
)

# %% [markdown]
# ## Explain
#
# The loop and the swap pay for each *different* adapter in the batch: {{ rows }} rows of a thousand
# adapters are about as many adapters as rows. Two batched products pay for each *row*, and rows
# there are {{ rows }} whatever the bank holds. That is why the lower curves are flat, and why only
# memory limits the number of adapters. Gathering moves 2 · {{ rows }} · r · d numbers a call and a
# Linear; a row that owns its copy moves them once a request. What else a user costs is the bytes
# of an adapter.

# %%
base = minilora.load_base()
minilora.inject(base, minilora.LoraConfig(r=8))
per_adapter = sum(4 * p.numel() for p in base.parameters() if p.requires_grad)
per_model = sum(4 * p.numel() for p in base.parameters() if not p.requires_grad)
thousand_adapters, thousand_models = 1000 * per_adapter / 1e6, 1000 * per_model / 1e6
assert thousand_adapters < 100 < thousand_models / 40

# %% [markdown]
# And the promise that makes it usable: *a row gets what it would get alone*. We ask the real thing
# (`minilora.serving`), with adapters of different ranks and modules, filled at random.

# %%
import tempfile

from minilora.serving import AdapterBank

log = "Log: Hull 90%, Fuel 12%, Oxygen 98%."
bank, solo = AdapterBank(minilora.load_base()), {None: minilora.load_base()}
shapes = {"ada": (8, ["q_proj", "v_proj"]), "ben": (2, ["up_proj"]), "eve": (4, "all-linear")}
for name, (rank, targets) in shapes.items():
    model = minilora.load_base()
    minilora.inject(model, minilora.LoraConfig(r=rank, target_modules=targets))
    for _, layer in minilora.lora_layers(model):
        torch.nn.init.normal_(layer.lora_B, std=0.2)
    with tempfile.TemporaryDirectory() as folder:
        bank.load(name, minilora.save_adapter(model, folder))
    solo[name] = model
asked = [(name, question, log) for name in solo for question in ("Status?", "Fuel status?")]
mixed = bank.generate(asked, max_new_tokens=12)
alone = [solo[name].generate_text(q, log, max_new_tokens=12) for name, q, _ in asked]
for (name, _, _), answer in list(zip(asked, mixed, strict=True))[::2]:
    print(f"{name!s:5} {answer!r}")
assert mixed == alone
assert len(set(mixed)) > 4

# %% [markdown]
# ## Break it
#
# Three ways to serve one user with another's weights, words or memory. None raises an error.
#
# **The leftover rank.** A row had an adapter of rank 8; the new one has rank 2 and writes two rows
# of A and B. (sgl-project/sglang #7426 and #8103: a slot kept what the evicted adapter left there.)

# %%
A_rows, B_rows = torch.zeros(rows, 8, d), torch.zeros(rows, 8, d)
A_rows[0], B_rows[0] = torch.randn(8, d) / d**0.5, torch.randn(8, d)  # who was here before
new_A, new_B = torch.randn(2, d) / d**0.5, torch.randn(2, d)
wanted = x[0] @ W.T + (x[0] @ new_A.T) @ new_B
A_rows[0, :2], B_rows[0, :2] = new_A, new_B  # only what is needed
leftover = (own_rows(A_rows, B_rows)[0] - wanted).norm() / wanted.norm()
A_rows[0, 2:], B_rows[0, 2:] = 0, 0  # the whole row, unused ranks too
clean = (own_rows(A_rows, B_rows)[0] - wanted).norm() / wanted.norm()
print(f"off by {leftover:.0%} with the leftover, {clean:.0e} without")
assert clean < 1e-5 < 0.1 < leftover

# %% [markdown]
# **The neighbour's padding.** A short prompt beside a long one is filled up to the same length.
# Without a mask it reads the filling, and its answer depends on who stands beside it.
#
# **The prefix that another adapter wrote.** Two users send the same long prompt, so its keys and
# values are kept and used again. But they were computed through the *first* user's adapter. A name
# in the cache's key is not enough: new weights under an old name met the old prefix in
# vllm-project/vllm #42125. The key must hold the adapter's content.

# %%
tok = base.tokenizer
short, long = (
    tok.apply_chat_template([{"role": "user", "content": f"{log}\n{q}"}], True)
    for q in ("Status?", "How are the Hull, the Fuel and the Oxygen of this ship today, please?")
)
ada, eve, gap = solo["ada"], solo["eve"], len(long) - len(short)
filled = torch.tensor([[tok.eos_id] * gap + short, long])
mask = torch.tensor([[0] * gap + [1] * len(short), [1] * len(long)])
with torch.no_grad():
    right = ada(torch.tensor([short]))[0, -1]
    padding = (ada(filled)[0, -1] - right).norm() / right.norm()
    masked = (ada(filled, mask)[0, -1] - right).norm() / right.norm()
    right = ada(torch.tensor([long]))[0, -1]
    cache = minilora.model.cache.KVCache()
    eve(torch.tensor([long[:-1]]), cache=cache)  # the first user's prefix
    prefix = (ada(torch.tensor([long[-1:]]), cache=cache)[0, -1] - right).norm() / right.norm()
print(f"padding: off by {padding:.0%}, with a mask {masked:.0e}; the prefix: off by {prefix:.0%}")
assert masked < 1e-4 < 0.02 < padding
assert prefix > 0.02

# %% [markdown]
# ## Build: the mixed row
#
# Difficulty ●●○ · Importance ●●● · 10 minutes


# %% [exercise] mixed_rows
import torch


def mixed_rows(x, W, A, B, scaling):
    """x[i] Wᵀ + scaling[i] · (x[i] A[i]ᵀ) B[i]ᵀ for every row i. The rule: no loop.

    x (rows, time, in), W (out, in), A (rows, r, in), B (rows, out, r), scaling (rows,). Returns
    (rows, time, out).
    """
    raise NotImplementedError("TODO: one product with W, two batched ones with A and B")


# %% [hints] mixed_rows
# 1. `x @ W.T` takes all rows at once. For the rest `torch.bmm(x, …)` wants (rows, in, r).
# 2. `A.mT` is A with its last two axes exchanged; `h = torch.bmm(x, A.mT)` is (rows, time, r).
# 3. `return x @ W.T + scaling[:, None, None] * torch.bmm(h, B.mT)`

# %%
check(mixed_rows)

# %% [markdown]
# ## Build: the slot cache
#
# Difficulty ●●○ · Importance ●●● · 12 minutes
#
# Every slot has a length of its own. A new key goes to that place, in place: joining old and new
# would copy the whole past for every token.


# %% [exercise] slot_step
def slot_step(keys, lengths, new):
    """Keep each row's new key at its own end, and say what each row may look at.

    keys (rows, capacity, size) and lengths (rows,) are changed in place; new (rows, size). Returns
    a mask (rows, capacity), True for the places that are filled, the new one among them.
    """
    raise NotImplementedError("TODO: write at keys[i, lengths[i]], count, compare")


# %% [hints] slot_step
# 1. `keys[torch.arange(len(keys)), lengths]` is the place behind each row's end.
# 2. After writing, `lengths += 1`, in place: the caller's lengths must grow.
# 3. `return torch.arange(keys.shape[1]) < lengths[:, None]`

# %%
check(slot_step)

# %% [markdown]
# ## What you can now defend
#
# - A thousand adapters cost what one costs: {{ growth["own rows"]:.2f}} × the time of a step here,
#   where the loop took {{ growth["loop"]:.0f}} × and the swap {{ growth["swap"]:.0f}} ×. Over the
#   base alone the rows' own products took {{ microseconds["own rows"][-1] / base_alone:.1f}} ×.
# - They need {{ thousand_adapters:.0f}} MB; as merged models {{ thousand_models:,.0f}} MB.
# - Rows that end at different times need a batch that goes on: {{ steps["continuous"] }} steps
#   instead of {{ steps["waits for all"] }}, rows busy {{ busy["continuous"]:.0%}} of the time
#   instead of {{ busy["waits for all"]:.0%}}.
# - A row of a mixed batch answers as it does alone, if whole rows are overwritten, padding is
#   masked, and nothing that another adapter computed is used again.
#
# ## Open question
#
# Twenty users wait, one of them with a thousand requests. Who is next? In turns of what?
