"""Names and patterns match as PEFT's own functions say, and anything else is refused."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig as Theirs
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import get_pattern_key

from minilora.lora.patterns import (
    check_layers,
    check_patterns,
    check_regex,
    check_values,
    first_fit,
    fits,
    fits_pattern,
    in_layers,
    is_all_linear,
)

PARTS = st.sampled_from(["layers", "h", "q", "k_proj", "xq", "experts", "0", "1", "12"])
PATHS = st.lists(PARTS, min_size=1, max_size=6).map(".".join)
REGEXES = st.sampled_from([r".*q", "^q", "q$", r"[01]\.q", "q|h", r".*\d", "(q|h)", "layers"])
LAYERS = st.one_of(st.integers(0, 13), st.lists(st.integers(0, 13), min_size=1, max_size=3))


@given(st.text("ab.", max_size=6), st.text("ab", min_size=1, max_size=3))
def test_a_name_fits_when_it_is_equal_or_ends_in_dot_name(path, entry):
    assert (fits(path, [entry]) is not None) == (path == entry or path.endswith("." + entry))


@given(PATHS, st.one_of(REGEXES, st.lists(st.one_of(PARTS, PATHS), min_size=1, max_size=3)))
def test_targets_fit_as_in_peft(path, targets):
    matches = check_target_module_exists(Theirs(target_modules=targets), path)
    assert (fits(path, targets) is not None) == bool(matches)


@given(PATHS, st.lists(PARTS, min_size=2, max_size=4))
def test_the_first_entry_that_fits_is_named(path, entries):
    fitting = [entry for entry in entries if fits(path, [entry])]
    assert fits(path, entries) == (fitting[0] if fitting else None)


@given(PATHS, st.lists(st.one_of(PARTS, PATHS, REGEXES), max_size=4, unique=True))
def test_the_value_of_a_pattern_is_that_of_pefts_key(path, keys):
    values = {key: number for number, key in enumerate(keys)}
    theirs = values.get(get_pattern_key(list(values), path), "default")
    assert first_fit(path, values, "default") == theirs
    assert [key for key in keys if fits_pattern(path, key)] == [
        key for key in keys if re.match(rf"(.*\.)?({key})$", path)
    ]


def test_a_key_that_is_the_path_itself_counts_whatever_it_means_as_a_pattern():
    """As in PEFT: a name with a bracket in it is no pattern for itself."""
    assert first_fit("a[0].q", {"a[0].q": 1}, 0) == 1
    assert not fits_pattern("a[0].q", "a[0].q")


NAMES_BEFORE = st.one_of(st.none(), st.just([]), PARTS, st.lists(PARTS, min_size=1, max_size=2))


@given(PATHS.filter(lambda path: "." in path), LAYERS, NAMES_BEFORE)
def test_a_layer_is_the_number_that_peft_finds(path, layers, before):
    end = path.rpartition(".")[2]
    theirs = Theirs(target_modules=[end], layers_to_transform=layers, layers_pattern=before)
    assert in_layers(path, layers, before or None) == bool(check_target_module_exists(theirs, path))


def test_without_layers_every_path_is_in_them():
    assert in_layers("q", None, None)
    assert not in_layers("q", [0], None), "a path without a number is in no layer"


@pytest.mark.parametrize("word", ["all-linear", "All-Linear", "ALL-LINEAR"])
def test_all_linear_is_one_word_in_any_case(word):
    assert is_all_linear(word)
    assert not is_all_linear([word])
    assert not is_all_linear(word.replace("-", "_"))


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        ("q|v", "q|v"),
        ("", ""),
        (None, ()),
        ([], ()),
        (["q", "v"], ("q", "v")),
        (("q",), ("q",)),
        ({"q"}, ("q",)),
    ],
)
def test_a_pattern_stays_and_names_become_a_tuple(value, kept):
    assert check_patterns("field", value) == kept


LIST_OR_REGEX = "field must be a list of names or one regular expression, got"


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        ("(q", ValueError, r"field='\(q' is not a regular expression: "),
        ("a{99999999999}", ValueError, "is not a regular expression"),
        (3, TypeError, f"{LIST_OR_REGEX} 3"),
        ({"q": 1}, TypeError, f"{LIST_OR_REGEX} {{'q': 1}}"),
        (["q", 3], TypeError, "field must be names, got 3 among them"),
        (["q", ""], TypeError, "field must be names, got '' among them"),
    ],
)
def test_anything_else_is_refused(value, error, message):
    with pytest.raises(error, match=message):
        check_patterns("field", value)


def test_an_expression_that_is_too_deep_to_compile_is_refused():
    with pytest.raises(ValueError, match="is not a regular expression"):
        check_regex("field", "(" * 5000 + ")" * 5000)


def positive(value):
    if value < 1:
        raise ValueError(f"must be positive, got {value}")


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        (["q"], TypeError, r"field must map names to values, got \['q'\]"),
        ({1: 1}, TypeError, "field must have names as keys, got 1"),
        ({"": 1}, TypeError, "field must have names as keys, got ''"),
        ({"(": 1}, ValueError, r"field='\(' is not a regular expression"),
        ({"q": 0}, ValueError, r"field\['q'\]: must be positive, got 0"),
        ({"q": "1"}, TypeError, r"field\['q'\]: "),
    ],
)
def test_a_mapping_is_checked_key_by_key(values, error, message):
    with pytest.raises(error, match=message):
        check_values("field", values, positive)


def test_a_mapping_is_copied_and_none_is_an_empty_one():
    values = {"q": 1}
    copied = check_values("field", values, positive)
    assert copied == values
    assert copied is not values
    assert check_values("field", None, positive) == {}


@pytest.mark.parametrize(
    ("layers", "kept"),
    [
        (None, None),
        ([], None),
        (0, 0),
        (7, 7),
        ([0, 2], (0, 2)),
        (range(3), (0, 1, 2)),
        ({1}, (1,)),
    ],
)
def test_layers_are_one_number_several_or_all(layers, kept):
    assert check_layers(layers) == kept


@pytest.mark.parametrize(
    ("layers", "bad"),
    [
        (-1, "-1"),
        ([0, -1], "-1"),
        (True, "True"),
        ([0, 1.0], "1.0"),
        ("0", "'0'"),
        ([None], "None"),
    ],
)
def test_layers_that_are_no_whole_numbers_are_refused(layers, bad):
    with pytest.raises(
        TypeError, match=f"layers_to_transform must be whole numbers from 0, got {bad}"
    ):
        check_layers(layers)
