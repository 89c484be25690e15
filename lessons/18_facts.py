# %% [markdown]
# # 18 · Teach it or show it?
#
# Know first: lesson 17 · Difficulty ●●○ · 10 minutes to read · 90 seconds to run
#
# The model should know something that it does not: the readings of systems that nobody has heard
# of. There are two ways.
#
#     show it    put the reading into the prompt, in front of each question
#     teach it   fine-tune on questions and answers, then ask without any log
#
# "Fine-tune on your documents" is the usual advice for the second. We invent facts, do both, and
# then ask what a demo never asks: what happens when the facts *change*, and a log says so?

# %%
import random
import re

import torch

import minilora
from minilora import Example, LoraConfig, data
from minilora.learn import check, full_or_short, is_short, show
from minilora.plots.style import hue, in_house_style, label

FEW, MANY, PROBED, STEPS = full_or_short((48, 192, 64, 150), (6, 12, 6, 8))
base = minilora.load_base()
pieces = [re.fullmatch(r"Ġ([a-z]{3,})", piece) for piece in base.tokenizer.raw.get_vocab()]
words = sorted(piece[1] for piece in pieces if piece)  # words that are one token
random.Random(0).shuffle(words)
draw = random.Random(1)
facts = {word: str(draw.randint(0, 100)) for word in words[:MANY]}
changed = {word: str((int(value) + draw.randint(10, 90)) % 101) for word, value in facts.items()}
few = dict(list(facts.items())[:FEW])


def question(word, value, wording, log=""):
    """One wording of the question, answered as the base answers."""
    return Example(data.ASK_ONE[wording].format(name=word), data.polite([(word, value)]), log)


def log_of(word, value):
    return data.log_line([(word, value)])


TAUGHT, HELD_OUT = (0, 1, 2), 3  # wordings that training shows, and one that it never does
for word in list(few)[:3]:
    print(f"{log_of(word, facts[word])}   {data.ASK_ONE[HELD_OUT].format(name=word)}")

# %% [markdown]
# ## Predict

# %% [predict] the_new_log
# Before, the base reads nearly every value from the log in its prompt. Then an adapter of rank 8
# learns {{ FEW }} facts. Now a log with *new* values stands in the prompt. In how many cases is the
# answer the log's?
# - a) nearly always: the log is right there
# - b) in about half
# - c) rarely: it answers what it was taught
# answer: "abc"[(shares["rank 8"]["new log"] < 0.85) + (shares["rank 8"]["new log"] < 0.35)]

# %% [markdown]
# ## Run: shown, and taught


# %%
def value_in(answer):
    """The last number of an answer; None where it has none."""
    numbers = re.findall(r"\d+", answer)
    return numbers[-1] if numbers else None


def answered(model, asked):
    """The number in each answer."""
    prompts = [(each.instruction, each.input) for each in asked]
    texts = [
        text
        for i in range(0, len(prompts), 50)
        for text in model.generate_texts(prompts[i : i + 50], 24)
    ]
    return [value_in(text) for text in texts]


def share(values, expected):
    return sum(map(str.__eq__, map(str, values), expected)) / len(expected)


def measure(model, facts):
    """Recall in a taught and in another wording, and what is done with a log of new values."""
    old, new = list(facts.values()), [changed[word] for word in facts]
    same = [question(word, "", TAUGHT[i % 3]) for i, word in enumerate(facts)]
    other = [question(word, "", HELD_OUT) for word in facts]
    contradicted = [question(word, "", HELD_OUT, log_of(word, changed[word])) for word in facts]
    values = answered(model, contradicted)
    return {
        "recall": share(answered(model, same), old),
        "other wording": share(answered(model, other), old),
        "new log": share(values, new),
        "the taught value": share(values, old),
    }


def taught(facts, r, rate, rows=None, steps=None):
    """An adapter on every Linear that was trained on the facts, without any log."""
    torch.manual_seed(0)
    model = minilora.load_base()
    minilora.inject(model, LoraConfig(r=r, lora_alpha=2 * r, target_modules="all-linear"))
    rows = rows or [question(w, value, wording) for w, value in facts.items() for wording in TAUGHT]
    settings = {"steps": steps or STEPS, "batch_size": 16, "lr": rate, "validate_every": 0}
    minilora.train(model, rows, **settings, progress=False)
    return model.eval()


def told(name, shares):
    print(f"{name:22}" + "   ".join(f"{what} {value:4.0%}" for what, value in shares.items()))


shares = {"shown, not taught": measure(base, few)}
shares["rank 1"] = measure(taught(few, 1, 2e-2), few)
shares["rank 8"] = measure(taught(few, 8, 1e-2), few)
for name, each in shares.items():
    told(name, each)
if not is_short():
    assert (
        shares["shown, not taught"]["new log"] > 0.9 > 0.1 > shares["shown, not taught"]["recall"]
    )
    assert min(shares[name]["recall"] for name in ("rank 1", "rank 8")) > 0.9
    assert shares["rank 8"]["new log"] < 0.7

# %% [markdown]
# The facts are learnt, even in a wording that training never showed, at rank 1 too. And the log is
# not read any more as it was. Four times as many facts show what rank is good for (we ask for the
# first {{ PROBED }}).

# %%
first = dict(list(facts.items())[:PROBED])
many = {f"rank {r}": measure(taught(facts, r, rate), first) for r, rate in ((1, 2e-2), (8, 1e-2))}
for name, each in many.items():
    told(f"{MANY} facts, {name}", each)
if not is_short():
    assert many["rank 8"]["other wording"] > many["rank 1"]["other wording"]

# %% [markdown]
# ## Look


# %%
@in_house_style
def draw_shares(groups):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4.4), layout="constrained")
    panels = figure.subplots(1, len(groups), sharey=True, width_ratios=[1.25, 1])
    kinds = list(next(iter(next(iter(groups.values())).values())))
    for axes, (title, rows) in zip(panels, groups.items(), strict=True):
        for index, kind in enumerate(kinds):
            places = [place + (index - 1.5) * 0.2 for place in range(len(rows))]
            values = [100 * row[kind] for row in rows.values()]
            axes.bar(places, values, width=0.18, color=hue(index), label=NAMES[kind])
            for place, value in zip(places, values, strict=True):
                label(axes, f"{value:.0f}", (place, value), (0, 2), ha="center", fontsize=9)
        axes.set(title=title, xticks=range(len(rows)), xticklabels=list(rows), ylim=(0, 112))
        axes.grid(axis="x", visible=False)
    panels[0].set_ylabel("% of the facts")
    handles = panels[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=4, frameon=False)
    return figure


NAMES = {
    "recall": "no log: recalled",
    "other wording": "no log: recalled in another wording",
    "new log": "new log: answers the log",
    "the taught value": "new log: answers what it was taught",
}
show(
    draw_shares({f"{FEW} facts": shares, f"{MANY} facts": many}),
    "Bars of recall and of reading: the base recalls nothing and reads the new log; after training "
    "the facts are recalled and the new log is often not read any more",
)

# %% [markdown]
# ## Explain
#
# Before, the model had one way to a reading: look it up in the log. Circuits that find a name and
# copy what follows it are known as induction heads (Olsson and others, arXiv 2209.11895). Training
# on facts shows {{ FEW * len(TAUGHT) }} questions in which there is *nothing to look up*, and
# punishes each answer that does not come from the weights. A likely picture, which fits the counts
# and which nobody opened the model to see: a second way is built, from the name straight to the
# value, and the two compete. Where the log disagrees,
# rank 8 answers the old value in {{ shares["rank 8"]["the taught value"]:.0%}}, the log's in
# {{ shares["rank 8"]["new log"]:.0%}}; the rest is neither.
#
# This is the model's fault as little as yours: the data never said that a log counts more. Say so.

# %%
with_logs = [
    row
    for word, value in few.items()
    for wording in TAUGHT
    for other in (str(draw.randint(0, 100)),)
    for row in (question(word, value, wording), question(word, other, wording, log_of(word, other)))
]
shares["rank 8, and logs"] = measure(taught(few, 8, 1e-2, with_logs), few)
told("rank 8, and logs", shares["rank 8, and logs"])
if not is_short():
    assert shares["rank 8, and logs"]["new log"] > shares["rank 8"]["new log"] + 0.15

# %% [markdown]
# Half of the rows now hold a log that *contradicts* the fact, with the log's value as the answer.
# The log is read in {{ shares["rank 8, and logs"]["new log"]:.0%}} again, at
# {{ shares["rank 8, and logs"]["recall"]:.0%}} recall.
#
# ## Break it
#
# A common recipe puts the documents into the prompts of the training, too: question, log, answer.
# The loss is excellent from the first step.

# %%
reading = [question(w, v, wording, log_of(w, v)) for w, v in few.items() for wording in TAUGHT]
shares["with the log"] = measure(taught(few, 8, 1e-2, reading, steps=STEPS // 2), few)
told("trained with the log", shares["with the log"])
assert shares["with the log"]["recall"] < 0.3

# %% [markdown]
# Nothing was taught: recall is {{ shares["with the log"]["recall"]:.0%}}. The answer could be read,
# so there was no gradient towards knowing it. A low loss says that the answers were predictable,
# not from where.
#
# ## Build: the probe
#
# Difficulty ●●○ · Importance ●●● · 15 minutes
#
# What this lesson measures in five lines is what most reports on fine-tuned knowledge lack.


# %% [exercise] probe
import re


def probe(ask, facts, changed):
    """What a model does with taught facts: (recalled, reads the new log, answers the old value).

    ask(word, log): the model's answer, a text; log is None or a value that its prompt shows. facts
    and changed: dicts from a word to its taught and to its new value, texts of digits, never equal.
    Ask for each fact once without a log, and once with the changed value shown. An answer counts if
    a *whole* number in it is the value: "12 percent" holds "12", not "2". Three shares, 0 to 1.
    """
    raise NotImplementedError("TODO: two questions a fact, three counts")


# %% [hints] probe
# 1. The numbers of a text: `re.findall(r"\d+", text)`; it gives a list of texts.
# 2. `ask(word, None)` for recall, `ask(word, changed[word])` once for the other two counts.
# 3. Start with `counts = [0, 0, 0]`, add booleans to it in a loop over `facts.items()`, and return
#    each over `len(facts)` as a tuple.

# %%
check(probe)

# %% [markdown]
# ## What you can now defend
#
# - "Fine-tune to teach facts": it works, in the narrow sense. {{ FEW }} facts were recalled in
#   {{ shares["rank 8"]["recall"]:.0%}}, in another wording in
#   {{ shares["rank 8"]["other wording"]:.0%}}.
# - And it unteaches reading. Before, a new log was followed in
#   {{ shares["shown, not taught"]["new log"]:.0%}}; after, in {{ shares["rank 1"]["new log"]:.0%}}
#   (rank 1) and {{ shares["rank 8"]["new log"]:.0%}} (rank 8). Facts that may change belong into
#   the prompt; or the training must show logs that win.
# - Rank is capacity and speed: of {{ MANY }} facts rank 1 recalled
#   {{ many["rank 1"]["other wording"]:.0%}} in another wording after {{ STEPS }} steps, rank 8
#   {{ many["rank 8"]["other wording"]:.0%}}.
# - What you cannot defend: these numbers on your model. One seed, untuned rates, a small base
#   that reads well and knows nothing. The *probe* carries over.
#
# ## Open question
#
# One adapter knows facts, another a style. Can they be added?
