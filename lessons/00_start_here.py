# %% [markdown]
# # 00 · What is LoRA, in one minute?
#
# Know first: nothing · Difficulty ●○○ · 3 minutes to read · 60 seconds to run
#
# A trained model is tens to hundreds of large matrices. To teach it something new, one can change
# all their numbers. LoRA changes none. Beside a matrix W₀ it puts two thin ones, A and B, and
# trains only those.
#
# ![x goes through the frozen W₀ and through the thin A and B, and the results are added](lora.svg)
#
#     y = x W₀ᵀ + α/r · (x Aᵀ) Bᵀ        W₀ (out, in), A (r, in), B (out, r)
#
# The model of this course is small enough to train while you read: a Llama of a million or so
# parameters that ships with the package. It is a ship's computer with the manners of a butler. The
# navy wants short answers.

# %% [markdown]
# ## Predict
#
# The adapter stands beside two matrices of each of the six layers, with r = 8.

# %% [predict] share_trained
# How many of 1,000 parameters of the model are trained?
# answer: 1000 * trained / total

# %% [predict] after_taking_off
# After the training we switch the adapter off. What does the model answer then?
#
# - a) naval code
# - b) what it said before, to the letter
# - c) something between the two
# answer: "b" if off == before else ("a" if off == after else "c")

# %% [markdown]
# ## Run: three answers

# %%
import torch

import minilora
from minilora import LoraConfig
from minilora.learn import check, full_or_short, is_short, show
from minilora.lora.injection import trainable_parameters
from minilora.lora.layer import lora_layers
from minilora.plots.style import hue, in_house_style, one_axes

torch.set_flush_denormal(True)
log = "Log: Hull 90%, Fuel 12%, Engines stop."
model = minilora.load_base()
task = minilora.data.naval_log()
before = model.generate_text("Status?", log)

minilora.inject(model, LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"]))
trained, total = trainable_parameters(model)
steps, logs = full_or_short((500, 50), (120, 10))
history = minilora.train(model, task, steps=steps, progress=False)
after = model.generate_text("Status?", log)
right = minilora.exact_match(model, task.valid[:logs])
with minilora.disable_adapter(model):
    off = model.generate_text("Status?", log)

print("before:      ", before)
print("after:       ", after)
print("switched off:", off)
print(f"{right:.0%} of {logs} logs that it was not trained on are answered to the letter")
assert off == before != after
assert model.config.num_hidden_layers == 6  # as the prediction says
if not is_short():
    assert after == "Hull 90%. Fuel 12%. All stop."
    assert right > 0.8

# %% [markdown]
# ## Look

# %%
linears = {"q_proj": (128, 128), "v_proj": (64, 128)}  # (out, in) of the two in one layer


@in_house_style
def draw(losses, sizes):
    figure, (left, right) = one_axes(width=10.0, height=3.4, columns=2)
    left.plot(losses, color=hue(0))
    left.set(title="It learns", xlabel="step", ylabel="loss, nats a token (log)", yscale="log")
    names = list(sizes)
    for row, name in enumerate(names):
        right.plot(sizes[name], row, "o", markersize=9, color=hue(row))
        right.annotate(f"{sizes[name]:,}", (sizes[name], row), (8, 6), textcoords="offset points")
    right.set(title="What is trained", xlabel="numbers (log)", xscale="log", ylim=(-0.5, 1.6))
    right.set_xlim(1e4, 5e6)
    right.set_yticks(range(len(names)), names)
    return figure


show(
    draw(history.losses, {"the whole model": total, "A and B": trained}),
    "Left: the loss falls by steps of training. Right: the whole model has "
    f"{total / trained:.0f} times as many numbers as A and B together",
)

# %% [markdown]
# ## Explain
#
# {{ trained:,}} of {{ total:,}} numbers were trained, {{ 1000 * trained / total:.0f}} in a
# thousand. The file that holds them is what you would send to a friend who has the base.
#
# The base was not touched: with the adapter off, it says what it said before, to the letter. That
# is why a thousand adapters can share one base.
#
# Why so few numbers? A matrix of out × in numbers is replaced in the update by B times A:
#
#     out · in        becomes        r · (in + out)
#
# We took r = 8. With r as large as the matrix, B times A could be any update. What would that cost?

# %%
out, into = linears["q_proj"]
counts = {r: r * (into + out) for r in (1, 8, 64, 128)}
for r, count in counts.items():
    print(f"r = {r:3}: {count:6,} numbers beside {out * into:,}")
assert counts[64] == out * into
assert counts[128] == 2 * out * into

# %% [markdown]
# From r = {{ out * into // (into + out)}} on, this "thin" pair has as many numbers as the matrix
# itself, and above it more. Which r is enough is a question for lessons 03 and 08.
#
# ## Break it
#
# An adapter begins with A random and B zero. So B A is zero, and the first answer is still the old
# one. Begin with both random instead, and train nothing:

# %%
torch.manual_seed(0)
spoilt = minilora.load_base()
minilora.inject(spoilt, LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"]))
untrained = spoilt.generate_text("Status?", log)
for _, layer in lora_layers(spoilt):
    torch.nn.init.normal_(layer.lora_B)
babble = spoilt.generate_text("Status?", log, max_new_tokens=24)
print("B zero:  ", untrained)
print("B random:", babble)
assert untrained == before != babble

# %% [markdown]
# Nothing was trained, and the answers are nonsense. Lesson 04 asks which of the two may be random.

# %% [markdown]
# ## Build: the count
#
# Difficulty ●○○ · Importance ●●○ · 1 minute
#
# Your first piece. It is one line, and it shows how building works here: write it in the file that
# is named below, save it, and have it checked on random shapes.


# %% [exercise] adapter_size
def adapter_size(shapes, r):
    """How many numbers LoRA of rank r trains beside the given matrices.

    shapes is a list of (out, in), one for each adapted matrix. Returns a whole number.
    """
    raise NotImplementedError("TODO: A is (r, in) and B is (out, r)")


# %% [hints] adapter_size
# 1. Take one matrix first. How many numbers has A, how many has B?
# 2. A is (r, in): r · in numbers. B is (out, r): out · r numbers.
# 3. sum(r * (out + into) for out, into in shapes)

# %%
check(adapter_size)

# %% [markdown]
# ## What you can now defend
#
# LoRA trains {{ trained:,}} numbers where the model has {{ total:,}}; the model then answers
# {{ right:.0%}} of new logs in naval code, to the letter; and without the adapter it is the old
# model, also to the letter.
#
# By the end of the course you will have built the layer and its gradients, the four-bit format of
# QLoRA, the merge, the bank that serves a thousand adapters at once, and, in lesson 25, all of it
# in one file whose adapter PEFT opens.
#
# ## Open question
#
# What is it that a matrix does, and in which direction must it change? That is lesson 01.
