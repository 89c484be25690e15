# %% [markdown]
# # 05 · What does α change?
#
# Know first: lesson 04 · Difficulty ●●○ · 9 minutes to read · 10 seconds to run
#
# In front of the update stands a number that is not learned:
#
#     y = x W₀ᵀ + s · (x Aᵀ) Bᵀ
#
#     s = α / r      LoRA, arXiv 2106.09685, section 4.1
#     s = α / √r     rsLoRA, arXiv 2312.03732
#
# The LoRA paper gives a reason for dividing by r: whoever changes the rank need not search for a new learning rate. The rsLoRA
# paper says that this is the wrong power of r. Both are claims about how far the model moves. So we let it move, once: one
# step of the optimizer, on the shipped base, at several ranks, and measure how much its outputs change.

# %% [markdown]
# ## Predict

# %% [predict] doubled_alpha
# We double α and change nothing else. After one step of plain gradient descent, how many times larger is ΔW?
# answer: doubled["gradient descent"]

# %% [predict] doubled_alpha_adam
# And after one step of Adam, which moves every number by about the learning rate, however large its gradient is?
# answer: doubled["Adam"]

# %% [markdown]
# ## Run: one step

# %%
import copy

import torch

import minilora
from minilora.learn import check, show
from minilora.lora.injection import lora_layers
from minilora.plots.style import hue, in_house_style, label_ends, one_axes

base = minilora.load_base()
examples = minilora.data.naval_log(8, 1).train
text = [base.tokenizer.encode(e.input + " " + e.instruction + " " + e.output) for e in examples]
length = min(map(len, text))
# (8, time): a batch of plain text is enough here
ids = torch.tensor([row[:length] for row in text])


def first_step(r, alpha, use_rslora, optimizer, seed=0):
    """(size of ΔW over all layers, relative change of the outputs) after a single step from B = 0."""
    torch.manual_seed(seed)
    model = copy.deepcopy(base)
    targets = ["q_proj", "v_proj"]
    minilora.inject(
        model,
        minilora.LoraConfig(r=r, lora_alpha=alpha, use_rslora=use_rslora, target_modules=targets),
    )
    trained = [p for p in model.parameters() if p.requires_grad]
    step = (
        torch.optim.SGD(trained, lr=5e-4)
        if optimizer == "gradient descent"
        else torch.optim.Adam(trained, lr=2e-4)
    )
    before = model(ids)
    loss = torch.nn.functional.cross_entropy(before[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    loss.backward()
    step.step()
    with torch.no_grad():
        change = float((model(ids) - before).norm() / before.norm())
    return sum(
        float(layer.delta_weight().square().sum()) for _, layer in lora_layers(model)
    ) ** 0.5, change


OPTIMIZERS = ("gradient descent", "Adam")
doubled = {o: first_step(8, 32, False, o)[0] / first_step(8, 16, False, o)[0] for o in OPTIMIZERS}
print({o: f"{ratio:.3f} times" for o, ratio in doubled.items()})
assert abs(doubled["gradient descent"] - 4) < 0.01
assert abs(doubled["Adam"] - 2) < 0.05

# %% [predict] steady_rule
# Now the rank: 8, 32, 128, always with α = 16. With gradient descent, which rule keeps the change of the outputs about the same
# at all three ranks?
#
# - a) α/r
# - b) α/√r
# - c) neither
# answer: "ab"[spread["gradient descent"].index(min(spread["gradient descent"]))]

# %% [predict] steady_rule_adam
# And with Adam?
#
# - a) α/r
# - b) α/√r
# - c) neither
# answer: "ab"[spread["Adam"].index(min(spread["Adam"]))]

# %%
ranks = [8, 32, 128]
RULES = {"α/r": False, "α/√r": True}
SEEDS = 3  # the mean over three random A: with few rows in A, a single one may point anywhere


def mean_change(r, flag, o):
    return sum(first_step(r, 16, flag, o, seed)[1] for seed in range(SEEDS)) / SEEDS


moves = {
    o: {rule: [mean_change(r, flag, o) for r in ranks] for rule, flag in RULES.items()}
    for o in OPTIMIZERS
}
spread = {o: [max(m) / min(m) for m in by_rule.values()] for o, by_rule in moves.items()}
print("change of the outputs, in thousandths of their size, at r =", ranks)
for o, by_rule in moves.items():
    for rule, found in by_rule.items():
        print(f"  {o:17} {rule:5}", "".join(f"{1000 * m:9.3f}" for m in found))

# %% [markdown]
# ## Look


# %%
@in_house_style
def draw_moves(ranks, moves):
    figure, panels = one_axes(width=11.4, height=4.2, columns=2)
    for axes, (optimizer, by_rule) in zip(panels, moves.items(), strict=True):
        for i, found in enumerate(by_rule.values()):
            axes.plot(ranks, [1000 * m for m in found], color=hue(i), marker="o")
        axes.set(
            title=f"One step of {optimizer}, α = 16",
            xlabel="rank r (log scale)",
            xscale="log",
            yscale="log",
        )
        values = [1000 * m for found in by_rule.values() for m in found]
        axes.set(xticks=ranks, xticklabels=ranks, ylim=(min(values) / 2, max(values) * 2))
        axes.minorticks_off()
        label_ends(
            axes,
            {rule: (1000 * found[-1], hue(i)) for i, (rule, found) in enumerate(by_rule.items())},
        )
    panels[0].set_ylabel("change of the outputs, ‰ (log scale)")
    return figure


show(
    draw_moves(ranks, moves),
    "Left, gradient descent: with α/√r the change is level over the ranks, with α/r it falls. Right, Adam: with α/r it is "
    "level, with α/√r it rises.",
)

# %% [markdown]
# Each rule is level in one panel. With gradient descent, α/√r moves the model about equally far at any rank, while α/r moves
# it {{ moves["gradient descent"]["α/r"][0] / moves["gradient descent"]["α/r"][-1]:.0f}} times less at r = 128 than at r = 8.
# With Adam it is α/r that is level, and α/√r grows {{ moves["Adam"]["α/√r"][-1] / moves["Adam"]["α/√r"][0]:.1f}} times.

# %%
sixteen = ranks[-1] / ranks[0]
assert spread["gradient descent"][1] < 1.6
assert 0.6 * sixteen < spread["gradient descent"][0] < 1.6 * sixteen  # falls as 1/r
assert spread["Adam"][0] < 1.6
assert 0.6 * sixteen**0.5 < spread["Adam"][1] < 1.6 * sixteen**0.5  # grows as √r

# %% [markdown]
# ## Explain
#
# Start from B = 0 and take one step with rate η. Call G = gᵀ x, (out, in), the gradient that the whole matrix would get.
# Lesson 03 gave ∂B = s · gᵀ (x Aᵀ) = s · G Aᵀ. So
#
#     B₁  = − η s · G Aᵀ
#     ΔW₁ = s · B₁ A = − η s² · G (Aᵀ A)
#
# There is s, twice: once because the gradient of B passes through it, once because B acts through it. So doubling α makes
# ΔW₁ four times as large. And Aᵀ A is a sum of r random pieces of equal size: on average it is
# r/(3 in) times the identity, for entries uniform within ±1/√in. So on average
#
#     ΔW₁ = − η · s² r / (3 in) · G
#
#     α/r:  s² r = α²/r        α/√r:  s² r = α²
#
# Full fine-tuning would step −η G. An adapter steps in the same direction, on average, and s² r sets how far.
#
# Adam divides each gradient by its own size. The s of the gradient cancels, B moves by about η everywhere, and only the s in
# front is left: ΔW₁ doubles with α. Its r columns add up in the same direction, which gives s · r: level for α/r. This is the
# first step only. What the rules do to a long run, and at which rank, is for experiments; the rsLoRA paper's argument is about
# all of training as r grows.
#
# Now α against the learning rate. Both only say how far to go. Adapters of one rank, five settings, the same 12 steps:

# %%
settings = {"steps": 12, "batch_size": 8, "validate_every": 0, "progress": False}
ends = {}
for alpha, rate in ((16, 5e-3), (4, 5e-3), (4, 2e-2), (64, 5e-3), (64, 1.25e-3)):
    torch.manual_seed(0)
    model = copy.deepcopy(base)
    minilora.inject(
        model, minilora.LoraConfig(r=8, lora_alpha=alpha, target_modules=["q_proj", "v_proj"])
    )
    losses = minilora.train(model, examples, lr=rate, **settings).losses
    ends[alpha, rate] = losses[-1]
    print(
        f"α = {alpha:2} = {alpha / 8:3g} r, rate {rate:7.5f}: loss {losses[0]:.2f} -> {losses[-1]:.2f}"
    )
slow, matched_low = ends[4, 5e-3], ends[4, 2e-2]
assert slow > 1.2 * ends[16, 5e-3], "a small α at the same rate is slow"
assert matched_low < 0.8 * slow, "and a larger rate makes up for it"

# %% [markdown]
# At the same rate, α = r/2 is slow: {{ slow:.2f}} against {{ ends[16, 5e-3]:.2f}} for α = 2 r. With four times the rate it ends
# at {{ matched_low:.2f}}. And α = 8 r, far above the habit, ends at {{ ends[64, 5e-3]:.2f}} in this short run. There is no
# right α. There is a right distance, and α and the rate set it together.

# %% [markdown]
# ## Break it: a merge without s
#
# Many a merge has been written as W₀ + B A. Its author tested it, with r = 8 and α = 8.

# %%
differences = {}
for alpha in (8, 16):
    torch.manual_seed(0)
    layer = minilora.LoRALayer(torch.nn.Linear(32, 24), r=8, lora_alpha=alpha)
    torch.nn.init.normal_(layer.lora_B)
    x = torch.randn(5, 32)
    with torch.no_grad():
        wrong = torch.nn.functional.linear(
            x, layer.base.weight + layer.lora_B @ layer.lora_A, layer.base.bias
        )
        differences[alpha] = float((wrong - layer(x)).norm() / layer(x).norm())
    print(
        f"α = {alpha:2}, r = 8: merged and unmerged outputs differ by {differences[alpha]:.1e} of their size"
    )
assert differences[8] < 1e-5
assert differences[16] > 0.1

# %% [markdown]
# With α = r the scale is 1, and forgetting it costs nothing. A default of α = r hid such a fault from users for a long time
# (huggingface/peft #2489). Test with α ≠ r, always.

# %% [markdown]
# ## Build: the first update
#
# Difficulty ●●○ · Importance ●●●, the whole lesson is in it · 10 minutes

# %% [exercise] first_update
import torch


def first_update(g, x, A, s, rate):
    """ΔW (out, in) after one step of gradient descent from B = 0, without autograd and without ever making W₀.

    g (tokens, out) is ∂L/∂y at the start, x (tokens, in), A (r, in), s the scale, rate the learning rate.
    """
    raise NotImplementedError("TODO: B after the step, then s · B A")


# %% [hints] first_update
# 1. Only B moves in the first step (lesson 04). Which gradient does it get? It is the first formula in Explain.
# 2. B₁ is minus rate times s times g.T @ (x @ A.T), (out, r). Then ΔW has the factor s once more.
# 3. return s * B1 @ A, with B1 = -rate * s * g.T @ (x @ A.T).

# %%
check(first_update)

# %% [markdown]
# ## Build: match r = 64 to r = 8
#
# Difficulty ●●○ · Importance ●●○, when you change a rank · 10 minutes

# %% [exercise] matching_alpha


def matching_alpha(r, alpha, new_r, use_rslora):
    """The alpha for rank new_r with which gradient descent's first ΔW is as large, on average over A, as with r and alpha.

    use_rslora False: s = alpha / r. True: s = alpha / √r. A has entries uniform within ±1/√in. Returns a float.
    """
    raise NotImplementedError("TODO: which number must stay the same? See Explain")


# %% [hints] matching_alpha
# 1. On average over A, the first ΔW is −η · s² r / (3 in) · G. The rate, in and G do not change with the rank.
# 2. So s² r must stay. Write it with alpha and r, once for each rule, and solve for the new alpha.
# 3. α/r: s² r is alpha² / r, so alpha grows as √(new_r / r). α/√r: s² r is alpha², so nothing changes.

# %%
check(matching_alpha)

# %% [markdown]
# ## What you can now defend
#
# - α acts squared on gradient descent's first step, {{ doubled["gradient descent"]:.2f}} times for twice α, and once on Adam's,
#   {{ doubled["Adam"]:.2f}} times.
# - Which power of r keeps the first step's length depends on the optimizer: √r for gradient descent, r for Adam.
# - "α is 2 to 4 r" is a habit, not a law. Here α = r/2 did the work with a larger rate, and α = 8 r did it too. Quote α
#   together with the learning rate, the optimizer and the rule, or the number says nothing.

# %% [markdown]
# ## Open question
#
# Everything here is about A's and B's first step. LoRA+ (arXiv 2402.12354) gives B a larger rate than A. Look at ∂A and ∂B: why
# might one rate for both be wrong in a wide layer?
