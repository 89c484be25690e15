"""A save that fails at the end of a training is tried elsewhere, or again; the weights stay."""

import errno
import io
import json
import sys
from pathlib import Path

import pytest

from minilora import files
from minilora.commands import keeping
from minilora.commands.cli import main
from minilora.commands.keeping import save_somewhere
from minilora.training.data import naval_log


class Disk:
    """``save`` for a disk that is full in some folders, for a while."""

    def __init__(self, *full, times=10**9):
        self.full, self.times, self.tried = [Path(each) for each in full], times, []

    def save(self, folder):
        self.tried.append(folder)
        if any(folder.is_relative_to(full) for full in self.full) and self.times > 0:
            self.times -= 1
            raise OSError(errno.ENOSPC, "No space left on device")
        return folder


@pytest.fixture
def places(tmp_path, monkeypatch):
    """Current, home and temporary folder, without a terminal."""
    for name in ("here", "home", "tmp"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    monkeypatch.setattr(keeping.tempfile, "gettempdir", lambda: str(tmp_path / "tmp"))
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    return tmp_path


def test_a_save_that_succeeds_is_the_only_one(places, capsys):
    disk = Disk()
    assert save_somewhere(disk.save, places / "a b" / "adapter") == places / "a b" / "adapter"
    assert len(disk.tried) == 1
    assert capsys.readouterr() == ("", "")


def test_without_a_terminal_the_next_folder_with_room_takes_the_weights(places, capsys):
    wanted = places / "a b" / "adapter"
    disk = Disk(places / "a b", places / "here")
    saved = save_somewhere(disk.save, wanted)
    assert saved.parent == places / "home"
    said = capsys.readouterr().err
    assert f"The trained weights are in {saved}. " in said
    assert f"mv {saved} '{wanted}'" in said
    assert "No space left on device" in said


def test_where_no_folder_has_room_the_weights_wait_in_memory(places, monkeypatch, capsys):
    waited = []
    monkeypatch.setattr(keeping.time, "sleep", waited.append)
    disk = Disk(places, times=6)
    assert save_somewhere(disk.save, places / "out") == places / "out"
    assert waited == [60.0] * 3
    assert "in the memory of process" in capsys.readouterr().err
    monkeypatch.setattr(keeping, "TRIES", 2)
    with pytest.raises(OSError, match="No space left"):
        save_somewhere(Disk(places).save, places / "out")


def test_on_a_terminal_the_user_is_asked_until_it_succeeds(places, monkeypatch, capsys):
    terminal = io.StringIO(f"\n{places / 'other'}\n")
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stdin", terminal)
    disk = Disk(places / "out")
    assert save_somewhere(disk.save, places / "out") == places / "other"
    assert disk.tried == [places / "out", places / "out", places / "other"]
    assert capsys.readouterr().err.count("press Enter to save again") == 2


def test_train_keeps_its_adapter_on_a_disk_that_fills_up(places, monkeypatch, capsys):
    """The log was begun; then no file of ``out`` finds room any more."""
    rows = [{"instruction": e.instruction, "output": e.output} for e in naval_log(6, 1).train]
    data, out = places / "mine.jsonl", places / "out"
    data.write_text("\n".join(map(json.dumps, rows)))
    make = files.tempfile.mkstemp

    def mkstemp(suffix, prefix, dir):
        if Path(dir).is_relative_to(out) and "metrics" not in prefix:
            raise OSError(errno.ENOSPC, "No space left on device")
        return make(suffix, prefix, dir)

    monkeypatch.setattr(files.tempfile, "mkstemp", mkstemp)
    command = ["train", "--data", str(data), "--out", str(out), "--steps=2", "--batch=2"]
    with pytest.warns(UserWarning, match="no checkpoint of step 2"):
        assert main([*command, "--validate-every=0"]) == 0
    [saved] = (places / "here").iterdir()
    assert (saved / "adapter_model.safetensors").stat().st_size > 1000
    told = capsys.readouterr()
    assert f"The trained weights are in {saved}." in told.err
    assert f"minilora generate --adapter {saved}" in told.out
    assert not list(out.rglob("*.safetensors"))
