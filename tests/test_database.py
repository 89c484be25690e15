"""A SQLite file of a known schema: a change is whole or not there, also between processes."""

import subprocess
import sys
from dataclasses import replace

import pytest

from minilora.database import Database

TWO_STEPS = ("create table item (name text primary key)", "alter table item add size integer")


STORE = Database("x.sqlite", "store", "write an item", TWO_STEPS)
OLD_STORE = Database("x.sqlite", "store", "write an item", TWO_STEPS[:1])


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "new"


def names(folder, store=STORE):
    with store.reading(folder) as db:
        return [name for (name,) in db.execute("select name from item order by name")]


def stop_half_way(folder):
    with STORE.writing(folder) as db:
        db.execute("insert into item values ('b', 1)")
        raise KeyError("half way")


def test_a_change_is_whole_or_undone(folder):
    with STORE.writing(folder) as db:
        db.execute("insert into item values ('a', 1)")
    with pytest.raises(KeyError, match="half way"):
        stop_half_way(folder)
    assert names(folder) == ["a"]


def test_an_old_file_gains_the_new_steps_and_keeps_its_rows(folder):
    with OLD_STORE.writing(folder) as db:
        db.execute("insert into item values ('a')")
    with STORE.writing(folder) as db:
        db.execute("insert into item values ('b', 2)")
    assert names(folder) == ["a", "b"]
    with pytest.raises(ValueError, match="has schema 2, and this minilora knows 1: a newer"):
        names(folder, OLD_STORE)


def test_a_file_in_the_folders_place_is_a_sentence(folder):
    folder.write_text("mine")
    with (
        pytest.raises(OSError, match=r"the store in .*new: File exists; choose another .*Nothing"),
        STORE.writing(folder),
    ):
        pass
    assert folder.read_text() == "mine"


def test_asking_makes_nothing(folder):
    with pytest.raises(FileNotFoundError, match=r"there is no store in .*new"):
        names(folder)
    assert not folder.exists()


KILLED = """
import os, signal, sys
from pathlib import Path
from minilora.database import Database
store = Database("x.sqlite", "store", "write an item", tuple(sys.argv[2:]))
with store.writing(Path(sys.argv[1])) as db:
    db.execute("insert into item values ('committed', 1)")
with store.writing(Path(sys.argv[1])) as db:
    db.execute("insert into item values ('half', 1)")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_file_that_is_just_being_made_is_not_there_yet(folder):
    """The first writer has made the file, and not its tables."""
    folder.mkdir()
    (folder / STORE.file).touch()
    with pytest.raises(FileNotFoundError, match="there is no"), STORE.reading(folder):
        pass


def test_a_killed_writer_leaves_the_old_state_and_no_lock(folder):
    done = subprocess.run([sys.executable, "-c", KILLED, folder, *TWO_STEPS], check=False)
    assert done.returncode == -9
    assert names(folder) == ["committed"]
    with STORE.writing(folder) as db:
        db.execute("insert into item values ('next', 1)")
    assert names(folder) == ["committed", "next"]


def test_a_private_file_is_its_owners_alone_whoever_made_it(folder):
    with STORE.writing(folder) as db:
        db.execute("insert into item values ('a', 1)")
    (folder / "x.sqlite").chmod(0o644)
    private = replace(STORE, private=True)
    with private.writing(folder) as db:
        db.execute("insert into item values ('b', 1)")
        assert {file.stat().st_mode & 0o777 for file in folder.iterdir()} == {0o600}
    assert names(folder) == ["a", "b"]
