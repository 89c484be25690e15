"""Which adapter for this question? A linear model over hashed character n-grams that may also say:
none of these.

    x        = tf-idf of the hashed n-grams (ngrams.py), ‖x‖ = 1
    score    = x W + b                            one number for each adapter
    W        = argmin ‖X W + b - Y‖² + λ ‖W‖²     ridge regression on the examples, Y one-hot
    margin   = best score - second best           below the threshold it abstains to the base

Ridge regression has one solution, whatever the order of the examples, so a refit after an adapter
came or went is the same on every machine up to rounding. It is found by conjugate gradients
(Hestenes and Stiefel 1952) in the dual, W = Xᵀ α with (X Xᵀ + λ) α = Y; a dozen products with the
sparse X do.

The threshold is calibrated, not chosen: a fifth of the examples is held out of a first fit, and the
smallest margin above which at least 95% of those are routed right is kept. That holds for questions
like the examples. A question of no topic at all is not among them, and slips through far too often.
From ``benchmarks/router.py``, 100 topics and 20 that no adapter has, means of three seeds:

                        right    routed at 95% right    routed of the 20 topics
    WordNet's glosses   81%      65%                    21%
    licence notices     77%      53%                    25%

Left out: what the examples do not show (two adapters for one topic), what an adapter costs. The
base's own mean hidden state as a second feature was tried on WordNet: alone it is right for 33% of
the questions, and beside the n-grams it made 82% to 78% or less, so it is not here.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..formats.peft_files import packed, unpacked
from .ngrams import PLACES, Counts, count_texts, ngrams, place

RIDGE = 0.5
ITERATIONS = 12
PRECISION = 0.95


@dataclass(frozen=True)
class Route:
    """Where a question goes: ``name``, or None for the base; ``margin``; the best names with their
    scores.

    >>> route = Route(None, 0.02, (("naval", 0.31), ("legal", 0.29)))
    >>> "the base" if route.name is None else route.name
    'the base'
    """

    name: str | None
    margin: float
    ranking: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Router:
    """A fitted router: ``names``, weights W (places, names), offset b, idf (places,), the
    threshold.

    >>> from minilora.training.data import SYSTEMS
    >>> ship = [f"How is the {system}?" for system in SYSTEMS]
    >>> law = [f"Does clause {number} grant patents?" for number in range(20)]
    >>> router = Router.fit({"naval": count_texts(ship), "legal": count_texts(law)})
    >>> router.route("How is the engine?").name, router.route("Sing me a song!").name
    ('naval', None)
    >>> [ngram for ngram, _ in router.explain("Which clause grants it?", "legal")][:2]
    [' cl', 'cla']
    """

    names: tuple[str, ...]
    W: Tensor
    b: Tensor
    idf: Tensor
    threshold: float

    @classmethod
    def fit(cls, examples: Mapping[str, Counts], precision: float = PRECISION) -> Router:
        """Fit on each adapter's examples; a fifth of them calibrate the threshold. Raises
        ``ValueError`` without any.
        """
        if len(examples) < 2 or min(map(len, examples.values())) < 5:
            counts = ", ".join(f"{name}: {len(each)}" for name, each in examples.items())
            raise ValueError(
                "a router needs at least two adapters, and five examples of each, got "
                f"{counts or 'none'}"
            )
        held = {
            name: [row for row in range(len(each)) if row % 5 == 4]
            for name, each in examples.items()
        }
        first = fit_ridge(
            {
                name: each.pick([row for row in range(len(each)) if row % 5 != 4])
                for name, each in examples.items()
            }
        )
        margins, right = [], []
        for label, (name, each) in enumerate(sorted(examples.items())):
            top = first.scores(each.pick(held[name])).topk(2, 1)
            margins.append(top.values[:, 0] - top.values[:, 1])
            right.append(top.indices[:, 0] == label)
        threshold = calibrated(torch.cat(margins), torch.cat(right), precision)
        whole = fit_ridge(examples)
        return cls(whole.names, whole.W, whole.b, whole.idf, threshold)

    def scores(self, texts: Counts) -> Tensor:
        """One row of scores a text, (texts, names)."""
        return product(weighted(texts, self.idf), self.W) + self.b

    def route(self, question: str, best: int = 3) -> Route:
        """The adapter for a question, or None when none stands out."""
        scores = self.scores(count_texts([question]))[0]
        top = scores.topk(min(max(2, best), len(scores)))
        ranking = [
            (self.names[i], s)
            for i, s in zip(top.indices.tolist(), top.values.tolist(), strict=True)
        ]
        margin = ranking[0][1] - ranking[1][1]
        return Route(
            ranking[0][0] if margin >= self.threshold else None, margin, tuple(ranking[:best])
        )

    def explain(
        self, question: str, name: str | None = None, most: int = 8
    ) -> list[tuple[str, float]]:
        """The question's n-grams that spoke loudest for a name (default: the best) against the mean
        of all names.
        """
        label = self.names.index(name or self.route(question).ranking[0][0])
        grams = ngrams(question)
        places, weights, _ = weighted(count_texts([question]), self.idf)
        says = weights * (self.W[places, label] - self.W[places].mean(1))
        by_place = dict(zip(places.tolist(), says.tolist(), strict=True))
        together: Counter[int] = Counter()  # n-grams that share a place share what it says
        for gram, count in grams.items():
            together[place(gram)] += count
        shares = {
            gram: by_place[place(gram)] * count / together[place(gram)]
            for gram, count in grams.items()
        }
        return sorted(shares.items(), key=lambda pair: -pair[1])[:most]


Sparse = tuple[Tensor, Tensor, Tensor]  # (places, values, starts) of the rows, one after the other


def fit_ridge(examples: Mapping[str, Counts]) -> Router:
    """The ridge regression of the module's head, with a threshold of zero."""
    names = tuple(sorted(examples))
    parts = [examples[name] for name in names]
    ends = torch.tensor([0] + [len(each.places) for each in parts]).cumsum(0).tolist()
    starts = [each.starts[:-1] + end for each, end in zip(parts, ends, strict=False)]
    texts = Counts(
        torch.cat([each.places for each in parts]),
        torch.cat([each.counts for each in parts]),
        torch.cat([*starts, torch.tensor([ends[-1]])]),
    )
    seen = torch.zeros(PLACES).index_add_(0, texts.places, torch.ones(len(texts.places)))
    idf = torch.log((1 + len(texts)) / (1 + seen))
    labels = torch.repeat_interleave(
        torch.arange(len(names)), torch.tensor([len(p) for p in parts])
    )
    Y = torch.nn.functional.one_hot(labels, len(names)).float()  # (texts, names)
    X = weighted(texts, idf)
    return Router(names, solve(X, Y - Y.mean(0)), Y.mean(0), idf, 0.0)


def solve(X: Sparse, Y: Tensor) -> Tensor:
    """W (places, names) of ridge regression, by conjugate gradients on (X Xᵀ + λ) α = Y, all names
    at once.
    """
    Xt = transposed(X)
    alpha, residual = torch.zeros_like(Y), Y.clone()
    direction, size = Y.clone(), (Y * Y).sum(0)
    for _ in range(ITERATIONS):
        image = product(X, product(Xt, direction)) + RIDGE * direction
        step = size / (direction * image).sum(0).clamp(min=1e-30)
        alpha += step * direction
        residual -= step * image
        new = (residual * residual).sum(0)
        direction = residual + new / size.clamp(min=1e-30) * direction
        size = new
    return product(Xt, alpha)


def weighted(texts: Counts, idf: Tensor) -> Sparse:
    """tf-idf with (1 + log count) · idf, every row of length 1 (or 0, of a text without a known
    n-gram).
    """
    values = (1 + texts.counts.float().log()) * idf[texts.places]
    rows = torch.repeat_interleave(torch.arange(len(texts)), texts.starts.diff())
    squares = torch.zeros(len(texts)).index_add_(0, rows, values * values)
    return texts.places, values / squares.sqrt().clamp(min=1e-12)[rows], texts.starts


def product(X: Sparse, dense: Tensor) -> Tensor:
    """Sparse times dense, (rows, columns): each row a weighted sum of rows of ``dense``."""
    places, values, starts = X
    return torch.nn.functional.embedding_bag(
        places, dense, starts, mode="sum", per_sample_weights=values, include_last_offset=True
    )


def transposed(X: Sparse) -> Sparse:
    """The same matrix by its columns, of which there are ``PLACES``."""
    places, values, starts = X
    rows = torch.repeat_interleave(torch.arange(len(starts) - 1), starts.diff())
    order = places.argsort(stable=True)
    sizes = torch.bincount(places, minlength=PLACES)
    return (
        rows[order],
        values[order],
        torch.cat([torch.zeros(1, dtype=torch.long), sizes.cumsum(0)]),
    )


def calibrated(margins: Tensor, right: Tensor, precision: float) -> float:
    """A threshold such that of the margins above it at least a share ``precision`` is right.

    The smallest such, half-way to the next margin below it (or to 0). Infinity when there is none,
    so that nothing is routed.

    >>> calibrated(torch.tensor([0.75, 0.5, 0.25]), torch.tensor([True, True, False]), 0.9)
    0.375
    """
    margins, order = margins.sort(descending=True)
    shares = right[order].double().cumsum(0) / torch.arange(1, len(order) + 1)
    next_lower = (
        torch.cat([margins[1:], torch.tensor([-math.inf])]) < margins - 1e-6
    )  # ties are one
    good = ((shares >= precision) & next_lower).nonzero()
    if not len(good):
        return math.inf
    last = int(good.max())
    below = float(margins[last + 1]) if last + 1 < len(margins) else 0.0
    return (float(margins[last]) + below) / 2


def save_router(router: Router) -> bytes:
    """A fitted router as a file; the larger part is W, 256 KB a name."""
    parts = {"W": router.W, "b": router.b, "idf": router.idf}
    return packed(parts, {"names": json.dumps(router.names), "threshold": repr(router.threshold)})


def load_router(content: bytes) -> Router:
    """Read ``save_router``'s file."""
    parts, about = unpacked(content)
    names = tuple(json.loads(about["names"]))
    return Router(names, parts["W"], parts["b"], parts["idf"], float(about["threshold"]))
