"""The loop: the same bits whatever interrupts it, and a stop before anything is spoilt."""

import copy
import errno
import json
import math
import signal
import threading
from pathlib import Path

import pytest
import torch
import transformers
from torch.nn.parallel import DataParallel

import minilora
from minilora import LoraConfig, TrainConfig, inject, train
from minilora.ledger.measurement import Measured, measure
from minilora.lora.layer import lora_layers
from minilora.training.data import Task
from minilora.training.examples import Example
from minilora.training.run import set_up
from minilora.training.steps import steps

from ..test_foreign import make
from ..tolerance import gamma
from .runs import QUICK, TASK, adapted, equal, filled, trained_bits


@pytest.mark.slow
def test_the_adapter_learns_and_the_base_does_not_move():
    model = adapted()
    before = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    history = train(model, TASK, steps=30, lr=5e-3, batch_size=8, validate_every=0, progress=False)
    assert sum(history.losses[-5:]) < 0.7 * sum(history.losses[:5])
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters() if n in before)
    assert all(p.grad is None for p in model.parameters())
    assert not model.training


def test_everything_trains_without_an_adapter():
    model = minilora.load_base()
    before = copy.deepcopy(model.state_dict())
    train(model, TASK, steps=2, lr=1e-3, **QUICK)
    changed = [n for n, t in model.state_dict().items() if not torch.equal(t, before[n])]
    assert len(changed) == len(before)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_a_resumed_run_continues_to_the_same_bits(tmp_path, dropout):
    settings = {**QUICK, "validate_every": 3, "steps": 8}
    whole = adapted(dropout)
    reference = train(whole, TASK, out=tmp_path / "whole", **settings)

    class Cut(Exception):
        pass

    def cut(record):
        if record["step"] == 6 and "loss" in record:
            raise Cut

    first = adapted(dropout)
    with pytest.raises(Cut):
        train(first, TASK, out=tmp_path / "cut", checkpoint_every=2, callbacks=[cut], **settings)
    torch.manual_seed(99)  # the state of torch's own generator must not matter
    second = adapted(dropout, seed=5)
    resumed = train(second, TASK, out=tmp_path / "cut", checkpoint_every=2, resume=True, **settings)
    assert equal(trained_bits(second), trained_bits(whole))
    assert resumed.losses == reference.losses
    assert losses_of(resumed.validations) == losses_of(reference.validations)
    assert logged(tmp_path / "cut") == logged(tmp_path / "whole")


def losses_of(validations):
    return [record["valid_loss"] for record in validations]


def logged(folder):
    """The records in a run's log, seconds aside."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) | {"seconds": 0} for line in lines]
    return sorted(records, key=str)


def test_a_run_on_a_wrapped_model_continues_on_the_plain_one(tmp_path):
    """Names in a checkpoint are those of the model inside."""
    settings = {**QUICK, "steps": 3, "pack": True}
    whole, cut, plain = adapted(), adapted(), adapted(seed=5)
    train(whole, TASK, **settings)

    def interrupt(record):
        signal.raise_signal(signal.SIGINT)

    train(DataParallel(cut), TASK, out=tmp_path, callbacks=[interrupt], **settings)
    train(plain, TASK, out=tmp_path, resume=True, **settings)
    assert equal(trained_bits(plain), trained_bits(whole))


def test_the_seed_decides_the_order_and_the_dropout():
    def losses(seed, dropout, task):
        return train(filled(dropout), task, steps=1, seed=seed, **QUICK).losses

    assert losses(0, 0.0, TASK) != losses(1, 0.0, TASK)
    one = Task("one", TASK.train[:1], ())
    assert losses(0, 0.5, one) != losses(1, 0.5, one)


def test_runs_repeat_and_leave_torchs_generator_alone():
    torch.manual_seed(7)
    expected = torch.randn(3)
    torch.manual_seed(7)
    runs = []
    for _ in range(2):
        state = torch.get_rng_state()
        model = adapted(0.2)
        torch.set_rng_state(state)
        train(model, TASK, steps=3, **QUICK)
        runs.append(trained_bits(model))
    assert equal(*runs)
    assert torch.equal(torch.randn(3), expected)


def test_training_works_outside_the_main_thread_flushes_denormals_and_puts_the_mode_back():
    """Signals belong to the main thread, denormals to the thread that computes."""
    model, results = adapted().train(), []

    def work():
        results.append(train(model, TASK, steps=1, **QUICK))
        results.append((torch.full((8,), 1e-39) * 1.0).any().item())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    history, denormals = results
    assert len(history.losses) == 1
    assert not denormals
    assert model.training


def test_a_loss_that_is_not_finite_stops_with_the_step_and_keeps_the_weights():
    model = adapted()
    poison = []

    def damage(record):
        if record["step"] == 2:
            poison.append(trained_bits(model))
            model.model.norm.weight.data.fill_(float("nan"))

    message = r"step 3: the loss is nan. Last losses: .* look at the examples .* step 2 are kept"
    with pytest.raises(FloatingPointError, match=message):
        train(model, TASK, steps=5, callbacks=[damage], **QUICK)
    assert equal(trained_bits(model), poison[0])


def test_an_infinite_gradient_of_a_finite_loss_stops_and_keeps_the_weights():
    model = adapted()
    before = trained_bits(model)
    next(lora_layers(model))[1].lora_B.register_hook(lambda grad: grad + math.inf)
    with pytest.raises(FloatingPointError, match="step 1: the gradient norm is inf"):
        train(model, TASK, steps=2, **QUICK)
    assert equal(trained_bits(model), before)
    assert all(p.grad is None for p in model.parameters())


def test_a_base_that_is_broken_from_the_start_says_so():
    model = adapted()
    model.model.embed_tokens.weight.data[:] = float("inf")
    message = r"step 1: .*it is the first step.*NaN in the base"
    with pytest.raises(FloatingPointError, match=message):
        train(model, TASK, steps=2, **QUICK)


def test_clipping_bounds_the_gradient_that_the_optimizer_sees(optimizer_steps):
    free = train(adapted(), TASK, steps=1, clip=0.0, **QUICK).steps[0]["grad_norm"]
    assert train(adapted(), TASK, steps=1, clip=free / 10, **QUICK).steps[0]["grad_norm"] == free
    norms = [gradient.double().norm().item() for gradient, _ in optimizer_steps]
    # a norm in float32 sums n squares; torch adds 1e-6 to the one it divides by
    n = optimizer_steps[0][0].numel()
    assert norms == pytest.approx([free, free / 10], rel=gamma(n, torch.float32) + 2e-6 / free)


def test_a_model_that_would_not_learn_is_refused():
    frozen = minilora.load_base().requires_grad_(False)
    with pytest.raises(ValueError, match="nothing would train: no parameter has requires_grad"):
        train(frozen, TASK, steps=1)
    message = "q_proj is merged, so its adapter takes no part: unmerge"
    with pytest.raises(ValueError, match=message):
        train(minilora.merge(adapted()), TASK, steps=1)
    bare = minilora.load_base()
    bare.tokenizer = None
    with pytest.raises(
        ValueError, match=r"needs model.tokenizer, got NoneType: load_base\(\) finds"
    ):
        train(bare, TASK, steps=1)
    bare.tokenizer = "a tokenizer.json"
    with pytest.raises(ValueError, match=r"needs model.tokenizer, got str"):
        train(bare, TASK, steps=1)


def test_adapters_that_are_switched_off_are_not_trained():
    model = adapted()
    with minilora.disable_adapter(model):
        message = "switched off by disable_adapter: train outside that context"
        with pytest.raises(ValueError, match=message):
            train(model, TASK, steps=1)


def test_an_encoder_decoder_is_refused_by_name():
    """It has a second input that nothing here would fill (tests/test_foreign.py trains one)."""
    model, _, targets = make("T5")
    inject(model, LoraConfig(target_modules=targets))
    model.tokenizer = minilora.load_base().tokenizer
    message = "T5ForConditionalGeneration is an encoder-decoder: .*train it with transformers' Tr"
    with pytest.raises(ValueError, match=message):
        train(model, TASK, steps=1)


def test_resuming_what_is_not_there_or_not_the_same_is_refused(tmp_path):
    resumed = {**QUICK, "out": tmp_path, "resume": True}
    message = "nothing to resume: .*checkpoint.safetensors does not exist"
    with pytest.raises(ValueError, match=message):
        train(adapted(), TASK, **resumed)
    train(adapted(), TASK, steps=2, out=tmp_path, checkpoint_every=1, **QUICK)
    with pytest.raises(ValueError, match=r"other settings \(warmup: 0.05 there, 0.5 here\)"):
        train(adapted(), TASK, steps=3, warmup=0.5, **resumed)
    with pytest.raises(ValueError, match=r"is of step 2, and steps=1 ends before it"):
        train(adapted(), TASK, steps=1, **resumed)
    less = Task("less", TASK.train[:-1], TASK.valid)
    moved = Task("moved", TASK.train[:-1], (TASK.train[-1], *TASK.valid))
    for task in (less, moved):
        with pytest.raises(ValueError, match=r"other settings \(data: "):
            train(adapted(), task, steps=2, **resumed)
    (tmp_path / "checkpoint.safetensors").write_bytes(b"half a checkpoint")
    with pytest.raises(ValueError, match="not a readable safetensors"):
        train(adapted(), TASK, steps=2, **resumed)


def test_gradients_that_were_there_before_do_not_count():
    clean, dirty = adapted(), adapted()
    for p in dirty.parameters():
        p.grad = torch.full_like(p, 3.0) if p.requires_grad else None
    records = [train(model, TASK, steps=1, **QUICK).steps[0] for model in (clean, dirty)]
    assert records[0]["grad_norm"] == records[1]["grad_norm"]


def scaled_otherwise(model):
    inject(minilora.unload(model), LoraConfig(r=4, lora_alpha=3))


def with_dropout(model):
    inject(minilora.unload(model), LoraConfig(r=4, lora_dropout=0.5))


def with_another_embedding(model):
    model.model.embed_tokens.weight.data.mul_(1.01)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (scaled_otherwise, "adapters"),
        (with_dropout, "adapters"),
        (with_another_embedding, "frozen weights"),
    ],
)
def test_resuming_on_another_adapter_or_base_is_refused(tmp_path, change, message):
    train(adapted(), TASK, steps=2, out=tmp_path, checkpoint_every=1, **QUICK)
    model = adapted()
    change(model)
    with pytest.raises(ValueError, match=f"other settings .*{message}"):
        train(model, TASK, steps=2, out=tmp_path, resume=True, **QUICK)


def test_a_parameter_that_gets_no_gradient_does_not_stop_a_resume(tmp_path):
    def model():
        made = adapted()
        made.extra = torch.nn.Parameter(torch.ones(2))
        return made

    whole, again = model(), model()
    train(whole, TASK, steps=2, out=tmp_path, checkpoint_every=2, **QUICK)
    train(again, TASK, steps=2, out=tmp_path, resume=True, **QUICK)
    assert equal(trained_bits(whole), trained_bits(again))


def test_packing_is_refused_where_the_model_would_mix_the_examples():
    sizes = {"vocab_size": 1536, "hidden_size": 16, "intermediate_size": 16}
    sizes |= {"num_hidden_layers": 1, "num_attention_heads": 2}
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes))
    theirs.tokenizer = minilora.load_base().tokenizer
    with pytest.raises(ValueError, match="pack=True needs a minilora Llama: LlamaForCausalLM"):
        train(theirs, TASK, steps=1, pack=True, **QUICK)
    assert len(train(theirs, TASK, steps=2, **QUICK).losses) == 2


def test_what_is_not_an_example_is_refused():
    with pytest.raises(ValueError, match=r"train needs minilora.Example.* got dict"):
        train(adapted(), [{"instruction": "a", "output": "b"}], steps=1)
    with pytest.raises(ValueError, match="at least one example, got none"):
        train(adapted(), [], steps=1)
    with pytest.raises(ValueError, match=r"train needs minilora.Example.* got str"):
        train(adapted(), Task("mine", TASK.train, ("a",)), steps=1)


def test_a_run_is_not_resumed_on_other_codes(tmp_path, base):
    """A 4-bit weight is not a parameter, but another one is another base all the same."""
    settings = {**QUICK, "steps": 2, "out": tmp_path, "checkpoint_every": 1}
    model = minilora.quantize_base(base)
    inject(model)
    train(model, TASK, **settings)
    model.model.layers[0].mlp.up_proj.packed[0] ^= 1
    with pytest.raises(ValueError, match="frozen weights"):
        train(model, TASK, resume=True, **settings)


def test_epochs_are_counted_in_the_examples_that_fit_and_a_resume_knows_them(tmp_path):
    settings = {**QUICK, "out": tmp_path, "checkpoint_every": 1, "epochs": 2}
    long = Example("word " * 600, "hi")
    with pytest.warns(UserWarning, match="1 of 11 examples are longer"):
        history = train(adapted(), [*TASK.train[:10], long], **settings)
    assert len(history.losses) == 5
    with pytest.warns(UserWarning, match="longer"):
        again = train(adapted(), [*TASK.train[:10], long], resume=True, **settings)
    assert again.losses == history.losses


@pytest.mark.parametrize(
    ("settings", "rows"),
    [({"batch_size": 6}, 6), ({"batch_size": 6, "accumulate": 3}, 2), ({"valid_batch": 5}, 5)],
)
def test_held_out_examples_are_computed_in_batches_of_the_training_size(
    settings, rows, monkeypatch
):
    """32 rows and 50 answers at once ran out of memory where two rows were trained."""
    sizes, answered = [], []

    def note(decoder, args):
        if not decoder.training:
            sizes.append(len(args[0]))

    model = adapted()
    model.model.register_forward_pre_hook(note)
    generate = model.generate_texts
    model.generate_texts = lambda asked, most: answered.append(len(asked)) or generate(asked, most)
    train(model, TASK, steps=1, validate_every=1, valid_answers=7, progress=False, **settings)
    assert max(sizes) == max(answered) == rows


def test_a_run_that_is_resumed_with_more_steps_takes_their_cosine_and_says_so(tmp_path, capsys):
    """The oracle is the bare loop: four steps of one schedule, then four of another."""
    settings = {**QUICK, "progress": True, "lr": 1e-3}
    resumed = adapted()
    first = train(resumed, TASK, steps=4, out=tmp_path, checkpoint_every=4, **settings)
    capsys.readouterr()
    again = adapted(seed=5)
    history = train(again, TASK, steps=8, out=tmp_path, resume=True, **settings)
    said = capsys.readouterr().err
    rates = [record["lr"] for record in history.steps]
    assert f"from {rates[3]:.3g} in step 4 to {rates[4]:.3g} in the next" in said
    assert "resumed with steps=8 instead of 4" in said

    plain = adapted()
    for steps_, start in ((4, 0), (8, 4)):
        config = TrainConfig(steps=steps_, lr=1e-3, batch_size=4)
        if not start:
            run = set_up(plain, TASK, config)
        plain.train()
        list(steps(plain, run.batches, run.optimizer, config, start=start))
    assert equal(trained_bits(again), trained_bits(plain))
    assert history.losses[:4] == first.losses


def test_training_without_an_adapter_says_that_everything_trains_and_at_which_rate(capsys):
    model = minilora.load_base()
    train(model, TASK, steps=1, lr=1e-3, **QUICK | {"progress": True})
    said = capsys.readouterr().err
    assert "no adapter: all parameters of the model itself train (1,304,192)" in said
    assert "at a peak rate of 0.001" in said
    train(adapted(), TASK, steps=1, **QUICK | {"progress": True})
    assert "no adapter" not in capsys.readouterr().err


def test_a_validation_of_some_of_the_examples_says_so(capsys):
    settings = {**QUICK, "progress": True, "validate_every": 1, "valid_examples": 5}
    train(adapted(), TASK, steps=1, **settings)
    assert "a validation takes 5 of 12 held-out examples" in capsys.readouterr().err


@pytest.mark.parametrize("count", [1, 3])
def test_the_memory_of_a_step_is_measured_within_the_run_and_changes_no_bit(count):
    """The oracle measures the second step of a run that is taken apart, as the demo does."""
    plain, watched = adapted(0.1), adapted(0.1)
    train(plain, TASK, steps=count, **QUICK)
    history = train(watched, TASK, steps=count, measure_memory=True, **QUICK)
    assert len(history.losses) == count
    assert equal(trained_bits(plain), trained_bits(watched))
    config = TrainConfig(steps=3, **QUICK)
    run = set_up(model := adapted(0.1).train(), TASK, config)
    records = run.steps(model, config)
    if count > 1:
        next(records)
    measured = measure(lambda: next(records), model, run.optimizer)
    assert Measured(**history.memory).at_peak == measured.at_peak
    assert train(adapted(), TASK, steps=1, **QUICK).memory is None


def full_disk(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_disk_that_is_full_for_a_while_costs_neither_the_run_nor_a_line_of_its_log(tmp_path):
    settings = {**QUICK, "steps": 6, "validate_every": 3}
    whole = train(adapted(), TASK, out=tmp_path / "whole", **settings)

    disk = pytest.MonkeyPatch()  # of its own: undoing the test's would undo conftest's too

    def fill(record):
        if record["step"] == 1:
            disk.setattr(Path, "open", full_disk)
            disk.setattr("minilora.files.tempfile.mkstemp", full_disk)
        if record["step"] == 4:
            disk.undo()

    with pytest.warns(UserWarning, match="full") as caught:
        history = train(
            adapted(), TASK, out=tmp_path / "full", checkpoint_every=2, callbacks=[fill], **settings
        )
    said = [str(warning.message) for warning in caught]
    assert [text.split(":")[0] for text in said] == [
        f"{tmp_path / 'full' / 'metrics.jsonl'} lacks lines, training continues",
        "no checkpoint of step 2",
    ]
    assert "No space left on device" in said[1]
    assert history.losses == whole.losses
    assert logged(tmp_path / "full") == logged(tmp_path / "whole")
    assert (tmp_path / "full" / "checkpoint.safetensors").is_file()
