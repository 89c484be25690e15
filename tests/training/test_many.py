"""Several adapters at once: each is what its own run makes of it."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

import minilora
from minilora import LoraConfig, TrainConfig, data
from minilora.lora.layer import lora_layers
from minilora.lora.rows import add_rows, add_rows_plainly
from minilora.training import many
from minilora.training.batches import Batch
from minilora.training.many import Job, train_many

from ..tolerance import loss_bound
from .runs import IDS, QUICK, equal, trained_bits

TASK = data.naval_log(40, 12)
SETTINGS = TrainConfig(**QUICK | {"steps": 4, "lr": 5e-4})


def by_itself(job):
    """The run that a job stands for."""
    torch.manual_seed(job.settings.seed)
    model = minilora.load_base()
    minilora.inject(model, job.config)
    return model, minilora.train(model, job.task, job.settings)


def assert_like(outcome, job):
    """The losses, and the weights, of a run of its own.

    AdamW divides by the root of the squared gradient, so a weight whose gradient is rounding error
    may move by the rate in either direction: no weight is further away than that, and on average
    they agree. The losses of such models are equal to rounding all the same.
    """
    model, history = by_itself(job)
    bound = loss_bound(model, IDS)
    ours, theirs = outcome.history.losses, history.losses
    assert len(ours) == len(theirs) == job.settings.steps
    for step, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        assert abs(a - b) <= (1 + step) * bound, f"step {step}: {a} and {b}"
    moved = 2 * job.settings.lr * job.settings.steps
    for (path, a), (_, b) in zip(lora_layers(outcome.model), lora_layers(model), strict=True):
        for one, two in ((a.lora_A, b.lora_A), (a.lora_B, b.lora_B)):
            assert (one - two).abs().max() <= moved, path
            assert (one - two).abs().mean() <= 1e-3 * moved, path
    for mine, own in zip(outcome.history.validations, history.validations, strict=True):
        assert abs(mine["valid_loss"] - own["valid_loss"]) <= (2 + len(ours)) * bound
    assert outcome.error == ""


VARIED = {
    "seed 0": Job(TASK, LoraConfig(r=4), SETTINGS),
    "seed 1": Job(TASK, LoraConfig(r=4), replace(SETTINGS, seed=1)),
    "rank, targets": Job(
        TASK, LoraConfig(r=9, lora_alpha=3, target_modules=["v_proj", "up_proj"]), SETTINGS
    ),
    "rate, rows, task": Job(
        data.polite_log(30, 8),
        LoraConfig(use_rslora=True),
        replace(SETTINGS, lr=2e-3, batch_size=6),
    ),
    "fewer steps": Job(TASK, LoraConfig(r=2), replace(SETTINGS, steps=2)),
    "parts": Job(TASK, LoraConfig(r=3), replace(SETTINGS, batch_size=6, accumulate=3)),
    "dropout": Job(TASK, LoraConfig(r=4, lora_dropout=0.3), replace(SETTINGS, seed=2)),
    "packed": Job(TASK, LoraConfig(r=4), replace(SETTINGS, pack=True, max_length=60, steps=2)),
    "validated": Job(TASK, LoraConfig(r=4), replace(SETTINGS, validate_every=2, seed=4)),
}


@pytest.fixture(scope="module")
def together():
    """All of them, in one pass a step."""
    base = minilora.load_base()
    before = {name: p.clone() for name, p in base.named_parameters()}
    outcomes = train_many(base, VARIED)
    assert all(torch.equal(p, before[name]) for name, p in base.named_parameters())
    assert isinstance(base.model.layers[0].self_attn.q_proj, torch.nn.Linear)
    torch.set_flush_denormal(False)
    return outcomes


@pytest.mark.parametrize("name", VARIED)
def test_each_job_comes_out_as_from_a_run_of_its_own(together, name):
    assert_like(together[name], VARIED[name])


def test_a_run_that_diverges_is_taken_out_and_the_others_go_on():
    bad = replace(SETTINGS, lr=1e18, clip=0.0, warmup=0.0, steps=6)
    jobs = {"good": VARIED["seed 0"], "bad": Job(TASK, LoraConfig(r=4), bad)}
    outcomes = train_many(minilora.load_base(), jobs)
    assert "the gradient norm is nan" in outcomes["bad"].error
    assert len(outcomes["bad"].history.steps) < 6
    assert_like(outcomes["good"], jobs["good"])


def test_a_gradient_that_a_callback_leaves_is_nobodys():
    """The step of a run alone throws it away before it begins; so does the common pass."""
    jobs = {name: VARIED[name] for name in ("seed 0", "seed 1")}
    plain = train_many(minilora.load_base(), jobs)
    models = {}

    def leave(name, record):
        for parameter in models.setdefault(name, ()):
            parameter.grad = torch.ones_like(parameter)

    trainee = many.Trainee.start

    def start(self, *args):
        models[self.name] = self.parameters
        return trainee(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(many.Trainee, "start", start)
        watched = train_many(minilora.load_base(), jobs, callbacks=[leave])
    assert set(models) == set(jobs)
    for name in jobs:
        assert watched[name].history.losses == plain[name].history.losses


def test_the_adapter_can_be_saved_and_is_the_one_in_the_model(tmp_path):
    outcome = train_many(minilora.load_base(), {"a": VARIED["fewer steps"]})["a"]
    folder = minilora.save_adapter(outcome.model, tmp_path)
    again = minilora.load_adapter(minilora.load_base(), folder)
    saved = {path: layer.lora_B for path, layer in lora_layers(again)}
    assert all(torch.equal(layer.lora_B, saved[p]) for p, layer in lora_layers(outcome.model))
    assert outcome.model.generate_text("Status?", "Log: Hull 9%.", 4)
    assert not outcome.model.training


def test_a_task_of_several_jobs_is_encoded_once(monkeypatch):
    from minilora.training import batches

    seen, encode = [], batches.encode_all
    monkeypatch.setattr(
        batches,
        "encode_all",
        lambda tok, examples, most: seen.append(most) or encode(tok, examples, most),
    )
    settings = TrainConfig(steps=1, batch_size=2, validate_every=0)
    jobs = {str(seed): Job(TASK, settings=replace(settings, seed=seed)) for seed in range(3)}
    jobs["shorter"] = Job(TASK, settings=replace(settings, max_length=300))
    train_many(minilora.load_base(), jobs)
    assert sorted(seen) == [300, 300, settings.max_length, settings.max_length]


def test_one_job_alone_is_its_own_run():
    """The common pass of one job has nobody to pad for."""
    outcome = train_many(minilora.load_base(), {"a": VARIED["dropout"]})["a"]
    assert_like(outcome, VARIED["dropout"])


def test_callbacks_hear_the_name_and_a_run_can_be_resumed(tmp_path):
    heard = []
    half = replace(SETTINGS, out=tmp_path / "a", checkpoint_every=2)
    job = Job(TASK, LoraConfig(r=4), half)
    whole = train_many(minilora.load_base(), {"a": job})["a"]
    stopped = Job(TASK, LoraConfig(r=4), replace(half, out=tmp_path / "b", steps=2))
    train_many(minilora.load_base(), {"b": stopped})
    resumed = Job(TASK, LoraConfig(r=4), replace(half, out=tmp_path / "a", resume=True))
    again = train_many(
        minilora.load_base(), {"a": resumed, "c": VARIED["fewer steps"]},
        callbacks=[lambda name, record: heard.append((name, record["step"]))],
    )  # fmt: skip
    assert equal(trained_bits(again["a"].model), trained_bits(whole.model))
    assert heard == [("c", step) for step in (1, 2)]  # a had ended


@pytest.mark.parametrize(
    ("job", "message"),
    [
        (5, r"a: expected a Job\(task, config, settings\), got 5"),
        (Job(TASK, LoraConfig(use_dora=True), SETTINGS), "a: train_many trains plain LoRA"),
        (Job(TASK, LoraConfig(target_modules=["nothing"]), SETTINGS), "a: target_modules: no mod"),
        (Job(TASK, LoraConfig(modules_to_save=["norm"]), SETTINGS), "a: train_many trains LoRA's"),
        (Job(TASK, LoraConfig(trainable_token_indices=[3]), SETTINGS), "rows would train too"),
        (Job(TASK, LoraConfig(), replace(SETTINGS, fp16=True)), "a: fp16, measure_memory and"),
        (Job(TASK, LoraConfig(), replace(SETTINGS, bf16=True)), "bf16 must be the same for all"),
    ],
)
def test_bad_jobs_are_refused_before_anything_changes(job, message):
    base = minilora.load_base()
    before = [p.requires_grad for p in base.parameters()]
    with pytest.raises(ValueError, match=message):
        train_many(base, {"b": VARIED["seed 0"], "a": job})
    assert [p.requires_grad for p in base.parameters()] == before


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("lm_head", r"a: an adapter on the output head \(lm_head\) needs a run alone"),
        ("embed_tokens", "lora_embedding_A would train too"),
    ],
)
def test_adapters_on_the_head_and_the_embedding_are_refused(target, message):
    """The head sees the labelled places only: unequal groups of rows, which would mix the jobs."""
    base = minilora.load_base()
    base.lm_head.weight = torch.nn.Parameter(base.lm_head.weight.detach().clone())
    job = Job(TASK, LoraConfig(target_modules=[target, "q_proj"]), SETTINGS)
    with pytest.raises(ValueError, match=message):
        train_many(base, {"b": VARIED["seed 0"], "a": job})
    for add in (add_rows, add_rows_plainly):
        with pytest.raises(ValueError, match="5 rows do not divide into 2 groups"):
            add(torch.ones(5, 3), torch.ones(5, 4), torch.ones(2, 1, 4), torch.ones(2, 1, 3))


def test_dropout_on_a_card_is_refused(monkeypatch):
    """There a run alone draws from the card's generator."""
    monkeypatch.setattr(many, "devices_of", lambda model: [torch.device("cuda")])
    with pytest.raises(ValueError, match=r"a: lora_dropout=0.3 on a card needs a run alone"):
        many.check_jobs(minilora.load_base(), {"a": VARIED["dropout"]})


def test_bad_bases_are_refused():
    with pytest.raises(ValueError, match="needs at least one job, got none"):
        train_many(minilora.load_base(), {})
    with pytest.raises(ValueError, match="train_many needs a minilora Llama, got a Sequential"):
        train_many(torch.nn.Sequential(torch.nn.Linear(2, 2)), {"a": VARIED["seed 0"]})
    adapted = minilora.load_base()
    minilora.inject(adapted)
    with pytest.raises(ValueError, match="seed 0: this model has adapters already"):
        train_many(adapted, {"seed 0": VARIED["seed 0"]})


def places(group):
    """How many places a pass over these parts has: all are padded to the largest."""
    shapes = [part.ids.shape for _, part in group]
    return len(shapes) * max(rows for rows, _ in shapes) * max(time for _, time in shapes)


SHAPES = [(4, 50), (4, 30), (2, 80), (8, 90), (1, 10), (1, 20), (10, 16), (10, 32), (10, 32)]


def parts_on(device):
    """Parts of these shapes, each with its trainee's number."""
    ids = [torch.zeros(shape, dtype=torch.long, device=device) for shape in SHAPES]
    return [(number, Batch(each, each, None)) for number, each in enumerate(ids)]


def test_on_a_cpu_a_pass_takes_as_many_parts_as_fit_and_on_a_card_all():
    pairs = parts_on("cpu")
    groups = list(many.in_passes(pairs))
    assert [number for group in groups for number, _ in group] == list(range(len(SHAPES)))
    assert all(len(group) == 1 or places(group) <= many.MOST_TOKENS for group in groups)
    for group, after in pairwise(groups):
        assert places([*group, after[0]]) > many.MOST_TOKENS, "one more would have fitted"
    together = [places(group) for group in groups if len(group) > 1]
    assert many.MOST_TOKENS in together, "as many as are allowed"
    assert len(list(many.in_passes(parts_on("meta")))) == 1


def test_side_by_side_nobody_shows_a_bar(capsys):
    settings = TrainConfig(steps=1, batch_size=2, validate_every=1, valid_examples=2)
    jobs = {str(seed): Job(TASK, settings=replace(settings, seed=seed)) for seed in (0, 1)}
    outcomes = train_many(minilora.load_base(), jobs)
    assert all(outcome.history.validations for outcome in outcomes.values())
    assert capsys.readouterr() == ("", "")
