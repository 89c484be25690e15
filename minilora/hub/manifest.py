"""What is known of one version, as one JSON text that never changes: the files, and where they come
from.

The text is stored as a blob of its own, so its hash, the version's *digest*, stands for everything:
whoever has the digest can check the manifest, and with the manifest every file. Lineage is in it:
the data's hash, the base's fingerprint, the parent, the settings, seed, scores and package
versions. (An OCI image manifest is the same idea.)

Two manifests say by themselves what changed, and so which version number a new one should have.
"""

from __future__ import annotations

import hashlib
import json
import math
import platform
import re
import time
import warnings
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version as installed
from typing import Any

from ..checks import is_number
from ..formats.base_fingerprint import Fingerprint
from ..text import did_you_mean
from .adapter import Adapter
from .blobs import SHA
from .semver import LEVELS, Semver, check_name

# What a caller may say of an adapter; the rest of a manifest is found out.
SAYS = (
    "task",
    "description",
    "tags",
    "metrics",
    "data_sha",
    "seed",
    "recipe",
    "parent",
    "packages",
)


@dataclass(frozen=True)
class Manifest:
    """One version of one adapter.

    - ``content``: the identity of tensors and config (adapter.py); ``architecture``, ``tensors``:
      the base's fingerprint.
    - ``settings``: the adapter's config in canonical form; ``data_sha``: ``data_hash`` of what it
      was trained on.
    - ``parent``: the version it replaces or was made from; ``recipe``: how it was trained;
      ``packages``: with which versions.
    - ``files``: path -> [SHA-256, bytes].

    >>> files = {"adapter_config.json": ["0" * 64, 120]}
    >>> naval = Manifest("naval", "1.0.0", "c0ffee", files, {"r": 8})
    >>> naval.bytes, Manifest.parse(naval.text) == naval
    (120, True)
    """

    name: str
    version: str
    content: str
    files: Mapping[str, list]
    settings: Mapping[str, Any]
    architecture: str = ""
    tensors: str = ""
    parent: str = ""
    data_sha: str = ""
    seed: int | None = None
    task: str = ""
    description: str = ""
    tags: tuple[str, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    recipe: Mapping[str, Any] = field(default_factory=dict)
    packages: Mapping[str, str] = field(default_factory=dict)
    creator: str = ""
    created: str = ""

    @property
    def text(self) -> str:
        """Canonical JSON: equal manifests are equal bytes."""
        return json.dumps(asdict(self), sort_keys=True, indent=1, ensure_ascii=False) + "\n"

    @property
    def bytes(self) -> int:
        """Bytes of all files together."""
        return sum(size for _, size in self.files.values())

    @classmethod
    def parse(cls, text: str) -> Manifest:
        """Read ``text`` again. Raises ``ValueError`` when it is something else, or names a path
        outside the folder.
        """
        try:
            content = json.loads(text)
            manifest = cls(**{**content, "tags": tuple(content["tags"])})
            files = [(path, *file) for path, file in manifest.files.items()]
            check_name(manifest.name)
            Semver.parse(manifest.version)
            for path, sha, size in files:
                if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", path) or not SHA.fullmatch(sha):
                    raise ValueError(f"a file {path!r} with hash {sha!r}")
                if not isinstance(size, int) or size < 0:
                    raise ValueError(f"a file of {size!r} bytes")
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise ValueError(
                f"expected the manifest of an adapter, got {text[:40]!r}…: {error}"
            ) from error
        return manifest


def described(
    name: str, adapter: Adapter, files: Mapping[str, list], facts: Mapping[str, Any], creator: str
) -> Manifest:
    """The manifest of an adapter, without a number; ``facts`` is what ``said`` let through."""
    base = adapter.base or Fingerprint("", "")
    packages = {"python": platform.python_version()}
    packages |= {package: installed(package) for package in ("torch", "safetensors")}
    return Manifest(
        name,
        "0.0.0",
        adapter.content_id,
        files,
        adapter.settings,
        base.architecture,
        base.tensors,
        creator=creator,
        created=timestamp(),
        **{"packages": packages, **facts},
    )


def timestamp() -> str:
    """Now, as ISO 8601 in UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def change_since(new: Manifest, old: Manifest) -> tuple[str, str]:
    """Which number should move, and why: another base, rank, targets or method is major, new data
    minor, else patch.

    >>> from dataclasses import replace
    >>> old = Manifest("naval", "1.0.0", "", {}, {"r": 8.0}, data_sha="aa")
    >>> change_since(replace(old, data_sha="bb"), old)
    ('minor', 'other data')
    >>> change_since(replace(old, settings={**old.settings, "r": 4.0}), old)
    ('major', 'r 8 -> 4')
    """
    if new.architecture != old.architecture:
        return "major", "a base of another architecture"
    if new.tensors != old.tensors:
        return "major", "a base with other values"
    for key in ("peft_type", "r", "rank_pattern", "target_modules", "layers_to_transform"):
        if (now := new.settings.get(key)) != (before := old.settings.get(key)):
            return "major", f"{key} {shown(before)} -> {shown(now)}"
    if new.data_sha != old.data_sha:
        return "minor", "other data"
    return "patch", "the same recipe"


def suggestion(
    new: Manifest, older: Iterable[Manifest], gone: Collection[str] = ()
) -> tuple[str, str]:
    """The version that ``new`` should have after those there are, and the reason in words.

    A number that is ``gone`` (pruned) is not given again: it stands in logs and parents.
    """
    older = [manifest for manifest in older if not Semver.parse(manifest.version).pre]
    version, level, why = Semver(1, 0, 0), "major", "the first"
    if older:
        last = max(older, key=lambda manifest: Semver.parse(manifest.version).order)
        level, reason = change_since(new, last)
        version, why = Semver.parse(last.version).bumped(level), f"{reason} since {last.version}"
        why += f" ({level})"
    while str(version) in gone:
        version = version.bumped(level)
    return str(version), why


def unsuitable(version: Semver, new: Manifest, older: Iterable[Manifest]) -> str:
    """Why a chosen version number misleads its users; empty when it does not. Older lines may have
    later patches.
    """
    earlier = [
        manifest for manifest in older if Semver.parse(manifest.version).order < version.order
    ]
    older = list(older)
    if version.pre or version.build or not older:
        return ""
    if not earlier:
        return "it is older than every version that is there"
    last = max(earlier, key=lambda manifest: Semver.parse(manifest.version).order)
    level, reason = change_since(new, last)
    moved = version.level_since(Semver.parse(last.version))
    if moved in LEVELS and LEVELS.index(moved) > LEVELS.index(level):
        return f"since {last.version} it has {reason}, a {level} change"
    return ""


def said(metadata: Mapping[str, Any] | None) -> dict[str, Any]:
    """What a caller says of an adapter, checked. Raises ``ValueError`` that names the field.

    >>> said({"metrics": {"exact_match": 1}})
    {'metrics': {'exact_match': 1.0}}
    """
    checked = dict(metadata or {})
    for name, value in checked.items():
        if name not in SAYS:
            hint = did_you_mean(name, SAYS, f"known are {', '.join(SAYS)}")
            raise ValueError(f"unknown metadata {name!r}: {hint}")
        if name in ("metrics", "recipe", "packages"):
            if not isinstance(value, Mapping):
                raise ValueError(f"metadata {name!r} must map names to values, got {value!r}")
        elif name == "tags":
            checked[name] = tuple(sorted({str(tag) for tag in value}))
        elif name == "seed":
            if not isinstance(value, int):
                raise ValueError(f"metadata 'seed' must be a whole number, got {value!r}")
        elif not isinstance(value, str):
            raise ValueError(f"metadata {name!r} must be text, got {value!r}")
    if "metrics" in checked:
        checked["metrics"] = {str(k): number(k, v) for k, v in checked["metrics"].items()}
    return checked


def number(name: str, value: Any) -> float:
    """A score as a float. Raises ``ValueError`` unless it is a finite number."""
    if not is_number(value) or not math.isfinite(value):
        raise ValueError(f"the score {name!r} must be a finite number, got {value!r}")
    return float(value)


def data_hash(examples: Iterable[Any]) -> str:
    """The hash of training examples, whatever their order and file: SHA-256 over the sorted
    examples.

    >>> from minilora.training.data import Example
    >>> one, two = Example("Status?", "All stop."), Example("Report.", "Hull 90%.")
    >>> data_hash([one, two]) == data_hash([two, one])
    True
    """
    lines = sorted(json.dumps(asdict(example), sort_keys=True) for example in examples)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def shown(value: Any) -> str:
    """A setting in a message: 8 rather than 8.0."""
    if isinstance(value, float):
        return f"{value:g}"
    return "+".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def misgivings(new: Manifest, older: Iterable[Manifest], hint: str) -> list[str]:
    """What a user should be told about a new version, one sentence each."""
    older, spec = list(older), f"{new.name}@{new.version}"
    told = []
    if why := unsuitable(Semver.parse(new.version), new, older):
        told.append(f"{spec} may mislead: {why}; {hint}")
    if twins := [each.version for each in older if each.content == new.content]:
        told.append(f"{spec} has the same tensors and settings as {twins[-1]}")
    return told


def check_base(manifest: Manifest, base: Fingerprint) -> None:
    """Raise ``ValueError`` for a base of another architecture, warn of one with other values, such
    as one in four bits.
    """
    spec = f"{manifest.name}@{manifest.version}"
    if manifest.architecture and manifest.architecture != base.architecture:
        raise ValueError(
            f"{spec} needs a base of architecture {manifest.architecture}, this one "
            f"has {base.architecture}: its modules or their shapes differ"
        )
    if manifest.tensors and base.tensors and manifest.tensors != base.tensors:
        warnings.warn(
            f"{spec} was made for a base with the values {manifest.tensors}, this one has "
            f"{base.tensors}: the same shapes, but quantized, rounded or trained otherwise; "
            "compare its answers before you rely on them",
            stacklevel=3,
        )
