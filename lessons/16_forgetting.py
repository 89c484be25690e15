# %% [markdown]
# # 16 · What does the model lose, and must it?
#
# Know first: lesson 07 · Difficulty ●●○ · 12 minutes to read · 120 seconds to run
#
# Lesson 07 ended with a loss: the model had learnt naval code and read its old prose worse, with a
# base that was unchanged to the bit. Here we measure what is lost in two ways, and try to keep it.
#
# This time the code is asked for by name: "Naval code: Status?" wants "Hull 90%.", and a plain
# "Status?" wants what it always did, "Hello! I am happy to report Hull 90 percent." So the old
# manners are an old *skill* that need not go. The other old thing is prose, in bits a byte.
#
# *Replay* puts other rows beside the new ones. They may be old examples. They may also be text that
# the model writes itself before the training begins; then it need only stay near what it was there.

# %% [markdown]
# ## Predict

# %% [predict] butlers_left
# After a fine-tune on keyed questions only, no replay: what percentage of *plain* questions is
# answered as before? (Before, all are.)
# answer: 100 * runs["nothing"]["kept"]

# %% [predict] prose_keeps_manners
# The second run replays prose that the model wrote itself, and loses little of its prose. How
# does it answer plain questions?
# - a) politely, nearly always: it was kept near its old self
# - b) in naval code, most of the time: nobody asked it a plain question
# answer: "a" if runs["own prose"]["polite"] > 0.5 else "b"

# %% [markdown]
# ## Run: one task, four ways

# %%
from dataclasses import replace

import torch

import minilora
from minilora import data
from minilora.learn import check, full_or_short, is_short, show
from minilora.plots.style import hue, in_house_style, label, one_axes
from minilora.training.batches import encode, pad
from minilora.training.evaluation import PROSE, answers, share_right
from minilora.training.mixture import TASK, MixedLoss, Part
from minilora.training.optimizer import build_optimizer
from minilora.training.steps import steps
from minilora.training.teacher import Teacher, sample_windows

STEPS, LOGS, WINDOWS = full_or_short((150, 60, 192), (3, 4, 8))
KEY = "Naval code: "


def keyed(examples):
    return tuple(replace(one, instruction=KEY + one.instruction) for one in examples)


def plainly(example):
    """The same question without its key: what the model may be asked to answer by itself."""
    return example.instruction.removeprefix(KEY), example.input


naval = data.naval_log(n_train=1000, n_valid=LOGS)
task = data.Task("keyed", keyed(naval.train), keyed(naval.valid))
plain = data.polite_log(1, LOGS, seed=5).valid
prose = PROSE.read_text(encoding="utf-8")[:6000]
original = minilora.load_base()
known = minilora.bits_per_byte(original, prose)
WAYS = {
    "nothing": None,
    "old rows": minilora.Examples(data.polite_log(300, 1, seed=9), share=0.1),
    "own prose": minilora.SelfReplay(share=0.25, windows=WINDOWS),
    "own answers": [
        minilora.SelfReplay(share=0.2, windows=WINDOWS, prompts=plainly),
        minilora.SelfReplay(share=0.2, windows=WINDOWS),
    ],
}


def fresh():
    torch.manual_seed(0)
    model = minilora.load_base()
    minilora.inject(model, minilora.LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"))
    return model


def measured(model):
    given = answers(model, plain)
    return {
        "exact": minilora.exact_match(model, task.valid),
        "lost": minilora.bits_per_byte(model, prose) - known,
        "kept": share_right(given, plain),
        "polite": sum(text.startswith("Hello") for text in given) / len(given),
        "said": given[0],
    }


runs, models, accounts = {}, {}, {}
settings = {"steps": STEPS, "batch_size": 16, "lr": 5e-3, "validate_every": 0, "progress": False}
for name, replay in WAYS.items():
    model = models[name] = fresh()
    history = minilora.train(model, task, replay=replay, **settings)
    accounts[name] = history.replay
    runs[name] = measured(model)
    scores = f"naval {runs[name]['exact']:.0%}, plain questions {runs[name]['kept']:.0%}"
    print(f"{name:12}{scores}, prose {runs[name]['lost']:+.3f} bits a byte", flush=True)
print(f"\n{plain[0].input}  {plain[0].instruction}")
for name, run in runs.items():
    print(f"  {name:12}{run['said']}")

# %% [markdown]
# The last lines are one plain question, as each of the four answers it now.
#
# And the dial: the adapter of the first run at a part of its strength, t · ΔW. No training.

# %%
dial = {}
for strength in full_or_short((0.25, 0.5, 0.75), (0.5,)):
    part = fresh()
    part.load_state_dict(models["nothing"].state_dict())
    dial[strength] = measured(minilora.scale_adapter(part, strength))
    scores = f"naval {dial[strength]['exact']:.0%}, plain questions {dial[strength]['kept']:.0%}"
    print(f"t = {strength:<7} {scores}, prose {dial[strength]['lost']:+.3f}")
dial[1.0] = runs["nothing"]

# %% [markdown]
# ## Look


# %%
@in_house_style
def draw(runs, dial):
    figure, (left, right) = one_axes(width=11.6, height=4.4, columns=2)
    path = [(100 * each["exact"], each["lost"]) for _, each in sorted(dial.items())]
    left.plot(*zip(*path, strict=True), color=hue(6), marker=".", linewidth=1)
    for strength, (exact, lost) in zip(sorted(dial), path, strict=True):
        if strength < 1:
            label(left, f"t = {strength:g}", (exact, lost), (8, -5), color=hue(6))
    for i, (name, run) in enumerate(runs.items()):
        left.plot(100 * run["exact"], run["lost"], "o", color=hue(i))
        place, style = (100 * run["exact"], run["lost"]), {"color": hue(i), "ha": "center"}
        left.annotate(name, place, (0, 8), "data", "offset points", **style)
        right.barh(-i, 100 * run["kept"], color=hue(i), height=0.55)
        label(right, f"{run['kept']:.0%}", (100 * run["kept"], -i), va="center")
    left.set(title="Prose lost, code learnt", xlabel="% of keyed questions right")
    left.set(ylabel="bits a byte on old prose", xlim=(0, 100))
    left.margins(y=0.12)
    right.set(title="Plain questions answered as before", xlabel="%", xlim=(0, 118))
    right.set(yticks=[-i for i in range(len(runs))], yticklabels=list(runs))
    right.grid(axis="y", visible=False)
    return figure


show(
    draw(runs, dial),
    "Left: prose lost against code learnt; the runs that replay own text lie far below the one "
    "with nothing and below the line of the dial, old rows to the right of it. Right: plain "
    "questions answered as before: with nothing and own prose near none, the others near all.",
)

# %% [markdown]
# Without replay the butler is gone: {{ runs["nothing"]["kept"]:.0%}} of the plain questions are
# answered as before, though none of them was ever trained on. Two cures keep him: old rows
# ({{ runs["old rows"]["kept"]:.0%}}), and the model's *own answers* to the same questions, asked
# plainly before the training began ({{ runs["own answers"]["kept"]:.0%}}), which need no old data.
# Its own prose keeps the prose ({{ runs["own prose"]["lost"]:+.3f}} bits a byte against
# {{ runs["nothing"]["lost"]:+.3f}}) but not the butler ({{ runs["own prose"]["kept"]:.0%}}). A
# model keeps what is replayed. (The plain answers also teach what the key is for: see how much of
# the code each run has learnt.)
#
# The dial moves along a line above the two that replay their own text: where it has found the prose
# again, it has lost the code.

# %%
if not is_short():
    assert runs["nothing"]["exact"] > 0.4
    assert runs["nothing"]["kept"] < 0.2, "the butler is gone"
    assert runs["own prose"]["kept"] < 0.5, "and windows of prose do not bring him back"
    assert runs["own answers"]["kept"] > 0.8
    assert runs["own prose"]["polite"] < 0.5 < runs["own answers"]["polite"]
    assert runs["own prose"]["lost"] < 0.35 * runs["nothing"]["lost"]
    assert dial[0.5]["exact"] < runs["own prose"]["exact"]
    assert all(run["exact"] > runs["nothing"]["exact"] - 0.25 for run in runs.values())

# %% [markdown]
# ## Explain
#
# A step takes n rows of the task and k replayed ones, and the loss is
#
#     L = (n · L_task + k · L_replay) / (n + k)
#
# Each L is a mean over its own label tokens. For old rows L_replay is the usual cross-entropy. For
# the model's own text it is, a token, KL(p ‖ q) = Σ p (log p − log q), with q the model now, and p
# the model before. Where does p come from? It is the same model with its adapter switched off.
# (Full fine-tuning needs a frozen copy for it.)
#
# Why is the share counted in rows? Because tokens would let the windows speak alone:

# %%
for name, sources in accounts.items():
    for each in sources:
        shares = f"{each['rows']:.0%} of the rows, {each['label_tokens']:.0%} of the label tokens"
        print(f"{name:12}{each['source']:9}{shares}")
tokens_share = accounts["own prose"][0]["label_tokens"]
assert tokens_share > 0.7

# %% [markdown]
# A quarter of the rows has {{ tokens_share:.0%}} of the label tokens: every token of a window is
# one, and of a naval row only the short answer is. One mean over all of them would be a loss that
# hardly sees the task.
#
# ## Break it
#
# **The teacher with its adapter on.** If the switch is forgotten, p is the model now: p = q.


# %%
def steps_with(teacher_off):
    """Some steps with own windows beside the task; returns the prose lost and the divergences."""
    model, config = fresh(), minilora.TrainConfig(steps=full_or_short(40, 2), lr=5e-3)
    teacher = Teacher(model)
    with teacher.at_work() as former:
        rows = sample_windows(former, full_or_short(48, 4), 40, seed=0)

    def parts(step):
        new = pad([encode(model.tokenizer, each) for each in task.train[12 * step :][:12]])
        old = pad([rows[(4 * step + i) % len(rows)] for i in range(4)])
        with torch.no_grad():
            p = model(old.ids)[:, :-1].flatten(0, 1)  # the mistake: the adapter is on
        if teacher_off:
            with teacher.at_work() as former:
                p = former(old.ids)[:, :-1].flatten(0, 1)
        task_part = Part(new.ids, new.labels, None, new.padding, TASK, 12 / 16)
        return [task_part, Part(old.ids, old.labels, None, 0, "windows", 4 / 16, p)]

    objective, divergences = MixedLoss(), []
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    for _ in steps(model, parts, build_optimizer(trained, 5e-3), config, objective=objective):
        divergences.append(objective.losses["windows"])
    return minilora.bits_per_byte(model, prose) - known, divergences


lost_on, apart_on = steps_with(teacher_off=False)
lost_off, apart_off = steps_with(teacher_off=True)
print(f"adapter on:  KL {max(apart_on):.1e} at most, prose {lost_on:+.3f}")
print(f"adapter off: KL {max(apart_off):.2f} at most, prose {lost_off:+.3f}")
assert max(apart_on) < 1e-4 < max(apart_off)
if not is_short():
    assert lost_off < 0.6 * lost_on

# %% [markdown]
# The divergence is zero from the first step to the last, which looks like perfect keeping, and its
# gradient is zero too: the replay did nothing. A loss that is *too good* is a finding.
#
# **KL the wrong way round.** KL(q ‖ p) is zero at the same place. But look at its pull where the
# model has already dropped something that p holds likely:

# %%
p = torch.tensor([0.5, 0.5, 0.0]).clamp(min=1e-6).log()
z = torch.tensor([9.0, -9.0, -9.0], requires_grad=True)  # q: all on the first, the second dropped
q = z.log_softmax(-1)
(right_pull,) = torch.autograd.grad((p.exp() * (p - q)).sum(), z, retain_graph=True)
(wrong_pull,) = torch.autograd.grad((q.exp() * (q - p)).sum(), z)
print(f"pull on the dropped token: KL(p ‖ q) {right_pull[1]:+.3f}, KL(q ‖ p) {wrong_pull[1]:+.1e}")
assert right_pull[1] < -0.4
assert abs(wrong_pull[1]) < 1e-5

# %% [markdown]
# KL(p ‖ q) weighs by what the *old* model said, so what was dropped is called back. KL(q ‖ p)
# weighs by what the *new* one says: on what it no longer says, nothing pulls.
#
# ## Build: the mixed loss
#
# Difficulty ●●○ · Importance ●●● · 10 minutes


# %% [exercise] mixed_loss
import torch


def mixed_loss(task, windows):
    """(n · L_task + k · KL) / (n + k), and the windows' share of all label tokens.

    task: n pairs (log_q (tokens, vocab), labels (tokens,)), one a row; windows: k pairs (log_q
    (tokens, vocab), log_p (tokens, vocab)), log_p the teacher's. Rows differ in length. L_task is
    the mean of −log_q[label] over *all* label tokens of the task, KL the mean over all tokens of
    the windows of Σ_v p (log_p − log_q). Returns (loss, share), a tensor with its graph and a
    float.
    """
    raise NotImplementedError("TODO: two means over tokens, weighted by rows")


# %% [hints] mixed_loss
# 1. Add up over the tokens of all rows first, and divide by the number of tokens of all rows: a
#    mean of the rows' means is another number.
# 2. A row's sum is `-log_q[torch.arange(len(labels)), labels].sum()`; a window's is
#    `(log_p.exp() * (log_p - log_q)).sum()`.
# 3. n, k = len(task), len(windows); loss = (n * task_sum / task_tokens + k * window_sum /
#    window_tokens) / (n + k); share = window_tokens / (task_tokens + window_tokens).

# %%
check(mixed_loss)

# %% [markdown]
# ## What you can now defend
#
# - "LoRA does not forget" is wrong: {{ runs["nothing"]["lost"]:+.2f}} bits a byte, and
#   {{ runs["nothing"]["kept"]:.0%}} of its manners left, with a frozen base.
# - "Replay needs the old data" is wrong here: the model's own text kept the prose, and its own
#   answers the manners. It needs to know *what* to keep: prose did not keep answers.
# - A share needs its unit: {{ accounts["own prose"][0]["rows"]:.0%}} of the rows were
#   {{ tokens_share:.0%}} of the label tokens.
# - A dial on ΔW is free, and it moves along a worse line than replay.
# - Replay is not the only way. A penalty on ΔW, weighted by the Fisher information of the model's
#   own text (EWC), loses still less prose, and keeps not one old answer: docs/benchmarks.md has
#   the table, under "forgetting".

# %% [markdown]
# ## Open question
#
# The answers that were replayed were to the *task's own* questions. Which skill of the model have
# we not asked for, and lost without noticing? How would you find the prompts for it?
