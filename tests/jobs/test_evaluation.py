"""The scores of a table of answers, counted by hand."""

import pytest

from minilora import Example
from minilora.jobs import evaluation
from minilora.jobs.evaluation import evaluate_adapter
from minilora.training.examples import Document


@pytest.fixture
def model(monkeypatch):
    """A model that knows the questions in ``known``, and whose prose costs ``bits``."""

    class Model:
        known, bits, asked = frozenset({"0", "17"}), 2.0, 0

    def answers(model, examples, at_once):
        model.asked += 1
        assert len(examples) <= at_once
        return [f" {e.output}\n" if e.instruction in model.known else "?" for e in examples]

    monkeypatch.setattr(evaluation, "answers", answers)
    monkeypatch.setattr(evaluation, "bits_per_byte", lambda model: model.bits)
    return Model()


def test_shares_answers_and_what_was_forgotten(model):
    def attach():
        model.known, model.bits = {str(n) for n in range(15)}, 2.25

    looks, asked = [], [Example(str(n), f"Aye {n}.") for n in range(20)]
    sets = {"task": [*asked, Document("Ahoy!")], "regression": asked[16:18], "more": []}
    scores = evaluate_adapter(model, attach, sets, check=lambda: looks.append(1))
    assert (scores["exact_match_base"], scores["exact_match"]) == (0.1, 0.75)
    assert (scores["regression_base"], scores["regression"]) == (0.5, 0.0)
    assert scores["right"] == {"task": [True] * 15 + [False] * 5, "regression": [False] * 2}
    assert scores["answers"]["task"][14:16] == [" Aye 14.\n", "?"]
    assert (scores["bits_per_byte_base"], scores["bits_per_byte"]) == (2.0, 2.25)
    assert scores["forgetting"] == 0.25, "more bits are a loss"
    assert "more" not in scores
    assert len(looks) == model.asked + 2, "before each batch, and each reading of prose"


def test_without_prose_nothing_is_said_of_it(model):
    scores = evaluate_adapter(model, lambda: None, {"task": [Example("0", "Aye.")]}, prose=False)
    assert scores["exact_match"] == 1.0
    assert not {"forgetting", "bits_per_byte"} & scores.keys()
