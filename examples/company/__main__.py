"""The story, from a real run: three adapters by jobs, one server, one month of feedback.

    python -m examples.company                      # the shipped base, a few minutes
    python -m examples.company --short              # the same in less, with few examples (CI)
    python -m examples.company --sentences FOLDER   # support's real tickets: imdb.json, yelp.json,
                                                    # amazon.json of npm's sentiment 5.0.2
    python -m examples.company --base smollm2       # SmolLM2, half an hour of one core
    python -m examples.company --out docs/company.md

Everything is done by the parts that a company would use: ``minilora.jobs`` trains and registers,
the hub keeps and routes, the server answers, the gate decides.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from minilora.files import write_text

from .departments import COLOURS, DEPARTMENTS
from .story import Company, Sizes

SHORT = Sizes(
    (24, 24, 24), 6, (1.0, 1.0, 1.0),
    feedback=10, windows=4, reserve=4, regression=6, prose=4, asked=1, exam=4,
)  # fmt: skip
BIG = Sizes(  # a base of its own, a hundred times the shipped one's size, reads before it is taught
    (160, 80, 100), 30, (3.0, 2.0, 2.0),
    feedback=30, windows=12, reserve=40, regression=100, prose=32, exam=20,
)  # fmt: skip


def main() -> None:
    """Live through the month and print it; with ``--out`` write it down."""
    parser = argparse.ArgumentParser("python -m examples.company", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--short", action="store_true", help="few examples and steps: does it still run?")
    add("--base", help="a model's folder (default: the shipped base)")
    add("--sentences", type=Path, help="folder of the real tickets")
    add("--out", type=Path, help="write the story there, as Markdown")
    add("--folder", type=Path, help="keep hub and jobs there, so that a killed run goes on")
    given = parser.parse_args()
    sizes = SHORT if given.short else BIG if given.base else Sizes()
    with tempfile.TemporaryDirectory() as place:
        folder = given.folder or Path(place)
        folder.mkdir(parents=True, exist_ok=True)
        company = Company(folder, given.base, given.sentences, sizes)
        company.live()
    text = "\n\n".join(company.told) + "\n"
    if given.out:
        write_text(given.out, text)
    if not given.short:
        check(company)


def check(company: Company) -> None:
    """What the story claims. Raises ``AssertionError``."""
    for row in DEPARTMENTS:
        own = company.table[row, row]
        for column in DEPARTMENTS:
            assert column == row or own > company.table[column, row], (column, row)
    assert {name: len(each) >= 3 for name, each in company.canaries.items()} == dict.fromkeys(
        COLOURS[:3], True
    ), company.canaries
    assert company.expelled == ["intern"], company.expelled
    assert company.words[-1] == "promote", company.words


if __name__ == "__main__":
    main()
