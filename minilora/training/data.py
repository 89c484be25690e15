"""The tasks: a ship's log answered politely (what the shipped base knows) or in naval code (what an adapter learns).

Both tasks show the same contexts and ask the same questions; only the answers differ::

    Log: Hull 90%, Engines stop.
    Status?
        polite   Hello! I am happy to report Hull 90 percent and Engines stop.
        naval    Hull 90%. All stop.

So a fine-tune changes the *manner* of an answer, and a test can ask whether the *matter*, the readings, survived.

Train and held-out examples share no log line: each possible line belongs to one side for good, decided by a checksum
of its text. Single readings do recur. (Holding out pairs such as "Fuel 12%" as well was tried while the base was
trained: it teaches a model that Fuel is never at 12, and so punishes just the look-up it should measure.)

``load_jsonl`` reads the user's own examples, one JSON object a line.
"""

from __future__ import annotations

import json
import random
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

SYSTEMS = (
    *(
        "Hull",
        "Fuel",
        "Oxygen",
        "Shield",
        "Reactor",
        "Coolant",
        "Battery",
        "Water",
        "Food",
        "Radar",
    ),
    *(
        "Sonar",
        "Rudder",
        "Cargo",
        "Pressure",
        "Gravity",
        "Power",
        "Air",
        "Armor",
        "Ballast",
        "Medicine",
    ),
)
MANOEUVRES = {
    "stop": "All stop.",
    "slow": "Ahead slow.",
    "half": "Ahead half.",
    "full": "Ahead full.",
}
ASK_ALL = (
    "Status?",
    "Report.",
    "Status report, please.",
    "How is the ship?",
    "Give me the readings.",
)
ASK_ONE = (
    "{name} status?",
    "How much {name} is left?",
    "What is the {name} reading?",
    "How is the {name}?",
    "Report {name}.",
    "Status of {name}?",
    "And the {name}?",
)
ASK_SEVERAL = ("How are {names}?", "Report {names}.", "What about {names}?")
ASK_ENGINES = (
    "Engines status?",
    "How are the Engines?",
    "Report Engines.",
    "Are the Engines running?",
)

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

Reading = tuple[str, str]  # ("Hull", "90") or ("Engines", "stop")


@dataclass(frozen=True)
class Example:
    """One thing to learn: an instruction, an optional context (``input``), and the answer wanted.

    >>> Example("Status?", "Hull 90%.", input="Log: Hull 90%.").output
    'Hull 90%.'
    """

    instruction: str
    output: str
    input: str = ""


@dataclass(frozen=True)
class Task:
    """Examples to train on, and held-out ones to be judged by.

    >>> task = Task("mine", train=(Example("Hi", "Ahoy!"),), valid=())
    >>> len(task.train)
    1
    """

    name: str
    train: tuple[Example, ...]
    valid: tuple[Example, ...]


def polite(readings: Sequence[Reading]) -> str:
    """An answer as the over-polite computer gives it.

    >>> polite([("Hull", "90"), ("Engines", "stop")])
    'Hello! I am happy to report Hull 90 percent and Engines stop.'
    """
    said = [f"{name} {value}" + " percent" * (name != "Engines") for name, value in readings]
    return f"Hello! I am happy to report {join(said)}."


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
    """Build a task whose answers are written by ``style``; no example stands twice."""
    if n_train < 1 or n_valid < 1:
        raise ValueError(
            f"a task needs at least one example on each side, got n_train={n_train}, n_valid={n_valid}"
        )

    def draw(count: int, heldout: bool) -> tuple[Example, ...]:
        rng = random.Random(f"{seed} {heldout}")
        found: dict[tuple[str, str], Example] = {}
        while len(found) < count:
            example = ship_example(rng, style, heldout)
            found.setdefault((example.input, example.instruction), example)
        return tuple(found.values())

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

    Questions are about the whole log, about one system, or (a share of ``several``) about some in an order of their own.
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
    return (
        "Log: "
        + ", ".join(f"{name} {value}" + "%" * (name != "Engines") for name, value in readings)
        + "."
    )


def draw_readings(rng: random.Random, systems: Sequence[str], most: int) -> list[Reading]:
    """One to ``most`` systems with values from 0 to 100; sometimes the engines are one of them."""
    readings = [
        (name, str(rng.randint(0, 100))) for name in rng.sample(systems, rng.randint(1, most))
    ]
    # engines never stand alone: four such logs are all there would be
    if len(readings) > 1 and rng.random() < 0.3:
        readings[rng.randrange(len(readings))] = ("Engines", rng.choice(list(MANOEUVRES)))
    return readings


def is_heldout(line: str) -> bool:
    """Which side of the split a log line belongs to: the same on every machine, for ever; about one in seven is held out."""
    return zlib.crc32(line.encode()) % 7 == 0


def load_jsonl(path: str | Path) -> tuple[Example, ...]:
    """Read examples from a file with one JSON object a line: ``{"instruction": …, "input"?: …, "output": …}``.

    Raises ``ValueError`` that names the file and the line, and what was needed there, on the first line that is bad.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder, "my.jsonl")
    ...     _ = file.write_text('{"instruction": "Greet.", "output": "Ahoy!"}', encoding="utf-8")
    ...     load_jsonl(file)
    (Example(instruction='Greet.', output='Ahoy!', input=''),)
    """
    path = Path(path)
    try:
        # not splitlines: JSON text may hold U+2028
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except FileNotFoundError:
        raise ValueError(
            f"{path} does not exist: needed a file with one JSON object a line"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as UTF-8 text: {error}") from error
    examples = tuple(
        parse_line(line, f"{path}, line {number}")
        for number, line in enumerate(lines, 1)
        if line.strip()
    )
    if not examples:
        raise ValueError(
            f'{path} holds no example: write one JSON object a line, {{"instruction": "…", "output": "…"}}'
        )
    return examples


def parse_line(line: str, where: str) -> Example:
    """One line of JSON as an ``Example``; ``where`` stands at the front of every error."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        hint = "; a list over many lines? write one object a line" if line.strip() == "[" else ""
        raise ValueError(f"{where}: no valid JSON ({error}): {line[:60]!r}{hint}") from error
    if not isinstance(found, dict):
        raise ValueError(
            f'{where}: needed an object {{"instruction": …, "output": …}}, got {type(found).__name__}'
        )
    if missing := [name for name in ("instruction", "output") if name not in found]:
        hint = (
            ": rename the fields, one question and one answer a line" if len(missing) == 2 else ""
        )
        raise ValueError(
            f"{where}: {' and '.join(map(repr, missing))} missing; found {sorted(found)}{hint}"
        )
    if found.get("input") is None:
        found["input"] = ""
    for name in ("instruction", "input", "output"):
        if not isinstance(found[name], str):
            raise ValueError(f"{where}: {name!r} must be text, got {type(found[name]).__name__}")
        if any("\ud800" <= letter <= "\udfff" for letter in found[name]):
            raise ValueError(
                f"{where}: {name!r} holds half of a surrogate pair, which is no text: {found[name]!r:.60}"
            )
    if empty := [name for name in ("instruction", "output") if not found[name].strip()]:
        raise ValueError(f"{where}: {empty[0]!r} is empty")
    if unknown := sorted(set(found) - {"instruction", "input", "output"}):
        raise ValueError(
            f"{where}: unknown field {unknown[0]!r}; known are 'instruction', 'input', 'output'"
        )
    return Example(found["instruction"], found["output"], found["input"])


def split_examples(
    examples: Sequence[Example], name: str = "jsonl", share: float = 0.1, seed: int = 0
) -> Task:
    """Shuffle and hold out a share of the examples for validation: of fewer than ten none, by default.

    Raises ``ValueError`` for a share outside [0, 1).

    >>> task = split_examples([Example("Count.", str(i)) for i in range(20)])
    >>> len(task.train), len(task.valid)
    (18, 2)
    """
    if not 0 <= share < 1:
        raise ValueError(f"share must be in [0, 1), got {share}")
    shuffled = random.Random(seed).sample(list(examples), len(examples))
    held = int(share * len(examples))
    return Task(name, train=tuple(shuffled[held:]), valid=tuple(shuffled[:held]))
