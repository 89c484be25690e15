"""Real texts by topic for ``benchmarks/router.py``: WordNet's glosses and notices of licences.

Both are chosen by size alone, so that nobody picked easy ones. WordNet 3.0 is Princeton
University's, licensedcode-data nexB's (CC-BY-4.0); both are fetched and no part of the repository.
"""

from __future__ import annotations

import re
import zipfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path


def wordnet_topics(folder: Path, most: int) -> dict[str, list[str]]:
    """The largest disjoint branches of nouns, each with the texts of all its synsets."""
    texts, below = {}, defaultdict(list)
    for line in (folder / "data.noun").read_text(encoding="utf-8").splitlines():
        if line.startswith("  "):
            continue  # the licence
        left, gloss = line.split(" | ", 1)
        fields = left.split()
        count = int(fields[3], 16)
        words = ", ".join(word.replace("_", " ") for word in fields[4 : 4 + 2 * count : 2])
        texts[fields[0]] = f"{words}: {gloss.strip()}"
        pointers = fields[5 + 2 * count :]
        for kind, target, part in zip(pointers[::4], pointers[1::4], pointers[2::4], strict=False):
            if kind in ("@", "@i") and part == "n":
                below[target].append(fields[0])
    branches = {root: branch(root, below) for root in texts}
    fitting = [root for root, members in branches.items() if 100 <= len(members) <= 600]
    chosen: dict[str, list[str]] = {}
    taken: set[str] = set()
    for root in sorted(fitting, key=lambda root: (-len(branches[root]), root)):
        if len(chosen) < most and not branches[root] & taken:
            taken |= branches[root]
            chosen[f"{texts[root].split(':')[0]} {root}"] = [
                texts[m] for m in sorted(branches[root])
            ]
    return chosen


def branch(root: str, below: Mapping[str, Sequence[str]]) -> set[str]:
    """A synset and all that lies under it."""
    members, waiting = {root}, [root]
    while waiting:
        for each in below.get(waiting.pop(), ()):
            if each not in members:
                members.add(each)
                waiting.append(each)
    return members


def licence_topics(wheel: Path, most: int) -> dict[str, list[str]]:
    """The licences with most notices; notices that are equal but for case, marks and digits are
    one.
    """
    notices: dict[str, dict[str, str]] = defaultdict(dict)
    with zipfile.ZipFile(wheel) as archive:
        for name in sorted(archive.namelist()):
            if "/rules/" not in name or not name.endswith(".RULE"):
                continue
            head, _, text = archive.read(name).decode("utf-8", "replace").partition("\n---")
            topic = re.search(r"license_expression: (\S+)\s*$", head, re.MULTILINE)
            text = " ".join(text.strip("-\n ").split())[:1000]
            plain = "is_false_positive" not in head and "language:" not in head
            if topic and plain and len(text) >= 30:
                notices[topic[1]].setdefault(re.sub(r"[\W\d_]+", "", text.lower()), text)
    largest = sorted(notices, key=lambda topic: (-len(notices[topic]), topic))[:most]
    return {topic: list(notices[topic].values()) for topic in largest}
