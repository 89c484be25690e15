"""Several ranks train as one process does: to the bit with two, among themselves with more.

The ranks are threads (threads.py); tests/scale/test_torchrun.py starts processes. The oracle is the
run in one process, and for a gradient the whole batch in one part.
"""

import json
import os
import signal
from dataclasses import replace

import pytest
import torch

import minilora
from minilora import AdaLoraConfig, Examples, LoraConfig, SelfReplay, TrainConfig
from minilora.formats.save_and_load import save_adapter
from minilora.scale import RankLost, Ranks, join
from minilora.scale.distributed import ending_in_words
from minilora.training.batches import encode_all, pad
from minilora.training.data import naval_log
from minilora.training.examples import Example
from minilora.training.objective import mean_over_answers
from minilora.training.ranks import Alone

from .threads import copies, together

TASK = naval_log(24, 6)
SETTINGS = TrainConfig(
    steps=4, batch_size=8, accumulate=2, validate_every=2, progress=False, keep_best=False
)


def injected(config=None, seed=0):
    """The shipped base with an adapter."""
    model = minilora.load_base()
    torch.manual_seed(seed)
    minilora.inject(model, config or LoraConfig(r=4))
    return model


def weights(model):
    """What trains, and what a method keeps beside it."""
    trained = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    return trained | dict(model.named_buffers())


def same(one, other):
    """Whether two models have the same trained weights, to the bit."""
    here, there = weights(one), weights(other)
    return here.keys() == there.keys() and all(torch.equal(here[n], there[n]) for n in here)


def farthest(one, other):
    """The largest difference of two models' trained weights, beside the largest weight."""
    pairs = [(weights(one)[name], value) for name, value in weights(other).items()]
    return max((a - b).abs().max() for a, b in pairs) / max(b.abs().max() for _, b in pairs)


def records(history):
    """The records of the steps without their times, and the validations."""
    steps = [{**record, "seconds": 0} for record in history.steps]
    return steps, history.validations


def trained_by(world, model, settings=SETTINGS, task=TASK, **more):
    """Each rank's model and history after a run of so many ranks."""
    models = copies(model, world)
    run = [(each, replace(settings)) for each in models]

    def work(ranks):
        own, config = run[ranks.rank]
        return minilora.train(own, task, config, ranks=ranks, **more)

    return models, together(world, work)


CASES = {
    "plain": (LoraConfig(r=4), {}),
    "LoRA+": (LoraConfig(r=4), {"loraplus_ratio": 16.0}),
    "packed": (LoraConfig(r=4), {"pack": True}),
    "decayed, clipped, best": (LoraConfig(r=4), {"weight_decay": 0.1, "clip": 0.1}),
    "bfloat16": (LoraConfig(r=4), {"bf16": True, "steps": 2}),
    "a norm too": (LoraConfig(r=2, modules_to_save=("norm",)), {"steps": 2}),
    "AdaLoRA": (AdaLoraConfig(init_r=4, target_r=2, tinit=1, tfinal=1, total_step=4), {}),
    "recomputed": (LoraConfig(r=4), {"checkpointing": True, "steps": 2}),
}


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_are_one_process_with_two_parts_to_the_bit(case):
    config, settings = CASES[case]
    settings = replace(SETTINGS, keep_best="best" in case, **settings)
    alone = injected(config)
    models = copies(alone, 2)
    history = minilora.train(alone, TASK, settings)
    histories = together(2, lambda r: minilora.train(models[r.rank], TASK, settings, ranks=r))
    for model, theirs in zip(models, histories, strict=True):
        assert records(theirs) == records(history)
        assert same(model, alone)
        assert theirs.best_step == history.best_step


def test_without_accumulate_a_batch_is_cut_into_a_part_for_each_rank():
    alone = injected()
    models, histories = trained_by(2, alone, replace(SETTINGS, accumulate=1))
    history = minilora.train(alone, TASK, SETTINGS)
    assert same(models[0], alone)
    assert records(histories[0]) == records(history)


@pytest.mark.parametrize("world", [3, 4])
def test_more_ranks_agree_with_each_other_and_nearly_with_one_process(world):
    """Three ranks get four parts of eight examples: one of them computes two."""
    alone = injected()
    (first, *others), _ = trained_by(world, alone)
    for other in others:
        assert same(first, other)
    minilora.train(alone, TASK, replace(SETTINGS, accumulate=4))
    assert farthest(first, alone) < 1e-3  # the order of a sum of four


REPLAYS = {
    "examples": Examples(minilora.data.polite_log(8, 1), share=0.25),
    "windows": SelfReplay(windows=4, tokens=12),
}


@pytest.mark.parametrize("replay", REPLAYS)
def test_replay_is_shared_out_too(replay):
    alone = injected()
    models, (history, other) = trained_by(2, alone, replay=REPLAYS[replay])
    expected = minilora.train(alone, TASK, SETTINGS, replay=REPLAYS[replay])
    assert same(*models)
    assert records(history) == records(other)
    assert history.losses == pytest.approx(expected.losses, rel=1e-4)
    source = next(name for name in expected.steps[0] if name.endswith("s_loss"))
    for here, there in zip(history.steps, expected.steps, strict=True):
        assert here[source] == pytest.approx(there[source], rel=1e-3, abs=1e-6)
    assert farthest(models[0], alone) < 1e-2


def test_a_full_fine_tune_sends_every_gradient_and_ends_in_the_same_bits():
    alone = minilora.load_base().requires_grad_(True)
    models, _ = trained_by(2, alone, replace(SETTINGS, steps=2, lr=1e-4))
    minilora.train(alone, TASK, replace(SETTINGS, steps=2, lr=1e-4))
    assert same(models[0], alone)
    assert same(models[1], alone)


def uneven_parts(model):
    """Two parts of a batch, of few answer tokens and of many."""
    short = [Example("Status?", "Hull 90%.", "Log: Hull 90%.")]
    long = [Example("Tell me.", "The hull holds, the crew sleeps, and the drive hums along.", "")]
    return [pad(encode_all(model.tokenizer, rows, 512)) for rows in (short, long)]


def gradients(model):
    """All gradients as one row."""
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])


def test_ranks_with_few_and_many_answer_tokens_give_the_gradient_of_the_whole_batch():
    """And a mean of the ranks' means does not: the short answer would count as much as the long."""
    model = injected()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("lora_B"):
                p.normal_(std=0.02)
    parts = uneven_parts(model)
    counts = [part.answer_tokens for part in parts]
    assert counts[1] > 2 * counts[0]
    models = copies(model, 3)  # the third has no part, and takes the step all the same
    losses = together(3, lambda r: mean_over_answers(models[r.rank], parts, ranks=r))
    expected = mean_over_answers(model, parts)
    whole = gradients(model)
    assert losses == [expected] * 3
    for each in models:
        assert torch.equal(gradients(each), whole)
    means = []
    for part in parts:
        model.zero_grad()
        mean_over_answers(model, [part])
        means.append(gradients(model))
    off = (torch.stack(means).mean(0) - whole).norm() / whole.norm()
    assert off > 0.05
    weighted = sum(n * g for n, g in zip(counts, means, strict=True)) / sum(counts)
    assert (weighted - whole).norm() < 1e-5 * whole.norm()


def test_a_parameter_without_a_gradient_anywhere_keeps_none():
    """Zeros would make AdamW count a step, and decay a weight that nothing asked for."""
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    models = copies(model, 2)

    def work(ranks):
        own = models[ranks.rank]
        if ranks.rank == 1:
            own[0].weight.grad = torch.full((2, 2), 3.0)
        losses = ranks.add_up(own, [float(ranks.rank == number) for number in range(2)])
        return losses, [p.grad is None for p in own.parameters()]

    for losses, without in together(2, work):
        assert losses == [1.0, 1.0]
        assert without == [False, True, True, True]
    for each in models:
        assert torch.equal(each[0].weight.grad, torch.full((2, 2), 3.0))


def test_float64_travels_whole():
    models = copies(torch.nn.Linear(1, 1).double(), 2)

    def work(ranks):
        own = models[ranks.rank]
        own.weight.grad = torch.full((1, 1), ranks.rank / 3, dtype=torch.float64)
        return ranks.add_up(own, [ranks.rank / 3])

    assert together(2, work) == [[1 / 3], [1 / 3]]
    assert [each.weight.grad.item() for each in models] == [1 / 3, 1 / 3]


def test_a_rank_that_is_told_to_stop_stops_all_after_the_same_step(tmp_path):
    """And the run goes on from there: with two ranks to the same bits, with three nearly."""
    settings = replace(SETTINGS, steps=6, validate_every=0, out=tmp_path / "run", batch_size=12)
    alone = injected()
    start = copies(alone, 5)
    minilora.train(alone, TASK, replace(settings, out=None))

    def stopped(ranks):
        if ranks.rank == 1:
            own_sum = ranks.sum_over_ranks

            def told_on_the_way(values):
                own_sum(values)
                if ranks.sums == 3:  # the identity, two steps
                    ranks.interrupted.set()

            ranks.sum_over_ranks = told_on_the_way
        return minilora.train(start[ranks.rank], TASK, settings, ranks=ranks)

    histories = together(2, stopped)
    assert [len(history.steps) for history in histories] == [3, 3]
    assert all(history.interrupted for history in histories)
    before = (tmp_path / "run" / "checkpoint.safetensors").read_bytes()
    for world in (3, 2):
        (tmp_path / "run" / "checkpoint.safetensors").write_bytes(before)
        models, _ = trained_by(world, injected(), replace(settings, resume=True))
        assert all(same(models[0], other) for other in models)
        assert same(models[0], alone) == (world == 2)
        assert farthest(models[0], alone) < 1e-3


def test_when_a_rank_fails_the_others_say_so_and_the_first_saves_what_all_had(tmp_path):
    settings = replace(SETTINGS, validate_every=0, out=tmp_path / "run")
    alone = injected()
    models = copies(alone, 2)
    minilora.train(alone, TASK, replace(settings, out=None))

    def work(ranks):
        if ranks.rank == 1:
            own_sum = ranks.sum_over_ranks

            def failing(values):
                if ranks.sums == 3:
                    raise MemoryError("full")
                own_sum(values)

            ranks.sum_over_ranks = failing
        return minilora.train(models[ranks.rank], TASK, settings, ranks=ranks)

    lost, failed = together(2, work)
    assert isinstance(failed, MemoryError)
    assert isinstance(lost, RankLost)
    assert str(lost) == (
        "step 3: rank 0 of 2: another rank ended or does not answer; continue with resume=True, "
        f"out={str(tmp_path / 'run')!r} (a command: --resume)"
    )
    model = injected()
    history = minilora.train(model, TASK, replace(settings, resume=True))  # in one process
    assert len(history.steps) == 4
    assert same(model, alone)


def test_ranks_with_other_examples_seeds_or_steps_are_refused_on_all():
    others = {
        "data": (naval_log(24, 6, seed=5), {}),
        "first weights, seed": (TASK, {"seed": 3}),
        "steps": (TASK, {"steps": 5}),
    }
    for names, (task, more) in others.items():
        models = [injected(), injected(seed=3) if "seed" in more else injected()]

        def work(ranks, models=models, task=task, more=more):
            mine = task if ranks.rank else TASK
            settings = replace(SETTINGS, **(more if ranks.rank else {}))
            return minilora.train(models[ranks.rank], mine, settings, ranks=ranks)

        errors = together(2, work)
        for error in errors:
            assert isinstance(error, ValueError)
            assert f"rank 1 differs from rank 0 in: {names}; expected the same" in str(error)


@pytest.mark.parametrize("who", [0, 1])
def test_resume_on_one_rank_only_is_refused_on_all(who, tmp_path):
    """Who resumes asks the first rank for its file; who does not would go on to another sum."""
    settings = replace(SETTINGS, out=tmp_path / "run", steps=2)
    minilora.train(injected(), TASK, settings)
    models = copies(injected(), 2)

    def work(ranks):
        own = replace(settings, resume=ranks.rank == who, steps=4)
        return minilora.train(models[ranks.rank], TASK, own, ranks=ranks)

    for error in together(2, work):
        assert isinstance(error, ValueError)
        assert "rank 1 differs from rank 0 in: resume; expected the same" in str(error)


def test_replay_on_a_sharded_base_is_refused_before_the_first_step():
    """A source of which no row is due in a step leaves it a part less; the ranks need all."""
    ranks = Ranks(0, 2)
    ranks.sharded = True
    with pytest.raises(ValueError, match="replay does not work on a sharded base"):
        minilora.train(injected(), TASK, SETTINGS, replay=REPLAYS["examples"], ranks=ranks)


def test_files_progress_and_callbacks_are_the_first_ranks(tmp_path, capsys):
    seen = [[], []]
    folders = [tmp_path / "first", tmp_path / "second"]
    models = copies(injected(), 2)

    def work(ranks):
        settings = replace(
            SETTINGS, progress=True, out=folders[ranks.rank], checkpoint_every=2, steps=2
        )
        callbacks = [seen[ranks.rank].append]
        return minilora.train(
            models[ranks.rank], TASK, settings, callbacks=callbacks, ranks=ranks
        ), ranks.sent

    (_, sent), _ = together(2, work)
    assert sorted(file.name for file in folders[0].iterdir()) == [
        "checkpoint.safetensors", "metrics.jsonl"
    ]  # fmt: skip
    assert not folders[1].exists()
    assert [record["step"] for record in seen[0]] == [0, 1, 2, 2]
    assert seen[1] == []
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == (
        "2 ranks: 2 parts of 4 examples a step; 43,116 bytes a step travel; of all weights it "
        "would be 5,216,768"
    )
    # 10,752 values of A and B, 24 of their tensors, 2 parts, a flag to stop
    assert 43_116 == 4 * (10_752 + 24 + 2 + 1)
    assert 2 * 43_116 < sent < 2 * 43_116 + 2_000  # at the start: what all must have in common


def test_a_resuming_rank_needs_no_common_disk(tmp_path):
    file = tmp_path / "checkpoint.safetensors"
    file.write_bytes(b"state")

    def work(ranks, name=file):
        with ranks.copy_of(name) as own:
            return own == name, own.read_bytes() if own.is_file() else None

    assert together(2, work) == [(True, b"state"), (False, b"state")]
    nowhere = tmp_path / "nothing"
    assert together(2, lambda r: work(r, nowhere)) == [(True, None), (False, None)]


def test_a_batch_is_shared_out_or_refused():
    parts = {2: 2, 3: 4, 5: 8, 32: 32}
    for world, expected in parts.items():
        assert Ranks(0, world).divide(TrainConfig(batch_size=32)).accumulate == expected
    assert Ranks(0, 2).divide(TrainConfig(batch_size=32, accumulate=8)).accumulate == 8
    with pytest.raises(ValueError, match="a batch of 2 leaves nothing to compute for some of 3"):
        Ranks(0, 3).divide(TrainConfig(batch_size=2))


def test_uneven_shares_are_announced():
    [note] = Ranks(0, 3).notes(injected(), TrainConfig(batch_size=8, accumulate=4))
    assert note.startswith("3 ranks: 4 parts of 2 examples a step, 2 for some ranks and 1 for")


def test_without_torchrun_join_gives_one_process(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with join() as ranks:
        assert (ranks.world, ranks.writes) == (1, True)


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_a_handler_that_was_not_set_from_python_does_not_end_the_run_with_an_error(monkeypatch):
    """``signal.signal`` returns None for such a one, and takes no None."""
    before, real, given = signal.getsignal(signal.SIGTERM), signal.signal, []

    def set_from_c(number, handler):
        given.append(handler)
        real(number, handler)  # raises TypeError for None

    monkeypatch.setattr(signal, "signal", set_from_c)
    with ending_in_words(Alone()):
        pass
    assert given[1] == signal.SIG_DFL
    real(signal.SIGTERM, before)


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_after_the_last_step_sigterm_cuts_nothing_off(tmp_path, monkeypatch):
    """What is left then is to save: the signal comes between writing a file and its new name."""
    ranks, model = Alone(), injected()
    rename, came = os.replace, []

    def told_to_stop(*paths, **more):
        os.kill(os.getpid(), signal.SIGTERM)
        assert ranks.interrupted.wait(5)
        came.append(paths)
        rename(*paths, **more)

    with ending_in_words(ranks):
        minilora.train(model, TASK, replace(SETTINGS, steps=1), ranks=ranks)
        with monkeypatch.context() as patched:
            patched.setattr(os, "replace", told_to_stop)
            told = save_adapter(model, tmp_path / "told")
    assert came
    for file in save_adapter(model, tmp_path / "quiet").iterdir():
        assert (told / file.name).read_bytes() == file.read_bytes()
    assert len([*told.iterdir()]) == len([*(tmp_path / "quiet").iterdir()])


def test_dropout_is_seeded_by_part_and_not_by_rank():
    """The parts have masks of their own, and it does not matter which rank draws them."""
    config = LoraConfig(r=4, lora_dropout=0.5)
    model = injected(config)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("lora_B"):
                p.normal_(std=0.02)
    parts = uneven_parts(model)

    class Only(Ranks):
        """A rank that computes alone, and adds nothing up."""

        def add_up(self, model, losses):
            return losses

    def loss(parts, own, seed=5):
        torch.manual_seed(seed)
        return mean_over_answers(model, parts, ranks=own)

    model.train()
    one, first, second = Only(0, 1), Only(0, 2), Only(1, 2)
    assert loss(parts, one) == loss(parts, first) + loss(parts, second)
    assert loss(parts, one) != loss(parts, one, seed=6)
    twice = [parts[1], parts[1]]
    assert loss(twice, first) != loss(twice, second)


def test_metrics_are_json(tmp_path):
    """The loss of a rank's part comes back as a number, not as a tensor."""
    trained_by(2, injected(), replace(SETTINGS, out=tmp_path, steps=1))
    lines = (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["step"] for line in lines] == [0, 1, 1]
