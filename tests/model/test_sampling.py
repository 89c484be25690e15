"""Tokens are drawn from the softmax over the likeliest, which are transformers'."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import TopPLogitsWarper

from minilora.model.sampling import nucleus, sample


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


@given(st.integers(0, 2**16), st.sampled_from([0.01, 0.3, 0.5, 0.9, 0.99]), st.integers(1, 40))
def test_the_nucleus_is_the_one_of_transformers(seed, top_p, tokens):
    logits = torch.randn(3, tokens, generator=torch.Generator().manual_seed(seed)) * 2
    assert torch.equal(nucleus(logits, top_p), TopPLogitsWarper(top_p)(None, logits))


def test_the_nucleus_is_of_the_likeliest_k():
    """top_k comes first, so its tokens' probabilities are those that top_p adds up."""
    logits = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log().repeat(500, 1)
    random = torch.Generator().manual_seed(0)
    assert set(sample(logits, 1.0, 2, random, 0.5).tolist()) == {0}  # 4/7 of the two
    assert set(sample(logits, 1.0, None, random, 0.5).tolist()) == {0, 1}


def test_a_nucleus_smaller_than_any_float_keeps_the_likeliest():
    """5e-324 is above 0 and becomes 0 in float32; schemathesis asked a server for it."""
    logits = torch.tensor([[0.1, 2.0, 0.3]])
    assert nucleus(logits, 5e-324).isfinite().tolist() == [[False, True, False]]
