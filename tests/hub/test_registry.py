"""The rows of a hub without any adapter: numbers, aliases, quotas, upkeep, one tenant at a time."""

import sqlite3
import time

import pytest

from minilora.hub import registry, upkeep
from minilora.hub.blobs import Blobs, digest
from minilora.hub.database import reading, writing
from minilora.hub.manifest import Manifest
from minilora.hub.registry import MANIFEST


@pytest.fixture
def blobs(tmp_path):
    return Blobs(tmp_path / "blobs")


@pytest.fixture
def insert(tmp_path, blobs):
    """Store a version of one file; its bytes are the content."""

    def inserted(spec, content=b"abc", tenant="me"):
        name, version = spec.split("@")
        files = {"a.json": content}
        listed = {path: [digest(each), len(each)] for path, each in files.items()}
        manifest = Manifest(name, version, digest(content), listed, {})
        with writing(tmp_path) as db:
            registry.insert(db, blobs, tenant, "ann", manifest.text, files)

    return inserted


@pytest.fixture
def db(tmp_path, insert):
    """A connection to a hub with three versions."""
    for number, spec in enumerate(["naval@1.0.0", "naval@1.1.0", "legal@1.0.0"]):
        insert(spec, b"x" * (number + 1))
    with writing(tmp_path) as opened:
        yield opened


def specs(db, *wanted):
    return [each.spec for each in registry.versions(db, *wanted)]


def test_versions_are_those_of_the_tenant_by_name_and_in_the_order_of_the_pushes(db):
    assert specs(db, "me") == ["legal@1.0.0", "naval@1.0.0", "naval@1.1.0"]
    assert specs(db, "me", "naval") == ["naval@1.0.0", "naval@1.1.0"]
    assert specs(db, "me", "naval", "1.1.0") == ["naval@1.1.0"]
    assert specs(db, "you") == []
    one = registry.find(db, "me", "naval@1.0")
    assert one.key == ("me", "naval", "1.0.0")
    assert one.digest == digest(one.manifest.text.encode())


def test_an_alias_is_one_names(db):
    for spec, alias in (("naval@1.0.0", "old"), ("naval@1.0.0", "best"), ("legal@1.0.0", "best")):
        assert registry.move_alias(db, registry.find(db, "me", spec), alias, None, "ann") is None
    named = {each.spec: each.aliases for each in registry.versions(db, "me")}
    assert named == {"legal@1.0.0": ("best",), "naval@1.0.0": ("best", "old"), "naval@1.1.0": ()}
    assert registry.find(db, "me", "naval@best").version == "1.0.0"
    new = registry.find(db, "me", "naval@1.1.0")
    assert registry.move_alias(db, new, "best", ..., "bob") == "1.0.0"
    assert registry.move_alias(db, new, "best", "1.1.0", "bob") == "1.1.0"
    assert [each.aliases for each in registry.versions(db, "me", "naval")] == [("old",), ("best",)]
    last = registry.events(db, "me", "naval")[-1]
    assert (last.who, last.what) == ("bob", "best 1.1.0 -> 1.1.0")


def test_what_is_done_is_noted_and_numbered(tmp_path, db, insert):
    before = registry.last_event(db)
    assert [each.what for each in registry.events(db, "me")] == [
        *("push 1.0.0", "push 1.1.0", "push 1.0.0")
    ]
    registry.note(db, "you", "eve", "naval", "look")
    assert registry.last_event(db) == before + 1, "anybody's counts"
    assert registry.events(db, "you") == registry.events(db, "you", "naval")
    assert registry.events(db, "you", "legal") == []
    assert abs(registry.events(db, "you")[0].at - time.time()) < 60


@pytest.mark.parametrize(
    ("limits", "refused"),
    [
        ((4, None), ""),
        ((3, None), "is 3 adapters, and this push would make it 4"),
        ((None, 10), ""),
        ((None, 9), "is 9 bytes, and this push would make it 10"),
        ((0, 0), "is 0 adapters"),
        ((None, None), ""),
    ],
)
def test_a_quota_is_reached_and_not_passed(db, limits, refused):
    """Three versions of 1 + 2 + 3 bytes, and one more of 4."""
    db.execute("insert into quota values ('me', ?, ?)", limits)
    registry.check_quota(db, "you", 4)
    if not refused:
        registry.check_quota(db, "me", 4)
        return
    with pytest.raises(ValueError, match=f"the quota of 'me' {refused}"):
        registry.check_quota(db, "me", 4)


def test_a_version_is_stored_once_and_the_second_changes_nothing(tmp_path, db, insert, blobs):
    text = registry.find(db, "me", "naval@1.0.0").manifest.text
    with pytest.raises(ValueError, match=r"naval@1.0.0 exists, and a version never changes"):
        registry.insert(db, blobs, "me", "ann", text, {"a.json": b"x"})
    registry.insert(db, blobs, "you", "ann", text, {"a.json": b"x"})
    assert specs(db, "you") == ["naval@1.0.0"]
    files = db.execute("select path from file where tenant = 'you' order by path").fetchall()
    assert files == [("a.json",), (MANIFEST,)]


def test_unused_versions_go_and_those_with_an_alias_stay(db):
    registry.move_alias(db, registry.find(db, "me", "naval@1.0.0"), "best", None, "ann")
    db.execute("update version set used = used - 100 where name = 'naval'")
    assert upkeep.prune_unused(db, "you", 0, "eve") == []
    assert upkeep.prune_unused(db, "me", 200, "eve") == []
    assert upkeep.prune_unused(db, "me", 50, "eve") == ["naval@1.1.0"]
    assert specs(db, "me") == ["legal@1.0.0", "naval@1.0.0"]
    last = registry.events(db, "me")[-1]
    assert (last.who, last.name, last.what) == ("eve", "naval", "prune 1.1.0")
    with pytest.raises(sqlite3.IntegrityError):
        db.execute("delete from version where name = 'naval'")


def test_a_sweep_takes_orphans_and_folders_of_what_is_gone(tmp_path, db, blobs):
    adapters = tmp_path / "adapters"
    for spec in ("naval@1.0.0", "naval@1.1.0"):
        version = registry.find(db, "me", spec)
        folder = adapters / f"naval-{version.version}-{version.digest[:12]}"
        folder.mkdir(parents=True)
        (folder / "a.json").write_bytes(b"12345")
    blobs.put(b"nobody's")
    assert upkeep.sweep(db, blobs, adapters) == upkeep.Swept(1, 8)
    upkeep.prune_unused(db, "me", -60, "ann")
    db.execute("delete from version where version = '1.1.0'")
    assert specs(db, "me") == []
    swept = upkeep.sweep(db, blobs, adapters)
    assert list(adapters.iterdir()) == []
    assert list(blobs.files()) == []
    assert swept.files == 8, "three contents, three manifests, two files that were given out"


def test_damage_is_told_by_its_kind(tmp_path, db, blobs):
    def told():
        return [str(each) for each in upkeep.damages(db, blobs)]

    assert told() == []
    content = registry.find(db, "me", "naval@1.1.0").manifest.files["a.json"][0]
    blobs.path(content).write_bytes(b"?")
    assert [each.partition(": ")[0] for each in told()] == ["naval@1.1.0"]
    assert "is damaged: its content hashes to" in told()[0]
    manifest = registry.find(db, "me", "naval@1.1.0").manifest
    shas = registry.find(db, "me", "naval@1.1.0").digest
    assert upkeep.problem_of(blobs, manifest, shas) in told()[0]
    blobs.put(b"xx")
    assert told() == []
    assert upkeep.problem_of(blobs, manifest, shas) == ""
    db.execute("pragma defer_foreign_keys = on")
    db.execute("delete from blob where sha = ?", (content,))
    assert told() == ["hub: a row of file points to something that is not there"]
    db.execute("insert into blob values (?, 2)", (content,))
    db.execute("update version set bytes = 3 where version = '1.1.0'")
    assert told() == ["naval@1.1.0: its row in the database does not say what its manifest says"]
    db.execute("update version set manifest = '{}' where name = 'naval'")
    other = "its manifest in the database is not the one that was stored"
    assert told() == [f"naval@1.0.0: {other}", f"naval@1.1.0: {other}"]


def test_what_sqlite_finds_wrong_with_its_pages_is_told(db, blobs):
    class Damaged:
        """The hub's database, with a page that SQLite cannot read."""

        def execute(self, query, *values):
            if query == "pragma integrity_check":
                return [("row 7 missing from index file_by_sha",)]
            return db.execute(query, *values)

    [damage] = upkeep.damages(Damaged(), blobs)
    assert str(damage) == "hub: the database: row 7 missing from index file_by_sha"


def test_reading_makes_no_hub(tmp_path):
    with pytest.raises(FileNotFoundError), reading(tmp_path / "none"):
        pass
