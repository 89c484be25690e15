"""The observers write down, validate and save at the right steps, and change none of them."""

import copy
import signal
import threading
import warnings
from functools import partial
from types import SimpleNamespace

import pytest
import torch

import minilora
from minilora import Example, TrainConfig, train
from minilora.training.batches import encode_all, pad
from minilora.training.checkpoint import State
from minilora.training.data import Task, naval_log, polite_log
from minilora.training.examples import Conversation
from minilora.training.history import History
from minilora.training.objective import summed_loss
from minilora.training.observers import Checkpoints, Journal, Validation, interrupt_flag

from ..tolerance import loss_bound
from .runs import IDS, QUICK, TASK, adapted, equal, filled, trained_bits


class Bar:
    """Notes what it is told."""

    def __init__(self):
        self.told = []

    def advance(self, step, record):
        self.told.append(("advance", step))

    def validated(self, record):
        self.told.append(("validated", record["step"]))


def journal(*callbacks, out=None):
    return Journal(History(), out, callbacks, Bar())


def test_a_journal_keeps_each_record_and_gives_a_copy_to_each_callback():
    first, second = [], []
    record = {"step": 1, "loss": 2.0, "nested": {"a": 1}}

    def spoil(copied):
        first.append(copy.deepcopy(copied))
        copied["nested"].clear()
        copied.clear()

    notes = journal(spoil, second.append)
    notes(record)
    assert notes.history.steps == first == second == [{"step": 1, "loss": 2.0, "nested": {"a": 1}}]
    assert notes.history.steps[0] is record
    assert notes.bar.told == [("advance", 1)]


def test_a_journal_writes_to_a_folder_only_if_there_is_one(tmp_path):
    journal(out=tmp_path)({"step": 1, "loss": 2.0})
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "loss": 2.0}\n'
    journal()({"step": 1, "loss": 2.0})


def test_callbacks_get_a_copy_of_every_record():
    seen = []

    def spoil(record):
        seen.append(dict(record))
        record.clear()

    history = train(adapted(), TASK, steps=2, callbacks=[spoil], **QUICK)
    assert seen == history.steps
    assert set(seen[0]) == {"step", "loss", "lr", "grad_norm", "tokens", "seconds"}


@pytest.mark.parametrize(
    ("every", "steps", "validated"),
    [(0, 5, []), (2, 5, [2, 4, 5]), (5, 5, [5]), (9, 5, [5]), (1, 3, [1, 2, 3])],
)
def test_validation_comes_every_so_many_steps_and_after_the_last(every, steps, validated):
    validation = Validation(
        None, (), (), TrainConfig(steps=steps, validate_every=every), None, None
    )
    seen = []
    validation.validate = seen.append
    for step in range(1, steps + 1):
        validation({"step": step})
    assert seen == validated


@pytest.mark.parametrize(
    ("every", "steps", "saved"), [(0, 5, []), (2, 5, [2, 4, 5]), (5, 5, [5]), (9, 5, [5])]
)
def test_checkpoints_come_every_so_many_steps_and_after_the_last(tmp_path, every, steps, saved):
    config = TrainConfig(steps=steps, checkpoint_every=every, out=tmp_path)
    checkpoints, seen = Checkpoints(None, None, {}, History(), config), []
    for step in range(1, steps + 1):
        checkpoints.save = partial(seen.append, step)
        checkpoints({"step": step})
    assert seen == saved


def test_without_a_folder_nothing_is_saved(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    parameters = {"a": torch.nn.Parameter(torch.ones(2))}
    state = State(parameters, torch.optim.AdamW(parameters.values()), History())
    config = TrainConfig(steps=1)
    Checkpoints(None, state, {}, state.history, config).save()
    assert not list(tmp_path.iterdir())


class Losses(torch.nn.Module):
    """A model whose validation losses are given; keeps the modes in which it was asked."""

    def __init__(self, losses):
        super().__init__()
        self.losses, self.asked = list(losses), []

    def summed_loss(self, model, batch):
        self.asked.append((self.training, torch.is_grad_enabled()))
        return torch.tensor(self.losses.pop(0) * batch.answer_tokens)


def validated(monkeypatch, losses, examples=(), **settings):
    """A validation that was made as many times as there are losses, and its model."""
    model, batch = Losses(losses), SimpleNamespace(answer_tokens=4)
    monkeypatch.setattr("minilora.training.observers.summed_loss", model.summed_loss)
    state = SimpleNamespace(remember_best=lambda: None)
    config = TrainConfig(**settings)
    validation = Validation(model.train(), [batch], examples, config, state, journal())
    for step in range(len(losses)):
        validation.validate(step)
    return validation, model


def test_overfitting_is_warned_of_once(monkeypatch):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        validation, _ = validated(monkeypatch, [1.0, 1.1, 1.2, 1.3, 1.4])
    messages = [str(warning.message) for warning in caught]
    assert validation.journal.history.warnings == messages
    assert len(messages) == 1
    assert "rose 3 times running" in messages[0]


def test_a_model_is_validated_in_eval_mode_without_gradients_and_trains_on(monkeypatch):
    validation, model = validated(monkeypatch, [1.0, 0.5, 0.75])
    assert model.asked == [(False, False)] * 3
    assert model.training
    assert validation.journal.history.best_step == 1


LONG = (("system", "Be short."), ("user", "Hi."), ("assistant", "Yes?"), ("user", "Status?"))


@pytest.mark.parametrize("first", ["example", "conversation"])
def test_the_sample_is_the_last_question_of_the_first_held_out_example(monkeypatch, first):
    talk = Conversation((*LONG, ("assistant", "Hull 90%.")))
    one = Example("Report.", "Hull 90%.", "Log: Hull 90%.")
    examples = [one, talk] if first == "example" else [talk, one]
    given = ["Hull 90%.", "Hull 9%."]
    monkeypatch.setattr("minilora.training.observers.answers", lambda *_: given)
    validation, _ = validated(monkeypatch, [1.0], examples, valid_answers=2)
    [record] = validation.journal.history.validations
    asked = "Report." if first == "example" else "Status?"
    assert record["sample"] == {"asked": asked, "answer": "Hull 90%.", "wanted": "Hull 90%."}
    assert record["exact_match"] == 0.5


def test_without_held_out_examples_nothing_is_validated():
    notes = journal()
    Validation(None, (), (), TrainConfig(), None, notes).validate(3)
    assert notes.history.validations == []
    assert notes.bar.told == []


def test_the_last_step_is_validated_and_saved_whatever_the_interval(tmp_path):
    settings = {**QUICK, "steps": 3, "validate_every": 2, "out": tmp_path, "checkpoint_every": 2}
    history = train(adapted(), TASK, **settings)
    assert [validation["step"] for validation in history.validations] == [0, 2, 3]
    seen = []
    train(adapted(), TASK, resume=True, callbacks=[seen.append], **settings)
    assert seen == [], "nothing was left to do"


def test_the_validation_loss_is_the_mean_over_all_held_out_answer_tokens_without_dropout():
    """70 examples are three parts of at most 32, with different numbers of tokens."""
    task, model = Task("many", TASK.train, naval_log(1, 70).valid), filled(dropout=0.5)
    rows = [pad([row]) for row in encode_all(model.tokenizer, task.valid, 512)]
    with torch.no_grad():
        nats = sum(summed_loss(model.eval(), row).item() for row in rows)
    expected = nats / sum(row.answer_tokens for row in rows)
    history = train(model, task, steps=1, **QUICK | {"validate_every": 1})
    loss = history.validations[0]["valid_loss"]
    assert abs(loss - expected) <= loss_bound(filled().eval(), IDS)


def test_validation_answers_report_exact_match_and_a_sample(capsys):
    """To the letter: one answer of two is right but for the full stop."""
    first, second = polite_log(1, 2).valid
    stopless = Example(second.instruction, second.output.removesuffix("."), second.input)
    task = Task("polite", (first,), (first, stopless))
    history = train(minilora.load_base(), task, steps=1, batch_size=1, valid_answers=2)
    record = history.validations[0]
    sample = {"asked": first.instruction, "answer": first.output, "wanted": first.output}
    assert record["exact_match"] == 0.5
    assert record["sample"] == sample
    assert "held-out loss" in capsys.readouterr().err


@pytest.mark.parametrize("keep_best", [True, False])
def test_the_best_state_or_the_last_one_is_kept(keep_best):
    model, states = adapted(), {}
    settings = {**QUICK, "validate_every": 1, "steps": 1, "lr": 1.0}

    def note(record):
        states[record["step"]] = trained_bits(model)

    history = train(model, polite_log(8, 8), keep_best=keep_best, callbacks=[note], **settings)
    assert history.best_step == 0, "the base knows these answers: a rate of 1 can only spoil them"
    assert equal(trained_bits(model), states[0 if keep_best else 1])


@pytest.mark.slow
def test_the_best_state_is_kept_and_early_overfitting_is_warned_of(tmp_path):
    model = adapted()
    few = Task("few", TASK.train[:2], TASK.valid)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        settings = {"steps": 60, "lr": 3e-2, "batch_size": 2, "warmup": 0.0, "clip": 0.0}
        history = train(model, few, validate_every=4, progress=False, **settings)
    losses = [v["valid_loss"] for v in history.validations]
    assert losses[-1] > 1.05 * min(losses), "the test needs a run that overfits"
    again = train(model, few, steps=1, lr=1e-12, batch_size=2, validate_every=1, progress=False)
    # a step of 1e-12 changes nothing
    assert again.validations[0]["valid_loss"] <= min(losses) + loss_bound(model, IDS)
    assert len(history.warnings) == 1
    messages = [str(warning.message) for warning in caught]
    assert history.warnings == [text for text in messages if "begins to memorise" in text]


def test_ctrl_c_ends_after_the_step_with_the_state_saved(tmp_path):
    model = adapted()

    def interrupt(record):
        if record["step"] == 2:
            signal.raise_signal(signal.SIGINT)

    handler = signal.getsignal(signal.SIGINT)
    history = train(model, TASK, steps=9, out=tmp_path, callbacks=[interrupt], **QUICK)
    assert history.interrupted
    assert len(history.steps) == 2
    assert signal.getsignal(signal.SIGINT) is handler
    whole = adapted()
    train(whole, TASK, steps=9, **QUICK)
    again = adapted(seed=3)
    assert not train(again, TASK, steps=9, out=tmp_path, resume=True, **QUICK).interrupted
    assert equal(trained_bits(again), trained_bits(whole))


def test_ctrl_c_in_the_first_validation_does_not_make_a_second_one(tmp_path):
    def interrupt(record):
        if record["step"] == 0:
            signal.raise_signal(signal.SIGINT)

    settings = {**QUICK, "validate_every": 1, "steps": 1, "out": tmp_path}
    assert train(adapted(), TASK, callbacks=[interrupt], **settings).steps == []
    history = train(adapted(), TASK, resume=True, **settings)
    assert [validation["step"] for validation in history.validations] == [0, 1]


@pytest.mark.parametrize("saved", [True, False])
def test_an_interrupted_run_says_how_it_is_continued_if_it_can_be(tmp_path, capsys, saved):
    settings = {**QUICK, "progress": True, "out": tmp_path if saved else None}
    train(
        adapted(),
        TASK,
        steps=3,
        callbacks=[lambda _: signal.raise_signal(signal.SIGINT)],
        **settings,
    )
    last = capsys.readouterr().err.splitlines()[-1]
    how = f"; continue with resume=True, out={str(tmp_path)!r}"
    assert last == f"interrupted after step 1{how if saved else ''}"


def test_a_run_that_returns_to_its_best_state_says_so(capsys):
    settings = {**QUICK, "progress": True, "validate_every": 1, "steps": 1, "lr": 1.0}
    train(adapted(), polite_log(8, 8), **settings)
    assert "kept the state of step 0, which has the lowest validation" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("task", "settings", "best"),
    [
        (naval_log(8, 8), {"validate_every": 0}, None),
        (naval_log(8, 8), {"validate_every": 1, "lr": 1e-3}, 1),
        (polite_log(8, 8), {"validate_every": 1, "lr": 1.0, "keep_best": False}, 0),
    ],
    ids=["nothing is validated", "the last state is the best", "the best is not asked for"],
)
def test_a_run_that_ends_in_its_last_state_says_nothing_of_a_best_one(capsys, task, settings, best):
    """The base learns the naval answers, and can only forget the polite ones."""
    history = train(adapted(), task, steps=1, **{**QUICK, "progress": True} | settings)
    assert history.best_step == best
    assert "kept the state" not in capsys.readouterr().err


def test_a_second_ctrl_c_stops_at_once():
    def twice(record):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(adapted(), TASK, steps=5, callbacks=[twice], **QUICK)


def test_outside_the_main_thread_the_flag_is_never_raised_and_no_handler_changes():
    handlers = [signal.getsignal(signal.SIGINT)]

    def work():
        with interrupt_flag() as flag:
            handlers.append(signal.getsignal(signal.SIGINT))
            assert not flag.is_set()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert handlers[0] is handlers[1]
