"""A seed fixes the order; examples are packed or grouped by length where padding is the most."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minilora import Example, TrainConfig, train
from minilora.training.batches import Encoded, encode_all, pad
from minilora.training.data import Task
from minilora.training.order import POOL, Layout, batch_indices, choose_layout
from minilora.training.run import sample_of, set_up

from ..tolerance import Wider, assert_as_close, in_float64, loss_bound
from .runs import QUICK, TASK, adapted, equal, filled, trained_bits

# one example in four is long
UNEVEN = Task(
    "uneven",
    tuple(Example(f"Say {n}", "word " * (60 if n % 4 == 0 else 3) + str(n)) for n in range(24)),
    tuple(Example(f"Say {n}", "word " * (50 if n % 4 == 0 else 2)) for n in range(12)),
)


def rows_of(lengths):
    return [Encoded([1] * n, [1] * n) for n in lengths]


@given(st.integers(1, 40), st.integers(1, 17), st.integers(0, 99), st.booleans())
def test_every_epoch_sees_every_example_once_in_an_order_of_its_own(count, size, seed, grouped):
    lengths = tuple(n * n % 13 for n in range(count)) if grouped else None

    def drawn(seed, step, size=size):
        return batch_indices(count, size, step, seed, lengths)

    all_drawn = [i for step in range(2 * count) for i in drawn(seed, step)]
    for epoch in range(len(all_drawn) // count):
        assert sorted(all_drawn[epoch * count : (epoch + 1) * count]) == list(range(count))
    if count >= 12 and (not grouped or size == 1):
        assert all_drawn[:count] != all_drawn[count : 2 * count]
        assert all_drawn[:count] != drawn(seed + 1, 0, count)


@given(st.lists(st.integers(1, 300), min_size=1, max_size=300), st.integers(1, 9))
def test_a_group_holds_examples_of_a_pool_that_follow_each_other_in_length(lengths, size):
    """All batches of an epoch but the one that two epochs share, where the pools are known."""
    lengths = tuple(lengths[: POOL * size])  # one pool
    batches = [
        batch_indices(len(lengths), size, n, 0, lengths) for n in range(len(lengths) // size)
    ]
    spans = sorted((min(lengths[i] for i in b), max(lengths[i] for i in b)) for b in batches)
    assert all(high <= low for (_, high), (low, _) in itertools.pairwise(spans))


def test_groups_come_in_an_order_that_the_step_alone_decides():
    lengths = tuple(range(200))
    forwards = [batch_indices(200, 8, step, 3, lengths) for step in range(60)]
    assert forwards == [batch_indices(200, 8, step, 3, lengths) for step in range(60)]
    longest = [max(batch) for batch in forwards[:25]]
    assert longest != sorted(longest), "short ones first would be a curriculum"
    assert forwards[0] != batch_indices(200, 8, 0, 4, lengths)


@pytest.mark.parametrize(
    ("lengths", "pack", "can_pack", "layout"),
    [
        ([90] * 40, None, True, Layout()),
        ([90, 60] * 20, None, False, Layout()),
        ([100, 10, 10, 10] * 10, None, True, Layout(packed=True)),
        ([100, 10, 10, 10] * 10, None, False, Layout(grouped=True)),
        ([100, 10, 10, 10] * 10, False, True, Layout(room=128)),
        ([90] * 40, True, True, Layout(packed=True, room=128)),
    ],
)
def test_the_layout_is_what_was_asked_for_or_what_saves_a_third_of_the_cells(
    lengths, pack, can_pack, layout
):
    config = TrainConfig(batch_size=8, max_length=128, pack=pack)
    assert choose_layout(rows_of(lengths), config, can_pack) == layout


def test_a_row_is_as_long_as_the_longest_example_unless_a_length_is_given():
    examples = rows_of([100, 10, 10, 10])
    assert Layout().collate(examples).ids.shape == (4, 100)
    assert Layout(packed=True).collate(examples).ids.shape == (2, 100)
    assert Layout(packed=True, room=130).collate(examples).ids.shape == (1, 130)


def test_a_run_packs_by_itself_and_its_loss_and_gradient_are_those_of_padding(optimizer_steps):
    settings = {**QUICK, "batch_size": 12, "steps": 1}
    packed = train(filled(), UNEVEN, **settings).steps[0]
    padded = train(filled(), UNEVEN, pack=False, **settings).steps[0]
    ids = pad(encode_all(filled().tokenizer, UNEVEN.train, 512)).ids
    assert abs(packed["loss"] - padded["loss"]) <= loss_bound(filled(), ids)
    wide = in_float64(filled())
    with Wider():
        train(wide, UNEVEN, pack=False, **settings)
    (ours, _), (plain, _), (truth, _) = optimizer_steps
    assert_as_close(ours, plain, truth)
    assert packed["tokens"] == padded["tokens"], "speed counts the tokens, not the padding"


def shapes(model, task, **settings):
    """(rows, time) of each step's tensors."""
    run = set_up(model, task, TrainConfig(**{**QUICK, "batch_size": 12} | settings))
    return [tuple(run.batches(step)[0].ids.shape) for step in range(2)]


def test_examples_of_one_length_are_padded_by_default():
    assert shapes(adapted(), TASK) == shapes(adapted(), TASK, pack=False)
    packed, padded = shapes(adapted(), UNEVEN), shapes(adapted(), UNEVEN, pack=False)
    assert all(
        2 * rows < more and time == longest
        for (rows, time), (more, longest) in zip(packed, padded, strict=True)
    )


class Foreign(torch.nn.Module):
    """A model of another kind: our Llama, whose masks cannot be reached."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.tokenizer = inner, inner.tokenizer

    def forward(self, ids):
        return self.inner(ids)


@pytest.mark.parametrize("kind", ["packed", "grouped"])
def test_a_resumed_run_sees_the_same_batches_to_the_same_bits(tmp_path, kind):
    def model(seed=0):
        return adapted(0.1, seed) if kind == "packed" else Foreign(adapted(0.1, seed))

    settings = {**QUICK, "batch_size": 5, "steps": 8, "validate_every": 3}

    class Cut(Exception):
        pass

    def cut(record):
        if record["step"] == 6 and "loss" in record:
            raise Cut

    whole, first, second = model(), model(), model(5)
    reference = train(whole, UNEVEN, **settings)
    assert choose_layout(
        encode_all(whole.tokenizer, UNEVEN.train, 512), TrainConfig(batch_size=5), kind == "packed"
    ) == Layout(**{kind: True})
    with pytest.raises(Cut):
        train(first, UNEVEN, out=tmp_path, checkpoint_every=4, callbacks=[cut], **settings)
    resumed = train(second, UNEVEN, out=tmp_path, checkpoint_every=4, resume=True, **settings)
    assert resumed.losses == reference.losses
    assert equal(trained_bits(second), trained_bits(whole))
    with pytest.raises(ValueError, match="other settings .*pack: None there, False here"):
        train(model(), UNEVEN, out=tmp_path, resume=True, pack=False, **settings)


def test_a_validation_takes_as_many_examples_as_asked_for_drawn_by_the_seed():
    rows = rows_of(range(1, 41))
    drawn = [sample_of(rows, TrainConfig(valid_examples=9, seed=seed)) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert [len(row.ids) for row in drawn[0]] == sorted(len(row.ids) for row in drawn[0])
    assert len(drawn[0]) == 9
    assert sample_of(rows, TrainConfig(valid_examples=0)) == rows
    assert sample_of(rows, TrainConfig()) == rows


def test_held_out_examples_are_computed_in_batches_of_the_size_that_is_trained():
    for settings, most in (({}, 6), ({"valid_batch": 2}, 2)):
        config = TrainConfig(batch_size=12, accumulate=2, pack=False, **settings)
        held_out = set_up(adapted(), UNEVEN, config).valid_batches
        assert [len(batch.ids) for batch in held_out] == [most] * (12 // most)
