"""Solutions of lesson 18."""

import re


def probe(ask, facts, changed):
    """Two questions a fact, three counts over the number of facts."""
    counts = [0, 0, 0]
    for word, value in facts.items():
        without = re.findall(r"\d+", ask(word, None))
        shown = re.findall(r"\d+", ask(word, changed[word]))
        counts[0] += value in without
        counts[1] += changed[word] in shown
        counts[2] += value in shown
    return tuple(count / len(facts) for count in counts)
