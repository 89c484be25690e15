"""Replay in a run: which rows, how many, the same bits on resume, and bad input."""

import copy
import signal

import pytest
import torch

import minilora
from minilora import Examples, Prose, SelfReplay, train
from minilora.training.batches import IGNORE
from minilora.training.config import TrainConfig
from minilora.training.data import polite_log
from minilora.training.examples import Conversation, Example, Task
from minilora.training.mixture import summed_part
from minilora.training.replay import Mixture, as_list, describe
from minilora.training.run import set_up

from .runs import QUICK, TASK, adapted, equal, filled, trained_bits

SMALL = {"windows": 6, "tokens": 8}
KINDS = {
    "windows": SelfReplay(0.3, **SMALL),
    "answers": SelfReplay(0.3, 6, 12, prompts=[("Status?", "Log: Hull 90%.")] * 3),
    "start": SelfReplay(0.3, **SMALL, teacher="start"),
    "examples": Examples(polite_log(9, 1), 0.3),
    "prose": Prose(["To the Congress of the United States. " * 9], 0.3, tokens=8),
}


@pytest.fixture(params=KINDS, name="replay")
def each_kind(request):
    return KINDS[request.param]


def test_the_rows_of_a_step_are_the_tasks_and_the_share_on_top(replay):
    """5 task rows a step and a share of 0.3: 15 replayed rows in 7 steps."""
    model = filled().train()
    config = TrainConfig(steps=7, **QUICK | {"batch_size": 5})
    run = set_up(model, TASK, config, replay)
    steps = [run.batches(step) for step in range(7)]
    source = steps[-1][-1].source
    rows = {name: [sum(len(p.ids) for p in parts if p.source == name) for parts in steps]
            for name in ("task", source)}  # fmt: skip
    assert rows["task"] == [5] * 7
    assert sum(rows[source]) == 15
    assert set(rows[source]) == {2, 3}
    for parts in steps:
        weights = {part.source: part.weight for part in parts}
        old = sum(len(part.ids) for part in parts if part.source == source)
        assert weights == pytest.approx({"task": 5 / (5 + old), source: old / (5 + old)})
    has_teacher = isinstance(replay, SelfReplay)
    assert all((part.teacher is not None) == has_teacher for part in parts if part.source == source)


def test_every_row_is_replayed_once_before_any_comes_again():
    model = adapted()
    mixture = Mixture([KINDS["examples"]], model, TASK, TrainConfig(batch_size=21))
    [task_part] = set_up(model, TASK, TrainConfig(batch_size=21)).batches(0)
    [_, part] = mixture.parts(0, [task_part])
    assert len({tuple(row) for row in part.ids.tolist()}) == 9


def test_a_small_share_leaves_steps_without_replay_as_they_were():
    model = adapted()
    run = set_up(model, TASK, TrainConfig(steps=2, batch_size=4), Examples(polite_log(9, 1), 0.05))
    assert [[part.source for part in run.batches(step)] for step in (0, 4)] == [
        ["task"],
        ["task", "examples"],
    ]
    assert run.batches(0)[0].weight == 1


def test_the_run_says_its_shares_and_each_steps_losses(replay, capsys):
    model = adapted()
    history = train(model, TASK, steps=2, replay=replay, **QUICK | {"progress": True})
    [account] = history.replay
    assert account["rows"] == 0.3
    assert describe(account) in capsys.readouterr().err
    name = account["source"]
    for record in history.steps:
        mixed = [record["task_loss"], record[f"{name}_loss"]]
        assert min(mixed) <= record["loss"] <= max(mixed)


def test_of_an_untrained_adapter_the_divergence_is_zero():
    """The teacher and the model are the same until the first step."""
    history = train(adapted(), TASK, steps=1, replay=KINDS["windows"], **QUICK)
    assert history.steps[0]["windows_loss"] == pytest.approx(0, abs=1e-5)


def test_replay_keeps_the_model_nearer_to_what_it_was():
    """Ten quick steps: the mean divergence on other windows, with and without."""
    apart = {}
    for name, replay in (("without", None), ("with", SelfReplay(0.4, 24, 24))):
        model = adapted()
        train(model, TASK, steps=20, lr=1e-2, replay=replay, **QUICK)
        probe = SelfReplay(0.5, 16, 24)
        mixture = Mixture([probe], model, TASK, TrainConfig(batch_size=16, seed=99))
        [task_part] = set_up(model, TASK, TrainConfig(batch_size=16)).batches(0)
        part = mixture.parts(0, [task_part])[-1]
        apart[name] = summed_part(model, part).item() / part.answer_tokens
    assert apart["with"] < 0.6 * apart["without"]


def test_full_fine_tuning_stays_near_a_frozen_copy():
    model = minilora.load_base().requires_grad_(True)
    history = train(model, TASK, steps=2, lr=1e-3, replay=KINDS["windows"], **QUICK)
    first, second = (record["windows_loss"] for record in history.steps)
    assert first == pytest.approx(0, abs=1e-5)
    assert second > 1e-4


@pytest.mark.parametrize("full", [False, True])
def test_resumed_the_run_has_the_same_bits(full, tmp_path):
    def fresh():
        return minilora.load_base().requires_grad_(True) if full else adapted(dropout=0.1)

    replay = [KINDS["windows"], Examples(polite_log(9, 1), 0.2)]
    settings = QUICK | {"steps": 6, "replay": replay, "lr": 1e-3}
    whole = fresh()
    expected = train(whole, TASK, **settings)
    train(fresh(), TASK, **settings, out=tmp_path, checkpoint_every=2, callbacks=[stop_after(4)])
    model = fresh()
    history = train(model, TASK, **settings, out=tmp_path, checkpoint_every=2, resume=True)
    assert equal(trained_bits(model), trained_bits(whole))
    assert history.losses == expected.losses
    assert history.replay == expected.replay


def stop_after(step):
    """A callback that presses Ctrl-C after a step."""

    def callback(record):
        if record["step"] == step:
            signal.raise_signal(signal.SIGINT)

    return callback


@pytest.mark.parametrize(
    "other", [None, SelfReplay(0.31, **SMALL), SelfReplay(0.3, windows=7, tokens=8)]
)
def test_a_run_with_another_replay_does_not_resume(other, tmp_path):
    settings = QUICK | {"steps": 2, "out": tmp_path, "checkpoint_every": 1}
    train(adapted(), TASK, replay=KINDS["windows"], **settings)
    model = adapted()
    before = trained_bits(model)
    with pytest.raises(ValueError, match="other settings.*replay"):
        train(model, TASK, replay=other, **settings, resume=True)
    assert equal(trained_bits(model), before)


def test_a_full_run_does_not_resume_from_another_start(tmp_path):
    """Its teacher would be another model."""
    settings = QUICK | {"steps": 2, "out": tmp_path, "replay": KINDS["windows"]}
    model = minilora.load_base().requires_grad_(True)
    train(model, TASK, **settings, checkpoint_every=1)
    with pytest.raises(ValueError, match="other settings"):
        train(model, TASK, **settings, resume=True)


def test_prompts_may_be_made_of_the_new_tasks_questions():
    keyed = Task("keyed", (Example("Naval code: Status?", "Hull 90%.", "Log: Hull 90%."),), ())

    def plainly(example):
        return example.instruction.removeprefix("Naval code: "), example.input

    model = adapted()
    mixture = Mixture([SelfReplay(0.5, prompts=plainly)], model, keyed, TrainConfig(batch_size=1))
    [row] = mixture.rows
    text = model.tokenizer.decode([id for id in row.labels if id != IGNORE])
    assert "happy to report Hull 90 percent" in text
    assert "Naval" not in model.tokenizer.decode(row.ids)


def test_prompts_come_in_many_forms_and_windows_limits_them():
    talk = Conversation((("user", "Status?"), ("assistant", "Aye.")))
    prompts = ["Status?", ("Status?", "Log: Hull 9%."), Example("Status?", "x"), talk]
    model = adapted()
    replay = SelfReplay(0.5, windows=3, tokens=4, prompts=prompts)
    assert len(Mixture([replay], model, TASK, TrainConfig()).rows) == 3
    whole = SelfReplay(0.5, windows=9, tokens=4, prompts=prompts)
    assert len(Mixture([whole], model, TASK, TrainConfig()).rows) == 4
    with pytest.raises(ValueError, match="a prompt must be a text"):
        Mixture([SelfReplay(prompts=[7])], model, TASK, TrainConfig())


def test_sources_of_one_kind_have_names_of_their_own():
    two = [Examples(polite_log(3, 1), 0.1), Examples(polite_log(4, 1), 0.1)]
    mixture = Mixture(two, adapted(), TASK, TrainConfig())
    assert [source.name for source in mixture.sources] == ["examples", "examples_2"]


@pytest.mark.parametrize(
    ("make", "said"),
    {
        "share 0": (lambda: SelfReplay(0), "share must be above 0 and below 1.*got 0"),
        "share 1": (lambda: SelfReplay(1.0), "share must be above 0 and below 1"),
        "share nan": (lambda: Examples(TASK, float("nan")), "share must be above 0"),
        "share True": (lambda: Prose(["x"], True), "share must be above 0"),
        "share text": (lambda: Prose(["x"], "0.1"), "share must be above 0"),
        "teacher": (lambda: SelfReplay(teacher="end"), 'teacher must be "base" or "start"'),
        "windows": (lambda: SelfReplay(windows=0), "windows must be a whole number of at least 1"),
        "tokens": (lambda: SelfReplay(tokens=1), "tokens must be a whole number of at least 2"),
        "prompts empty": (lambda: SelfReplay(prompts=[]), "at least one prompt"),
        "prompts text": (lambda: SelfReplay(prompts="Hi"), "prompts must be a list"),
        "no examples": (lambda: Examples(()), "at least one old example"),
        "no text": (lambda: Prose([" "]), "at least one text"),
        "one text": (lambda: Prose("Ahoy"), "needs a list of texts"),
        "sum": (lambda: as_list([SelfReplay(0.5), Examples(TASK, 0.5)]), "add up to 1"),
        "kind": (lambda: as_list([SelfReplay(), 0.3]), "got float: 0.3"),
    }.values(),
    ids=lambda value: None if callable(value) else value[:20],
)
def test_bad_input_is_told(make, said):
    with pytest.raises(ValueError, match=said):
        make()


def test_windows_longer_than_the_models_positions_are_warned_of():
    long = Prose(["To the Congress " * 400], 0.5, tokens=600)
    with pytest.warns(UserWarning, match="positions"):
        train(adapted(), TASK, steps=1, replay=long, **QUICK)


def test_train_leaves_the_model_as_a_run_without_replay_would():
    """Its mode, its switches, and torch's random state."""
    model = adapted().eval()
    torch.manual_seed(3)
    state = torch.get_rng_state()
    base = copy.deepcopy({n: p for n, p in model.named_parameters() if not p.requires_grad})
    train(model, TASK, steps=2, replay=KINDS["windows"], **QUICK)
    assert not model.training
    assert torch.equal(torch.get_rng_state(), state)
    frozen = {n: p for n, p in model.named_parameters() if not p.requires_grad}
    assert equal(frozen, base)
