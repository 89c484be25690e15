"""Columns line up, a near name is offered, a long list says how much it leaves out."""

from hypothesis import given
from hypothesis import strategies as st

from minilora.text import columns, did_you_mean, listed, nearest, size_text, time_text

words = st.text("abcdefgh", min_size=1, max_size=6)


@given(st.lists(st.tuples(words, words), min_size=1, max_size=6))
def test_columns_begin_at_one_place_and_lose_nothing(rows):
    lines = columns(rows)
    start = max(len(first) for first, _ in rows) + 2
    assert [(line[:start].strip(), line[start:]) for line in lines] == rows


@given(st.lists(words, max_size=9), st.integers(0, 9))
def test_a_list_is_shown_up_to_its_limit_and_counted_beyond(items, most):
    parts = listed(items, most, ", ").split(", ") if items else []
    assert parts[:most] == items[:most]
    rest = len(items) - most
    assert parts[most:] == ([f"and {rest} more"] if rest > 0 else [])


def test_the_nearest_names_come_first_and_a_strange_word_has_none():
    assert nearest("q_prj", ["v_proj", "q_proj", "mlp"], most=2) == ["q_proj", "v_proj"]
    assert nearest("xyz", ["q_proj"]) == []
    assert did_you_mean("xyz", ["q_proj"], "there are q_proj") == "there are q_proj"


def test_bytes_in_words():
    counts = (0, 999_900, 1_000_000, 2_500_000, 1_000_000_000)
    words = ["0.0 kB", "999.9 kB", "1.0 MB", "2.5 MB", "1.0 GB"]
    assert list(map(size_text, counts)) == words


def test_times_in_words():
    times = (90, 1800, 4000, 36000, 864000, 8_640_000)
    words = ["90 s", "30 min", "1.11 h", "10 h", "10 d", "100 d"]
    assert list(map(time_text, times)) == words
