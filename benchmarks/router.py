"""Which of 100 adapters is a question for? The hub's router against keyword rules and nearest
centroid, on real text.

    apt-get download wordnet-base && dpkg-deb -x wordnet-base_*.deb wordnet
    pip download --no-deps licensedcode-data==32.1.0
    python -m benchmarks.router --wordnet wordnet/usr/share/wordnet \\
        --licences licensedcode_data-32.1.0-py3-none-any.whl

Two sets of topics, both chosen by size alone (``router_texts.py``):

    wordnet    100 of the 120 largest disjoint branches of nouns with 100 to 600 members ("aquatic
               bird", "monetary unit", "idea", …); a question is a synset's words and its gloss
    licences   100 of the 120 licences that most notices are about, by ScanCode's reviewers; a
               question is a notice ("released under the GNU LGPL, version 2.1 or …")

A fifth of each topic's texts is held out, of at most 400. The other 20 topics have no adapter:
their texts are questions for none of these, and the share of them that is routed all the same is
reported too. Seeds choose topics and splits.

Keyword rules are the 100 words a topic that tell it from the others best, all alike (20: worse):
the topic with the most hits wins. The centroid is the mean direction of a topic's tf-idf. Both get
their threshold calibrated like the router's own.
"""

from __future__ import annotations

import random
import re
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from minilora.hub.ngrams import count_texts
from minilora.hub.router import (
    PRECISION,
    Router,
    calibrated,
    fit_ridge,
    product,
    transposed,
    weighted,
)
from minilora.plots.style import hue, in_house_style, label_ends, new_figure, save_figure

from .common import Row, options, save
from .router_texts import licence_topics, wordnet_topics

TOPICS, FOREIGN, MOST, WORDS = 100, 20, 400, 100
Texts = Mapping[str, Sequence[str]]
Scorer = Callable[[Sequence[str]], Tensor]  # texts -> (texts, topics)


def split(topics: Texts, seed: int) -> tuple[Texts, list[tuple[str, str]], list[str]]:
    """Texts to fit on by topic, held-out (text, topic), and texts of no topic that is fitted."""
    rng, names = random.Random(seed), sorted(topics)
    rng.shuffle(names)
    fitted, held_out = {}, []
    for name in sorted(names[:TOPICS]):
        texts = rng.sample(list(topics[name]), min(MOST, len(topics[name])))
        cut = max(1, len(texts) // 5)
        held_out += [(text, name) for text in texts[:cut]]
        fitted[name] = texts[cut:]
    foreign = [text for name in names[TOPICS:] for text in topics[name][:50]]
    return fitted, held_out, foreign


def ridge(fitted: Texts) -> Scorer:
    """The router's scores."""
    router = fit_ridge({name: count_texts(texts) for name, texts in fitted.items()})
    return lambda texts: router.scores(count_texts(texts))


def centroid(fitted: Texts) -> Scorer:
    """Cosines with the mean direction of each topic's texts, on the router's own features."""
    counts = {name: count_texts(texts) for name, texts in fitted.items()}
    idf = fit_idf(counts)
    means = []
    for name in sorted(counts):
        X = weighted(counts[name], idf)
        mean = product(transposed(X), torch.ones(len(counts[name]), 1))  # (places, 1)
        means.append(mean / mean.norm())
    directions = torch.cat(means, 1)
    return lambda texts: product(weighted(count_texts(texts), idf), directions)


def fit_idf(counts: Mapping) -> Tensor:
    """The router's idf, without its fit."""
    from minilora.hub.ngrams import PLACES

    seen, texts = torch.zeros(PLACES), sum(map(len, counts.values()))
    for each in counts.values():
        seen.index_add_(0, each.places, torch.ones(len(each.places)))
    return torch.log((1 + texts) / (1 + seen))


def keywords(fitted: Texts) -> Scorer:
    """Hits among each topic's 100 most telling words: the share of its texts with a word, less the
    share of all texts.
    """
    names = sorted(fitted)
    with_word = {name: Counter(w for text in fitted[name] for w in words(text)) for name in names}
    everywhere, texts = sum(with_word.values(), Counter()), sum(map(len, fitted.values()))
    rules: dict[str, list[int]] = defaultdict(list)
    for label, name in enumerate(names):
        telling = {
            word: count / len(fitted[name]) - everywhere[word] / texts
            for word, count in with_word[name].items()
        }
        for word in sorted(telling, key=lambda word: (-telling[word], word))[:WORDS]:
            rules[word].append(label)

    def score(asked: Sequence[str]) -> Tensor:
        hits = torch.zeros(len(asked), len(names))
        for row, text in enumerate(asked):
            for word in words(text):
                for label in rules.get(word, ()):
                    hits[row, label] += 1
        return hits

    return score


def words(text: str) -> set[str]:
    """The different words of a text."""
    return set(re.findall(r"[^\W_]+", text.lower()))


CONTESTANTS = {"router": ridge, "centroid": centroid, "keywords": keywords}


def judge(
    make: Callable[[Texts], Scorer], fitted: Texts, held_out: list, foreign: list[str]
) -> Row:
    """Accuracy, the curve of risk and coverage, and what the calibrated threshold does, of one
    contestant.
    """
    names = sorted(fitted)
    calibration = [(text, name) for name in names for text in fitted[name][4::5]]
    first = make({name: [t for i, t in enumerate(fitted[name]) if i % 5 != 4] for name in names})
    threshold = calibrated(*margins(first, calibration, names), PRECISION)
    begun = time.perf_counter()
    score = make(fitted)
    fit_seconds = time.perf_counter() - begun
    margin, right = margins(score, held_out, names)
    accepted = margin >= threshold
    order = margin.argsort(descending=True, stable=True)
    risk = 1 - right[order].double().cumsum(0) / torch.arange(1, len(order) + 1)
    good = (risk <= 1 - PRECISION).nonzero()
    curve = [int(share * len(order)) - 1 for share in (i / 50 for i in range(1, 51))]
    return {
        "accuracy": right.double().mean().item(),
        "coverage_at_95": (int(good.max()) + 1) / len(order) if len(good) else 0.0,
        "threshold": threshold,
        "covered": accepted.double().mean().item(),
        "precision": right[accepted].double().mean().item() if accepted.any() else 1.0,
        "foreign_accepted": (top_two(score(foreign)) >= threshold).double().mean().item(),
        "fit_seconds": fit_seconds,
        "questions": len(held_out),
        "risk": [max(0.0, risk[i].item()) for i in curve],
        "confusions": confusions(score, held_out, names),
    }


def confusions(score: Scorer, asked: list, names: Sequence[str], most: int = 12) -> list[list]:
    """The commonest (topic, topic it was taken for, share of the topic's questions)."""
    taken = score([text for text, _ in asked]).argmax(1).tolist()
    asked_of = Counter(name for _, name in asked)
    wrong = Counter(
        (name, names[label])
        for (_, name), label in zip(asked, taken, strict=True)
        if names[label] != name
    )
    shares = {pair: count / asked_of[pair[0]] for pair, count in wrong.items() if count > 2}
    ordered = sorted(shares.items(), key=lambda each: (-each[1], each[0]))
    return [[*pair, share] for pair, share in ordered[:most]]


def margins(score: Scorer, asked: list, names: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Best score less second best of each question, and whether the best is right."""
    scores = score([text for text, _ in asked])
    labels = torch.tensor([names.index(name) for _, name in asked])
    return top_two(scores), scores.argmax(1) == labels


def top_two(scores: Tensor) -> Tensor:
    """The margins alone."""
    top = scores.topk(2, 1).values
    return top[:, 0] - top[:, 1]


def microseconds(fitted: Texts, held_out: list) -> float:
    """Median time of one ``Router.route`` of one question, text in, name out."""
    router = Router.fit({name: count_texts(texts) for name, texts in fitted.items()})
    took = []
    for text, _ in held_out[:500]:
        begun = time.perf_counter()
        router.route(text)
        took.append(time.perf_counter() - begun)
    return 1e6 * statistics.median(took)


def told(row: Row) -> str:
    """One contestant's line in the printed table."""
    return (
        f"right {row['accuracy']:.1%}  covered at 95% {row['coverage_at_95']:.1%}  "
        f"calibrated: {row['covered']:.1%} covered, {row['precision']:.1%} right, "
        f"{row['foreign_accepted']:.1%} of none let in  fit {row['fit_seconds']:.1f} s"
    )


@in_house_style
def router_figure(rows: Sequence[Row]):
    """Risk against coverage of each contestant, a panel a set of texts, the mean over the seeds."""
    sets = list(dict.fromkeys(row["texts"] for row in rows))
    figure, panels = new_figure(len(sets), (5.2 * len(sets), 4), [1] * len(sets))
    for axes, name in zip(panels if len(sets) > 1 else [panels], sets, strict=True):
        ends = {}
        for index, contestant in enumerate(CONTESTANTS):
            runs = [r["risk"] for r in rows if (r["texts"], r["contestant"]) == (name, contestant)]
            mean = [100 * statistics.mean(values) for values in zip(*runs, strict=True)]
            coverage = [2 * (i + 1) for i in range(len(mean))]
            axes.plot(coverage, mean, color=hue(index))
            ends[contestant] = (mean[-1], hue(index))
        axes.axhline(100 * (1 - PRECISION), color=hue(6), linewidth=1)
        axes.set(
            title=f"100 topics of {name}",
            xlabel="% of questions routed, the surest first",
            ylabel="% of them wrong",
            ylim=(0, None),
        )
        label_ends(axes, ends)
    return figure


@in_house_style
def confusion_figure(rows: Sequence[Row]):
    """What the router takes for what, the commonest pairs of each set's first seed."""
    first: dict[str, Row] = {}
    for row in rows:
        if row["contestant"] == "router":
            first.setdefault(row["texts"], row)
    figure, panels = new_figure(len(first), (7.5 * len(first), 4), [1] * len(first))
    for axes, (name, row) in zip(
        panels if len(first) > 1 else [panels], first.items(), strict=True
    ):
        pairs = row["confusions"][::-1]
        names = [f"{short(true)} → {short(taken)}" for true, taken, _ in pairs]
        axes.barh(names, [100 * share for *_, share in pairs], color=hue(0), height=0.6)
        axes.grid(axis="y", visible=False)
        axes.set(title=f"Taken for another, {name}", xlabel="% of the topic's questions")
    return figure


def short(topic: str) -> str:
    """A topic's first word in a label."""
    return topic.split(",")[0].rsplit(" 0", 1)[0].rsplit(" 1", 1)[0][:28]


def main() -> None:
    """Every contestant on every set and seed; a table, a JSON file and a figure."""
    given = options(__doc__, wordnet="", licences="", seeds=[1, 2, 3])
    sets = {}
    if given.wordnet:
        sets["wordnet"] = wordnet_topics(Path(given.wordnet), TOPICS + FOREIGN)
    if given.licences:
        sets["licences"] = licence_topics(Path(given.licences), TOPICS + FOREIGN)
    if not sets:
        raise SystemExit(
            "name the texts: --wordnet FOLDER, --licences WHEEL (the head of this file says how)"
        )
    rows: list[Row] = []
    for name, topics in sets.items():
        for seed in given.seeds:
            fitted, held_out, foreign = split(topics, seed)
            for contestant, make in CONTESTANTS.items():
                row = judge(make, fitted, held_out, foreign)
                rows.append({"texts": name, "seed": seed, "contestant": contestant, **row})
                print(f"{name:<9} seed {seed}  {contestant:<9} {told(row)}", flush=True)
            if seed == given.seeds[0]:
                rows[-len(CONTESTANTS)]["microseconds"] = microseconds(fitted, held_out)
                print(f"{name:<9} {rows[-len(CONTESTANTS)]['microseconds']:.0f} µs a question")
    save("router", rows, given)
    folder = Path(given.out) / given.device
    save_figure(router_figure(rows), folder / "router.png")
    save_figure(confusion_figure(rows), folder / "router-confusions.png")


if __name__ == "__main__":
    main()
