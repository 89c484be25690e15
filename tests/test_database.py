"""A SQLite file of a known schema: a change is whole or not there, also between processes."""

import subprocess
import sys

import pytest

from minilora.database import Database

TWO_STEPS = ("create table item (name text primary key)", "alter table item add size integer")


@pytest.fixture
def database(tmp_path):
    return Database(tmp_path / "new" / "x.sqlite", TWO_STEPS, noun="store")


def names(database):
    with database.reading() as db:
        return [name for (name,) in db.execute("select name from item order by name")]


def stop_half_way(database):
    with database.writing() as db:
        db.execute("insert into item values ('b', 1)")
        raise KeyError("half way")


def test_a_change_is_whole_or_undone(database):
    with database.writing() as db:
        db.execute("insert into item values ('a', 1)")
    with pytest.raises(KeyError, match="half way"):
        stop_half_way(database)
    assert names(database) == ["a"]


def test_an_old_file_gains_the_new_steps_and_keeps_its_rows(database):
    with Database(database.file, TWO_STEPS[:1]).writing() as db:
        db.execute("insert into item values ('a')")
    with database.writing() as db:
        db.execute("insert into item values ('b', 2)")
    assert names(database) == ["a", "b"]
    with pytest.raises(ValueError, match="has schema 2, and this minilora knows 1: a newer"):
        names(Database(database.file, TWO_STEPS[:1]))


def test_asking_makes_nothing(database):
    with pytest.raises(FileNotFoundError, match=r"there is no store in .*new"):
        names(database)
    assert not database.file.parent.exists()


KILLED = """
import os, signal, sys
from pathlib import Path
from minilora.database import Database
with Database(Path(sys.argv[1]), tuple(sys.argv[2:]), durable=False).writing() as db:
    db.execute("insert into item values ('committed', 1)")
with Database(Path(sys.argv[1]), tuple(sys.argv[2:])).writing() as db:
    db.execute("insert into item values ('half', 1)")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_writer_leaves_the_old_state_and_no_lock(database):
    done = subprocess.run([sys.executable, "-c", KILLED, database.file, *TWO_STEPS], check=False)
    assert done.returncode == -9
    assert names(database) == ["committed"]
    with database.writing() as db:
        db.execute("insert into item values ('next', 1)")
    assert names(database) == ["committed", "next"]
