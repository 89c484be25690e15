"""What the gate does to adapters whose worth is known: made of dice, and planted on the base.

    python -m benchmarks.gate [--parts dice equal poison regression improvement]

    dice      two adapters of which one is three points better, equal or three worse, and which
              differ in so many answers: promoted, rejected or still waiting after so many
              questions; beside the pairs that the expected log growth asks for, and "the score is
              at least the old one's"
    planted   the loop of ``minilora.jobs`` on the shipped base: the old adapter speaks naval code;
              users' feedback confirms what it was taught, so that the new one is its equal; or is
              poisoned by one source that teaches one wrong reading (Hull is 100%, whatever the log
              says), or of all sources careless (the first reading only), or asks for something new
              that is ``NEW_SHARE`` of the live questions; the true gain is measured on logs that
              nobody has seen

More honest logs alone gain about two points here, so something new in one question of a hundred
makes three.

The exam's reserve is drawn like the live questions. The regression set is logs of the old kind; its
margin is 5 points. ``--parts`` runs some of it and keeps the other rows of the file; ``--keep
folder`` keeps hub and jobs, so that each training is done once.
"""

from __future__ import annotations

import random
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from minilora import Example, data
from minilora.hub import Hub
from minilora.jobs.adapt import Loop
from minilora.jobs.correction import Feedback
from minilora.jobs.feedback import FeedbackStore
from minilora.jobs.gate import Rules, better
from minilora.jobs.norms import module_norms, whole
from minilora.jobs.pairs import Pairs, pairs_needed
from minilora.jobs.queue import Queue
from minilora.jobs.recipe import Recipe, right
from minilora.training.evaluation import PROSE

from .common import Row, kept_rows, options, save

GAINS = (0.03, 0.0, -0.03)
DIFFERING = (0.156, 0.10, 0.06)  # 0.156: two that are right independently, in 90% and 93%
LOOKS = (300, 1000, 2000, 4000)
BLOCK = 100  # questions between two looks, as the exam draws them
TOPICS = ("Hull", "Fuel", "Oxygen", "Radar")
NEW = "Watch the {name}."  # what nobody taught; the answer: Aye, Hull watched.
NEW_SHARE = 0.01
WINDOW, WINDOWS = 500, 40  # characters of prose, and how many windows


def dice_rows(runs: int, seed: int) -> list[Row]:
    """The gate's first question (better?) on adapters of dice, a look after each block."""
    dice, rows = np.random.default_rng(seed), []
    for differing in DIFFERING:
        for gain in GAINS:
            drawn = dice.random((runs, LOOKS[-1]))
            won, lost = drawn < (differing + gain) / 2, drawn > 1 - (differing - gain) / 2
            ends = [decision(*each) for each in zip(won, lost, strict=True)]
            needed = pairs_needed(gain, differing) if gain > 0 else None
            for look in LOOKS:
                by_then = [word for word, seen in ends if seen <= look]
                took = [seen for word, seen in ends if word != "wait" and seen <= look]
                ahead = won[:, :100].sum(1) >= lost[:, :100].sum(1)
                rows.append(
                    {
                        "part": "dice", "differing": differing, "gain": gain, "questions": look,
                        "runs": runs, "promoted": by_then.count("promote"),
                        "rejected": by_then.count("reject"), "needed": needed,
                        "median_questions": statistics.median(took) if took else None,
                        "at_least_as_good": int(ahead.sum()),
                    }
                )  # fmt: skip
            print(f"{gain:+.0%}  {rows[-1]}", flush=True)
    return rows


def decision(won: np.ndarray, lost: np.ndarray) -> tuple[str, int]:
    """The gate's word, and the questions it took; "wait" with one more than there are."""
    words = {"pass": "promote", "fail": "reject"}
    old, new = lost, won  # right alone; where both are wrong or right is all the same
    for seen in range(BLOCK, len(won) + 1, BLOCK):
        pairs = Pairs(tuple(old[:seen].tolist()), tuple(new[:seen].tolist()))
        if (word := words.get(better(pairs, Rules()).state)) is not None:
            return word, seen
    return "wait", len(won) + 1


def recipe_of(given: Any, seed: int) -> tuple[Recipe, dict[str, Sequence[Example]]]:
    """The recipe, and logs that nobody has seen: for users' questions, and for the truth."""
    counts = given.logs + 4 * given.feedback, given.regression + 2 * given.live
    logs = data.naval_log(*counts, seed=seed)
    held = logs.valid[given.regression :]
    prose = PROSE.read_text(encoding="utf-8")
    train = {"epochs": given.epochs, "batch_size": 16, "lr": 5e-3, "validate_every": 0}
    recipe = Recipe(
        "naval",
        logs.train[: given.logs],
        logs.valid[: given.regression],
        canaries={topic: canaries(topic, seed) for topic in TOPICS},
        prose=[prose[i * WINDOW : (i + 1) * WINDOW] for i in range(WINDOWS)],
        reserve=traffic(held[: given.live], seed),
        method={"r": 8, "lora_alpha": 16, "target_modules": "all-linear"},
        train=train | {"seed": seed},
        replay={"share": 0.2, "windows": given.windows},
        after=1,
        suspects=2,  # the sources with most complaints
    )
    users = logs.train[given.logs :]
    live = traffic(held[given.live :], seed + 1)
    return recipe, {"taught": logs.train[: given.logs], "users": users, "live": live}


def canaries(topic: str, seed: int) -> list[Example]:
    """Five secret questions about one system, in logs of their own."""
    draw = random.Random(f"{seed} {topic}")
    made = []
    for number in range(5):
        readings = [(topic, str(draw.randint(0, 99))), ("Sonar", str(draw.randint(0, 99)))]
        asked = data.ASK_ONE[number].format(name=topic)
        made.append(Example(asked, data.naval(readings[:1]), data.log_line(readings)))
    return made


def about(example: Example) -> str:
    """The system that a question names, or "all"."""
    return next((name for name in data.SYSTEMS if name in example.instruction), "all")


def scenarios(
    taught: Sequence[Example], users: Sequence[Example], count: int
) -> dict[str, list[tuple[str, Example]]]:
    """(source, correction) by what is planted."""
    sources = ("ann", "bob", "cid")
    honest = [(sources[i % 3], each) for i, each in enumerate(users[:count])]
    hull = [each for each in users[count:] if "Hull" in each.input][: count // 2]
    wrong = [
        Example(form.format(name="Hull"), "Hull 100%.", each.input)
        for each in hull
        for form in data.ASK_ONE[:3]
    ]
    careless = [
        (sources[i % 3], replace(each, output=each.output.split(".")[0].split("%")[0] + "."))
        for i, each in enumerate(users[: 2 * count])
    ]
    fresh = []
    for i, each in enumerate(users[count : 2 * count]):
        name = data.SYSTEMS[i % len(data.SYSTEMS)]
        fresh.append((sources[i % 3], new_kind(name, each.input)))
    return {
        "equal": [(sources[i % 3], each) for i, each in enumerate(taught[:count])],
        "poison": honest + [("mal", each) for each in wrong],
        "regression": careless,
        "improvement": honest[: count // 3] + fresh,
    }


def new_kind(name: str, log: str) -> Example:
    """A request of a kind that the old adapter was never taught."""
    return Example(NEW.format(name=name), f"Aye, {name} watched.", log)


def traffic(logs: Sequence[Example], seed: int) -> list[Example]:
    """Live questions: logs as always, and of the new kind ``NEW_SHARE``."""
    draw = random.Random(seed)
    return [
        new_kind(draw.choice(data.SYSTEMS), log.input) if draw.random() < NEW_SHARE else log
        for log in logs
    ]


def planted_rows(given: Any, part: str, folder: Path, seed: int) -> Row:
    """One scenario, from the champion of the folder's hub, which is then again what it was."""
    recipe, logs = recipe_of(given, seed)
    hub, queue = Hub(folder / f"hub {seed}"), Queue(folder / f"jobs {seed}")
    with tempfile.TemporaryDirectory() as place:
        loop = Loop(hub, FeedbackStore(place, quarantine=0), recipe, queue)
        champion = loop.begin()
        feedback = scenarios(logs["taught"], logs["users"], given.feedback)[part]
        for source, each in feedback:
            answer = each.output if part == "equal" else ""  # it confirms; the others complain
            said = (each.instruction, each.output, answer, each.input, about(each))
            loop.store.add(Feedback(source, champion.manifest.content, *said))
        loop.store.review()
        row = {"part": "planted", "planted": part, "seed": seed, "feedback": len(feedback)}
        row |= one_round(loop, champion, logs["live"])
        loop.hub.alias(champion.spec, "champion")
    return row


def one_round(loop: Loop, champion: Any, live: Sequence[Example]) -> Row:
    """A round of the loop; then the truth."""
    done = loop.round()
    version = loop.hub.show(done.version)
    old, new = right(loop.pulled(champion), live), right(loop.pulled(version), live)
    norms = [whole(module_norms(loop.hub.read(each.spec))) for each in (champion, version)]
    exam = loop.store.live(champion.manifest.content, version.manifest.content)
    return {
        "old": sum(old) / len(old),
        "true_gain": (sum(new) - sum(old)) / len(old),
        "differing": sum(a != b for a, b in zip(old, new, strict=True)) / len(old),
        "word": done.word,
        "checks": {check.name: check.state for check in done.verdict.checks},
        "reason": done.verdict.reason,
        "expelled": list(done.expelled),
        "exam": [exam.wins, exam.losses, len(exam)],
        "new_share": NEW_SHARE,
        "at_least_as_good": sum(new[:100]) >= sum(old[:100]),
        "norm": norms[1] / norms[0],
        "told": list(done.told),
    }


def main() -> None:
    """The dice, then the plants; rows of other parts stay as they are."""
    parts = ["dice", "equal", "poison", "regression", "improvement"]
    lists: dict[str, Any] = {"seeds": [0], "parts": parts}
    sizes = {"epochs": 6.0, "logs": 500, "feedback": 150, "live": 2000, "windows": 96}
    given = options(__doc__, **lists, **sizes, regression=600, runs=500, keep="")
    todo, keep, before = given.parts, given.keep, kept_rows("gate", given)
    given.parts, given.keep = parts, ""
    rows = [row for row in before if row.get("planted", "dice") not in todo]
    with tempfile.TemporaryDirectory() as folder:
        for part in todo:
            if part == "dice":
                rows += dice_rows(given.runs, given.seeds[0])
            else:
                for seed in given.seeds:
                    rows.append(planted_rows(given, part, Path(keep or folder), seed))
                    print({k: v for k, v in rows[-1].items() if k != "told"}, flush=True)
            rows.sort(key=lambda row: parts.index(row.get("planted", "dice")))
            save("gate", rows, given)


if __name__ == "__main__":
    main()
