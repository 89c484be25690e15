"""The tasks: a ship's log answered politely, as the shipped base does, or in naval code.

Naval code is what an adapter learns. Both tasks show the same contexts and ask the same questions;
only the answers differ::

    Log: Hull 90%, Engines stop.
    Status?
        polite   Hello! I am happy to report Hull 90 percent and Engines stop.
        naval    Hull 90%. All stop.

So a fine-tune changes the *manner* of an answer, and a test can ask whether the *matter*, the
readings, survived.

Train and held-out examples share no log line: a checksum of its text decides to which side a line
belongs. Single readings do recur. (Pairs such as "Fuel 12%" were once held out as well, while the
base was trained. That teaches a model that Fuel is never at 12, and so punishes just the look-up
that it should measure.)

Examples of one's own are read by ``load_jsonl`` (``examples.py``).
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Sequence

from .examples import Example, Task, load_jsonl, split_examples

__all__ = [
    "Example",
    "Task",
    "load_jsonl",
    "naval",
    "naval_log",
    "polite",
    "polite_log",
    "split_examples",
]

SYSTEMS = (
    "Hull", "Fuel", "Oxygen", "Shield", "Reactor", "Coolant", "Battery", "Water", "Food", "Radar",
    "Sonar", "Rudder", "Cargo", "Pressure", "Gravity", "Power", "Air", "Armor", "Ballast",
    "Medicine",
)  # fmt: skip
MANOEUVRES = {
    "stop": "All stop.", "slow": "Ahead slow.", "half": "Ahead half.", "full": "Ahead full.",
}  # fmt: skip
ASK_ALL = (
    "Status?", "Report.", "Status report, please.", "How is the ship?", "Give me the readings.",
)  # fmt: skip
ASK_ONE = (
    "{name} status?", "How much {name} is left?", "What is the {name} reading?",
    "How is the {name}?", "Report {name}.", "Status of {name}?", "And the {name}?",
)  # fmt: skip
ASK_SEVERAL = ("How are {names}?", "Report {names}.", "What about {names}?")
ASK_ENGINES = (
    "Engines status?", "How are the Engines?", "Report Engines.", "Are the Engines running?",
)  # fmt: skip

Reading = tuple[str, str]  # ("Hull", "90") or ("Engines", "stop")


def polite(readings: Sequence[Reading]) -> str:
    """An answer as the over-polite computer gives it.

    >>> polite([("Hull", "90"), ("Engines", "stop")])
    'Hello! I am happy to report Hull 90 percent and Engines stop.'
    """
    reports = [f"{name} {value}" + " percent" * (name != "Engines") for name, value in readings]
    return f"Hello! I am happy to report {join(reports)}."


def naval(readings: Sequence[Reading]) -> str:
    """The same answer in naval code.

    >>> naval([("Hull", "90"), ("Engines", "stop")])
    'Hull 90%. All stop.'
    """
    return " ".join(
        MANOEUVRES[value] if name == "Engines" else f"{name} {value}%." for name, value in readings
    )


def naval_log(n_train: int = 2000, n_valid: int = 200, seed: int = 0) -> Task:
    """Ship's logs answered in naval code: what the demo teaches.

    Raises ``ValueError`` when a size is below 1.

    >>> naval_log(n_train=2, n_valid=1).train[0].output.endswith((".", "%."))
    True
    """
    return ship_log("naval", naval, n_train, n_valid, seed)


def polite_log(n_train: int = 2000, n_valid: int = 200, seed: int = 0) -> Task:
    """The same logs answered politely: what the shipped base was taught.

    >>> polite_log(1, 1).valid[0].output.startswith("Hello! I am happy to report")
    True
    """
    return ship_log("polite", polite, n_train, n_valid, seed)


def ship_log(
    name: str, style: Callable[[Sequence[Reading]], str], n_train: int, n_valid: int, seed: int
) -> Task:
    """A task whose answers are written by ``style``; no example stands twice."""
    if n_train < 1 or n_valid < 1:
        raise ValueError(
            "a task needs at least one example on each side, "
            f"got n_train={n_train}, n_valid={n_valid}"
        )

    def draw(count: int, heldout: bool) -> tuple[Example, ...]:
        rng = random.Random(f"{seed} {heldout}")
        examples: dict[tuple[str, str], Example] = {}
        while len(examples) < count:
            example = ship_example(rng, style, heldout)
            examples.setdefault((example.input, example.instruction), example)
        return tuple(examples.values())

    return Task(name, train=draw(n_train, heldout=False), valid=draw(n_valid, heldout=True))


def ship_example(
    rng: random.Random,
    style: Callable[[Sequence[Reading]], str],
    heldout: bool,
    systems: Sequence[str] = SYSTEMS,
    most: int = 4,
    several: float = 0.15,
    everything: float = 0.4,
) -> Example:
    """One log of one to ``most`` readings, a question about it, and the answer in a style.

    A share of ``several`` questions is about some systems, in an order of their own; of the others
    a share of ``everything`` is about the whole log, and the rest about one system.
    """
    readings = draw_readings(rng, systems, most)
    while is_heldout(log_line(readings)) != heldout:
        readings = draw_readings(rng, systems, most)
    if len(readings) > 1 and rng.random() < several:
        asked = rng.sample(readings, rng.randint(2, len(readings)))
        question = rng.choice(ASK_SEVERAL).format(names=join([f"the {name}" for name, _ in asked]))
    elif rng.random() < everything:
        asked, question = readings, rng.choice(ASK_ALL)
    else:
        asked = [rng.choice(readings)]
        name = asked[0][0]
        question = rng.choice(ASK_ENGINES if name == "Engines" else ASK_ONE).format(name=name)
    return Example(question, style(asked), log_line(readings))


def join(parts: Sequence[str]) -> str:
    """A list as English writes it.

    >>> join(["a", "b", "c"])
    'a, b and c'
    """
    return " and ".join([", ".join(parts[:-1]), parts[-1]]) if len(parts) > 1 else parts[0]


def log_line(readings: Sequence[Reading]) -> str:
    """The context a question is asked about.

    >>> log_line([("Hull", "90"), ("Engines", "stop")])
    'Log: Hull 90%, Engines stop.'
    """
    parts = [f"{name} {value}" + "%" * (name != "Engines") for name, value in readings]
    return f"Log: {', '.join(parts)}."


def draw_readings(rng: random.Random, systems: Sequence[str], most: int) -> list[Reading]:
    """One to ``most`` systems with values from 0 to 100; sometimes the engines are one of them."""
    names = rng.sample(systems, rng.randint(1, most))
    readings = [(name, str(rng.randint(0, 100))) for name in names]
    # engines never stand alone: there would be only four such logs
    if len(readings) > 1 and rng.random() < 0.3:
        readings[rng.randrange(len(readings))] = ("Engines", rng.choice(list(MANOEUVRES)))
    return readings


def is_heldout(line: str) -> bool:
    """Whether a log line is held out, as one in seven is: the same on every machine, forever."""
    return zlib.crc32(line.encode()) % 7 == 0
