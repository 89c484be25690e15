# %% [markdown]
# # 20 · How to name, trust and choose an adapter?
#
# Know first: lesson 06 · Difficulty ●●○ · 12 minutes to read · 40 seconds to run
#
# An adapter is a small file, so there are soon a hundred of them: `naval-final`, `naval-final2`,
# `naval-final2-REALLY`. Three questions come up. Which one is this? Is it still what it was? And
# which of the hundred should answer the question that just came in?
#
# The first two have one answer, a *content identity*: a hash of what the adapter computes. The
# third is a classifier that may also say "none of these".
#
# First, two adapters to keep. What they know does not matter here, so nobody trains them.

# %%
import hashlib
import json
import shutil
import tempfile
from collections import Counter
from gzip import decompress
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load, load_file, save_file

import minilora
from minilora import LoraConfig
from minilora.hub import Hub, Router
from minilora.hub.ngrams import count_texts
from minilora.learn import check, full_or_short, show
from minilora.learn.course import lessons_folder
from minilora.plots.style import hue, in_house_style, one_axes

folder = Path(tempfile.mkdtemp())


def adapter_of(seed):
    """An adapter beside every v_proj of the base, with random B: its folder."""
    torch.manual_seed(seed)
    model = minilora.load_base()
    minilora.inject(model, LoraConfig(r=4, lora_alpha=8, target_modules=["v_proj"]))
    for name, parameter in model.named_parameters():
        if name.endswith("lora_B.weight"):
            torch.nn.init.normal_(parameter, std=0.02)
    return minilora.save_adapter(model, folder / f"seed {seed}")


first, second = adapter_of(1), adapter_of(2)
print(f"{first.name}: {', '.join(sorted(file.name for file in first.iterdir()))}")

# %% [markdown]
# ## Predict

# %% [predict] same_hash
# A safetensors file is a JSON header (names, types, places, and free *metadata*), then the numbers.
# We write one adapter twice: equal tensors, equal metadata, only its two keys in another order. Is
# the SHA-256 of the two files the same?
# - a) yes
# - b) no
# answer: "a" if sha(twice[0]) == sha(twice[1]) else "b"


# %%
def sha(content):
    return hashlib.sha256(content).hexdigest()


def written_by_hand(tensors, metadata):
    header, start = {"__metadata__": metadata}, 0
    for name, tensor in sorted(tensors.items()):
        places = {"shape": list(tensor.shape), "data_offsets": [start, start + tensor.nbytes]}
        header[name], start = {"dtype": "F32", **places}, start + tensor.nbytes
    text = json.dumps(header).encode()
    numbers = b"".join(tensor.numpy().tobytes() for _, tensor in sorted(tensors.items()))
    return len(text).to_bytes(8, "little") + text + numbers


tensors = load_file(first / "adapter_model.safetensors")
twice = [written_by_hand(tensors, {key: "x" for key in keys}) for keys in (("a", "b"), ("b", "a"))]
for content in twice:
    read_back = load(content)
    assert all(torch.equal(read_back[name], tensors[name]) for name in tensors)
print(f"two files of {len(twice[0]):,} bytes, the same tensors; hashes:")
print(*(sha(content)[:16] for content in twice))

# %% [markdown]
# ## Run: names that keep their word
#
# A hub stores each file under the hash of its content, and a version is a row that names hashes.
# `push` suggests the number (semantic versions: another base, rank or set of targets is a major
# step, other data a minor one), an alias such as `champion` is a name that may move.

# %%
hub = Hub(folder / "hub")
data = {"data_sha": sha(b"the first logs")}, {"data_sha": sha(b"the second logs")}
one = hub.push("naval", first, metadata={**data[0], "metrics": {"exact_match": 0.91}})
two = hub.push("naval", second, metadata={**data[1], "metrics": {"exact_match": 0.94}})
print(f"stored {one.spec}, then {two.spec}; its parent is {two.manifest.parent}")
hub.alias(two.spec, "champion")
hub.alias(one.spec, "champion", expected=two.version)  # back, if nobody moved it meanwhile
assert hub.pull("naval@champion") == hub.pull(one.spec)
pulled = load_file(hub.pull("naval@1.0.0") / "adapter_model.safetensors")
assert all(torch.equal(pulled[name], tensors[name]) for name in tensors)
assert hub.verify() == []

# %% [markdown]
# And trust: flip one bit, ten times, in a random file of the store, and ask for a check each time.

# %% [predict] bits_noticed
# How many of the ten will the hub notice? (a whole number)
# answer: noticed

# %%
dice = torch.Generator().manual_seed(0)
blobs = [file for file in (folder / "hub" / "blobs").rglob("*") if file.is_file()]
noticed = 0
for _ in range(10):
    blob = blobs[int(torch.randint(len(blobs), (), generator=dice))]
    content = bytearray(blob.read_bytes())
    bit = int(torch.randint(8 * len(content), (), generator=dice))
    content[bit // 8] ^= 1 << bit % 8
    whole = blob.read_bytes()
    blob.chmod(0o644)
    blob.write_bytes(content)
    noticed += len(hub.verify()) > 0
    blob.write_bytes(whole)
print(f"{noticed} of 10 flipped bits were noticed; after the repair: {hub.verify()}")
assert noticed == 10

# %% [markdown]
# ## Run: a hundred topics
#
# Real text: a hundred branches of WordNet's nouns, 40 definitions each, of which 10 are held out.
# The hub's router counts a text's n-grams in {{ 2**16:,}} places by their hash (no list of
# words is kept), weighs rare ones up, and fits one linear score an adapter by ridge regression.

# %% [predict] routed_right
# For how many of 100 held-out definitions does it name the right one of the hundred adapters?
# answer: round(100 * accuracy)

# %%
topics = json.loads(decompress((lessons_folder() / "data" / "glosses.json.gz").read_bytes()))
names = sorted(topics)[: full_or_short(100, 30)]
known = {name: [text for i, text in enumerate(topics[name]) if i % 4] for name in names}
asked = [(text, name) for name in names for i, text in enumerate(topics[name]) if i % 4 == 0]
router = Router.fit({name: count_texts(texts) for name, texts in known.items()})
scores = router.scores(count_texts([text for text, _ in asked]))  # (questions, names)
best = scores.topk(2, dim=1)
choice = [router.names[i] for i in best.indices[:, 0].tolist()]
right = torch.tensor([guess == name for guess, (_, name) in zip(choice, asked, strict=True)])
accuracy = right.float().mean().item()
print(f"{len(names)} topics, {len(asked)} held-out definitions: {accuracy:.0%} right")
assert accuracy > 0.5

question = "a small boat moved by oars"
route = router.route(question)
print(f"\n{question!r} -> {route.ranking[0][0]}, then {route.ranking[1][0]}")
print("because of", [ngram for ngram, _ in router.explain(question)][:6])

# %% [markdown]
# Never "none of these", and one question in {{ 1 / (1 - accuracy):.0f}} goes to a wrong adapter,
# which answers with full confidence. The *margin*, best score less second best, says how sure the
# router is. Answer only above a threshold: fewer questions are routed (*coverage*), and fewer
# of those wrongly (*risk*).

# %%
margins = best.values[:, 0] - best.values[:, 1]
order = margins.argsort(descending=True)
coverage = torch.arange(1, len(asked) + 1) / len(asked)
risk = 1 - right[order].float().cumsum(0) / torch.arange(1, len(asked) + 1)
chosen = margins >= router.threshold
routed, precision = chosen.float().mean().item(), right[chosen].float().mean().item()
print(f"threshold {router.threshold:.2f}, calibrated on the training texts alone:")
print(f"{routed:.0%} of the questions are routed, {precision:.0%} of those rightly")
assert precision > accuracy + 0.05

# %% [markdown]
# ## Look


# %%
@in_house_style
def risk_and_confusion():
    figure, (left, rightmost) = one_axes(width=9.4, height=4.2, columns=2)
    left.plot(coverage, 100 * risk, color=hue(0))
    left.plot([routed], [100 * (1 - precision)], "o", color=hue(1))
    left.text(routed + 0.05, 100 * (1 - precision) - 2, "the router stops here")
    left.set(xlabel="share of questions routed", ylabel="wrong among them, %", title="abstaining")
    pairs = worst_confusions[::-1]
    rightmost.barh(np.arange(len(pairs)), [count for _, count in pairs], color=hue(2))
    rightmost.set_yticks(range(len(pairs)), [f"{a} → {b}" for (a, b), _ in pairs])
    rightmost.set(xlabel="held-out questions, of 10", title="what is taken for what")
    return figure


mistakes = Counter(
    (name, guess) for guess, (_, name) in zip(choice, asked, strict=True) if guess != name
)
worst_confusions = mistakes.most_common(8)
show(
    risk_and_confusion(), alt="risk against coverage, and the topics that are taken for each other"
)
shared = sum(count for _, count in worst_confusions) / max(1, sum(mistakes.values()))

# %% [markdown]
# The mistakes are no accident: they fall between neighbours, whose definitions use the same words.
# Two adapters for nearly one topic should be one, or the user should be asked.
#
# ## Explain
#
# *Identity.* What an adapter computes is fixed by its settings (r, alpha, targets) and its tensors.
# So hash those, in one order, with names, types and shapes between them:
#
#     id = sha256( settings ‖ for each name in order: name, dtype, shape, bytes )
#
# A file's hash is an identity of the file. Safetensors keeps its metadata in a hash map, and so
# two saves of the same tensors may differ (safetensors issue #584).
#
# *Routing.* With x the text's weighted n-grams of length 1 and Y the one-hot topics,
#
#     W = argmin ‖X W − Y‖² + λ ‖W‖²     margin = best − second best
#
# One solve, no training loop, the same for every order of the examples: an adapter that comes
# or goes means a refit of well under a second.
#
# ## Break it
#
# Three shortcuts. A version that can be overwritten:

# %%
shelf = folder / "shelf" / "naval-1.0.0"
shutil.copytree(first, shelf)
trusted = load_file(shelf / "adapter_model.safetensors")
save_file(load_file(second / "adapter_model.safetensors"), shelf / "adapter_model.safetensors")
now = load_file(shelf / "adapter_model.safetensors")
changed = sum(not torch.equal(now[name], trusted[name]) for name in trusted)
print(f"a plain folder: naval-1.0.0 has {changed} other tensors now, and nobody is told")
try:
    hub.push("naval", second, version="1.0.0")
    refusal = ""
except ValueError as error:
    refusal = str(error)
print("the hub:", refusal)
assert changed > 0
assert "never changes" in refusal

# %% [markdown]
# A file's hash for an identity: you saw it, one adapter had two.
#
# And a router that must choose. Questions of no topic at all, without a threshold and with it:

# %%
foreign = ["What is two plus two?", "Please reset my password.", "Write a haiku about Monday."]
foreign += ["Translate this into French.", "Why is my invoice wrong?", "qwertz uiop"]
for text in foreign:
    answer = router.route(text)
    kept = answer.name or "none of these: the base answers"
    print(f"{text:30} -> must choose: {answer.ranking[0][0]:20} may abstain: {kept}")
let_in = sum(router.route(text).name is not None for text in foreign)
print(f"{let_in} of {len(foreign)} still get through")
assert let_in < len(foreign)

# %% [markdown]
# The threshold was calibrated on questions that *have* a topic, so it promises nothing about
# others. These six were easy: real texts of other topics look more alike, and more of them get in
# (`benchmarks/router.py` counts them).
#
# ## Build: the content identity
#
# Difficulty ●●○ · Importance ●●● · 10 minutes


# %% [exercise] content_identity
import hashlib


def content_identity(tensors):
    """The identity of named tensors, 64 hexadecimal digits.

    tensors: a dict from name to float32 NumPy array. Equal dicts have equal identities, whatever
    the order of their keys and however an array lies in memory. Another name, shape or
    value, and also the same numbers cut into other arrays, has another identity.
    """
    raise NotImplementedError("TODO: sha256 over the names in order, each with shape and bytes")


# %% [hints] content_identity
# 1. `hashlib.sha256()` has `.update(bytes)` and `.hexdigest()`. Which order of the names does not
#    depend on the dict?
# 2. For each name of `sorted(tensors)`: update with the name and the shape as text, and a sign
#    that ends them, then with the array's bytes, `array.tobytes()`.
# 3. `total.update(f"{name} {tensors[name].shape}\n".encode())`, then
#    `total.update(tensors[name].tobytes())`; at the end `return total.hexdigest()`

# %%
check(content_identity)

# %% [markdown]
# ## Build: a router in five lines
#
# Difficulty ●●○ · Importance ●●○ · 10 minutes
#
# The simplest router that is any good: a topic is the mean direction of its examples, and a
# question goes to the topic whose direction is nearest, if it is near enough.


# %% [exercise] route_by_centroid
import numpy as np


def route_by_centroid(x, labels, question, least):
    """The topic of a question, or None.

    x (n, d): the examples' features, no row is zero. labels (n,): their topics, whole numbers.
    question (d,): not zero. A topic's centroid is the mean of its rows, each first divided by its
    length. The answer is the topic whose centroid has the largest cosine with the question, or
    None when that cosine is below least.
    """
    raise NotImplementedError("TODO: unit rows, their mean by topic, cosines, the best or None")


# %% [hints] route_by_centroid
# 1. A long text must not count more than a short one: `x / np.linalg.norm(x, axis=1)[:, None]`.
# 2. The cosine of a and b is a·b / (‖a‖ ‖b‖); a mean of unit vectors is shorter than 1.
# 3. `means = {t: unit[labels == t].mean(0) for t in sorted(set(labels.tolist()))}`, then the
#    cosine of each mean with the question, `best = max(cosines, key=cosines.get)`, and
#    `return best if cosines[best] >= least else None`

# %%
check(route_by_centroid)

# %% [markdown]
# ## What you can now defend
#
# - An adapter is its tensors and settings, not its file: two files of one adapter had two
#   hashes. Hash what is computed.
# - A name that may change its meaning (an alias) and one that may not (a version) are two things.
#   Rolling back is moving the first.
# - Addressed by content, a store notices damage by itself: {{ noticed}} of 10 flipped bits.
# - Hashed letters and one linear solve send {{ accuracy:.0%}} of the questions on {{ len(names)}}
#   topics to the right adapter. With leave to abstain, {{ precision:.0%}} of those that it sends.
#
# ## Open question
#
# The router sees only what adapters were trained on. Two adapters for one topic, an old and a new
# one, look alike to it. Which of the two is *better* must come from their answers; lesson 22 asks
# how many answers that takes.
