"""The licences of what minilora needs, from the installed packages' own metadata.

    python -m tests.licences        writes docs/licences.md

First what ``pyproject.toml`` names, with its extras; then what those need in turn. What is not
installed where it runs (flwr and ray have environments of their own) keeps its row.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

import tomllib
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "licences.md"
# packages whose metadata has a whole text, or nothing; read in the files they ship
SAID = {"loralib": "MIT"}
OPENING = """# Licences

minilora is under the [Apache License 2.0](../LICENSE). The shipped base was trained for it on
texts whose sources and licences `minilora/model/base/ORIGIN.md` names. Nothing of the packages
below is copied into it: pip installs them, each under its own licence, as its metadata states it.
Written by `python -m tests.licences`.
"""


def declared() -> dict[str, set[str]]:
    """Each package that pyproject.toml names: its name, and the extras ("" for none)."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found: dict[str, set[str]] = {}
    for extra, lines in {"": project["dependencies"], **project["optional-dependencies"]}.items():
        for requirement in map(Requirement, lines):
            if requirement.name != "minilora":
                found.setdefault(name_of(requirement.name), set()).add(extra)
    return found


def closure(names: Iterable[str]) -> set[str]:
    """Those packages and, without extras, all that they need on this machine."""
    seen: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        try:
            lines = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        for requirement in map(Requirement, lines):
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                waiting.append(name_of(requirement.name))
    return seen


def licence(name: str) -> tuple[str, str]:
    """An installed package's version and licence; a version of "" is one that is not installed."""
    try:
        about = metadata.metadata(name)
    except metadata.PackageNotFoundError:
        return "", "not installed here"
    classifiers = [
        line.split(" :: ")[-1]
        for line in about.get_all("Classifier") or []
        if line.startswith("License :: ") and not line.endswith("OSI Approved")
    ]
    short = (about["License"] or "").strip()
    short = short if len(short) < 60 and "\n" not in short else ""
    words = about["License-Expression"] or SAID.get(name) or " / ".join(classifiers) or short
    return about["Version"], words or "see its files"


def name_of(text: str) -> str:
    """The normal form of a package's name."""
    return re.sub(r"[-_.]+", "-", text).lower()


def main() -> None:
    """Write the page."""
    wanted, before = declared(), PAGE.read_text(encoding="utf-8").splitlines()
    rows = ["| package | version here | licence | for |", "|---|---|---|---|"]
    for name in sorted(wanted, key=lambda each: ("" not in wanted[each], each)):
        version, words = licence(name)
        extras = ", ".join(f"`[{each}]`" for each in sorted(wanted[name]) if each)
        if not version and (row := [line for line in before if line.startswith(f"| {name} |")]):
            rows += row
            continue
        rows.append(f"| {name} | {version or '—'} | {words} | {extras or 'minilora itself'} |")
    inner = ["| package | version here | licence |", "|---|---|---|"]
    for name in sorted(closure(wanted) - set(wanted)):
        version, words = licence(name)
        if version:
            inner.append(f"| {name} | {version} | {words} |")
    parts = [OPENING, *rows, "", "What they need in turn, on Linux with Python 3.11:", "", *inner]
    PAGE.write_text("\n".join(parts) + "\n", encoding="utf-8")
    print(f"{PAGE.name}: {len(rows) - 2} packages, and {len(inner) - 2} that they need")


if __name__ == "__main__":
    main()
