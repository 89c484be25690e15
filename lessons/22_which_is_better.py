# %% [markdown]
# # 22 · Is the new adapter better?
#
# Know first: lesson 20 · Difficulty ●●○ · 12 minutes to read · 90 seconds to run
#
# An adapter serves. Another comes out of training, on more data. Of 100 held-out questions the old
# one answers 90 to the letter, the new one 91. Do you put it in its place?
#
# A rule for that can be wrong in two ways: it lets a worse adapter in, or it keeps a better one
# out. How often does it? We try rules on adapters of which we *know* the truth, because we make
# them of dice: one that is right with probability `right` on each question, thousands of times.

# %%
import math

import numpy as np
import torch

import minilora
from minilora import LoraConfig, data
from minilora.learn import check, full_or_short, is_short, show
from minilora.plots.style import GREY, hue, in_house_style, label, one_axes
from minilora.training.evaluation import answers

RUNS, PAIRS = full_or_short((2000, 2000), (400, 600))
MANY, EXAM, FRESH, STEPS = full_or_short((600, 60, 200, 120), (40, 8, 8, 2))
dice = np.random.default_rng(0)


def rolled(right, runs, questions):
    """Whether each answer is right, (runs, questions)."""
    return dice.random((runs, questions)) < right


def won_and_lost(old, new):
    """Up to each question: those that only the new one got right, and only the old one."""
    return (new & ~old).cumsum(1), (old & ~new).cumsum(1)


# %% [markdown]
# ## Predict

# %% [predict] worse_gets_in
# The rule "the new score is at least the old one's", on 100 questions each. The new adapter is
# really three points *worse* (87 against 90). In how many percent of the cases does it get in?
# answer: 100 * at_least[-0.03]

# %% [markdown]
# ## Run: one score against another

# %%
at_least = {}
for gain in (0.03, 0.0, -0.03):
    old, new = rolled(0.9, RUNS, 100).sum(1), rolled(0.9 + gain, RUNS, 100).sum(1)
    at_least[gain] = (new >= old).mean()
    print(f"truly {100 * gain:+.0f} points: 'at least as good' lets in {at_least[gain]:.0%}")
assert at_least[0.0] > 0.5
assert at_least[-0.03] > 0.2

# %% [markdown]
# A hundred questions cannot see three points: chance alone moves a score by as much. Each of these
# pairs answered its own dice, as when two users ask two adapters; on the *same* questions, where
# both mostly agree, it is a little better, not good.
#
# So: more questions, and a proper test. Questions come in one by one, from users, and whoever waits
# for an answer looks at the test often.

# %% [predict] peeking
# Two *equal* adapters answer {{ PAIRS }} questions. After each question you test whether they
# differ (a z-test at one false alarm in twenty), and stop at the first "yes". How often do you find
# a difference that is not there?
# - a) in about one case of twenty: that is what the test promises
# - b) in about one of ten
# - c) in one of four, or more
# answer: "abc"[int(found > 0.075) + int(found > 0.2)]

# %%
log_factorial = np.cumsum(np.log(np.maximum(np.arange(PAIRS + 2), 1)))


def z_score(won, lost):
    """How many standard deviations a fair coin is from so many heads and tails."""
    return (won - lost) / np.sqrt(np.maximum(won + lost, 1))


def log_evidence(won, lost):
    """log of 2ⁿ / ((n + 1) C(n, won)), n = won + lost; what it means comes below."""
    n = won + lost
    ways = log_factorial[n] - log_factorial[won] - log_factorial[lost]
    return n * math.log(2) - np.log(n + 1) - ways


won, lost = won_and_lost(rolled(0.7, RUNS, PAIRS), rolled(0.7, RUNS, PAIRS))
z, log_e = z_score(won, lost), log_evidence(won, lost)
differ = {
    "z-test": (abs(z) > 1.96) & (won + lost >= 10),  # 1.96: one in twenty, if you look once
    "E-value": log_e >= math.log(20),
}
alarms = {name: np.logical_or.accumulate(each, 1).mean(0) for name, each in differ.items()}
once, found = differ["z-test"][:, -1].mean(), alarms["z-test"][-1]
print(f"equal adapters, {PAIRS} questions, {RUNS} times; found to differ:")
print(f"  z-test, looked at once, at the end   {once:6.1%}")
print(f"  z-test, looked at after each         {found:6.1%}")
print(f"  E-value of 20, looked at after each  {alarms['E-value'][-1]:6.1%}")
assert once < 0.09
assert found > 0.25
assert alarms["E-value"][-1] < 0.06

# %% [markdown]
# The z-test keeps its promise for *one* look. Each further look is another throw of the dice, and
# whoever stops at the first "yes" collects them all. You may look at the E-value at any time.
#
# Choosing is looking, too:

# %% [predict] winner_reads
# Twenty adapters that are all right in 90 of 100 cases. You score each on the same 100 questions
# and take the best. How many percent does the best one read? (The mean over many such contests.)
# answer: 100 * winner

# %%
scores = rolled(0.9, RUNS * 20, 100).mean(1).reshape(RUNS, 20)
winner = scores.max(1).mean()
again = rolled(0.9, RUNS, 100).mean(1).mean()
print(f"the best of twenty reads {winner:.1%}; on new questions the same one reads {again:.1%}")
assert winner > 0.93

# %% [markdown]
# ## Look


# %%
@in_house_style
def peeked_and_grown(alarms, grown):
    figure, (left, right) = one_axes(width=11, height=4.3, columns=2)
    seen = np.arange(1, PAIRS + 1)
    for index, (name, share) in enumerate(alarms.items()):
        left.plot(seen, 100 * share, color=hue(index))
        above = (-4, 6 if index == 0 else -14)
        label(left, name, (seen[-1], 100 * share[-1]), above, ha="right", color=hue(index))
    left.axhline(5, color=hue(GREY), linestyle="--", linewidth=1)
    label(left, "promised", (10, 5), (2, 4), color=hue(GREY))
    left.set(xscale="log", xlim=(10, PAIRS), ylim=(0, None), title="equal adapters found to differ")
    left.set(xlabel="questions, a look after each", ylabel="% of the runs, by then")
    for index, (name, paths) in enumerate(grown.items()):
        right.plot(seen, paths.T, color=hue(index + 2), linewidth=1)
        place = ((0.02, 4.4), (0.87, 0.15), (0.02, -4.7))[index]
        label(right, name, (place[0] * PAIRS, place[1]), color=hue(index + 2))
    for bar, word in ((math.log10(20), "promote"), (-math.log10(20), "reject")):
        right.axhline(bar, color=hue(GREY), linestyle="--", linewidth=1)
        side = (-2, 4 if bar < 0 else -13)
        label(right, word, (PAIRS, bar), side, ha="right", color=hue(GREY))
    right.set(ylim=(-5, 5), yticks=range(-4, 5, 2), title="five runs each, by what is true")
    right.set_yticklabels(["10⁴ against", "10² against", "1", "10² for", "10⁴ for"])
    right.set(xlabel="questions", ylabel="E, for the new or against it")
    return figure


def grow(gain, runs=5):
    """log₁₀ E above zero where the new one is ahead, below it where it is behind."""
    won, lost = won_and_lost(rolled(0.85, runs, PAIRS), rolled(0.85 + gain, runs, PAIRS))
    return np.sign(won - lost) * np.maximum(log_evidence(won, lost), 0) / math.log(10)


grown = {"6 points better": grow(0.06), "equal": grow(0.0), "6 points worse": grow(-0.06)}
show(
    peeked_and_grown(alarms, grown),
    "Left: the share of equal adapters found to differ climbs with every look for the z-test and "
    "stays under one in twenty for the E-value. Right: E grows for the better adapter and against "
    "the worse one, and stays near 1 for the equal one",
)

# %% [markdown]
# ## Explain
#
# Only questions that exactly one of the two gets right say anything about the difference. If the
# adapters are equally good, each of those is a fair coin. So bet on it, with one coin of your own:
# stake all on "the new one wins with probability p". A win multiplies your money by 2p, a loss by
# 2(1 − p). At a fair coin you gain nothing on average, whatever p is.
#
# Which p? Split the money evenly over all of them. After w wins among n, you have
#
#     E = ∫₀¹ (2p)ʷ (2(1 − p))ⁿ⁻ʷ dp = 2ⁿ / ((n + 1) C(n, w))
#
# That is the *E-value*. In a fair game nobody gets rich: the chance to have 20 coins *ever*,
# however often you look and whenever you stop, is at most one in twenty (Ville 1939). So
# "E ≥ 20" means: these adapters are equal, or something has happened that happens to one gambler in
# twenty. We saw {{ alarms["E-value"][-1]:.1%}}.
#
# ## Run: the gate, and its price
#
# The gate watches E. Once E ≥ 20 it promotes the new adapter if that is ahead, and rejects it if it
# is behind. Until then it waits, and the old one serves.

# %%
gated = {}
looks = [n for n in (100, 400, 1000, 2000) if n <= PAIRS]
print(f"promoted, of {RUNS}, within" + "".join(f"{n:>8}" for n in looks) + "   rejected at the end")
for gain in (0.03, 0.0, -0.03):
    won, lost = won_and_lost(rolled(0.9, RUNS, PAIRS), rolled(0.9 + gain, RUNS, PAIRS))
    decided = log_evidence(won, lost) >= math.log(20)
    first = np.where(decided.any(1), decided.argmax(1), PAIRS)  # PAIRS: not yet
    there = np.arange(RUNS), first.clip(max=PAIRS - 1)
    ahead = won[there] > lost[there]
    gated[gain] = [((first < n) & ahead).mean() for n in looks]
    rejected = ((first < PAIRS) & ~ahead).mean()
    shares = "".join(f"{share:8.1%}" for share in gated[gain])
    print(f"truly {100 * gain:+.0f} points             {shares}   {rejected:8.1%}")
assert max(gated[0.0]) < 0.05
assert max(gated[-0.03]) < 0.01

# %% [markdown]
# A worse adapter does not get in, an equal one hardly ever. The price is patience: of the adapters
# that really are three points better, {{ gated[0.03][0]:.0%}} are through after {{ looks[0] }}
# questions, {{ gated[0.03][-1]:.0%}} after {{ looks[-1] }}. No rule is free of that: a hundred
# questions hold no more of three points than of chance. What a gate can do is wait, with the old
# adapter in place, and count live answers too.
#
# ## Break it
#
# *Looking every day.* You saw it: the test that is right for one look found a difference between
# equal adapters in {{ found:.0%}} of the cases.
#
# *Scoring on what was trained on.* Two real adapters. One learns naval code from {{ MANY }} logs.
# The other learns it from the {{ EXAM }} questions of the exam, with their answers: somebody added
# the complaints of last week to the training data, and those were the test.

# %%
logs = data.naval_log(MANY, EXAM + FRESH)
exam, fresh = logs.valid[:EXAM], logs.valid[EXAM:]


def taught(examples):
    torch.manual_seed(0)
    model = minilora.load_base()
    minilora.inject(model, LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"]))
    settings = {"steps": STEPS, "batch_size": 16, "lr": 1e-2, "validate_every": 0}
    minilora.train(model, examples, **settings, progress=False)
    return model.eval()


def right(model, examples):
    given = answers(model, examples)
    return np.array([g.strip() == e.output for g, e in zip(given, examples, strict=True)])


models = {"old": taught(logs.train), "new": taught(exam)}
results = {}
for name, questions in (("the exam", exam), ("fresh logs", fresh)):
    on_old, on_new = right(models["old"], questions), right(models["new"], questions)
    won, lost = int((on_new & ~on_old).sum()), int((on_old & ~on_new).sum())
    results[name] = on_old.mean(), on_new.mean()
    n = won + lost
    E = 2**n / ((n + 1) * math.comb(n, won))
    print(
        f"{name:10}  old {on_old.mean():4.0%}  new {on_new.mean():4.0%}  won {won:2}  lost {lost:2}"
        f"  E = {E:.3g} {'for the new one' if won > lost else 'against the new one'}"
    )
if not is_short():
    assert results["the exam"][1] > results["the exam"][0] + 0.1
    assert results["fresh logs"][1] < results["fresh logs"][0] - 0.1

# %% [markdown]
# The evidence is overwhelming both times, and in opposite directions. No statistics help against
# questions that one of the two has seen; E measures luck, and this was not luck. So the exam's
# questions must come from what nobody trains on, and be *rotated*: a set that chose among twenty
# adapters has been learnt from, too.
#
# ## Build: the E-value
#
# Difficulty ●●○ · Importance ●●● · 10 minutes
#
# Three lines. The checker plays with it: fair coins, a look after each throw, many times.


# %% [exercise] paired_e_value
import math


def paired_e_value(old, new):
    """Evidence that two adapters are not equally good, from their answers to the same questions.

    old, new: lists of booleans of one length, whether each answer was right; at most 500 of them.
    With w the questions that only the new one got right, and n those that exactly one of the two
    got right: 2ⁿ / ((n + 1) C(n, w)), a float. Without any such question it is 1.
    """
    raise NotImplementedError("TODO: count, count, one formula")


# %% [hints] paired_e_value
# 1. Pairs in which both are right, or both wrong, do not count. `zip(old, new)` gives the pairs.
# 2. `wins = sum(b and not a for a, b in zip(old, new))`, and the losses the other way round.
# 3. `n = wins + losses`, then `return 2**n / ((n + 1) * math.comb(n, wins))`

# %%
check(paired_e_value)

# %% [markdown]
# ## Build: the gate
#
# Difficulty ●●○ · Importance ●●● · 10 minutes


# %% [exercise] gate
def gate(old, new, e_value, bar=20):
    """Whether the new adapter takes over: (verdict, questions that were looked at).

    old, new: lists of booleans, whether each answer was right, in the order in which they came.
    e_value(old, new): the evidence of the questions so far. Look after each question. At the first
    look with e_value of at least bar the verdict is "promote" if the new one is ahead in right
    answers so far, else "reject". If no look gets there it is "wait", with all questions seen.
    """
    raise NotImplementedError("TODO: a loop over the looks")


# %% [hints] gate
# 1. The first look has seen one question: `old[:1], new[:1]`; the last one all of them.
# 2. `for seen in range(1, len(old) + 1):`, and inside it ask `e_value(old[:seen], new[:seen])`.
# 3. At the bar: `ahead = sum(new[:seen]) > sum(old[:seen])`, then
#    `return ("promote" if ahead else "reject"), seen`; after the loop `return "wait", len(old)`

# %%
check(gate)

# %% [markdown]
# ## What you can now defend
#
# - "The new score is higher" is no evidence: on a hundred questions that rule let in
#   {{ at_least[0.0]:.0%}} of the equal adapters, and {{ at_least[-0.03]:.0%}} of those that were
#   three points worse.
# - A test for one look is for one look. A look after each of {{ PAIRS }} questions found
#   {{ found:.0%}} of the equal adapters different; the E-value
#   {{ alarms["E-value"][-1]:.1%}}.
# - The best of twenty equal adapters read {{ winner:.1%}} at a truth of {{ again:.0%}}. Choose on
#   one set, and judge on another.
# - What you cannot defend: that an adapter with E ≥ 20 is better for *your users*. It is better on
#   the questions that were counted. `minilora.jobs` adds what E cannot see: questions of before
#   that must not get worse, canaries, and where the data came from.
#
# ## Open question
#
# All of this ran on one machine, with all data in one place. What if there are many, and the data
# may not leave them? Lesson 23 asks.
