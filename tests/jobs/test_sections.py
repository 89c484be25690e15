"""A spec's sections: which values fit, which line is named, which config is meant."""

import pytest

from minilora.jobs.sections import config_of, fits, line_of, missing_files, problems_of

GOOD = {"name": "naval", "data": {"train": "a.jsonl"}}


def told(**tables):
    """(place, message) of each problem of a good spec with other tables."""
    return list(problems_of({**GOOD, **tables}))


@pytest.mark.parametrize(
    ("value", "annotation", "fit"),
    [
        *(("a", "str", True), (3, "str", False), (None, "str", False), (None, "str | None", True)),
        *((3, "int", True), (3.0, "int", False), (True, "int", False), (3, "int | None", True)),
        *((3, "float", True), (0.5, "float", True), (False, "float", False), ("1", "float", False)),
        *((True, "bool", True), (1, "bool", False), (None, "bool", False)),
    ],
)
def test_which_values_fit(value, annotation, fit):
    assert fits(value, annotation) is fit


def test_a_good_spec_has_no_problem_and_the_ends_of_the_ranges_are_taken():
    assert told() == []
    assert told(data={"train": "a", "share": 0}, evaluation={"examples": 0}) == []
    assert told(data={"train": "a", "share": 0.99, "skip_bad": True}) == []
    assert told(replay={"share": 0.01, "windows": 0, "source": "self"}) == []
    assert told(replay={}) == [], "an empty section is none"


@pytest.mark.parametrize(
    ("tables", "place", "message"),
    [
        ({"data": {"train": "a", "share": 1}}, ("data", "share"), "must be in [0, 1), got 1"),
        ({"data": {"train": "a", "share": -0.1}}, ("data", "share"), "must not be negative"),
        ({"data": {}}, ("data", ""), "data.train is missing"),
        ({"data": {"train": "a", "skip": 1}}, ("data", "skip"), "unknown data.skip: did you mean"),
        ({"evaluation": {"examples": -1}}, ("evaluation", "examples"), "must not be negative"),
        ({"evaluation": {"prose": 1}}, ("evaluation", "prose"), "must be bool, got 1"),
        ({"base": {"four_bits": "yes"}}, ("base", "four_bits"), "must be bool, got 'yes'"),
        ({"replay": {"share": 0}}, ("replay", "share"), "must be above 0: leave [replay] out"),
        ({"train": {"resume": True}}, ("train", "resume"), "train.resume is the job's own"),
        ({"train": {"lr": -1}}, ("train", "lr"), "lr"),
        ({"method": {"kind": "vear"}}, ("method", "kind"), "unknown method 'vear': did you mean"),
        ({"method": []}, ("", "method"), "method must be a table [method], got []"),
        ({"name": 3}, ("", "name"), "name: expected an adapter's name"),
        ({"nmae": 3}, ("", "nmae"), "unknown 'nmae': did you mean 'name'"),
    ],
    ids=str,
)
def test_what_is_wrong_is_told_where_it_stands(tables, place, message):
    [(where, what)] = told(**tables)
    assert where == place
    assert message in what


def test_every_problem_is_told():
    problems = list(problems_of({"x": 1, "a": 2, "data": {"y": 1}}))
    places = [place for place, _ in problems]
    assert places == [("", "a"), ("", "x"), ("", "name"), ("data", "y"), ("data", "")]
    assert "name is missing" in problems[2][1]


def test_settings_that_are_wrong_alone_are_named_and_else_all_together():
    alone = told(train={"steps": 0, "lr": "x", "batch_size": 4})
    assert [place for place, _ in alone] == [("train", "steps"), ("train", "lr")]
    [(place, message)] = told(train={"batch_size": 4, "accumulate": 8})
    assert place == ("train", "")
    assert "multiple of accumulate" in message


def test_files_that_are_not_there_are_named(tmp_path):
    here = str(tmp_path)
    values = {"data": {"train": here, "valid": "no-valid"}, "replay": {"source": "self"}}
    values["evaluation"] = {"regression": "no-regression"}
    assert [place for place, _ in missing_files(values)] == [
        ("data", "valid"),
        ("evaluation", "regression"),
    ]
    assert list(missing_files({"data": {"train": here}, "base": {"folder": here}})) == []
    [(place, message)] = missing_files({"replay": {"source": "old.jsonl"}})
    assert (place, message) == (("replay", "source"), "replay.source: old.jsonl does not exist")
    assert list(missing_files({"data": {"train": "self"}})) != [], "a file may be called so"


def test_a_kind_is_a_config_and_alpha_is_twice_the_rank():
    plain = config_of({"r": 4})
    assert (plain.r, plain.lora_alpha, plain.use_dora) == (4, 8, False)
    assert config_of({"r": 4, "lora_alpha": 3}).lora_alpha == 3
    assert config_of({}) == config_of({"kind": "lora"})
    assert config_of({"kind": "dora", "r": 4}).use_dora
    assert config_of({"kind": "dora", "r": 4}).lora_alpha == 8
    for start in ("pissa", "olora"):
        assert config_of({"kind": start}).init_lora_weights == start
    assert type(config_of({"kind": "ia3"})).__name__ == "IA3Config"
    assert config_of({"kind": "vera", "r": 7}).r == 7


TEXT = """# a spec
name = "naval"
[data]
train = "a"
 "share"  = 0.5
[ train ]
'lr' = 1
[method]
r = 3  # train
"""


@pytest.mark.parametrize(
    ("section", "key", "line"),
    [
        *(("", "name", 2), ("data", "train", 4), ("data", "share", 5), ("train", "lr", 7)),
        *(("data", "nothing", 3), ("method", "", 8), ("", "train", 6), ("method", "r", 9)),
    ],
)
def test_the_line_of_a_key_or_of_its_section(section, key, line):
    assert line_of(TEXT, section, key) == f"line {line}: "


def test_what_stands_nowhere_has_no_line():
    assert line_of(TEXT, "replay", "share") == line_of(TEXT, "", "nothing") == ""
    assert line_of("", "data", "train") == ""
