"""What a manifest says, and what two of them say of each other; no adapter is needed for that."""

import warnings
from dataclasses import replace

import pytest

from minilora.formats.base_fingerprint import Fingerprint
from minilora.hub.manifest import (
    Manifest,
    change_since,
    check_base,
    misgivings,
    said,
    shown,
    suggestion,
)

SHA = "ab" * 32
SETTINGS = {
    "peft_type": "LORA",
    "r": 8.0,
    "rank_pattern": {},
    "target_modules": ["q_proj"],
    "layers_to_transform": None,
    "lora_alpha": 16.0,
}
PLAIN = Manifest("naval", "1.0.0", SHA, {"a.json": [SHA, 3]}, SETTINGS, "arch", "tens")
PLAIN = replace(PLAIN, data_sha="d")


def numbered(*versions):
    """One manifest a version, each of another content."""
    return [replace(PLAIN, version=version, content=version) for version in versions]


def test_it_comes_back_from_its_text():
    whole = replace(PLAIN, tags=("a", "ü"), metrics={"exact": 0.5}, seed=3, recipe={"lr": 1e-3})
    assert Manifest.parse(whole.text) == whole
    assert Manifest.parse(whole.text).text == whole.text
    two = replace(PLAIN, files={"a": [SHA, 3], "b": [SHA, 4]})
    assert two.bytes == 7


@pytest.mark.parametrize(
    "files",
    [
        *({"../a": [SHA, 3]}, {".a": [SHA, 3]}, {"": [SHA, 3]}, {"a/b": [SHA, 3]}),
        *({"a": [SHA[:-1], 3]}, {"a": [SHA.upper(), 3]}, {"a": [SHA, -1]}, {"a": [SHA, 1.5]}),
        *({"a": [SHA]}, {"a": [SHA, 3, 3]}, {"a": 3}),
    ],
    ids=str,
)
def test_files_that_could_not_be_are_refused(files):
    with pytest.raises(ValueError, match="expected the manifest of an adapter"):
        Manifest.parse(replace(PLAIN, files=files).text)


def test_an_empty_file_is_a_file():
    assert Manifest.parse(replace(PLAIN, files={"a": [SHA, 0]}).text).bytes == 0


@pytest.mark.parametrize(
    ("change", "level"),
    [
        ({"architecture": "x"}, "major"),
        ({"tensors": "x"}, "major"),
        *(({"settings": {**SETTINGS, key: "x"}}, "major") for key in [*SETTINGS][:5]),
        ({"settings": {**SETTINGS, "lora_alpha": 32.0}}, "patch"),
        ({"data_sha": "x"}, "minor"),
        ({"seed": 5}, "patch"),
    ],
)
def test_which_number_a_change_moves(change, level):
    new = replace(PLAIN, **change)
    assert change_since(new, PLAIN)[0] == level
    expected = {"major": "2.0.0", "minor": "1.1.0", "patch": "1.0.1"}[level]
    version, reason = suggestion(new, [PLAIN])
    assert version == expected
    assert reason.endswith(f"since 1.0.0 ({level})")


def test_the_suggestion_goes_on_from_the_newest_release():
    assert suggestion(PLAIN, [])[0] == "1.0.0"
    assert suggestion(PLAIN, numbered("2.0.0-rc.1"))[0] == "1.0.0", "never released"
    assert suggestion(PLAIN, numbered("1.9.0", "1.10.0", "1.2.0", "3.0.0-rc.1"))[0] == "1.10.1"


@pytest.mark.parametrize(
    ("version", "change", "told"),
    [
        ("1.3.0", {}, ""),
        ("1.3.0", {"data_sha": "x"}, ""),
        ("1.2.1", {"data_sha": "x"}, "since 1.2.0 it has other data, a minor change"),
        ("1.3.0", {"tensors": "x"}, "since 1.2.0 it has a base with other values, a major change"),
        ("2.0.0", {"tensors": "x"}, ""),
        ("1.0.1", {}, ""),  # a later patch of an older line
        ("1.0.1", {"data_sha": "x"}, "since 1.0.0 it has other data, a minor change"),
        ("0.9.0", {}, "it is older than every version that is there"),
        ("1.2.1-rc.1", {"tensors": "x"}, ""),
        ("1.2.1+nf4", {"tensors": "x"}, ""),
    ],
)
def test_a_number_that_says_less_than_changed_misleads(version, change, told):
    new = replace(PLAIN, version=version, content="new", **change)
    got = misgivings(new, numbered("1.2.0", "1.0.0"), "hint")
    assert got == ([f"naval@{version} may mislead: {told}; hint"] if told else [])
    assert misgivings(new, [], "hint") == [], "the first may have any number"


def test_the_same_adapter_again_is_told():
    older = [replace(each, content=SHA) for each in numbered("1.0.0", "1.0.1", "1.0.2")]
    [told] = misgivings(replace(PLAIN, version="1.0.3"), older, "")
    assert told == "naval@1.0.3 has the same tensors and settings as 1.0.2", "the last"


@pytest.mark.parametrize("value", [True, "0.5", None, float("inf")])
def test_a_score_is_a_finite_number(value):
    with pytest.raises(ValueError, match="the score 'exact' must be a finite number"):
        said({"metrics": {"exact": value}})


def test_what_a_caller_says_is_made_plain():
    assert said(None) == {}
    told = said({"tags": ["b", "a", "b"], "metrics": {"exact": 1}, "seed": 0, "task": ""})
    assert told == {"tags": ("a", "b"), "metrics": {"exact": 1.0}, "seed": 0, "task": ""}
    for name in ("recipe", "packages"):
        assert said({name: {"a": "b"}}) == {name: {"a": "b"}}
        with pytest.raises(ValueError, match=f"'{name}' must map names to values"):
            said({name: ["a"]})


def test_settings_in_messages():
    assert [shown(each) for each in (8.0, 0.5, ["q", "v"], ("q",), "x", None)] == [
        *("8", "0.5", "q+v", "q", "x", "None")
    ]


def test_where_nothing_is_known_of_a_base_nothing_is_said():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_base(PLAIN, Fingerprint("arch", "tens"))
        check_base(replace(PLAIN, architecture="", tensors=""), Fingerprint("x", "y"))
        check_base(PLAIN, Fingerprint("arch", ""))
    with pytest.raises(ValueError, match="needs a base of architecture arch, this one has x"):
        check_base(replace(PLAIN, tensors=""), Fingerprint("x", "tens"))
    with pytest.warns(UserWarning, match="with the values tens, this one has y"):
        check_base(replace(PLAIN, architecture=""), Fingerprint("x", "y"))
