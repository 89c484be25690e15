"""Exact match counts exact matches; bits a byte is plain text's cross-entropy in bits."""

import math

import pytest
import torch

from minilora import Example, bits_per_byte, exact_match
from minilora.training.data import polite_log
from minilora.training.evaluation import PROSE, answers

from ..model.test_transformer import with_dropout
from ..tolerance import loss_bound


class Parrot:
    """Answers with the context."""

    class tokenizer:
        answer = staticmethod(list)

    def generate_texts(self, prompts, max_new_tokens):
        return [context for _, context in prompts]


def test_exact_match_is_the_share_of_answers_right_to_the_letter():
    pairs = [("a", "a"), ("b", "b"), ("c", "C"), ("d", "d.")]
    examples = [Example("q", output, context) for output, context in pairs]
    assert exact_match(Parrot(), examples, batch=3) == 0.5
    with pytest.raises(ValueError, match="at least one example"):
        exact_match(Parrot(), [])


def test_batched_answers_are_those_given_one_by_one(base):
    examples = polite_log(1, 8).valid
    one_by_one = answers(base, examples, batch=1)
    assert answers(base, examples) == one_by_one == [e.output for e in examples]


def test_an_answer_may_be_as_long_as_the_expected_one(base):
    asked = []
    base.generate_texts = lambda prompts, most: asked.append(most) or [""] * len(prompts)
    long = Example("q", "Hull 90%. " * 40)
    answers(base, [Example("q", "a")])
    answers(base, [Example("q", "a"), long], batch=1)
    assert asked == [64, *[len(base.tokenizer.answer(long.output)) + 1] * 2]


@torch.no_grad()
def test_bits_per_byte_is_the_cross_entropy_in_bits_over_the_bytes_predicted(base):
    """In several windows and batches, of letters of several bytes, with dropout switched off."""
    text = "The people of the États-Unis, and their commerce, are at peace – as ever. " * 4
    ids, bits, size = base.tokenizer.encode(text), 0.0, 0
    model = with_dropout(base).eval()
    windows = [ids[start : start + 16] for start in range(0, len(ids) // 16 * 16, 16)]
    for window in windows:
        logp = model(torch.tensor([window]))[0].log_softmax(-1)
        bits -= sum(logp[i - 1, window[i]].item() for i in range(1, 16)) / math.log(2)
        whole, first = (base.tokenizer.decode(tokens) for tokens in (window, window[:1]))
        size += len(whole.encode()) - len(first.encode())
    assert len(windows) > 4
    bound = loss_bound(model, torch.tensor(windows)) / math.log(2) * 15 * len(windows) / size
    assert bound < 3e-4 * bits / size
    assert abs(bits_per_byte(model.train(), text, context=16, batch=2) - bits / size) <= bound


def test_bits_per_byte_leaves_the_mode_alone_and_refuses_what_it_cannot_measure(base):
    base.train()
    bits_per_byte(base, "Fellow-citizens of the Senate")
    assert base.training
    with pytest.raises(ValueError, match="at least two tokens of text, got 0"):
        bits_per_byte(base, "")
    with pytest.raises(ValueError, match="context must be at least 2, .* got 1"):
        bits_per_byte(base, "text of some length", context=1)
    base.tokenizer = None
    for model in (base, torch.nn.Linear(2, 2)):
        with pytest.raises(ValueError, match=r"needs model.tokenizer"):
            bits_per_byte(model, "text")
    with pytest.raises(
        ValueError, match="answers need a minilora Llama with a tokenizer, .* a Llama without one"
    ):
        exact_match(base, polite_log(1, 1).valid)


@pytest.mark.slow
def test_the_shipped_base_knows_prose_and_the_polite_answers(base):
    """At least 95% of held-out logs are right to the letter; prose takes under 1.45 bits a byte."""
    assert exact_match(base, polite_log(1, 400, seed=123).valid) >= 0.95
    assert bits_per_byte(base) < 1.45
    assert len(PROSE.read_text(encoding="utf-8")) > 50_000
