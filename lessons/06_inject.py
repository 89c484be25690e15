# %% [markdown]
# # 06 · How to adapt a model I did not write?
#
# Know first: lesson 05 · Difficulty ●●○ · 8 minutes to read · 5 seconds to run
#
# You have an adapter for one layer. The model has dozens, in a class that somebody else wrote, and
# its forward method calls `self.q_proj(x)`. You do not want to edit that class.
#
# You need not. PyTorch finds a layer by its name when it is called. Put another module under the
# same name, one that keeps the old layer inside and adds s · B A to what it returns, and the class
# never knows. What must be decided is *which* names.

# %% [markdown]
# ## Predict

# %% [predict] how_many_layers
# The shipped base has 6 blocks, each with q, k, v and o in its attention and gate, up and down in
# its MLP. With the targets `["q_proj", "v_proj"]`, how many modules get an adapter?
# answer: len(wrapped)

# %% [predict] same_outputs
# Directly after that, before any training: by how much can a logit have changed, at most?
#
# - a) not at all, to the bit
# - b) by rounding, about a millionth
# - c) by about a hundredth
# answer: "a" if change == 0 else "b" if change < 1e-4 else "c"

# %% [markdown]
# ## Run: by hand, then with `inject`
#
# First by hand, in a dozen lines. A model is a tree of modules, and every module has a path,
# such as `model.layers.3.self_attn.q_proj`. Freeze all, then swap in a wrapper at each path
# that is wanted.

# %%
import torch
from torch import nn

import minilora
from minilora.learn import check, show
from minilora.plots.style import hue, in_house_style, one_axes


class Wrapped(nn.Module):
    def __init__(self, base, r, scaling):
        super().__init__()
        self.base, self.scaling = base, scaling
        bound = base.in_features**-0.5
        self.lora_A = nn.Parameter(torch.empty(r, base.in_features).uniform_(-bound, bound))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, r))

    def forward(self, x):
        return self.base(x) + self.scaling * (x @ self.lora_A.T) @ self.lora_B.T


torch.manual_seed(0)
mine = minilora.load_base()
ids = torch.tensor([mine.tokenizer.encode("The ship is ready, and the sea is calm.")])
with torch.no_grad():
    before = mine(ids)
wrapped = [path for path, _ in mine.named_modules() if path.endswith((".q_proj", ".v_proj"))]
mine.requires_grad_(False)
for path in wrapped:
    mine.set_submodule(path, Wrapped(mine.get_submodule(path), r=8, scaling=2.0))
by_hand = sum(p.numel() for p in mine.parameters() if p.requires_grad)
with torch.no_grad():
    after = mine(ids)
change = (after - before).abs().max().item()
print(f"by hand: {by_hand:,} trainable; outputs equal to the bit: {torch.equal(after, before)}")
assert change == 0

# %% [markdown]
# Now with the package. It does the same, and prints what it matched. That table is the
# part not to skip.

# %%
model = minilora.load_base()
frozen = {name: p.detach().clone() for name, p in model.named_parameters()}
config = minilora.LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"])
report = minilora.inject(model, config)
with torch.no_grad():
    assert torch.equal(model(ids), before)
print(report)
formula = sum(8 * (match.in_features + match.out_features) for match in report.chosen)
assert report.trainable == by_hand == formula

# %% [markdown]
# ## Look


# %%
@in_house_style
def draw_model(matches, trainable, total):
    in_blocks = [match for match in matches if ".layers." in match.name]
    kinds = list(dict.fromkeys(match.name.rpartition(".")[2] for match in in_blocks))
    layers = sorted({int(match.name.split(".")[2]) for match in in_blocks})
    figure, axes = one_axes(width=9.4, height=4.4)
    centred = {"ha": "center", "va": "center", "fontsize": 9}
    for match in in_blocks:
        column, row = kinds.index(match.name.rpartition(".")[2]), int(match.name.split(".")[2])
        box = {"left": column - 0.47, "height": 0.86}
        if match.pattern is not None:
            axes.barh(row, 0.94, color=hue(0), alpha=0.95, **box)
            text, color = f"+{match.parameters:,}", axes.get_facecolor()
        else:
            axes.barh(row, 0.94, color=hue(6), alpha=0.22, **box)
            text, color = f"{match.in_features * match.out_features:,}", None
        axes.annotate(text, (column, row), color=color, **centred)
    axes.set(xlim=(-0.5, len(kinds) - 0.5), ylim=(len(layers) - 0.5, -0.5))
    axes.set(xticks=range(len(kinds)), xticklabels=kinds)
    axes.set(yticks=layers, yticklabels=[f"layer {i}" for i in layers])
    train = f"{trainable:,} of {total:,} parameters train"
    axes.set_title(f"Blue: has an adapter, and what that adds ({train})")
    axes.set_xlabel("grey: frozen, with the numbers in its weight")
    axes.grid(visible=False)
    axes.tick_params(length=0)
    return figure


show(
    draw_model(report.matches, report.trainable, report.total),
    "The Linears of the six blocks as a table: the columns q_proj and v_proj are blue and "
    "trainable, the other five kinds are grey and frozen.",
)

# %% [markdown]
# Does the gradient go where the picture says? One backward pass, and then every parameter is asked.

# %%
model(ids).square().mean().backward()
with_gradient = {n.rpartition(".")[2] for n, p in model.named_parameters() if p.grad is not None}
print("parameters with a gradient are called:", sorted(with_gradient))
assert with_gradient == {"lora_A", "lora_B"}

examples = minilora.data.naval_log(8, 1).train
history = minilora.train(model, examples, steps=2, batch_size=4, progress=False)
weights = dict(minilora.unload(model).named_parameters())
assert all(torch.equal(weights[name], value) for name, value in frozen.items())
print("after 2 training steps and unload(model), the base is the same to the bit")

# %% [markdown]
# ## Explain
#
# Three rules, and the order matters.
#
# 1. *Match before you change.* A list entry fits a module whose path is that entry, or ends in a
#    dot and that entry. A string is a regular expression for the whole path. PEFT has the same
#    rules, so a config means the same in both.
# 2. *Freeze first, then wrap.* `requires_grad_(False)` on the model reaches every parameter that is
#    in it at that moment.
# 3. *Register the wrapper.* `set_submodule` puts it into the tree, so that `parameters()`, `to()`
#    and `state_dict()` see it.
#
# At the start B is zero, and y + 0 is y in floating point: hence equal to the bit, not nearly
# equal. A test that asks for less would let a wrapper pass that casts or reorders something.
#
# The cost is r (in + out) for each match. LoRA's paper adapts the attention weights only, and of
# these q and v in most of its experiments (arXiv 2106.09685, sections 4.2 and 7.1). That is a
# choice of the authors, not a part of the method.

# %% [markdown]
# ## Break it: a typo, and the wrong order
#
# Two ways to train less than you think. First a typo in one of two names, with a matcher that takes
# what it finds. Then the freeze after the wrapping.

# %%
typo = ["q_proj", "v_porj"]
endings = tuple("." + name for name in typo)
fitting = [path for path, _ in minilora.load_base().named_modules() if path.endswith(endings)]
print(f"naive matcher: {len(fitting)} modules, no complaint")
try:
    minilora.inject(minilora.load_base(), minilora.LoraConfig(target_modules=typo))
    raise AssertionError("a typo went through")
except ValueError as error:
    print("inject:", str(error)[:92], "…")
assert len(fitting) == len(report.chosen) // 2

late = minilora.load_base()
late.set_submodule(fitting[0], Wrapped(late.get_submodule(fitting[0]), r=8, scaling=2.0))
late.requires_grad_(False)  # too late: A and B are in the model by now
trainable = sum(p.numel() for p in late.parameters() if p.requires_grad)
print("frozen after wrapping:", trainable, "trainable parameters")
assert trainable == 0

# %% [markdown]
# The first trains half of what was meant, and its loss falls, only less. PEFT raises an error when
# none of the names is found, and says nothing when one of several is not (huggingface/peft #1959).
# `inject` refuses an entry that matches nothing, before it changes anything. What you meant it
# cannot know: in one hybrid model PEFT's default, q, k, v and o, is found in 4 of the 56 layers
# (#3554). Count what trains, and know the number beforehand.

# %% [markdown]
# ## Build: the matcher
#
# Difficulty ●○○ · Importance ●●● · 10 minutes

# %% [exercise] name_matches


def name_matches(path, targets):
    """Whether a module's path, such as "model.layers.3.mlp.up_proj", is a target.

    targets is a list of names: one of them is the path, or its end after a dot ("up_proj",
    "mlp.up_proj"; not "p_proj"). Or a string: a regular expression that must match the whole path.
    Returns a bool.
    """
    raise NotImplementedError("TODO: two cases, a string and a list")


# %% [hints] name_matches
# 1. Ask first whether targets is a string: `isinstance(targets, str)`. A string is iterable too,
#    letter by letter.
# 2. For a string `re.fullmatch`, not `re.match`. For a list, compare the path with the name, and
#    its end with "." + name.
# 3. re.fullmatch(targets, path) is not None, or any(path == name or path.endswith("." + name) for
#    name in targets).

# %%
check(name_matches)

# %% [markdown]
# ## Build: the injection
#
# Difficulty ●●○ · Importance ●●●, this is `minilora/lora/injection.py` in five lines · 10 minutes


# %% [exercise] inject_by_name
def inject_by_name(model, names, wrap):
    """Freeze the whole model, then put wrap(module) in the place of each module named in `names`.

    model is any nn.Module, names a set of last names such as {"q_proj"}, wrap a function from a
    Linear to a new module that holds it. The parameters that the wrapper brings stay trainable.
    Works in place, at any depth. Returns the sorted list of the paths that were wrapped.
    """
    raise NotImplementedError("TODO: find the paths, freeze, swap")


# %% [hints] inject_by_name
# 1. `model.named_modules()` gives (path, module). Make a list of the paths before you
#    change the tree.
# 2. Freeze before you wrap, or A and B freeze too. The last name of a path is
#    path.rpartition(".")[2].
# 3. model.requires_grad_(False), then for each path model.set_submodule(path,
#    wrap(model.get_submodule(path))).

# %%
check(inject_by_name)

# %% [markdown]
# ## Run: a token of your own
#
# Linears are not all that one may want to train. A new special token has a row of its own in the
# embedding, and no adapter elsewhere teaches the model what it means. `modules_to_save` trains a
# whole copy of the table and stores it; `trainable_token_indices` trains the rows that you name.

# %%
tokens = {}
for way in (
    {"trainable_token_indices": [300, 301]},
    {"modules_to_save": ["embed_tokens", "lm_head"]},
):
    speaking = minilora.load_base()
    targets = minilora.LoraConfig(r=8, target_modules=["q_proj", "v_proj"], **way)
    minilora.inject(speaking, targets)
    tokens[next(iter(way))] = minilora.trainable_parameters(speaking)[0] - report.trainable
print("trained beside the adapter:", tokens)
assert 20 * tokens["trainable_token_indices"] < tokens["modules_to_save"]

# %% [markdown]
# Two rows are {{ tokens["trainable_token_indices"]:,}} numbers, the table
# {{ tokens["modules_to_save"]:,}}. This base's head is *tied*: it is the same table, so a token is
# written with the row that it is read with, and `inject` refuses to copy one of the two alone. Make
# a table larger before the adapter goes in, and in the same way wherever it is loaded, or the
# shapes do not fit.

# %% [markdown]
# ## What you can now defend
#
# - An adapter goes into a model by its modules' names. The class that wrote the forward is not
#   touched.
# - {{ len(report.chosen) }} modules matched, and Σ r (in + out) = {{ report.trainable :,}}
#   parameters train. Of this small model that is {{ report.trainable / report.total:.1%}}. "PEFT
#   trains under 0.1%" is no property of LoRA: the share falls with the width of the layers, and
#   rises with r and with each target.
# - The untrained model gives the base's outputs to the bit. If yours gives them nearly, find out
#   why.

# %% [markdown]
# ## Open question
#
# This base shares one matrix between its embedding and its output head. What should happen when a
# target is `lm_head`? Try `target_modules=["lm_head"]`, and read what `inject` says.
