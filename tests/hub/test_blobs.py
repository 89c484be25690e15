"""Files by their content: what is written, in which order, and what is looked at."""

import os

import pytest

from minilora.hub import blobs as module
from minilora.hub.blobs import Blobs, DamageError, digest, write_durably


@pytest.fixture
def blobs(tmp_path):
    return Blobs(tmp_path / "blobs")


def test_a_file_is_on_the_disk_before_its_name_and_the_name_before_the_return(
    tmp_path, monkeypatch
):
    """fsync of the file, rename, fsync of the folder: the order that survives a power cut."""
    done, fsync, replace = [], os.fsync, os.replace

    def synced(handle):
        done.append("folder" if os.path.isdir(f"/proc/self/fd/{handle}") else "file")
        fsync(handle)

    def renamed(*names):
        done.append("rename")
        replace(*names)

    monkeypatch.setattr(module.os, "fsync", synced)
    monkeypatch.setattr("minilora.files.os.replace", renamed)
    write_durably(tmp_path / "a", b"hello")
    rename = done.index("rename")
    assert "file" in done[:rename]
    assert "folder" in done[rename:]
    assert (tmp_path / "a").read_bytes() == b"hello"


def test_what_is_there_and_whole_is_not_written_again(blobs):
    path = blobs.path(blobs.put(b"hello"))
    before = path.stat().st_mtime_ns, path.stat().st_ino
    assert path.parent.name == digest(b"hello")[:2]
    blobs.put(b"hello")
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == before
    path.write_bytes(b"jello")
    assert "is damaged: its content hashes to" in blobs.problem(path.name)
    blobs.put(b"hello")
    assert blobs.problem(path.name) == ""
    assert blobs.read(path.name) == b"hello"


def test_a_blob_that_cannot_be_read_is_damage(blobs):
    sha = blobs.put(b"hello")
    blobs.path(sha).unlink()
    with pytest.raises(DamageError, match="is missing"):
        blobs.read(sha)
    blobs.path(sha).mkdir()
    with pytest.raises(DamageError, match="cannot be read"):
        blobs.read(sha)
    assert list(blobs.files()) == [], "a folder is no blob"


@pytest.mark.parametrize("sha", ["", "../x", "AB" * 32, "ab" * 31, "ab" * 32 + "\n"])
def test_a_name_that_is_no_hash_is_refused(blobs, sha):
    with pytest.raises(ValueError, match="expected a SHA-256"):
        blobs.path(sha)
