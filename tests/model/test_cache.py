"""Keys and values written in place are those that a joined past would hold, row by row."""

from random import Random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minilora.model.cache import ROOM, KVCache

from ..tolerance import assert_as_close, exactly
from .test_transformer import SIZES, tiny

LAYERS, HEADS, SIZE = 2, 2, 4


@st.composite
def passes(draw):
    """Rows and, for a few passes, which of the new tokens each row keeps."""
    rows = draw(st.integers(1, 3))
    times = draw(st.lists(st.integers(1, 40), min_size=1, max_size=5))
    flags = st.lists(st.booleans(), min_size=1, max_size=40)
    kept = []
    for time in times:
        if draw(st.booleans()):
            kept.append((time, None))
        else:
            pattern = [(draw(flags) * time)[:time] for _ in range(rows)]
            kept.append((time, torch.tensor(pattern).long()))
    return rows, kept


@given(passes(), st.sampled_from([1, 8]))
def test_what_is_written_is_what_a_joined_past_would_hold(drawn, multiple):
    rows, passes = drawn
    cache, joined = KVCache(multiple), [[[] for _ in range(rows)] for _ in range(LAYERS)]
    for time, kept in passes:
        positions = cache.open(rows, time, kept)
        keep = torch.ones(rows, time) if kept is None else kept
        for layer in range(LAYERS):
            k = torch.randn(rows, HEADS, time, SIZE)
            keys, values = cache.write(layer, k, -k)
            for row in range(rows):
                own = joined[layer][row]
                places = positions.expand(rows, time)[row][keep[row] != 0].tolist()
                assert places == list(range(len(own), len(own) + len(places)))
                own += [k[row, :, t] for t in range(time) if keep[row, t]]
                for place, expected in enumerate(own):
                    assert torch.equal(keys[row, :, place], expected)
                    assert torch.equal(values[row, :, place], -expected)
        assert cache.fresh or keys.shape[2] % multiple == 0
        mask = cache.mask(None, torch.float32)
        if mask is not None:  # a kept token sees its row up to itself
            seen = (mask.expand(rows, 1, time, -1) == 0).sum(-1)[:, 0]
            expected = positions.expand(rows, time) + 1
            assert torch.equal(seen[keep != 0], expected[keep != 0])
            assert (seen > 0).all()
        cache.close()
        assert cache.lengths == [len(own) for own in joined[0]]


@given(
    st.lists(st.integers(1, 14), min_size=3, max_size=3),
    st.sampled_from([1, 8]),
    st.integers(0, 10**6),
)
def test_padding_anywhere_and_any_cuts_leave_each_rows_logits(lengths, multiple, seed):
    """Three rows of different lengths, cut into passes, padded on a side that is drawn."""
    model, cache, parts, random = tiny(**SIZES[1]), KVCache(multiple), [[], [], []], Random(seed)
    texts = [torch.randint(0, 97, (length,)) for length in lengths]
    while cache.lengths != lengths:
        past = cache.lengths or [0, 0, 0]
        takes = [min(random.randint(0, 6), n - old) for n, old in zip(lengths, past, strict=True)]
        time = max(*takes, 1)
        ids, mask = torch.zeros(3, time, dtype=torch.long), torch.zeros(3, time)
        for row, (take, old) in enumerate(zip(takes, past, strict=True)):
            start = random.choice([0, time - take])
            ids[row, start : start + take] = texts[row][old : old + take]
            mask[row, start : start + take] = 1
        with torch.no_grad():
            logits = model(ids, mask, cache)
        assert torch.isfinite(logits).all()
        for row in range(3):
            parts[row].append(logits[row][mask[row] != 0])
    for text, own in zip(texts, parts, strict=True):
        alone = model(text[None])[0]
        assert_as_close(torch.cat(own), alone, exactly(model, text[None])[0])


def test_a_pass_about_some_rows_leaves_the_others():
    model = tiny(**SIZES[1])
    one, two = torch.randint(0, 97, (2, 5)), torch.randint(0, 97, (1, 7))
    cache = KVCache(8)
    with torch.no_grad():
        model(one, cache=cache)
        before = [keys[:2].clone() for keys in cache.keys]
        cache.first = 2
        together = model(two, cache=cache)
        assert cache.lengths == [5, 5, 7]
        assert torch.equal(together, model(two))
        assert all(map(torch.equal, before, [keys[:2] for keys in cache.keys]))


def test_a_row_moves_whole_and_leaves_nothing_behind():
    """Numbers behind a row's end are masked, but 0 · NaN is NaN: a cleared row is zeros."""
    model, cache = tiny(**SIZES[1]), KVCache(8)
    ids = torch.randint(0, 97, (3, 6))
    with torch.no_grad():
        model(ids, cache=cache)
        for keys in cache.keys:
            keys[0, :, 3] = torch.nan
        cache.move(2, 0)
        assert cache.lengths == [6, 6, 0]
        assert not any(keys[2].any() for keys in (*cache.keys, *cache.values))
        new = torch.randint(0, 97, (2, 1))
        logits = model(new, cache=cache)
        whole = torch.cat([ids[[2, 1]], new], dim=1)
        assert_as_close(logits, model(whole)[:, -1:], exactly(model, whole)[:, -1:])


def test_a_pass_that_fails_adds_nothing():
    model, cache = tiny(**SIZES[1]), KVCache()
    ids = torch.randint(0, 97, (1, 5))
    with torch.no_grad():
        model(ids, cache=cache)
        with pytest.raises(IndexError):
            model(torch.tensor([[97]]), cache=cache)
        assert cache.lengths == [5]
        after = model(ids[:, :1], cache=cache)
        whole = torch.cat([ids, ids[:, :1]], dim=1)
        assert_as_close(after, model(whole)[:, -1:], exactly(model, whole)[:, -1:])


def test_keys_before_a_text_are_seen_and_get_gradients():
    """A prefix: its keys are those of tokens, so the text's logits are those behind the tokens."""
    model = tiny(**SIZES[1])
    before, text = torch.randint(0, 97, (2, 4)), torch.randint(0, 97, (2, 6))
    source = KVCache()
    with torch.no_grad():
        model(before, cache=source)
    keys = [each[:, :, :4].clone().requires_grad_() for each in source.keys]
    values = [each[:, :, :4].clone().requires_grad_() for each in source.values]
    cache = KVCache()
    cache.fill(keys, values)
    logits = model(text, cache=cache)
    whole = torch.cat([before, text], dim=1)
    assert_as_close(logits, model(whole)[:, 4:], exactly(model, whole)[:, 4:])
    logits.square().mean().backward()
    assert all(each.grad.abs().sum() > 0 for each in (*keys, *values))


def test_a_row_that_is_full_gets_twice_the_room():
    cache, copied = KVCache(), set()
    for _ in range(5 * ROOM):
        cache.open(1, 1)
        cache.write(0, torch.ones(1, 1, 1, 2), torch.ones(1, 1, 1, 2))
        cache.close()
        copied.add(cache.keys[0].shape[2])
    assert sorted(copied) == [ROOM, 2 * ROOM, 4 * ROOM, 8 * ROOM]
