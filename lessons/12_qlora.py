# %% [markdown]
# # 12 · How to train through frozen codes?
#
# Know first: lesson 11 · Difficulty ●●● · 10 minutes to read · 60 seconds to run
#
# The base lies in four bits. Codes cannot be trained: there is no small step from one level to the
# next. And they need not be. QLoRA (arXiv 2305.14314, section 3, equation 5) keeps them frozen,
# turns them into floats for the moment of each product, and trains A and B beside them:
#
#     y = x Ŵᵀ + s (x Aᵀ) Bᵀ          Ŵ = dequantize(codes, scales)
#
# Is anything lost in training? Are the gradients right? And where does the memory go?

# %%
import torch

import minilora
from minilora import LoraConfig, LoRALayer, NF4Linear, data
from minilora.learn import check, show
from minilora.ledger.measurement import measure
from minilora.plots.charts import loss_chart
from minilora.plots.style import hue, in_house_style, label, one_axes
from minilora.training.batches import encode_all, pad
from minilora.training.objective import summed_loss

# %% [markdown]
# ## Predict

# %% [predict] lost_by_codes
# LoRA on the float base and QLoRA, two runs each, otherwise alike. How do the held-out losses at
# the end compare?
# - a) QLoRA's are clearly higher
# - b) the two methods differ no more than two runs of one method
# answer: "a" if gap > spread else "b"

# %% [markdown]
# ## Run: LoRA and QLoRA
#
# The polite ship's computer learns naval code again, for few steps. Two seeds of each, to know how
# much is chance.

# %%
task = data.naval_log(1000, 50)
everywhere = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear")
settings = {"steps": 60, "batch_size": 16, "lr": 5e-3, "validate_every": 20, "progress": False}
curves, ends, exact, trained = {}, {}, {}, {}
for method, bits in (("LoRA", None), ("QLoRA", "nf4")):
    runs, exact[method] = [], []
    for seed in (0, 1):
        torch.manual_seed(seed)
        model = minilora.load_base(quantize=bits)
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        minilora.inject(model, everywhere)
        runs.append(minilora.train(model, task, seed=seed, **settings))
        exact[method].append(minilora.exact_match(model, task.valid))
        trained[method] = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
        held_out = ", ".join(f"{row['valid_loss']:.3f}" for row in runs[-1].validations[1:])
        right = f"answered to the letter {exact[method][-1]:.0%}"
        print(f"{method:5} held-out loss {held_out}; {right}")
    curves[method] = torch.tensor([run.losses for run in runs])  # (seeds, steps)
    ends[method] = [run.validations[-1]["valid_loss"] for run in runs]

after = {name.replace(".base.", "."): tensor for name, tensor in model.state_dict().items()}
for name, tensor in before.items():
    assert torch.equal(after[name], tensor), "codes and scales are unchanged to the bit"
gap = (sum(ends["QLoRA"]) - sum(ends["LoRA"])) / 2
spread = max(abs(a - b) for a, b in ends.values())
assert abs(gap) < 0.3

# %% [markdown]
# ## Look

# %%
smooth = {name: losses.unfold(1, 5, 1).mean(2).numpy() for name, losses in curves.items()}
show(
    loss_chart(smooth),
    "Loss by step, a mean over five steps, of LoRA and QLoRA, with a band over two seeds each: "
    "both fall to about the same end",
)

# %% [markdown]
# At the end QLoRA's mean is {{ gap:+.3f}} from LoRA's, and two seeds of one method are up to
# {{ spread:.3f}} apart. So is nothing lost? Two seeds and {{ settings["steps"]}} steps cannot say.
# Over a thousand steps (`benchmarks/quality.py`: 1,000 questions, three seeds; what came stands in
# the README) the seeds of one overlap the other's.
#
# An adapter is a difference to the weights that it was trained beside. May it change its base, from
# floats to codes or back? The last one of each method, on both bases:

# %%
rows = pad(encode_all(model.tokenizer, task.valid, 512))
on_base = {}
for method, adapter in trained.items():
    for base_name, bits in (("floats", None), ("codes", "nf4")):
        host = minilora.load_base(quantize=bits)
        minilora.inject(host, everywhere)
        host.load_state_dict(adapter, strict=False)
        with torch.no_grad():
            loss = summed_loss(host.eval(), rows).item() / rows.answer_tokens
        on_base[method, base_name] = loss
        print(f"{method:5} on {base_name}: held-out loss {loss:.3f}")
other_base = on_base["LoRA", "codes"] - on_base["LoRA", "floats"]
back = on_base["QLoRA", "floats"] - on_base["QLoRA", "codes"]
assert max(abs(other_base), abs(back)) < 0.5 < curves["LoRA"][0, 0] / 4  # of the loss before

# %% [markdown]
# Moved from floats to codes the loss changed by {{ other_base:+.3f}}, from codes to floats by
# {{ back:+.3f}}. It works, so a base may be served in four bits under adapters that were trained
# beside floats. What it costs depends on the task: measure it (lesson 13 does so for merging).
#
# ## Explain
#
# The backward of `y = x Ŵᵀ` needs Ŵ once more, for the layers below:
#
#     ∂x = ∂y Ŵ        and no ∂W: it is frozen
#
# To have Ŵ then, one can keep it, or make it again. Keeping it means that between forward and
# backward *all layers'* Ŵ are alive at once, in floats. Making it again costs a second
# dequantization and keeps only the codes.

# %% [markdown]
# And A and B? They stand beside Ŵ and never see W₀. So the right gradients are those of an ordinary
# LoRA layer on the weight Ŵ. Both layers get the same A and B (not zero: a zero B would hide a
# wrong gradient of A), the same input and the same gradient from above.

# %%
torch.manual_seed(0)
linear = minilora.load_base().get_submodule("model.layers.2.mlp.down_proj")
packed = NF4Linear.from_linear(linear)
plain = torch.nn.Linear(linear.in_features, linear.out_features, bias=False)
plain.weight.data = packed.weight  # Ŵ as ordinary floats
codes_before = packed.packed.clone()

on_codes, on_floats = LoRALayer(packed, r=4, lora_alpha=6), LoRALayer(plain, r=4, lora_alpha=6)
torch.nn.init.normal_(on_codes.lora_B)
on_floats.load_state_dict(on_codes.state_dict(), strict=False)
x = torch.randn(5, 7, linear.in_features)
above = torch.randn(5, 7, linear.out_features)


def gradients(layer):
    leaf = x.clone().requires_grad_()
    layer(leaf).backward(above)
    return {"∂A": layer.lora_A.grad, "∂B": layer.lora_B.grad, "∂x": leaf.grad}


on_both = gradients(on_codes), gradients(on_floats)
for name in ("∂A", "∂B", "∂x"):
    ours, theirs = (of_layer[name] for of_layer in on_both)
    off = ((ours - theirs).abs().max() / theirs.abs().max()).item()
    print(f"{name}: equal to the bit: {torch.equal(ours, theirs)}, largest difference {off:.0e}")
    assert off < 1e-5

# %% [markdown]
# ## Break it
#
# A stack of 8 layers, three ways: floats; codes, with the product as one would write it; codes,
# with `NF4Linear`.

# %% [predict] kept_weight
# In PyTorch the product could be written `x @ weight.dequantize().T`. The codes need no gradient.
# What does autograd keep of it until the backward?
# - a) nothing: nothing in it is trained
# - b) the codes
# - c) the whole dequantized weight, in floats
# answer: "c" if kept["written plainly"] >= floats else "a"


# %%
class Plainly(NF4Linear):
    def forward(self, x):
        return x @ self.weight.T  # right, and autograd keeps Ŵ for its backward


def stack(kind):
    torch.manual_seed(0)
    layers = [torch.nn.Linear(256, 256, bias=False) for _ in range(8)]
    if kind != "floats":
        four_bits = Plainly if kind == "written plainly" else NF4Linear
        layers = [four_bits.from_linear(layer) for layer in layers]
    return torch.nn.Sequential(*layers).requires_grad_(False)


weights, kept, dx = {}, {}, {}
for kind in ("floats", "written plainly", "lean"):
    model = stack(kind)
    inputs = torch.randn(4, 256, generator=torch.Generator().manual_seed(1)).requires_grad_()
    step = measure(lambda model=model, inputs=inputs: model(inputs).sum().backward(), model)
    weights[kind] = step.resident["weights"] + step.resident["constants"]
    kept[kind] = step.peaks["activations"]
    dx[kind] = inputs.grad
    print(f"{kind:16} weights {weights[kind]:>9,} bytes, kept for the backward {kept[kind]:>9,}")

floats = weights["floats"]
assert kept["written plainly"] >= floats  # what four bits had saved is there again, and the codes
assert kept["lean"] < 0.05 * floats
assert torch.allclose(dx["lean"], dx["written plainly"], rtol=1e-4, atol=1e-6)


# %%
@in_house_style
def draw(weights, kept):
    figure, axes = one_axes(width=7.4, height=3.2)
    inside = {"color": figure.get_facecolor(), "ha": "center", "va": "center"}
    names = list(reversed(weights))
    for row, kind in enumerate(names):
        first, second = weights[kind] / 1e6, kept[kind] / 1e6
        axes.barh(row, first, color=hue(0), height=0.55)
        axes.barh(row, second, left=first, color=hue(1), height=0.55)
        label(axes, f"{first + second:.2f} MB", (first + second, row), (5, -4))
        if kind == "written plainly":
            axes.text(first + second / 2, row, "Ŵ in floats, kept for the backward", **inside)
    axes.text(weights["floats"] / 2e6, 2, "weights", **inside)
    axes.set(title="8 layers of 256 × 256 between forward and backward", xlabel="MB")
    axes.set(yticks=range(3), yticklabels=names)
    axes.margins(x=0.17)
    axes.grid(axis="y", visible=False)
    return figure


show(
    draw(weights, kept),
    "Bars of bytes: floats, codes written plainly, which hold more than floats, and lean, which "
    "hold an eighth",
)

# %% [markdown]
# Written plainly, four bits take *more* memory than floats: the codes, and all the floats besides.
# Nothing warns; the loss is the same to the last digit. Only a look at the memory shows it.
#
# ## Build: the lean product
#
# Difficulty ●●● · Importance ●●● · 15 minutes


# %% [exercise] lean_product
import torch


def lean_product(x, weight):
    """x Ŵᵀ, keeping no float copy of Ŵ between forward and backward.

    x (…, in) may need a gradient; weight.dequantize() makes a fresh Ŵ (out, in), which is frozen.
    Returns y (…, out), and y.backward(g) must give x the gradient g Ŵ. Write a
    torch.autograd.Function: forward(ctx, x), backward(ctx, grad).
    """
    raise NotImplementedError("TODO: a torch.autograd.Function; return its apply(x)")


# %% [hints] lean_product
# 1. `FrozenProduct` in minilora/nf4/linear.py does this. What is put on `ctx` lives until the
#    backward, so put no Ŵ there.
# 2. Inside the function, `weight` is in reach of both methods of the class; each calls
#    `weight.dequantize()` for itself.
# 3. `forward` returns `x @ weight.dequantize().T`, `backward` returns `grad @ weight.dequantize()`;
#    both are static methods.

# %%
check(lean_product)

# %% [markdown]
# ## What you can now defend
#
# - QLoRA's gradients are LoRA's on the dequantized weight, to rounding; codes and scales are
#   unchanged to the bit after training.
# - Four bits save memory only with a backward that dequantizes again. Written plainly the stack
#   held {{ (weights["written plainly"] + kept["written plainly"]) / floats:.2f}} times the float
#   weights, lean {{ (weights["lean"] + kept["lean"]) / floats:.2f}} times.
# - "QLoRA reaches 92–97% of full fine-tuning": of *what*, and when? Against LoRA, here and after 60
#   steps, its exact match was {{ sum(exact["QLoRA"]) / max(sum(exact["LoRA"]), 1e-9):.0%}} and its
#   held-out loss {{ sum(ends["QLoRA"]) / sum(ends["LoRA"]):.0%}}. Such a number needs the metric,
#   the task, the steps and the spread over seeds beside it.
#
# ## Open question
#
# The price is time: every product dequantizes. On the machine that you have, is that much or little
# beside the product itself, and how does the answer change with the number of tokens?
