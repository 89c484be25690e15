"""The loop does what its docstring says: the objective, the schedule, the resume to the bit, the stops."""

import copy
import itertools
import json
import math
import signal
import threading
import warnings

import pytest
import torch

import minilora
from minilora import Example, LoraConfig, TrainConfig, inject, train
from minilora.lora.layer import lora_layers
from minilora.training.batches import encode_all, pad
from minilora.training.data import Task, naval_log, polite_log
from minilora.training.history import History, overfitting, tensorboard_callback
from minilora.training.objective import summed_loss
from minilora.training.optimizer import build_optimizer, rate_at

from ..tolerance import Wider, assert_as_close, gamma, in_float64, loss_bound

TASK = naval_log(40, 12)
# for the error of the logits
IDS = pad(encode_all(minilora.load_base().tokenizer, TASK.train[:8], 512)).ids
QUICK = {"batch_size": 4, "progress": False, "validate_every": 0}


def adapted(dropout=0.0, seed=0):
    torch.manual_seed(seed)
    model = minilora.load_base()
    inject(model, LoraConfig(r=4, lora_dropout=dropout))
    return model


def filled(dropout=0.0):
    """An adapter whose A and whose dropout are to be seen: B is not zero."""
    model = adapted(dropout)
    for _, layer in lora_layers(model):
        torch.nn.init.normal_(layer.lora_B, std=0.05)
    return model


def trained_bits(model):
    return {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


@pytest.fixture
def optimizer_steps(monkeypatch):
    """(the gradient as one vector, rates of the groups) that AdamW is given, step by step."""
    seen, step = [], torch.optim.AdamW.step

    def watched(self, *args, **more):
        gradient = torch.cat(
            [p.grad.flatten() for group in self.param_groups for p in group["params"]]
        )
        seen.append((gradient, [group["lr"] for group in self.param_groups]))
        return step(self, *args, **more)

    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    return seen


def parts_of(model, **settings):
    """What the decoder is given in one step: (rows, whether they have segments, whether under autocast), part by part."""
    seen = []

    def note(decoder, args):
        seen.append((len(args[0]), args[1] is not None, torch.is_autocast_enabled("cpu")))

    model.model.register_forward_pre_hook(note)
    record = train(model, TASK, **{**QUICK, "batch_size": 8, "steps": 1} | settings).steps[0]
    return seen, record


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


def test_accumulation_gives_the_gradient_of_the_whole_batch(optimizer_steps):
    """Parts of different length: averaging part by part would weigh short answers more."""
    whole, *others = (parts_of(filled(), accumulate=n) for n in (1, 2, 4))
    for (seen, record), n in zip(others, (2, 4), strict=True):
        assert seen == [(8 // n, False, False)] * n
        assert abs(record["loss"] - whole[1]["loss"]) <= loss_bound(filled(), IDS)
    wide = in_float64(filled())
    with Wider():
        parts_of(wide)
    (wanted, _), *found, (truth, _) = optimizer_steps
    for gradient, _ in found:
        assert_as_close(gradient, wanted, truth)


def test_a_batch_is_packed_and_computed_in_bf16_where_asked(optimizer_steps):
    plain, record = parts_of(filled())
    assert plain == [(8, False, False)]
    assert parts_of(filled(), bf16=True)[0] == [(8, False, True)]
    [(rows, segments, _)], packed = parts_of(filled(), pack=True, max_length=160)
    assert rows < 8
    assert segments
    assert abs(packed["loss"] - record["loss"]) <= loss_bound(filled(), IDS)
    (wanted, _), _, (gradient, _) = optimizer_steps[:3]
    wide = in_float64(filled())
    with Wider():
        parts_of(wide)
    assert_as_close(gradient, wanted, optimizer_steps[-1][0])


def test_the_loss_is_the_mean_over_answer_tokens_only():
    model = minilora.load_base()
    record = train(model, TASK, steps=1, batch_size=40, validate_every=0, progress=False).steps[0]
    model, tokens, nats = minilora.load_base(), 0, 0.0
    for e in TASK.train:
        prompt = model.tokenizer.encode(model.tokenizer.prompt(e.instruction, e.input))
        answer = model.tokenizer.answer(e.output)
        logp = model(torch.tensor([prompt + answer]))[0].log_softmax(-1)
        nats -= sum(logp[len(prompt) + i - 1, t].item() for i, t in enumerate(answer))
        tokens += len(answer)
    assert abs(record["loss"] - nats / tokens) <= loss_bound(model, IDS)


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
    assert [v["valid_loss"] for v in resumed.validations] == [
        v["valid_loss"] for v in reference.validations
    ]
    logs = [
        [json.loads(x) for x in (tmp_path / n / "metrics.jsonl").read_text().splitlines()]
        for n in ("whole", "cut")
    ]
    stripped = [[{k: v for k, v in r.items() if k != "seconds"} for r in log] for log in logs]
    assert sorted(stripped[0], key=str) == sorted(stripped[1], key=str)


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


def test_training_works_outside_the_main_thread_flushes_denormals_and_puts_the_mode_back():
    """Signals belong to the main thread, denormals to the thread that computes."""
    model, found = adapted().train(), []

    def work():
        found.append(train(model, TASK, steps=1, **QUICK))
        found.append((torch.full((8,), 1e-39) * 1.0).any().item())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    history, denormals = found
    assert len(history.losses) == 1
    assert not denormals
    assert model.training


def test_a_second_ctrl_c_stops_at_once():
    def twice(record):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(adapted(), TASK, steps=5, callbacks=[twice], **QUICK)


def test_a_loss_that_is_not_finite_stops_with_the_step_and_keeps_the_weights():
    model = adapted()
    poison = []

    def damage(record):
        if record["step"] == 2:
            poison.append(trained_bits(model))
            model.model.norm.weight.data.fill_(float("nan"))

    with pytest.raises(
        FloatingPointError, match=r"step 3: the loss is nan. Last losses: .* look at the examples"
    ):
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
    with pytest.raises(
        FloatingPointError, match=r"step 1: .*it is the first step.*NaN in the base"
    ):
        train(model, TASK, steps=2, **QUICK)


def test_a_rate_that_is_too_high_is_named_as_the_cause():
    from minilora.training.history import diverged

    history = History(steps=[{"loss": x} for x in (1.0, 0.9, 5.0)])
    assert "lr=3.0 is probably too high" in diverged(3, math.nan, 1.0, history, TrainConfig(lr=3.0))
    assert "gradient norm is inf" in diverged(3, 1.0, math.inf, history, TrainConfig())


@pytest.mark.slow
def test_the_best_state_is_kept_and_early_overfitting_is_warned_of(tmp_path):
    model = adapted()
    train_few = Task("few", TASK.train[:2], TASK.valid)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        history = train(
            model,
            train_few,
            steps=60,
            lr=3e-2,
            batch_size=2,
            warmup=0.0,
            validate_every=4,
            progress=False,
            clip=0.0,
        )
    losses = [v["valid_loss"] for v in history.validations]
    assert losses[-1] > 1.05 * min(losses), "the test needs a run that overfits"
    again = train(
        model, train_few, steps=1, lr=1e-12, batch_size=2, validate_every=1, progress=False
    )
    # a step of 1e-12 changes nothing
    assert again.validations[0]["valid_loss"] <= min(losses) + loss_bound(model, IDS)
    assert len(history.warnings) == 1
    assert history.warnings == [
        str(w.message) for w in caught if "begins to memorise" in str(w.message)
    ]


@pytest.mark.parametrize("keep_best", [True, False])
def test_the_best_state_or_the_last_one_is_kept(keep_best):
    model, states = adapted(), {}
    settings = {**QUICK, "validate_every": 1, "steps": 1, "lr": 1.0}
    note = lambda record: states.update({record["step"]: trained_bits(model)})  # noqa: E731
    history = train(model, polite_log(8, 8), keep_best=keep_best, callbacks=[note], **settings)
    assert history.best_step == 0, "the base knows these answers: a rate of 1 can only spoil them"
    assert equal(trained_bits(model), states[0 if keep_best else 1])


def test_the_last_step_is_validated_and_saved_whatever_the_interval(tmp_path):
    settings = {**QUICK, "steps": 3, "validate_every": 2, "out": tmp_path, "checkpoint_every": 2}
    history = train(adapted(), TASK, **settings)
    assert [validation["step"] for validation in history.validations] == [0, 2, 3]
    seen = []
    train(adapted(), TASK, resume=True, callbacks=[seen.append], **settings)
    assert seen == [], "nothing was left to do"


def test_overfitting_needs_three_rises_and_five_percent():
    def history(*losses):
        return History(
            validations=[{"step": i, "valid_loss": x} for i, x in enumerate(losses)], best_step=0
        )

    assert overfitting(history(1.0, 1.1, 1.2)) is None
    assert overfitting(history(1.0, 1.01, 1.02, 1.03)) is None
    assert overfitting(history(1.0, 1.3, 1.2, 1.4)) is None
    assert "rose 3 times running, from 1.0000 at step 0 to 1.3000" in overfitting(
        history(1.0, 1.1, 1.2, 1.3)
    )


def test_validation_answers_report_exact_match_and_a_sample(capsys):
    """To the letter: one answer of two is right but for the full stop."""
    first, second = polite_log(1, 2).valid
    task = Task(
        "polite",
        (first,),
        (first, Example(second.instruction, second.output.removesuffix("."), second.input)),
    )
    history = train(minilora.load_base(), task, steps=1, batch_size=1, valid_answers=2)
    assert history.validations[0]["exact_match"] == 0.5
    assert history.validations[0]["sample"] == {
        "asked": first.instruction,
        "answer": first.output,
        "wanted": first.output,
    }
    assert "held-out loss" in capsys.readouterr().err


def test_the_validation_loss_is_the_mean_over_all_held_out_answer_tokens_without_dropout():
    """70 examples are three parts of at most 32, with different numbers of tokens."""
    task, model = Task("many", TASK.train, naval_log(1, 70).valid), filled(dropout=0.5)
    rows = [pad([row]) for row in encode_all(model.tokenizer, task.valid, 512)]
    with torch.no_grad():
        wanted = sum(summed_loss(model.eval(), row).item() for row in rows) / sum(
            row.answer_tokens for row in rows
        )
    history = train(model, task, steps=1, **QUICK | {"validate_every": 1})
    assert abs(history.validations[0]["valid_loss"] - wanted) <= loss_bound(filled().eval(), IDS)


def test_clipping_bounds_the_gradient_that_the_optimizer_sees(optimizer_steps):
    free = train(adapted(), TASK, steps=1, clip=0.0, **QUICK).steps[0]["grad_norm"]
    assert train(adapted(), TASK, steps=1, clip=free / 10, **QUICK).steps[0]["grad_norm"] == free
    norms = [gradient.double().norm().item() for gradient, _ in optimizer_steps]
    # a norm in float32 sums n squares; torch adds 1e-6 to the one it divides by
    n = optimizer_steps[0][0].numel()
    assert norms == pytest.approx([free, free / 10], rel=gamma(n, torch.float32) + 2e-6 / free)


def test_norms_and_biases_are_not_decayed():
    parameters = dict(minilora.load_base().named_parameters())
    groups = build_optimizer(parameters, lr=1e-3, weight_decay=0.5).param_groups
    assert [(group["weight_decay"], {p.dim() for p in group["params"]}) for group in groups] == [
        (0.5, {2}),
        (0.0, {1}),
    ]


def test_every_group_has_the_rate_of_the_step(optimizer_steps):
    """Norms and biases are a group of their own, and follow the schedule too."""
    history = train(minilora.load_base(), TASK, steps=3, lr=1e-3, **QUICK)
    assert [rates for _, rates in optimizer_steps] == [
        [record["lr"]] * 2 for record in history.steps
    ]


def test_the_rate_rises_in_a_line_and_falls_in_a_cosine():
    config = TrainConfig(steps=100, lr=2.0, warmup=0.1)
    rates = [rate_at(step, config.lr, config) for step in range(100)]
    assert rates[:10] == pytest.approx([0.2 * i for i in range(1, 11)])
    assert all(a > b > 0 for a, b in itertools.pairwise(rates[9:]))
    assert rates[54] == pytest.approx(1.0, abs=0.03)


def test_a_model_that_would_not_learn_is_refused():
    frozen = minilora.load_base().requires_grad_(False)
    with pytest.raises(ValueError, match="nothing would train: no parameter has requires_grad"):
        train(frozen, TASK, steps=1)
    with pytest.raises(
        ValueError, match=r"q_proj is merged, so its adapter takes no part: unmerge"
    ):
        train(minilora.merge(adapted()), TASK, steps=1)
    bare = minilora.load_base()
    bare.tokenizer = None
    with pytest.raises(ValueError, match=r"needs model.tokenizer"):
        train(bare, TASK, steps=1)


def test_resuming_what_is_not_there_or_not_the_same_is_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r"nothing to resume: .*checkpoint.safetensors does not exist"
    ):
        train(adapted(), TASK, out=tmp_path, resume=True, **QUICK)
    train(adapted(), TASK, steps=2, out=tmp_path, checkpoint_every=1, **QUICK)
    with pytest.raises(ValueError, match=r"other settings \(steps: 2 there, 3 here\)"):
        train(adapted(), TASK, steps=3, out=tmp_path, resume=True, **QUICK)
    with pytest.raises(ValueError, match=r"other settings \(data: "):
        train(
            adapted(),
            Task("less", TASK.train[:-1], TASK.valid),
            steps=2,
            out=tmp_path,
            resume=True,
            **QUICK,
        )
    (tmp_path / "checkpoint.safetensors").write_bytes(b"half a checkpoint")
    with pytest.raises(ValueError, match="not a readable safetensors"):
        train(adapted(), TASK, steps=2, out=tmp_path, resume=True, **QUICK)


def test_callbacks_get_a_copy_of_every_record():
    seen = []

    def spoil(record):
        seen.append(dict(record))
        record.clear()

    history = train(adapted(), TASK, steps=2, callbacks=[spoil], **QUICK)
    assert seen == history.steps
    assert set(seen[0]) == {"step", "loss", "lr", "grad_norm", "tokens", "seconds"}


def test_tensorboard_without_its_package_says_what_to_install(monkeypatch, tmp_path):
    import sys

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ValueError, match="TensorBoard is not installed: pip install tensorboard"):
        tensorboard_callback(tmp_path)


def test_gradients_that_were_there_before_do_not_count():
    clean, dirty = adapted(), adapted()
    for p in dirty.parameters():
        p.grad = torch.full_like(p, 3.0) if p.requires_grad else None
    assert (
        train(clean, TASK, steps=1, **QUICK).steps[0]["grad_norm"]
        == train(dirty, TASK, steps=1, **QUICK).steps[0]["grad_norm"]
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda model: inject(minilora.unload(model), LoraConfig(r=4, lora_alpha=3)), "adapters"),
        (
            lambda model: inject(minilora.unload(model), LoraConfig(r=4, lora_dropout=0.5)),
            "adapters",
        ),
        (lambda model: model.model.embed_tokens.weight.data.mul_(1.01), "frozen weights"),
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
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=1536,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    theirs = transformers.LlamaForCausalLM(config)
    theirs.tokenizer = minilora.load_base().tokenizer
    with pytest.raises(ValueError, match="pack=True needs a minilora Llama: LlamaForCausalLM"):
        train(theirs, TASK, steps=1, pack=True, **QUICK)
    with pytest.raises(
        ValueError, match="answers need a minilora Llama with a tokenizer, .* a LlamaForCausalLM$"
    ):
        train(theirs, TASK, steps=1, valid_answers=1, **QUICK)
    assert len(train(theirs, TASK, steps=2, **QUICK).losses) == 2


def test_examples_that_are_none_are_refused():
    with pytest.raises(ValueError, match=r"train needs minilora.Example.* got dict"):
        train(adapted(), [{"instruction": "a", "output": "b"}], steps=1)
    with pytest.raises(ValueError, match="at least one example, got none"):
        train(adapted(), [], steps=1)
    with pytest.raises(ValueError, match=r"train needs minilora.Example.* got str"):
        train(adapted(), Task("mine", TASK.train, ("a",)), steps=1)


def test_a_run_is_not_resumed_on_other_codes(tmp_path, base):
    """A 4-bit weight is no parameter, but another one is another base all the same."""
    task = minilora.data.naval_log(32, 2)
    settings = {
        "batch_size": 4,
        "validate_every": 0,
        "progress": False,
        "out": tmp_path,
        "checkpoint_every": 1,
    }
    model = minilora.quantize_base(base)
    minilora.inject(model)
    minilora.train(model, task, steps=2, **settings)
    model.model.layers[0].mlp.up_proj.packed[0] ^= 1
    with pytest.raises(ValueError, match="frozen weights"):
        minilora.train(model, task, steps=2, resume=True, **settings)
