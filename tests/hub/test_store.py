"""The hub from outside: versions never change, aliases move, damage is found, tenants are apart."""

import json
import re
import subprocess
import threading
import warnings
from pathlib import Path

import pytest
import torch

import minilora
from minilora import LoraConfig
from minilora.formats.base_fingerprint import Fingerprint, fingerprint
from minilora.hub import DamageError, Hub, data_hash, resolve, upkeep
from minilora.tensor_files import read_tensors, write_tensors
from minilora.training.data import Example

from ..disks import mounted
from .adapters import BASE, flip_bit, make_adapter


@pytest.fixture
def hub(tmp_path):
    return Hub(tmp_path / "hub", creator="me")


@pytest.fixture
def push(hub, tmp_path):
    """Push the adapter of a seed, without warnings unless asked for."""

    def pushed(name="naval", seed=0, **settings):
        given = {key: settings.pop(key) for key in ("version", "metadata") if key in settings}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return hub.push(name, make_adapter(tmp_path / "mine", seed, **settings), **given)

    return pushed


def stored(hub, version, path="adapter_model.safetensors"):
    """The blob that holds a file of a version."""
    return hub.blobs.path(version.manifest.files[path][0])


def test_what_comes_out_is_what_went_in(hub, push, tmp_path):
    push()
    given, back = (
        read_tensors(folder / "adapter_model.safetensors")
        for folder in (tmp_path / "mine", hub.pull("naval"))
    )
    assert given.keys() == back.keys()
    assert all(torch.equal(given[name], back[name]) for name in given)


def test_the_shipped_base_takes_its_adapter_back(hub, tmp_path, base):
    minilora.inject(base, LoraConfig(r=2, target_modules=["q_proj"]))
    for parameter in base.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    version = hub.push("naval", minilora.save_adapter(base, tmp_path / "mine"))
    fresh = minilora.load_base()
    here = fingerprint(fresh)
    assert (version.manifest.architecture, version.manifest.tensors) == (
        here.architecture,
        here.tensors,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        minilora.load_adapter(fresh, hub.pull("naval", base=here), strict=True)
    tokens = torch.arange(12).view(1, 12)
    assert torch.equal(fresh(tokens), base(tokens))


def test_peft_opens_what_the_hub_gives(hub, push):
    peft = pytest.importorskip("peft")
    push()
    config = peft.PeftConfig.from_pretrained(str(hub.pull("naval")))
    assert (config.r, config.peft_type) == (2, "LORA")


def test_the_identity_is_of_tensors_and_config_not_of_bytes(hub, push, tmp_path):
    """Metadata keys come in random order, PEFT's targets are a set; 16 and 16.0 are one alpha."""
    first = push(targets=("q_proj", "v_proj"))
    same = [
        push(
            "again",
            targets=("q_proj", "v_proj"),
            lora_alpha=4.0,
            target_modules=["v_proj", "q_proj"],
        ),
        push("more", targets=("q_proj", "v_proj"), lora_dropout=0.0, inference_mode=True),
    ]
    folder = make_adapter(tmp_path / "other", targets=("q_proj", "v_proj"))
    tensors = read_tensors(folder / "adapter_model.safetensors")
    write_tensors(folder / "adapter_model.safetensors", tensors, {f"key{i}": "x" for i in range(9)})
    same.append(hub.push("metadata", folder, base=Fingerprint(**BASE)))
    assert {each.manifest.content for each in same} == {first.manifest.content}
    others = [push("a", 1), push("b", lora_alpha=8), push("c", use_rslora=True)]
    assert len({first.manifest.content, *(each.manifest.content for each in others)}) == 4


def test_equal_adapters_are_stored_once(hub, push):
    first, second = push("one"), push("two")
    assert first.manifest.files == second.manifest.files


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"seed": 1}, "1.0.1"),
        ({"seed": 1, "metadata": {"data_sha": "bb"}}, "1.1.0"),
        ({"r": 4}, "2.0.0"),
        ({"targets": ("q_proj", "v_proj")}, "2.0.0"),
        ({"base": {"architecture": "c" * 16, "tensors": "b" * 16}}, "2.0.0"),
        ({"base": {"architecture": "a" * 16, "tensors": "d" * 16}}, "2.0.0"),
    ],
)
def test_the_number_that_moves_is_suggested(push, change, expected):
    push(metadata={"data_sha": "aa"})
    assert push(**{"metadata": {"data_sha": "aa"}, **change}).version == expected


def test_a_misleading_number_is_told_and_stored(hub, push, tmp_path):
    push(version="1.2.0")
    with pytest.warns(
        UserWarning,
        match=r"1.2.1 may mislead: since 1.2.0 it has r 2 -> 4, a major change; suggested: 2.0.0",
    ) as told:
        hub.push("naval", make_adapter(tmp_path / "r4", r=4), version="1.2.1")
    assert told[0].filename == __file__, "Python shows the line that pushed"
    with pytest.warns(UserWarning, match="older than every version"):
        hub.push("naval", make_adapter(tmp_path / "r4", 7, r=4), version="0.1.0")
    with pytest.warns(UserWarning, match=r"same tensors and settings as 1.2.1"):
        hub.push("naval", make_adapter(tmp_path / "r4", r=4), version="1.2.2")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hub.push("naval", make_adapter(tmp_path / "old", 9), version="2.0.0-rc.1")
    assert [each.version for each in hub.list("naval")] == [
        "1.2.0",
        "1.2.1",
        "0.1.0",
        "1.2.2",
        "2.0.0-rc.1",
    ]


def test_a_version_that_exists_is_refused_whatever_it_holds(hub, push, tmp_path):
    first = push(version="1.0.0")
    with pytest.raises(ValueError, match=r"naval@1.0.0 exists, and a version never changes"):
        hub.push("naval", make_adapter(tmp_path / "other", 5), version="1.0.0")
    assert hub.list() == (first,)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [("naval", "1.10.0"), ("naval@1", "1.10.0"), ("naval@1.2", "1.2.10"), ("naval@1.2.0", "1.2.0")],
)
def test_a_short_name_means_the_newest(hub, push, spec, expected):
    for seed, number in enumerate(["1.2.0", "1.2.10", "1.2.9", "1.10.0", "2.0.0-rc.1"]):
        push(version=number, seed=seed)
    assert hub.show(spec).version == expected
    assert f"naval-{expected}-" in hub.pull(spec).name


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("navel", "no adapter 'navel' in this hub: did you mean 'naval'"),
        ("naval@3", "no 'naval@3' in this hub; naval has 1.0.0, champion"),
        ("naval@best", "no 'naval@best'"),
        ("../naval", "expected an adapter's name"),
        ("naval@", "expected naval@<version or alias>"),
        ("naval@1.2.3.4", "expected naval@<version or alias>"),
    ],
)
def test_an_unknown_name_says_what_there_is(hub, push, spec, reason):
    push()
    hub.alias("naval", "champion")
    with pytest.raises(ValueError, match=reason.replace("(", r"\(")):
        hub.pull(spec)


def test_an_alias_moves_only_from_where_it_is_expected(hub, push):
    push(), push(seed=1), push(seed=2)
    assert hub.alias("naval@1.0.0", "champion", expected=None) is None
    assert hub.alias("naval@1.0.1", "champion", expected="1.0.0") == "1.0.0"
    with pytest.raises(
        ValueError, match="naval@champion is 1.0.1, expected 1.0.0: somebody moved it"
    ):
        hub.alias("naval@1.0.2", "champion", expected="1.0.0")
    with pytest.raises(ValueError, match="is 1.0.1, expected not set"):
        hub.alias("naval@1.0.2", "champion", expected=None)
    assert hub.alias("naval@1.0.0", "champion") == "1.0.1", "the way back"
    assert hub.show("naval@champion").version == "1.0.0"
    assert [each.what for each in hub.events("naval") if "champion" in each.what] == [
        "champion - -> 1.0.0", "champion 1.0.0 -> 1.0.1", "champion 1.0.1 -> 1.0.0"
    ]  # fmt: skip
    hub.drop_alias("naval", "champion")
    with pytest.raises(ValueError, match="no 'naval@champion'"):
        hub.pull("naval@champion")


def test_two_who_promote_at_once_do_not_undo_each_other(hub, push):
    for seed in range(9):
        push(seed=seed)
    hub.alias("naval@1.0.0", "champion")
    won, barrier = [], threading.Barrier(8)

    def promote(number):
        barrier.wait()
        try:
            hub.alias(f"naval@1.0.{number}", "champion", expected="1.0.0")
            won.append(number)
        except ValueError:
            pass

    threads = [threading.Thread(target=promote, args=[number]) for number in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert hub.show("naval@champion").version == f"1.0.{won[0]}"


@pytest.mark.parametrize("path", ["adapter_model.safetensors", "adapter_config.json"])
@pytest.mark.parametrize("harm", ["flip", "cut", "gone"])
def test_damage_is_found_and_nothing_damaged_is_given_out(hub, push, path, harm):
    damaged, whole = push(seed=0), push("other", seed=1, r=4)
    hub.pull("naval")  # a copy that was given out before does not hide it
    file = stored(hub, damaged, path)
    if harm == "flip":
        flip_bit(file, len(file.read_bytes()) // 2)
    elif harm == "cut":
        file.write_bytes(file.read_bytes()[:-1])
    else:
        file.unlink()
    assert [each.spec for each in hub.verify()] == ["naval@1.0.0"]
    with pytest.raises(DamageError, match=r"naval@1.0.0 is damaged: .*(hashes to|is missing)"):
        hub.pull("naval")
    assert hub.pull(whole.spec)


def test_a_copy_that_was_given_out_is_made_again(hub, push):
    push()
    file = hub.pull("naval") / "adapter_model.safetensors"
    before = file.read_bytes()
    flip_bit(file)
    assert (hub.pull("naval") / "adapter_model.safetensors").read_bytes() == before
    assert hub.verify() == []


@pytest.mark.parametrize(
    "statement",
    [
        "update version set manifest = replace(manifest, '1.0.0', '1.0.9')",
        "update version set content = 'x'",
        "update file set path = 'other' where path like '%.json' and path not like 'manifest%'",
        "update version set bytes = bytes + 1",
    ],
)
def test_a_changed_row_is_found(hub, push, statement):
    from minilora.hub.database import writing

    push()
    with writing(hub.folder) as db:
        db.execute(statement)
    assert [each.spec for each in hub.verify()] == ["naval@1.0.0"]


def test_pushing_the_same_again_heals_a_blob(hub, push):
    version = push()
    flip_bit(stored(hub, version))
    push("copy")
    assert hub.verify() == []


def test_gc_takes_only_what_no_version_has(hub, push):
    push()
    orphan = hub.blobs.path(hub.blobs.put(b"nobody's"))
    left = orphan.with_name(".left-by-a-killed-writer")
    left.write_bytes(b"half")
    swept = hub.gc()
    assert (swept.files, swept.bytes) == (2, 12)
    assert not orphan.exists()
    assert not left.exists()
    assert hub.verify() == []
    assert hub.pull("naval")


def test_prune_never_takes_what_an_alias_names(hub, push, monkeypatch):
    push(), push(seed=1), push(seed=2)
    hub.alias("naval@1.0.0", "champion")
    assert hub.prune(3600) == ()
    now = hub.show("naval").pushed
    monkeypatch.setattr("time.time", lambda: now + 100 * 86400)
    folder = hub.pull("naval@1.0.1")  # in use again
    assert hub.prune(30 * 86400) == ("naval@1.0.2",)
    assert [each.version for each in hub.list()] == ["1.0.0", "1.0.1"]
    monkeypatch.setattr("time.time", lambda: now + 200 * 86400)
    assert hub.prune(30 * 86400) == ("naval@1.0.1",)
    assert not folder.exists()
    new = push(seed=3, metadata={"parent": "naval@1.0.1"})
    assert new.version == "1.0.3", "a number is given once"
    with pytest.raises(ValueError, match=r"naval@1.0.2 was pruned.*suggested: 1\.0\.4"):
        push(seed=4, version="1.0.2")
    assert [each.manifest.parent for each in hub.lineage("naval")] == ["naval@1.0.1"]
    assert hub.verify() == []


def test_a_prune_whose_sweep_fails_leaves_no_version_without_its_bytes(hub, push, monkeypatch):
    """As a kill between the deleted files and the commit would."""
    push(), push(seed=1)
    hub.alias("naval@1.0.0", "champion")

    def sweep(db, blobs, adapters):
        swept(db, blobs, adapters)
        raise OSError("the disk is gone")

    swept = upkeep.sweep
    monkeypatch.setattr(upkeep, "sweep", sweep)
    with pytest.raises(OSError, match="the disk is gone"):
        hub.prune(-1)
    assert [each.version for each in hub.list()] == ["1.0.0"]
    assert hub.verify() == []


def test_a_file_beside_the_folders_that_were_given_out_stops_no_sweep(hub, push):
    push()
    hub.pull("naval")
    stray = hub.folder / "adapters" / ".DS_Store"
    stray.write_text("a file browser's")
    assert hub.prune(-1) == ("naval@1.0.0",)
    assert [*stray.parent.iterdir()] == [stray]


def test_lineage_says_what_an_adapter_saw_and_what_it_came_from(hub, push):
    examples = [Example("Status?", "All stop."), Example("Report.", "Hull 90%.")]
    facts = {
        "data_sha": data_hash(examples),
        "seed": 7,
        "recipe": {"lr": 1e-3},
        "metrics": {"exact": 0.9},
    }
    push(metadata=facts), push(seed=1), push(seed=2, metadata={"parent": "naval@1.0.0"})
    chain = hub.lineage("naval")
    assert [each.version for each in chain] == ["1.1.1", "1.0.0"]
    first = chain[-1].manifest
    assert first.data_sha == data_hash(reversed(examples))
    assert (first.seed, first.recipe, first.metrics, first.creator) == (
        7,
        {"lr": 1e-3},
        {"exact": 0.9},
        "me",
    )
    assert {"torch", "python"} <= first.packages.keys()


def test_versions_that_name_each_other_as_parents_have_an_end(hub, push):
    push(metadata={"parent": "naval@1.0.1"}), push(seed=1, metadata={"parent": "naval@1.0.0"})
    assert [each.version for each in hub.lineage("naval")] == ["1.0.1", "1.0.0"]
    push("own", metadata={"parent": "own@1.0.0"})
    assert [each.spec for each in hub.lineage("own")] == ["own@1.0.0"]


def test_search(hub, push):
    push("naval", metadata={"task": "log", "tags": ["short", "en"], "metrics": {"exact": 0.9}})
    push("polite", 1, metadata={"task": "log", "metrics": {"exact": 0.5}})
    push("legal", 2, base={"architecture": "e" * 16, "tensors": "f" * 16})

    def names(**wanted):
        return [each.name for each in hub.search(**wanted)]

    assert names() == ["legal", "naval", "polite"]
    assert names(task="log") == ["naval", "polite"]
    assert names(task="log", metric="exact", least=0.8) == names(tag="en") == ["naval"]
    assert names(base="f" * 16) == names(base="e" * 16) == ["legal"]


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ({"metric": {"a": 1}}, "unknown metadata 'metric': did you mean 'metrics'"),
        ({"metrics": {"a": float("nan")}}, "must be a finite number"),
        ({"metrics": [1]}, "must map names"),
        ({"task": 3}, "'task' must be text"),
        ({"seed": "3"}, "'seed' must be a whole number"),
    ],
)
def test_metadata_is_checked(hub, tmp_path, metadata, reason):
    with pytest.raises(ValueError, match=reason):
        hub.push("naval", make_adapter(tmp_path / "mine"), metadata=metadata)
    assert not hub.folder.exists()


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ({"r": 3}, "lora_A has shape"),
        ({"use_dora": True}, "use_dora"),
        ({"peft_type": "XLORA"}, "peft_type"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights"),
    ],
)
def test_a_folder_without_a_sound_adapter_is_refused(hub, tmp_path, damage, reason):
    folder = make_adapter(tmp_path / "mine")
    make_adapter(tmp_path / "settings", **{**damage})
    (tmp_path / "settings" / "adapter_config.json").replace(folder / "adapter_config.json")
    with pytest.raises(ValueError, match=f"holds no adapter that can be trusted: .*{reason}"):
        hub.push("naval", folder)


@pytest.mark.parametrize("kind", ["IA3", "VERA", "PREFIX_TUNING", "BOTTLENECK"])
def test_another_method_is_no_damage_and_is_refused_by_name(hub, tmp_path, kind):
    folder = make_adapter(tmp_path / "mine")
    about = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(about | {"peft_type": kind}))
    with pytest.raises(ValueError, match=f"holds {kind}; the hub stores A and B of Linears only"):
        hub.push("naval", folder)


def test_another_architecture_is_refused_and_other_values_are_named(hub, push):
    push()
    with pytest.raises(
        ValueError, match=f"a base of architecture {'a' * 16}, this one has {'c' * 16}"
    ):
        hub.pull("naval", base=Fingerprint("c" * 16, "b" * 16))
    with pytest.warns(UserWarning, match=f"values {'b' * 16}, this one has {'d' * 16}"):
        hub.pull("naval", base=Fingerprint("a" * 16, "d" * 16))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hub.pull("naval", base=Fingerprint(**BASE))
        hub.pull("naval", base=Fingerprint("a" * 16, ""))


def test_tenants_do_not_know_of_each_other(hub, tmp_path):
    mine, theirs = Hub(hub.folder, "mine"), Hub(hub.folder, "theirs")
    mine.push("naval", make_adapter(tmp_path / "a", 1))
    theirs.push("naval", make_adapter(tmp_path / "b", 2))
    theirs.push("secret", make_adapter(tmp_path / "c", 3))
    assert [each.spec for each in mine.list()] == ["naval@1.0.0"]
    assert mine.pull("naval") != theirs.pull("naval")
    missing, foreign = [], []
    for name, errors in (("nothing", missing), ("secret", foreign)):
        for ask in (mine.pull, mine.show, mine.lineage):
            with pytest.raises(ValueError, match="no adapter") as error:
                ask(name)
            errors.append(str(error.value).replace(name, "?"))
    assert missing == foreign, "what is another's and what is not there look the same"
    mine.alias("naval", "champion")
    assert theirs.show("naval").aliases == ()
    assert mine.prune(-1) == ()
    assert theirs.prune(-1) == ("naval@1.0.0", "secret@1.0.0")
    assert mine.pull("naval@champion")


def test_quotas_hold_when_several_push_at_once(hub, tmp_path):
    hub.set_quota(adapters=3)
    folders = [make_adapter(tmp_path / f"{seed}", seed) for seed in range(8)]
    refused = []

    def pushes(number):
        try:
            Hub(hub.folder).push(f"name{number}", folders[number])
        except ValueError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=pushes, args=[number]) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(hub.list()) == 3
    assert len(refused) == 5
    assert "the quota of 'default' is 3 adapters, and this push would make it 4" in refused[0]
    hub.set_quota(bytes=sum(each.manifest.bytes for each in hub.list()) + 10)
    with pytest.raises(ValueError, match="bytes, and this push would make it"):
        hub.push("more", folders[7])
    hub.set_quota()
    hub.push("more", folders[7])
    assert Hub(hub.folder, "another").push("free", folders[0])


def test_many_may_make_the_same_hub_at_once(tmp_path):
    """The first to come makes the tables; the others find them, and numbers are given once."""
    folders = [make_adapter(tmp_path / f"{seed}", seed) for seed in range(8)]
    for attempt in range(5):
        barrier, errors = threading.Barrier(8), []

        def push(folder, hub=tmp_path / f"hub{attempt}", barrier=barrier, errors=errors):
            barrier.wait()
            try:
                Hub(hub).push("naval", folder)
            except Exception as error:
                errors.append(error)

        threads = [threading.Thread(target=push, args=[folder]) for folder in folders]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []
        versions = [each.version for each in Hub(tmp_path / f"hub{attempt}").list()]
        assert versions == [f"1.0.{patch}" for patch in range(8)]


def test_a_newer_schema_is_a_sentence(hub, push):
    from minilora.hub.database import writing

    push()
    with writing(hub.folder) as db:
        db.execute("pragma user_version = 99")
    for ask in (hub.list, hub.gc, push):
        with pytest.raises(
            ValueError, match="has schema 99, and this minilora knows 1: a newer minilora wrote it"
        ):
            ask()


def test_no_hub_and_no_database_are_sentences(hub, push):
    with pytest.raises(
        FileNotFoundError, match="there is no hub in .*: push an adapter to it first"
    ):
        hub.pull("naval")
    assert not hub.folder.exists(), "asking makes nothing"
    hub.folder.mkdir()
    (hub.folder / "hub.sqlite").write_bytes(b"something else, and long enough" * 100)
    for ask in (hub.list, push):
        with pytest.raises(ValueError, match="is damaged, or is not a hub"):
            ask()


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 600 KB of its own."""
    with mounted(tmp_path / "disk", "600k") as disk:
        yield disk


def test_a_full_disk_is_a_sentence_and_loses_nothing(small_disk, tmp_path):
    hub, pushed = Hub(small_disk / "hub"), 0
    full = None
    while full is None and pushed < 100:
        folder = make_adapter(tmp_path / "mine", pushed, width=256)
        try:
            hub.push("naval", folder, version=f"1.{pushed}.0")
            pushed += 1
        except OSError as error:
            full = str(error)
    assert re.search("No space left|the disk is full", full)
    assert pushed > 2
    assert len(hub.list()) == pushed
    assert hub.verify() == []
    with pytest.raises(OSError, match=r"No space left|the disk is full"):
        hub.push("naval", make_adapter(tmp_path / "mine", 99, width=4096))
    assert len(hub.list()) == pushed
    hub.gc()
    assert hub.verify() == []


def test_a_hub_that_can_only_be_read_still_gives_out(small_disk, tmp_path):
    hub = Hub(small_disk / "hub")
    hub.push("naval", make_adapter(tmp_path / "mine"))
    folder = hub.pull("naval")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert hub.pull("naval@1.0") == folder
    assert hub.verify() == []
    assert hub.read("naval").modules
    for change in (
        hub.gc,
        lambda: hub.push("naval", tmp_path / "mine"),
        lambda: hub.alias("naval", "x"),
    ):
        with pytest.raises(OSError, match=r"cannot be written|[Rr]ead-only"):
            change()


def test_resolve_takes_a_folder_or_a_name(hub, push, tmp_path, monkeypatch):
    push()
    assert resolve(tmp_path / "mine", hub.folder) == tmp_path / "mine"
    assert resolve("naval@1.0", hub.folder) == hub.pull("naval")
    with pytest.raises(ValueError, match="is not a folder, and there is no hub in"):
        resolve("naval", tmp_path / "nowhere")
    monkeypatch.chdir(tmp_path)
    Path("naval").write_text("")  # a file does not hide what the hub has
    assert resolve("naval", hub.folder) == hub.pull("naval")
    with pytest.raises(ValueError, match="naval is a file: expected an adapter's folder"):
        resolve("naval", "nowhere")
