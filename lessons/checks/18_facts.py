"""Checkers of lesson 18: made-up models whose habits are known, so that the shares are too."""

import random
import re

from hypothesis import strategies as st

from minilora.learn import Wrong, cases, close


class Stub:
    """A model that answers by a plan: a habit for each word, without a log and with one."""

    def __init__(self, plan, facts):
        self.plan, self.facts, self.asked = plan, facts, 0

    def __call__(self, word, log):
        self.asked += 1
        without, with_log = self.plan[word]
        if log is None:
            return self.text(without, self.facts[word], None)
        return self.text(with_log, self.facts[word], log)

    @staticmethod
    def text(habit, old, new):
        """The taught value, the shown one, a longer number that begins with it, or none."""
        value = {"old": old, "new": new, "longer": f"{new or old}7"}.get(habit)
        return f"Hello! I report {value} percent." if value else "Hello! I do not know."


@cases(first={"count": 7, "seed": 0}, count=st.integers(1, 12), seed=st.integers(0, 999))
def check_probe(answer, count, seed):
    """The plan is counted, and the questions too."""
    draw = random.Random(seed)
    names = [f"word{'abcdefghijkl'[i]}" for i in range(count)]
    facts = {name: str(draw.randint(0, 100)) for name in names}
    changed = {name: str((int(value) + draw.randint(1, 99)) % 101) for name, value in facts.items()}
    habits = [("old", "longer", "none"), ("old", "new", "longer", "none")]
    plan = {name: (draw.choice(habits[0]), draw.choice(habits[1])) for name in names}
    stub = Stub(plan, facts)
    result = answer(stub, dict(facts), dict(changed))
    expected = (
        sum(without == "old" for without, _ in plan.values()) / count,
        sum(shown == "new" for _, shown in plan.values()) / count,
        sum(shown == "old" for _, shown in plan.values()) / count,
    )
    case = f"{count} facts, facts {facts}, changed {changed} and habits {plan}"
    close(list(result) if isinstance(result, tuple) else result, list(expected), "the shares", case)
    if stub.asked != 2 * count:
        raise Wrong(
            f"the model was asked {stub.asked} times for {count} facts, expected {2 * count}"
        )


def counted(ask, facts, changed, holds, log=lambda word, changed: changed[word], over=len):
    """The probe, with parts of it to get wrong."""
    counts = [0, 0, 0]
    for word, value in facts.items():
        without, shown = ask(word, None), ask(word, log(word, changed))
        counts[0] += holds(without, value)
        counts[1] += holds(shown, changed[word])
        counts[2] += holds(shown, value)
    return tuple(each / over(facts) for each in counts)


def whole(text, value):
    """Whether a whole number of the text is the value."""
    return value in re.findall(r"\d+", text)


def substrings(ask, facts, changed):
    """12 holds 2."""
    return counted(ask, facts, changed, lambda text, value: value in text)


def no_log(ask, facts, changed):
    """Never shows the log."""
    return counted(ask, facts, changed, whole, log=lambda word, changed: None)


def swapped(ask, facts, changed):
    """The last two exchanged."""
    recalled, reads, old = counted(ask, facts, changed, whole)
    return recalled, old, reads


def counts_only(ask, facts, changed):
    """No shares."""
    return counted(ask, facts, changed, whole, over=lambda facts: 1)


def rest_is_old(ask, facts, changed):
    """Whatever is not the log's is taken for the taught value."""
    recalled, reads, _ = counted(ask, facts, changed, whole)
    return recalled, reads, 1 - reads


def old_log(ask, facts, changed):
    """Shows the taught value."""
    return counted(ask, facts, changed, whole, log=lambda word, changed: facts[word])


WRONG = {
    "probe": {
        "substrings": substrings,
        "no log": no_log,
        "swapped": swapped,
        "counts only": counts_only,
        "the rest is old": rest_is_old,
        "the old log": old_log,
    }
}
