"""Labels on the answer only; padding and packing change no loss; a seed fixes the order."""

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from minilora.training.batches import IGNORE, Encoded, encode, encode_all, pack, pad
from minilora.training.data import Example, naval_log, polite_log
from minilora.training.objective import summed_loss

from ..tolerance import loss_bound

rows = st.lists(
    st.tuples(st.integers(1, 6), st.integers(1, 6)).map(
        lambda n: Encoded([5] * n[0] + [7] * n[1], [IGNORE] * n[0] + [7] * n[1])
    ),
    min_size=1,
    max_size=12,
)


def test_only_the_answer_and_its_end_have_labels(base):
    one = polite_log(1, 1).train[0]
    encoded = encode(base.tokenizer, one)
    pairs = list(zip(encoded.ids, encoded.labels, strict=True))
    labelled = [token for token, label in pairs if label != IGNORE]
    assert base.tokenizer.decode(labelled) == one.output
    assert labelled[-1] == base.tokenizer.eos_id
    prompt = [token for token, label in pairs if label == IGNORE]
    assert prompt == base.tokenizer.encode(base.tokenizer.prompt(one.instruction, one.input))


@given(rows)
def test_padding_keeps_every_token_and_labels_none_of_its_own(examples):
    batch = pad(examples)
    longest = max(len(e.ids) for e in examples)
    assert batch.ids.shape == batch.labels.shape == (len(examples), longest)
    for row, e in enumerate(examples):
        n = len(e.ids)
        assert batch.ids[row, :n].tolist() == e.ids
        assert batch.labels[row, :n].tolist() == e.labels
        assert (batch.labels[row, n:] == IGNORE).all()
    assert batch.answer_tokens == sum(label != IGNORE for e in examples for label in e.labels[1:])


@given(rows, st.integers(12, 30))
@example([Encoded([5, 7] * 3, [IGNORE, 7] * 3)] * 2, 12)
def test_packing_keeps_every_example_whole_in_its_own_segment(examples, room):
    batch = pack(examples, room)
    assert batch.ids.shape[1] <= room
    unpacked = []
    for ids, labels, segments in zip(batch.ids, batch.labels, batch.segments, strict=True):
        for number in range(1, int(segments.max()) + 1):
            inside = segments == number
            unpacked.append((ids[inside].tolist(), labels[inside].tolist()[1:]))
    assert sorted(unpacked) == sorted((e.ids, e.labels[1:]) for e in examples)
    lengths = (batch.segments > 0).sum(dim=1).tolist()
    assert sum(sorted(lengths)[:2]) > room or len(lengths) == 1, "two rows could be one"
    assert batch.answer_tokens == pad(examples).answer_tokens


def test_padding_and_packing_give_the_same_loss_as_each_example_alone(base):
    # the base does not know naval code, so its loss is large
    examples = encode_all(base.tokenizer, naval_log(9, 1).train, 512)
    whole = pad(examples)
    bound = whole.answer_tokens * loss_bound(base, whole.ids)
    with torch.no_grad():
        alone = sum(summed_loss(base, pad([e])).item() for e in examples)
        assert bound < 3e-4 * alone
        assert abs(summed_loss(base, whole).item() - alone) <= bound
        packed = pack(examples, 200)
        assert len(packed.ids) < len(examples)
        assert abs(summed_loss(base, packed).item() - alone) <= bound


def test_examples_too_long_are_left_out_with_a_warning_or_refused_when_none_is_left(base):
    examples = [Example("Hi", "there"), Example("Hi", "there " * 100)]
    [row] = encode_all(base.tokenizer, examples[:1], 40)
    assert encode_all(base.tokenizer, examples[:1], len(row.ids)) == [row]
    with pytest.warns(UserWarning, match="1 of 2 examples are longer than max_length=40 tokens"):
        assert len(encode_all(base.tokenizer, examples, 40)) == 1
    message = f"no example fits max_length=2 tokens: 2 given, the shortest has {len(row.ids)};"
    with pytest.raises(ValueError, match=message):
        encode_all(base.tokenizer, examples, 2)
