"""Files are whole or not there, whatever happens in between."""

import errno
import json
import os
import time

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given

from minilora.files import (
    finish_swap,
    read_json,
    text_writer,
    write_atomically,
    write_json,
    write_text,
    write_together,
)
from minilora.tensor_files import read_tensors

from .strategies import damaged

WHOLE = {
    "a.json": json.dumps({"r": 4, "names": ["q", "v"]}).encode(),
    "b.safetensors": safetensors.numpy.save(
        {"x": np.arange(6, dtype=np.float32), "y": np.ones((2, 2), np.float16)}
    ),
}


def test_what_was_there_survives_a_write_that_fails(tmp_path):
    file = write_text(tmp_path / "a.txt", "old")

    def half(temporary):
        temporary.write_text("ne")
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        write_atomically(file, half)
    assert file.read_text() == "old"
    assert [f.name for f in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("I/O error: No space left")],
)
def test_a_full_disk_is_an_error_that_names_the_file_and_changes_nothing(tmp_path, error):
    file = write_text(tmp_path / "model.safetensors", "old")

    def full(temporary):
        raise error

    full_disk = r"could not write .*model.safetensors.*No space left"
    with pytest.raises(OSError, match=rf"{full_disk}.*Nothing was changed; free some space"):
        write_atomically(file, full)
    assert [f.name for f in tmp_path.iterdir()] == ["model.safetensors"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_really_full_device_is_reported(tmp_path, monkeypatch):

    def mkstemp(**_):
        return os.open("/dev/full", os.O_WRONLY), str(tmp_path / "full")

    monkeypatch.setattr("tempfile.mkstemp", mkstemp)
    (tmp_path / "full").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        write_text(tmp_path / "x", "content" * 10000)


def test_a_folder_that_cannot_be_made_is_reported(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="could not write"):
        write_text(tmp_path / "file" / "x", "y")


def test_new_files_have_ordinary_permissions(tmp_path):
    ordinary = tmp_path / "ordinary"
    ordinary.write_text("")
    assert write_text(tmp_path / "ours", "").stat().st_mode == ordinary.stat().st_mode


@pytest.mark.parametrize("content", ["", "{", "[1]", "3", "[" * 100_000])
def test_json_that_is_not_an_object_is_refused(tmp_path, content):
    (tmp_path / "c.json").write_text(content)
    with pytest.raises(ValueError, match=r"c.json"):
        read_json(tmp_path / "c.json")


def test_json_comes_back(tmp_path):
    assert read_json(write_json(tmp_path / "a" / "b.json", {"ä": [1]})) == {"ä": [1]}


@given(damaged(WHOLE))
def test_a_damaged_file_is_refused_or_read_as_another_reader_reads_it(tmp_path_factory, files):
    """Never half of it, and no error but ``ValueError``, for which the commands print one line."""
    folder = tmp_path_factory.mktemp("damaged")
    for name, data in files.items():
        (folder / name).write_bytes(data)
    try:
        value = read_json(folder / "a.json")
    except ValueError as error:
        value = str(error)
    # as text, in which NaN equals NaN
    assert "a.json" in value or repr(value) == repr(json.loads(files["a.json"]))
    try:
        tensors = read_tensors(folder / "b.safetensors")
    except ValueError as error:
        tensors = str(error)
    peers = {} if isinstance(tensors, str) else safetensors.numpy.load(files["b.safetensors"])
    assert "b.safetensors" in tensors or tensors.keys() == peers.keys()
    assert all(tensors[name].numpy().tobytes() == array.tobytes() for name, array in peers.items())


@pytest.mark.parametrize("refuse", ["config.json", "model.safetensors"])
def test_a_rename_that_fails_says_truly_whether_something_was_changed(
    tmp_path, monkeypatch, refuse
):
    """Windows does not replace an open file, and a model's tensors are often mapped into memory."""
    for name in ("config.json", "model.safetensors", "index.json"):
        write_text(tmp_path / name, "old")
    replace = os.replace

    def refused(source, target):
        if str(target).endswith(refuse) and not str(source).endswith(".before"):
            raise PermissionError(errno.EACCES, "Permission denied")
        replace(source, target)

    monkeypatch.setattr(os, "replace", refused)
    new = {"model.safetensors": text_writer("new"), "config.json": text_writer("new")}
    if refuse == "model.safetensors":
        state, left = "Nothing was changed", dict.fromkeys([*new, "index.json"], "old")
    else:
        state, left = "Some files are new already: save again", {"model.safetensors": "new"}
    with pytest.raises(OSError, match=rf"could not write .*{refuse}: Permission denied. {state}"):
        write_together(tmp_path, new, remove=["config.json", "index.json"])
    visible = [file for file in tmp_path.iterdir() if not file.name.startswith(".")]
    assert {file.name: file.read_text() for file in visible} == left


def interrupted(folder, *, pid, moved):
    """A folder of a, b and c whose save of a and b was killed after some of its renames."""
    for name in "abc":
        write_text(folder / name, f"old {name}")
    files = {name: f".{name}.x.{pid}.saving" for name in "ab"}
    for name, temporary in files.items():
        (folder / (name if name in moved else temporary)).write_text(f"new {name}")
    (folder / "c").replace(folder / ".c.before")
    (folder / ".stray.y.4194305.saving").write_text("of a save that was killed before its renames")
    swap = {"pid": pid, "files": files, "remove": ["c"]}
    (folder / ".swap.json").write_text(json.dumps(swap))


NO_PROCESS = 4_194_305  # above the largest number that Linux gives


def contents(folder):
    return {file.name: file.read_text() for file in folder.iterdir()}


@pytest.mark.parametrize("moved", ["", "a", "ab"])
def test_a_killed_swap_is_finished_by_the_next_reader_and_swept_by_the_next_save(tmp_path, moved):
    interrupted(tmp_path, pid=NO_PROCESS, moved=moved)
    finish_swap(tmp_path)
    new = {"a": "new a", "b": "new b"}
    stray = {".stray.y.4194305.saving": "of a save that was killed before its renames"}
    assert contents(tmp_path) == new | stray
    write_text(tmp_path / "d", "more")
    assert contents(tmp_path) == new | {"d": "more"}


def test_a_save_first_finishes_the_one_that_was_killed(tmp_path):
    interrupted(tmp_path, pid=NO_PROCESS, moved="a")
    write_together(tmp_path, {"b": text_writer("newer b"), "d": text_writer("d")})
    assert contents(tmp_path) == {"a": "new a", "b": "newer b", "d": "d"}


def test_the_swap_of_a_living_process_is_waited_for_and_not_touched(tmp_path):
    interrupted(tmp_path, pid=os.getpid(), moved="a")
    before = contents(tmp_path)
    with pytest.raises(ValueError, match="is being written: read it when the save has ended"):
        finish_swap(tmp_path, patience=0.05)
    assert contents(tmp_path) == before
    long_ago = time.time() - 100  # its number has gone to another process
    os.utime(tmp_path / ".swap.json", (long_ago, long_ago))
    finish_swap(tmp_path, patience=0.05)
    assert not (tmp_path / ".swap.json").exists()


@pytest.mark.parametrize(
    "swap",
    [
        *("[]", "{", "{}", '{"pid": "x", "files": {}, "remove": []}'),
        json.dumps({"pid": NO_PROCESS, "files": {"../a": "b"}, "remove": []}),
        json.dumps({"pid": NO_PROCESS, "files": {}, "remove": ["../../a"]}),
        json.dumps({"pid": NO_PROCESS, "files": {"a": "/b"}, "remove": []}),
    ],
)
def test_a_swap_that_is_damaged_or_points_elsewhere_is_refused(tmp_path, swap):
    (tmp_path / ".swap.json").write_text(swap)
    with pytest.raises(ValueError, match=r"was killed, and cannot be finished.*remove .*\.swap"):
        finish_swap(tmp_path)


def test_files_of_savers_that_live_are_not_swept(tmp_path):
    mine, parents = (tmp_path / f".a.x.{pid}.saving" for pid in (os.getpid(), os.getppid()))
    for file in (mine, parents, tmp_path / ".a.saving", tmp_path / ".b.x.none.saving"):
        file.write_text("")
    write_text(tmp_path / "a", "")
    assert len(list(tmp_path.iterdir())) == 5
    long_ago = time.time() - 100_000
    os.utime(parents, (long_ago, long_ago))
    os.utime(mine, (1, 1))  # an earlier process had our number
    write_text(tmp_path / "a", "")
    assert not mine.exists()
    assert not parents.exists()


def test_a_folder_in_the_way_of_any_file_is_seen_before_anything_is_changed(tmp_path):
    write_text(tmp_path / "a", "old")
    (tmp_path / "b").mkdir()
    message = r"could not write .*b: a folder of that name is in the way. Nothing was changed"
    with pytest.raises(OSError, match=message):
        write_together(tmp_path, {"a": text_writer("new"), "b": text_writer("new")}, remove=["a"])
    assert (tmp_path / "a").read_text() == "old"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a", "b"]
