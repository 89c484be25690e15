"""Checkers of lesson 19: products summed one by one, and TIES entry by entry in plain Python."""

import torch
from hypothesis import strategies as st

from minilora.learn import Wrong, cases, close


@cases(
    first={"ranks": [3, 2], "size_in": 5, "size_out": 3, "seed": 0},
    ranks=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    size_in=st.integers(1, 6),
    size_out=st.integers(1, 6),
    seed=st.integers(0, 999),
)
def check_combine_exactly(answer, ranks, size_in, size_out, seed):
    """The product against the sum of products, and the shapes of the factors."""
    random = torch.Generator().manual_seed(seed)
    parts, weights = [], torch.randn(len(ranks), generator=random).tolist()
    for r in ranks:
        A = torch.randn(r, size_in, generator=random, dtype=torch.float64)
        B = torch.randn(size_out, r, generator=random, dtype=torch.float64)
        parts.append((A, B, torch.rand((), generator=random).item() + 0.5))
    case = f"ranks {ranks}, in {size_in}, out {size_out}, weights {[round(w, 2) for w in weights]}"
    right = sum(w * s * (B @ A) for (A, B, s), w in zip(parts, weights, strict=True))
    result = answer(list(parts), list(weights))
    if not isinstance(result, tuple) or len(result) != 2:
        raise Wrong(f"expected a pair (A, B) for {case}, got {type(result).__name__}")
    A, B = result
    total, got = sum(ranks), (tuple(A.shape), tuple(B.shape))
    if got != ((total, size_in), (size_out, total)):
        expected = ((total, size_in), (size_out, total))
        raise Wrong(f"A and B have the shapes {got} for {case}; a right answer has {expected}")
    close(B @ A, right, what="B @ A", case=case)


@cases(
    first={"count": 3, "rows": 3, "columns": 4, "density": 0.5, "seed": 0},
    count=st.integers(1, 4),
    rows=st.integers(1, 4),
    columns=st.integers(1, 4),
    density=st.sampled_from([0.25, 0.5, 0.75, 1.0]),
    seed=st.integers(0, 999),
)
def check_ties(answer, count, rows, columns, density, seed):
    """Every entry by hand."""
    random = torch.Generator().manual_seed(seed)
    updates = [torch.randn(rows, columns, generator=random) for _ in range(count)]
    before = [update.clone() for update in updates]
    kept = []
    for update in updates:
        flat = update.flatten().tolist()
        largest = sorted(range(len(flat)), key=lambda i: -abs(flat[i]))[: int(density * len(flat))]
        kept.append([value if i in largest else 0.0 for i, value in enumerate(flat)])
    expected = []
    for entries in zip(*kept, strict=True):
        positive = sum(entries) >= 0
        same = [e for e in entries if e and (e > 0) == positive]
        expected.append(sum(same) / len(same) if same else 0.0)
    case = f"{count} updates of {(rows, columns)} and density {density}"
    close(answer(updates, density), torch.tensor(expected).view(rows, columns), "TIES", case)
    if not all(map(torch.equal, updates, before)):
        raise Wrong(f"an update of shape {(rows, columns)} was changed; return a new tensor")


def of_sums(parts, weights):
    """Cross-terms; ranks must be equal for it, so it pads."""
    most = sum(len(A) for A, _, _ in parts)
    pad = torch.nn.functional.pad
    A = sum(pad(A, (0, 0, 0, most - len(A))) for A, _, _ in parts)
    zipped = zip(parts, weights, strict=True)
    return A, sum(w * s * pad(B, (0, most - len(A_i))) for (A_i, B, s), w in zipped)


def unweighted(parts, weights):
    """Forgets the weights."""
    A = torch.cat([A for A, _, _ in parts])
    return A, torch.cat([s * B for _, B, s in parts], dim=1)


def unscaled(parts, weights):
    """Forgets each adapter's scaling."""
    A = torch.cat([A for A, _, _ in parts])
    zipped = zip(parts, weights, strict=True)
    return A, torch.cat([w * B for (_, B, _), w in zipped], dim=1)


def on_both_sides(parts, weights):
    """The weight squared."""
    zipped = list(zip(parts, weights, strict=True))
    A = torch.cat([w * A for (A, _, _), w in zipped])
    return A, torch.cat([w * s * B for (_, B, s), w in zipped], dim=1)


def without_sign(parts, weights):
    """Subtracting becomes adding."""
    A = torch.cat([A for A, _, _ in parts])
    zipped = zip(parts, weights, strict=True)
    return A, torch.cat([abs(w) * s * B for (_, B, s), w in zipped], dim=1)


def the_whole_update(parts, weights):
    """Right as a product, and as large as a full matrix."""
    zipped = zip(parts, weights, strict=True)
    update = sum(w * s * (B @ A) for (A, B, s), w in zipped)
    return torch.eye(update.shape[1], dtype=update.dtype), update


def trimmed(update, density, largest=True):
    """An update's largest (or smallest) entries."""
    mask = torch.zeros(update.numel())
    count = int(density * update.numel())
    mask[update.abs().flatten().topk(count, largest=largest).indices] = 1
    return update * mask.view_as(update)


def elected_mean(stacked, votes):
    """The mean of the entries that have the elected sign."""
    agree = stacked.sign() == torch.where(votes.sum(0) >= 0, 1, -1)
    return (stacked * agree).sum(0) / agree.sum(0).clamp(min=1)


def untrimmed(updates, density):
    """Skips the first step."""
    return elected_mean(torch.stack(updates), torch.stack(updates))


def smallest_kept(updates, density):
    """Trims the wrong end."""
    stacked = torch.stack([trimmed(update, density, largest=False) for update in updates])
    return elected_mean(stacked, stacked)


def elected_before(updates, density):
    """Signs from the untrimmed updates."""
    stacked = torch.stack([trimmed(update, density) for update in updates])
    return elected_mean(stacked, torch.stack(updates))


def by_head_count(updates, density):
    """The sign of the more, not of the sum."""
    stacked = torch.stack([trimmed(update, density) for update in updates])
    return elected_mean(stacked, stacked.sign())


def over_all(updates, density):
    """Divides by the number of adapters."""
    stacked = torch.stack([trimmed(update, density) for update in updates])
    agree = stacked.sign() == torch.where(stacked.sum(0) >= 0, 1, -1)
    return (stacked * agree).sum(0) / len(updates)


def no_election(updates, density):
    """The plain mean of what was kept."""
    return torch.stack([trimmed(update, density) for update in updates]).mean(0)


WRONG = {
    "combine_exactly": {
        "sums of factors": of_sums,
        "without the weights": unweighted,
        "without the scalings": unscaled,
        "weighted on both sides": on_both_sides,
        "without the sign": without_sign,
        "the whole update": the_whole_update,
    },
    "ties": {
        "untrimmed": untrimmed,
        "the smallest kept": smallest_kept,
        "elected before the trim": elected_before,
        "by head count": by_head_count,
        "over all": over_all,
        "no election": no_election,
    },
}
