"""Solutions of lesson 22."""

import math


def paired_e_value(old, new):
    """Two counts of the pairs that differ, and the wealth of an evenly spread bet."""
    wins = sum(b and not a for a, b in zip(old, new, strict=True))
    n = wins + sum(a and not b for a, b in zip(old, new, strict=True))
    return 2**n / ((n + 1) * math.comb(n, wins))


def gate(old, new, e_value, bar=20):
    """A look after each question; the first that is sure decides."""
    for seen in range(1, len(old) + 1):
        if e_value(old[:seen], new[:seen]) >= bar:
            ahead = sum(new[:seen]) > sum(old[:seen])
            return ("promote" if ahead else "reject"), seen
    return "wait", len(old)
