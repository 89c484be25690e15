"""Generated text equals transformers', cache or not; sampling draws from the softmax."""

import pytest
import torch

from minilora.model.generation import sample

from .test_transformer import SIZES, hugging_face, tiny, with_dropout


@pytest.mark.parametrize("sizes", SIZES)
def test_generation_with_a_cache_equals_generation_without(sizes):
    model = tiny(**sizes)
    ids = torch.randint(0, 97, (3, 7))
    for sampling in ({}, {"temperature": 0.8, "top_k": 20, "seed": 5}):
        with_cache = model.generate(ids, 30, **sampling)
        assert torch.equal(with_cache, model.generate(ids, 30, use_cache=False, **sampling))


def test_greedy_generation_equals_transformers():
    ours = tiny(**SIZES[1])
    theirs = hugging_face(ours)
    theirs.load_state_dict(ours.state_dict())
    ids = torch.randint(0, 97, (1, 9))
    greedy = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    assert torch.equal(ours.generate(ids, 20), theirs.generate(ids, max_new_tokens=20, **greedy))


def test_sampling_repeats_with_a_seed_and_is_greedy_at_the_limits():
    model, ids = tiny(), torch.randint(0, 97, (1, 4))
    one, same, other = (model.generate(ids, 40, temperature=1.5, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    greedy = model.generate(ids, 10)
    assert torch.equal(model.generate(ids, 10, temperature=9.0, top_k=1), greedy)
    assert torch.equal(model.generate(ids, 10, temperature=1e-4), greedy)


@pytest.mark.parametrize(
    ("temperature", "top_k"), [(1.0, None), (0.5, None), (3.0, None), (1.0, 2), (2.0, 3), (1.0, 9)]
)
def test_tokens_are_drawn_from_the_softmax_over_the_likeliest(temperature, top_k):
    """Frequencies of 20,000 draws lie within five standard deviations, 0.018 at most."""
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    expected = (logits / temperature).softmax(0)
    expected[top_k or 4 :] = 0
    drawn = sample(logits.repeat(20_000, 1), temperature, top_k, torch.Generator().manual_seed(0))
    frequencies = drawn.bincount(minlength=4) / 20_000
    assert ((frequencies - expected / expected.sum()).abs() < 0.018).all()
    assert not frequencies[expected == 0].any()


def test_a_row_that_ended_is_filled_with_the_end_token_and_all_ended_stops_early():
    model, ids = tiny(), torch.randint(0, 97, (2, 4))
    first = model.generate(ids, 1)[:, -1]
    out = model.generate(ids, 20, eos_id=int(first[0]))
    assert (out[0, 4:] == first[0]).all()
    assert model.generate(ids[:1], 20, eos_id=int(first[0])).shape[1] == 5


def test_dropout_is_off_while_a_text_is_generated_and_the_mode_is_as_before():
    model, ids = with_dropout(tiny()), torch.arange(8).view(1, 8)
    while_training = model.generate(ids, 12)
    assert model.training
    assert torch.equal(while_training, model.eval().generate(ids, 12))
    assert not model.training


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"temperature": -1}, "temperature must be 0 .* at least 1e-6, got -1"),
        ({"top_k": 0}, "top_k"),
        ({"temperature": float("nan")}, "temperature"),
    ],
)
def test_sampling_settings_that_mean_nothing_are_refused(sampling, message):
    with pytest.raises(ValueError, match=message):
        tiny().generate(torch.zeros(1, 2, dtype=torch.long), **sampling)


def test_text_without_a_tokenizer_is_refused():
    with pytest.raises(ValueError, match="no tokenizer: load it with load_base"):
        tiny().generate_text("Status?")


def test_generation_after_right_padding_is_refused():
    ids, mask = torch.zeros(2, 3, dtype=torch.long), torch.tensor([[1, 1, 1], [1, 1, 0]])
    with pytest.raises(ValueError, match=r"attention_mask ends in \[1, 0\]: pad on the left"):
        tiny().generate(ids, 2, attention_mask=mask)
