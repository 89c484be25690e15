"""Checkers of lesson 22. Oracles: the bet itself, integrated, and fair coins that are looked at."""

import math
import random

import numpy as np
from hypothesis import strategies as st

from minilora.learn import Wrong, cases, close

NODES, WEIGHTS = np.polynomial.legendre.leggauss(64)  # exact for polynomials up to degree 127


def wealth(wins, losses):
    """The integral of (2p)^wins (2(1 - p))^losses over p in [0, 1]."""
    p = (NODES + 1) / 2
    return float((WEIGHTS / 2 * (2 * p) ** wins * (2 * (1 - p)) ** losses).sum())


def answered(wins, losses, ties, seed):
    """Two lists of booleans with so many wins, losses and ties, shuffled."""
    pairs = [(False, True)] * wins + [(True, False)] * losses
    pairs += [(bool(i % 2), bool(i % 2)) for i in range(ties)]
    random.Random(seed).shuffle(pairs)
    return [old for old, _ in pairs], [new for _, new in pairs]


@cases(
    first={"wins": 5, "losses": 2, "ties": 4, "seed": 0},
    wins=st.integers(0, 30),
    losses=st.integers(0, 30),
    ties=st.integers(0, 20),
    seed=st.integers(0, 999),
)
def check_formula(answer, wins, losses, ties, seed):
    """The bet, integrated."""
    old, new = answered(wins, losses, ties, seed)
    case = f"{wins} questions that only the new one got right, {losses} only the old one, {ties} "
    close(answer(old, new), wealth(wins, losses), "E", case + "both or neither", tolerance=1e-9)


def check_paired_e_value(answer):
    """The formula; then 300 gamblers at a fair coin, who look after each of 60 throws."""
    check_formula(answer)
    dice = random.Random(0)
    rich = 0
    for _ in range(300):
        old = [dice.random() < 0.5 for _ in range(60)]
        new = [not right for right in old]
        rich += any(answer(old[:seen], new[:seen]) >= 20 for seen in range(1, 61))
    if rich > 25:  # 15 are promised at most, and chance may add some
        raise Wrong(
            f"of 300 pairs of equal adapters, 60 questions with a look after each, {rich} reached "
            "E ≥ 20; a right answer promises one in twenty, so about 15 at most"
        )


@cases(count=st.integers(1, 25), seed=st.integers(0, 999), bar=st.sampled_from([3, 20]))
def check_gate(answer, count, seed, bar):
    """Against one pass with counters, with an evidence of the checker's own."""
    dice = random.Random(seed)
    lean = dice.choice([0.1, 0.5, 0.9])
    old = [dice.random() < 1 - lean for _ in range(count)]
    new = [dice.random() < lean for _ in range(count)]

    def evidence(some_old, some_new):
        if len(some_old) != len(some_new) or not some_old:
            raise Wrong(f"e_value was asked about {len(some_old)} and {len(some_new)} answers")
        return wealth(*counted(some_old, some_new))

    expected = ("wait", count)
    wins = losses = 0
    for seen, (a, b) in enumerate(zip(old, new, strict=True), 1):
        wins, losses = wins + (b and not a), losses + (a and not b)
        if wealth(wins, losses) >= bar:
            expected = ("promote" if wins > losses else "reject", seen)
            break
    result = answer(list(old), list(new), evidence, bar)
    if result != expected:
        marks = "".join(
            "=+-"[(b and not a) + 2 * (a and not b)] for a, b in zip(old, new, strict=True)
        )
        raise Wrong(
            f"{count} questions, bar {bar}, {marks} (+ only the new one right, - only the old "
            f"one): got {result!r}, a right answer is {expected!r}"
        )


def counted(old, new):
    """Questions that only the new one got right, and only the old one."""
    pairs = list(zip(old, new, strict=True))
    return sum(b and not a for a, b in pairs), sum(a and not b for a, b in pairs)


def all_questions(old, new):
    """Pairs that are alike counted, too."""
    wins, n = counted(old, new)[0], len(old)
    return 2**n / ((n + 1) * math.comb(n, wins))


def best_bet(old, new):
    """The bet that would have been best, known afterwards."""
    wins, losses = counted(old, new)
    n = max(wins + losses, 1)
    return (2 * wins / n) ** wins * (2 * losses / n) ** losses


def without_spreading(old, new):
    """The factor n + 1 is forgotten."""
    wins, losses = counted(old, new)
    return 2 ** (wins + losses) / math.comb(wins + losses, wins)


def one_over_p(old, new):
    """One over the p-value of a test that looks once."""
    wins, losses = counted(old, new)
    n = wins + losses
    tail = sum(math.comb(n, k) for k in range(max(wins, losses), n + 1)) / 2**n
    return 1 / min(1.0, 2 * tail)


def upside_down(old, new):
    """How likely, not how strange."""
    wins, losses = counted(old, new)
    n = wins + losses
    return (n + 1) * math.comb(n, wins) / 2**n


def only_at_the_end(old, new, e_value, bar=20):
    """One look."""
    if e_value(old, new) >= bar:
        return ("promote" if sum(new) > sum(old) else "reject"), len(old)
    return "wait", len(old)


def either_way(old, new, e_value, bar=20):
    """Evidence of a difference taken for evidence of a gain."""
    for seen in range(1, len(old) + 1):
        if e_value(old[:seen], new[:seen]) >= bar:
            return "promote", seen
    return "wait", len(old)


def one_less(old, new, e_value, bar=20):
    """The number of the look, from zero."""
    for seen in range(len(old)):
        if e_value(old[: seen + 1], new[: seen + 1]) >= bar:
            ahead = sum(new[: seen + 1]) > sum(old[: seen + 1])
            return ("promote" if ahead else "reject"), seen
    return "wait", len(old)


def the_higher_score(old, new, e_value, bar=20):
    """No evidence at all."""
    return ("promote" if sum(new) >= sum(old) else "reject"), len(old)


def its_own_bar(old, new, e_value, bar=20):
    """Twenty, whatever was asked for."""
    for seen in range(1, len(old) + 1):
        if e_value(old[:seen], new[:seen]) >= 20:
            ahead = sum(new[:seen]) > sum(old[:seen])
            return ("promote" if ahead else "reject"), seen
    return "wait", len(old)


WRONG = {
    "paired_e_value": {
        "all questions count": all_questions,
        "the best bet": best_bet,
        "without spreading": without_spreading,
        "one over p": one_over_p,
        "upside down": upside_down,
    },
    "gate": {
        "only at the end": only_at_the_end,
        "either way": either_way,
        "one less": one_less,
        "the higher score": the_higher_score,
        "its own bar": its_own_bar,
    },
}
