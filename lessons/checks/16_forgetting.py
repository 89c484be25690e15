"""Checker of lesson 16. The oracle: the definition in NumPy, token by token, in float64."""

import numpy as np
import torch
from hypothesis.strategies import integers, lists

from minilora.learn import Wrong, cases, close


def by_definition(task, windows):
    """The loss and the share, with loops."""
    surprise = [-row[t, label] for row, labels in task for t, label in enumerate(labels)]
    apart = [
        np.sum(np.exp(log_p[t]) * (log_p[t] - log_q[t]))
        for log_q, log_p in windows
        for t in range(len(log_q))
    ]
    n, k = len(task), len(windows)
    loss = (n * np.mean(surprise) + k * np.mean(apart)) / (n + k)
    return loss, len(apart) / (len(surprise) + len(apart))


def log_softmax(z):
    """Rows of log-probabilities."""
    z = z - z.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


@cases(
    first={"task_lengths": [3, 1, 5], "window_lengths": [7, 2], "vocab": 5, "seed": 0},
    task_lengths=lists(integers(1, 5), min_size=1, max_size=4),
    window_lengths=lists(integers(2, 7), min_size=1, max_size=3),
    vocab=integers(2, 6),
    seed=integers(0, 999),
)
def check_mixed_loss(answer, task_lengths, window_lengths, vocab, seed):
    """Loss and share on rows of random lengths, and whether the gradient goes through."""
    draw = np.random.default_rng(seed)
    task = [
        (log_softmax(draw.normal(size=(t, vocab))), draw.integers(0, vocab, size=t))
        for t in task_lengths
    ]
    windows = [
        tuple(log_softmax(2 * draw.normal(size=(t, vocab))) for _ in range(2))
        for t in window_lengths
    ]
    right_loss, right_share = by_definition(task, windows)
    task_rows = [
        (torch.tensor(log_q, requires_grad=True), torch.tensor(labels)) for log_q, labels in task
    ]
    window_rows = [
        (torch.tensor(log_q, requires_grad=True), torch.tensor(log_p)) for log_q, log_p in windows
    ]
    case = f"{len(task)} task rows of {task_lengths} tokens, windows of {window_lengths}"
    result = answer(task_rows, window_rows)
    if not isinstance(result, tuple) or len(result) != 2:
        raise Wrong(f"{case}: expected (loss, share), got {type(result).__name__}")
    loss, share = result
    if not isinstance(loss, torch.Tensor) or not loss.requires_grad:
        raise Wrong(f"{case}: the loss must be a tensor with its graph, so that it can be trained")
    close(loss.detach(), np.array(right_loss), what="the loss", case=case)
    close(np.array(float(share)), np.array(right_share), what="the share in tokens", case=case)


def parts_of(task, windows):
    """Sums and counts: (n, k, Σ task, Σ KL, task tokens, window tokens)."""
    said = sum(-log_q[torch.arange(len(labels)), labels].sum() for log_q, labels in task)
    apart = sum((log_p.exp() * (log_p - log_q)).sum() for log_q, log_p in windows)
    counts = sum(len(labels) for _, labels in task), sum(len(log_q) for log_q, _ in windows)
    return len(task), len(windows), said, apart, *counts


def wrong_way_round(task, windows):
    """KL(q ‖ p)."""
    n, k, said, _, t, w = parts_of(task, windows)
    apart = sum((log_q.exp() * (log_q - log_p)).sum() for log_q, log_p in windows)
    return (n * said / t + k * apart / w) / (n + k), w / (t + w)


def weighted_by_tokens(task, windows):
    """One mean over all tokens."""
    _, _, said, apart, t, w = parts_of(task, windows)
    return (said + apart) / (t + w), w / (t + w)


def mean_of_row_means(task, windows):
    """A short row's token weighs more than a long one's."""
    n, k, _, apart, t, w = parts_of(task, windows)
    means = [-log_q[torch.arange(len(labels)), labels].mean() for log_q, labels in task]
    return (sum(means) + k * apart / w) / (n + k), w / (t + w)


def means_of_all_rows(task, windows):
    """A short row's token, and a short window's, weighs more than a long one's."""
    n, k, _, _, t, w = parts_of(task, windows)
    said = sum(-log_q[torch.arange(len(labels)), labels].mean() for log_q, labels in task)
    apart = sum((log_p.exp() * (log_p - log_q)).sum(-1).mean() for log_q, log_p in windows)
    return (said + apart) / (n + k), w / (t + w)


def cross_entropy_of_the_teacher(task, windows):
    """The same gradient, but not zero where the two agree."""
    n, k, said, _, t, w = parts_of(task, windows)
    apart = sum(-(log_p.exp() * log_q).sum() for log_q, log_p in windows)
    return (n * said / t + k * apart / w) / (n + k), w / (t + w)


def share_in_rows(task, windows):
    """The share of the rows."""
    n, k, said, apart, t, w = parts_of(task, windows)
    return (n * said / t + k * apart / w) / (n + k), k / (n + k)


def only_added(task, windows):
    """Not weighted at all."""
    _, _, said, apart, t, w = parts_of(task, windows)
    return said / t + apart / w, w / (t + w)


def mean_over_the_vocabulary(task, windows):
    """Divides by vocab once more."""
    n, k, said, apart, t, w = parts_of(task, windows)
    vocab = windows[0][0].shape[-1]
    return (n * said / t + k * apart / (w * vocab)) / (n + k), w / (t + w)


WRONG = {
    "mixed_loss": {
        "wrong way round": wrong_way_round,
        "weighted by tokens": weighted_by_tokens,
        "mean of row means": mean_of_row_means,
        "means of all rows": means_of_all_rows,
        "cross-entropy of the teacher": cross_entropy_of_the_teacher,
        "share in rows": share_in_rows,
        "only added": only_added,
        "mean over the vocabulary": mean_over_the_vocabulary,
    }
}
