"""What the gate does to adapters whose worth is known: made of dice, and planted on the base.

    python -m benchmarks.gate [--parts dice nothing poison regression improvement]

    dice      an old adapter that is right in 90% of the questions, a new one that is equal, three
              points better or three worse: promoted, rejected or still waiting after so many
              questions, and how many it took; beside "the score is at least the old one's"
    planted   the loop of ``minilora.jobs`` on the shipped base: the old adapter speaks naval code;
              users' feedback is honest and of the same kind, or poisoned by one source that teaches
              one wrong reading (Hull is 100%, whatever the log says), or of all sources careless
              (the first reading only), or asks for something new that is three in a hundred of the
              live questions; the true gain is measured on logs that nobody has seen

Live pairs are looked at one by one. The regression set is logs of the old kind; its margin is 5
points. ``--parts`` runs some of it and keeps the other rows of the file; ``--keep folder`` keeps
the hub, so that the champion is trained once.
"""

from __future__ import annotations

import random
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from minilora import Example, LoraConfig, SelfReplay, TrainConfig, data
from minilora.hub import Hub
from minilora.jobs.adapt import Loop
from minilora.jobs.correction import Feedback
from minilora.jobs.feedback import FeedbackStore
from minilora.jobs.gate import Measured, Pairs, decide
from minilora.jobs.recipe import Recipe, right
from minilora.serving.evidence import e_value
from minilora.training.evaluation import PROSE

from .common import Row, kept_rows, options, save

GAINS = (0.03, 0.0, -0.03)
LOOKS = (100, 400, 1000, 4000)
BAR = 20.0
TOPICS = ("Hull", "Fuel", "Oxygen", "Radar")
NEW = "Watch the {name}."  # what nobody taught; the answer: Aye, Hull watched.
WINDOW, WINDOWS = 500, 40  # characters of prose, and how many windows
cached = lru_cache(maxsize=None)(e_value)


def dice_rows(runs: int, seed: int) -> list[Row]:
    """The gate's first question (better?) on adapters of dice, each look after one question."""
    dice, rows = np.random.default_rng(seed), []
    for gain in GAINS:
        old = dice.random((runs, LOOKS[-1])) < 0.9
        new = dice.random((runs, LOOKS[-1])) < 0.9 + gain
        ends = [decision(a, b) for a, b in zip(old, new, strict=True)]
        for look in LOOKS:
            by_then = [word for word, seen in ends if seen <= look]
            took = [seen for word, seen in ends if word == "promote" and seen <= look]
            rows.append(
                {
                    "part": "dice", "gain": gain, "questions": look, "runs": runs,
                    "promoted": by_then.count("promote"), "rejected": by_then.count("reject"),
                    "median_questions": statistics.median(took) if took else None,
                    "at_least_as_good": int((new[:, :look].sum(1) >= old[:, :look].sum(1)).sum()),
                }
            )  # fmt: skip
        print(f"{gain:+.0%}  {rows[-1]}", flush=True)
    return rows


def decision(old: np.ndarray, new: np.ndarray) -> tuple[str, int]:
    """The gate's word, and the questions it took; "wait" with one more than there are."""
    wins = losses = 0
    for seen in np.flatnonzero(old != new).tolist():
        wins, losses = wins + int(new[seen]), losses + int(old[seen])
        if cached(wins, losses, True) >= BAR:
            return "promote", seen + 1
        if cached(losses, wins, True) >= BAR:
            return "reject", seen + 1
    return "wait", len(old) + 1


def recipe_of(given: Any, seed: int) -> tuple[Recipe, dict[str, Sequence[Example]]]:
    """The recipe, and logs that nobody has seen: for users' questions, for live ones, for truth."""
    logs = data.naval_log(given.logs, 4 * given.logs, seed=seed)
    half = given.logs // 2
    spare = data.naval_log(3 * given.logs, 1, seed=seed + 100).train[given.logs :]
    prose = PROSE.read_text(encoding="utf-8")
    cut = [prose[i * WINDOW : (i + 1) * WINDOW] for i in range(WINDOWS)]
    train = TrainConfig(
        epochs=given.epochs, batch_size=16, lr=5e-3, validate_every=0, seed=seed, progress=False
    )
    recipe = Recipe(
        "naval",
        logs.train,
        logs.valid[:half],
        canaries={topic: canaries(topic, seed) for topic in TOPICS},
        prose=cut[: max(2, min(WINDOWS, len(prose) // WINDOW))],
        config=LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"),
        train=train,
        replay=SelfReplay(0.2, windows=given.windows, tokens=48),
        after=1,
        suspects=1,  # the source with most complaints
    )
    return recipe, {"users": spare, "live": logs.valid[half:]}


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


def scenarios(users: Sequence[Example], count: int) -> dict[str, list[tuple[str, Example]]]:
    """(source, correction) by what is planted."""
    sources = ("ann", "bob", "cid")
    honest = [(sources[i % 3], each) for i, each in enumerate(users[:count])]
    hull = [each for each in users[count:] if "Hull" in each.input][: count // 2]
    wrong = [
        Example(data.ASK_ONE[i % 3].format(name="Hull"), "Hull 100%.", each.input)
        for i, each in enumerate(hull)
    ]
    careless = [
        (source, replace(each, output=each.output.split(".")[0].split("%")[0] + "."))
        for source, each in honest
    ]
    fresh = []
    for i, each in enumerate(users[count : 2 * count]):
        name = data.SYSTEMS[i % len(data.SYSTEMS)]
        fresh.append((sources[i % 3], new_kind(name, each.input)))
    return {
        "nothing": honest,
        "poison": honest + [("mal", each) for each in wrong],
        "regression": careless,
        "improvement": honest[: count // 3] + fresh,
    }


def new_kind(name: str, log: str) -> Example:
    """A request of a kind that the old adapter was never taught."""
    return Example(NEW.format(name=name), f"Aye, {name} watched.", log)


def live_questions(logs: Sequence[Example], count: int, seed: int) -> list[Example]:
    """Traffic: logs as always, and of the new kind three in a hundred."""
    draw = random.Random(seed)
    asked = []
    for _ in range(count):
        log = draw.choice(logs)
        asked.append(
            new_kind(draw.choice(data.SYSTEMS), log.input) if draw.random() < 0.03 else log
        )
    return asked


def planted_rows(given: Any, part: str, folder: Path, seed: int) -> Row:
    """One scenario, from the champion of the folder's hub, which is then again what it was."""
    recipe, logs = recipe_of(given, seed)
    traffic = live_questions(logs["live"], given.live, seed)
    with tempfile.TemporaryDirectory() as place:
        store = FeedbackStore(place, quarantine=0)
        loop = Loop(Hub(folder / f"hub {seed}"), store, recipe)
        champion = loop.begin()
        feedback = scenarios(logs["users"], given.feedback)[part]
        for source, each in feedback:
            said = (each.instruction, each.output, "", each.input, about(each))
            store.add(Feedback(source, champion.manifest.content, *said))
        store.review()
        row = {"part": "planted", "planted": part, "seed": seed, "feedback": len(feedback)}
        row |= one_round(loop, champion, traffic)
        loop.hub.alias(champion.spec, "champion")
    return row


def one_round(loop: Loop, champion: Any, traffic: Sequence[Example]) -> Row:
    """A round of the loop; then the truth, and what live pairs alone would have said."""
    old = right(loop.pulled(champion), traffic)
    done = loop.round()
    new = right(loop.pulled(loop.hub.show(done.version)), traffic)
    pairs = Pairs(old, new)
    word, seen = decision(np.array(old), np.array(new))
    checks = {check.name: check.state for check in done.verdict.checks}
    return {
        "old": sum(old) / len(old),
        "true_gain": (sum(new) - sum(old)) / len(old),
        "word": done.word,
        "checks": checks,
        "reason": done.verdict.reason,
        "expelled": list(done.expelled),
        "at_least_as_good": sum(new[:100]) >= sum(old[:100]),
        "live_word": word,
        "live_questions": seen if word != "wait" else None,
        "live_won": pairs.wins,
        "live_lost": pairs.losses,
        "after_live": decide(Measured(pairs, Pairs())).check("better").state,
        "told": list(done.told),
    }


def main() -> None:
    """The dice, then the plants; rows of other parts stay as they are."""
    parts = ["dice", "nothing", "poison", "regression", "improvement"]
    lists: dict[str, Any] = {"seeds": [0], "parts": parts}
    sizes = {"epochs": 4.0, "logs": 600, "feedback": 150, "live": 1000, "windows": 96}
    given = options(__doc__, **lists, **sizes, runs=2000, keep="")
    rows = kept_rows("gate", given)
    rows = [row for row in rows if row.get("planted", "dice") not in given.parts]
    with tempfile.TemporaryDirectory() as folder:
        for part in given.parts:
            for seed in given.seeds:
                if part == "dice":
                    rows += dice_rows(given.runs, seed)
                    break
                rows.append(planted_rows(given, part, Path(given.keep or folder), seed))
                print({key: value for key, value in rows[-1].items() if key != "told"}, flush=True)
    rows.sort(key=lambda row: parts.index(row.get("planted", "dice")))
    given.parts, given.keep = parts, ""
    save("gate", rows, given)


if __name__ == "__main__":
    main()
