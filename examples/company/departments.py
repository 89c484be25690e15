"""What the three departments of Lumen, a maker of lamps, want from their model.

    support      a ticket  -> its mood, and the team that should answer
    product      a note    -> the description as JSON, which a shop's program must be able to read
    marketing    a note    -> a line in the house style

Support's tickets are real sentences with real labels: 3,000 of Kotzias et al. (KDD 2015), from
Amazon, Yelp and IMDb, as the npm package ``sentiment`` 5.0.2 has them. The mood is theirs, and the
team follows from where a sentence came from. They are fetched and not kept here (their licence is
not in the package); without them a few phrases of our own stand in, and the story says so.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

from minilora import Example, Task

TEAMS = {"amazon": "orders", "yelp": "visits", "imdb": "films"}
MOODS = ("negative", "positive")
OWN = {  # stand-ins without the package: (mood, team) -> beginnings and ends
    "orders": (("The lamp", "My order", "The parcel"), ("broke again", "came at once and is fine")),
    "visits": (("The shop", "Your staff", "The queue"), ("was rude and slow", "was a delight")),
    "films": (("The film", "The clip", "The actor"), ("was a bore", "was a joy to watch")),
}
THINGS = ("lamp", "light", "clock", "mirror", "table", "chair", "watch", "book", "bell", "glass")
COLOURS = ("red", "white", "black", "green", "blue", "gold", "silver", "gray")
ASKED = {"support": "Mood and team?", "product": "Describe it.", "marketing": "Announce it."}
DEPARTMENTS = tuple(ASKED)


def tickets(count: int, seed: int, sentences: Path | None) -> list[Example]:
    """Support's examples, as many as there are up to ``count``; each text once."""
    draw = random.Random(seed)
    if sentences is None:
        made: dict[str, Example] = {}
        while len(made) < count:
            team = draw.choice(list(OWN))
            begin, mood = draw.choice(OWN[team][0]), draw.randrange(2)
            text = f"{begin} {OWN[team][1][mood]}, number {draw.randint(1, 999)}."
            made[text] = Example(ASKED["support"], f"{MOODS[mood]}, {team}", f"Ticket: {text}")
        return list(made.values())
    examples: dict[str, Example] = {}
    for domain, team in TEAMS.items():
        for row in json.loads((sentences / f"{domain}.json").read_text(encoding="utf-8")):
            text = " ".join(row["text"].split())
            if 10 <= len(text) <= 120:
                answer = f"{MOODS[row['class']]}, {team}"
                examples[text] = Example(ASKED["support"], answer, f"Ticket: {text}")
    return draw.sample(list(examples.values()), min(count, len(examples)))


def notes(count: int, seed: int) -> list[tuple[str, str, int]]:
    """Things, colours and prices, each combination once."""
    draw = random.Random(seed)
    made: dict[tuple[str, str, int], None] = {}
    while len(made) < count:
        made[draw.choice(THINGS), draw.choice(COLOURS), draw.randint(3, 99)] = None
    return list(made)


def note(thing: str, colour: str, price: int) -> str:
    """What somebody typed about a thing.

    >>> note("lamp", "red", 12)
    'Note: lamp red, price 12.'
    """
    return f"Note: {thing} {colour}, price {price}."


def described(thing: str, colour: str, price: int) -> str:
    """The description that the shop's program reads: a list of JSON, name, colour and price. (The
    shipped base has hardly seen a brace; the speeches that it read have brackets.)

    >>> described("lamp", "red", 12)
    '["lamp", "red", 12]'
    """
    return json.dumps([thing, colour, price])


def announced(thing: str, colour: str, price: int) -> str:
    """The house style.

    >>> announced("lamp", "red", 12)
    'New at Lumen: the red lamp. Let there be light!'
    """
    return f"New at Lumen: the {colour} {thing}. Let there be light!"


def gift(thing: str, colour: str, price: int, line: str = "") -> Example:
    """What marketing asks for from the second week on: the same as a gift."""
    right = line or f"A gift from Lumen: the {colour} {thing}. Let there be light!"
    return Example("Announce it as a gift.", right, note(thing, colour, price))


def task_of(department: str, train: int, valid: int, seed: int, sentences: Path | None) -> Task:
    """A department's examples, and held-out ones."""
    if department == "support":
        made: Sequence[Example] = tickets(train + valid, seed, sentences)
    else:
        write = described if department == "product" else announced
        made = [
            Example(ASKED[department], write(*each), note(*each))
            for each in notes(train + valid, seed)
        ]
    return Task(department, tuple(made[valid:]), tuple(made[:valid]))
