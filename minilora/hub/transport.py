"""Adapters between hubs: one file to carry, or a web address on any static server; checked on
arrival either way.

A *parcel* is a manifest and the bytes of its files. As one file it is a plain zip:

    manifest.json                what is known of the version (manifest.py)
    blobs/<sha256>               each file under its hash

On the web nothing has to run: a hub's ``blobs/`` folder behind any static server is enough, and the
address of a version is that of its manifest's blob,

    https://host/blobs/2c/2cf24dba…

which ends in the manifest's own hash. So the address alone says what must arrive: the manifest is
checked against it, the files, which lie beside it, against the manifest. Neither the server nor the
way there needs to be trusted.

Nothing is unpacked by a path from outside, and nothing larger than announced is read. Left out:
names on the server that move; an alias belongs to the hub that gives it.
"""

from __future__ import annotations

import io
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .blobs import SHA, digest, write_durably
from .manifest import Manifest
from .registry import MANIFEST

LARGEST_MANIFEST = 1 << 20  # bytes
TIMEOUT = 30.0  # seconds without a byte


@dataclass(frozen=True)
class Parcel:
    """A manifest's text and the content of its files by path, all checked."""

    text: str
    files: dict[str, bytes]

    @property
    def manifest(self) -> Manifest:
        """The manifest."""
        return Manifest.parse(self.text)


def collect(content: bytes, read: Callable[[str, int], bytes], source: str) -> Parcel:
    """The parcel of a manifest, each file from ``read(sha, bytes)``. Raises ``ValueError`` where
    one is not what it should be.
    """
    try:
        text = content.decode("utf-8")
        manifest = Manifest.parse(text)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None
    files = {}
    for path, (sha, size) in manifest.files.items():
        files[path] = read(sha, size)
        if len(files[path]) != size or digest(files[path]) != sha:
            raise ValueError(
                f"{source}: {path} arrived damaged: expected {size} bytes of hash {sha[:12]}…"
            )
    return Parcel(text, files)


def write_parcel(file: Path, parcel: Parcel) -> Path:
    """Write a parcel as one zip file; equal parcels are equal bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:  # stored, not compressed: weights do not shrink
        archive.writestr(zipfile.ZipInfo(MANIFEST), parcel.text)
        for sha, content in sorted((digest(each), each) for each in parcel.files.values()):
            archive.writestr(zipfile.ZipInfo(f"blobs/{sha}"), content)
    write_durably(file, buffer.getvalue())
    return file


def read_parcel(file: Path) -> Parcel:
    """Read ``write_parcel``'s file. Raises ``ValueError`` when it is damaged or something else."""
    try:
        with zipfile.ZipFile(file) as archive:

            def member(name: str, limit: int) -> bytes:
                with archive.open(name) as opened:
                    return opened.read(limit + 1)

            content = member(MANIFEST, LARGEST_MANIFEST)
            return collect(content, lambda sha, size: member(f"blobs/{sha}", size), str(file))
    except FileNotFoundError:
        raise ValueError(f"{file} does not exist") from None
    except IsADirectoryError:
        raise ValueError(f"{file} is a folder: expected the file of an exported adapter") from None
    except PermissionError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror}") from None
    except Exception as error:  # zipfile's own, and what decompressors, ciphers and decoders raise
        if isinstance(error, ValueError | MemoryError) and not isinstance(error, UnicodeError):
            raise  # a sentence already, or not the file's fault
        raise ValueError(f"{file} is damaged, or is not an exported adapter: {error}") from error


def is_address(spec: str) -> bool:
    """Whether this is an address on the web rather than a name.

    >>> is_address("https://host/blobs/2c/2cf2"), is_address("naval@1.2")
    (True, False)
    """
    return spec.startswith(("https://", "http://"))


def fetch_parcel(address: str) -> Parcel:
    """Fetch a version from a static server. Raises ``ValueError`` for a bad address or damage,
    ``OSError`` when it fails.
    """
    root, _, sha = address.rpartition("/")
    root = root.rpartition("/")[0]
    if not SHA.fullmatch(sha) or not address.endswith(f"/{sha[:2]}/{sha}"):
        raise ValueError(
            f"expected an address that ends in /<2 digits>/<SHA-256 of the manifest>, got "
            f"{address!r}: minilora hub show prints its end as 'blob'"
        )
    content = fetch(address, LARGEST_MANIFEST)
    if digest(content) != sha:
        raise ValueError(
            f"{address}: the manifest arrived damaged, it hashes to {digest(content)[:12]}…"
        )
    return collect(content, lambda each, size: fetch(f"{root}/{each[:2]}/{each}", size), address)


def fetch(address: str, limit: int) -> bytes:
    """At most ``limit`` bytes and one more, so that a longer answer shows. Raises ``OSError``."""
    try:
        with urllib.request.urlopen(address, timeout=TIMEOUT) as answer:
            return answer.read(limit + 1)
    except urllib.error.HTTPError as error:
        raise OSError(0, f"{address}: the server answers {error.code} {error.reason}") from error
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        raise OSError(
            0, f"{address} cannot be reached: {getattr(error, 'reason', error)}"
        ) from error
