"""What a card and a manifest say of a run: the data, the settings that were chosen, the scores."""

from pathlib import Path

import pytest

from minilora import TrainConfig
from minilora.hub import data_hash
from minilora.hub.lineage import card_sections, lineage, scores
from minilora.training.examples import Example, Task
from minilora.training.history import History
from minilora.training.readers import DataSet, read_examples

EXAMPLES = (Example("Status?", "All stop."), Example("Report.", "Hull 90%."))
CONFIG = TrainConfig(steps=9, lr=1e-3, seed=7, batch_size=4, out="runs", valid_answers=3)


def validation(step, **measured):
    """A record of ``History.validations``."""
    return {"step": step, "valid_loss": 1.0, **measured}


def test_a_card_says_the_data_the_settings_that_were_chosen_and_the_scores():
    read = DataSet("mine", EXAMPLES, ("1", "2"))
    run = History([{"step": 1, "loss": 2.0}] * 5, [validation(5, exact_match=0.5)])
    sections = card_sections(read, CONFIG, run, None)
    assert sections == {
        "Data": {"examples": 2, "sha256": data_hash(reversed(EXAMPLES))},
        "Training": {"steps": 5, "lr": 1e-3, "seed": 7, "batch_size": 4},
        "Scores": {"held-out valid_loss": 1.0, "held-out exact_match": 0.5, "at step": 5},
    }, "five steps were taken; no folder, nor what does not change the adapter"
    packed = card_sections(read, CONFIG, run, "nf4")["Training"]
    assert packed == {**sections["Training"], "base in": "nf4"}


def test_a_card_says_in_which_forms_the_rows_were():
    read = read_examples(
        [{"instruction": "Greet.", "output": "Ahoy!"}, {"text": "To the Congress"}]
    )
    data = card_sections(read, TrainConfig(), History(), None)["Data"]
    assert len(data["forms"]) == 2
    assert sum(data["forms"].values()) == data["examples"] == 2


@pytest.mark.parametrize(
    ("best", "steps", "expected"),
    [(2, (2, 4, 6), 2), (None, (2, 4, 6), 6), (5, (2, 4), 4), (4, (2, 4, 6), 4), (2, (2,), 2)],
)
def test_the_scores_are_those_of_the_state_that_was_kept_or_the_last(best, steps, expected):
    history = History(validations=[validation(s, exact_match=s / 10) for s in steps])
    history.best_step = best
    assert scores(history) == {
        "held-out valid_loss": 1.0,
        "held-out exact_match": expected / 10,
        "at step": expected,
    }


def test_without_a_validation_there_are_no_scores():
    assert scores(History()) == {}


def test_a_push_says_how_to_do_it_again():
    task = Task("log", EXAMPLES, ())
    said = lineage(task, CONFIG, {"exact": 0.5}, replay="self")
    assert (said["task"], said["data_sha"]) == ("log", data_hash(EXAMPLES))
    assert (said["metrics"], said["seed"]) == ({"exact": 0.5}, 7)
    assert said["recipe"].items() >= {
        "replay": "self", "steps": 9, "lr": 1e-3, "batch_size": 4, "bf16": False
    }.items()  # fmt: skip
    assert {type(value) for value in said["recipe"].values()} <= {bool, int, float, str}
    assert "parent" not in said
    assert lineage(task, CONFIG, {}, "log@1.0.0")["parent"] == "log@1.0.0"


@pytest.mark.parametrize("kind", [Path, str])
def test_a_folder_is_no_setting(tmp_path, kind):
    recipe = lineage(Task("log", EXAMPLES, ()), TrainConfig(out=kind(tmp_path)), {})["recipe"]
    assert str(tmp_path) not in map(str, recipe.values())
