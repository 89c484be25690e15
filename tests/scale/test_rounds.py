"""Federated rounds in one process: what travels, what comes out, who may be missing."""

import math
from collections import Counter
from dataclasses import replace

import pytest
import torch

from minilora import data, load_base, lora_layers, train
from minilora.lora.combining import LowRank
from minilora.scale import (
    Rounds,
    Update,
    aggregate,
    epsilon,
    federate,
    final_model,
    relative_error,
    split_among,
)
from minilora.scale.rounds import answer_tokens, client_update, first_parts, model_with, of_rank
from minilora.scale.shards import first_word
from minilora.scale.wire import received, sent, size
from minilora.training.batches import encode_all, pad

LOGS = data.naval_log(60, 10)
TWO = split_among(LOGS.train, 2, seed=1)
SHORT = Rounds(rounds=2, steps=1, batch_size=2, r=2)
HOWS = ("factors", "svd", "stack", "frozen_a")


def equal(one, other):
    return one.keys() == other.keys() and all(
        torch.equal(one[path].A, other[path].A) and torch.equal(one[path].B, other[path].B)
        for path in one
    )


@pytest.mark.parametrize("how", HOWS)
def test_the_same_seed_gives_the_same_run_and_the_result_fits_a_model(how):
    rounds = replace(SHORT, how=how)
    parts, history = federate(TWO, rounds)
    assert equal(parts, federate(TWO, rounds)[0])
    assert [round.number for round in history] == [1, 2]
    assert all(round.clients == ("client 0", "client 1") for round in history)
    model = final_model(load_base, parts, rounds)
    rank = 2 * 2 * 2 if how == "stack" else 2  # clients, rounds, r
    assert {layer.r for _, layer in lora_layers(model)} == {rank}
    if how in ("stack", "frozen_a"):
        assert max(round.error for round in history) < 1e-6
    assert history[0].tokens == sum(answer_tokens(model, own) for own in TWO.values())


@pytest.mark.parametrize("how", ["svd", "frozen_a", "stack"])
def test_one_client_in_one_round_is_training_alone(how):
    """Nothing but the trainer of the library: its own loop is the oracle."""
    rounds = replace(SHORT, how=how, rounds=1, steps=2)
    parts, _ = federate({"only": LOGS.train}, rounds)
    model = model_with(load_base, first_parts(load_base, rounds), rounds, 1)
    for _, layer in lora_layers(model):
        layer.lora_A.requires_grad_(how != "frozen_a")
    train(model, list(LOGS.train), rounds.settings("only", 1))
    ids = pad(encode_all(model.tokenizer, LOGS.valid[:4], 512)).ids
    with torch.no_grad():
        ours = final_model(load_base, parts, rounds).eval()(ids)
        torch.testing.assert_close(ours, model.eval()(ids), rtol=1e-4, atol=1e-4)


def test_under_frozen_a_only_b_travels_and_a_is_the_seeds():
    rounds = replace(SHORT, how="frozen_a")
    first = first_parts(load_base, rounds)
    update = client_update(load_base, TWO["client 0"], first, rounds, 1, "client 0")
    assert {name.rsplit(".", 2)[1] for name in sent(update.parts, rounds)} == {"lora_B"}
    assert size(sent(update.parts, rounds)) < 0.45 * size(sent(update.parts, SHORT))
    back = received(sent(update.parts, rounds), first)
    assert equal(back, update.parts)
    assert all(torch.equal(update.parts[path].A, first[path].A) for path in first)
    assert any(update.parts[path].B.any() for path in first)


def test_what_does_not_fit_is_refused():
    first = first_parts(load_base, replace(SHORT, how="factors"))
    tensors = sent(first, SHORT)
    name = next(name for name in tensors if name.endswith("lora_B.weight"))
    with pytest.raises(ValueError, match=rf"does not fit this adapter: {name} is missing"):
        received({key: value for key, value in tensors.items() if key != name}, first)
    with pytest.raises(ValueError, match="base.weight is missing or unknown"):
        received({**tensors, "base.weight": torch.ones(1)}, first)


def test_a_client_that_is_away_has_no_say_and_may_come_back():
    who = {1: ["client 0"], 2: ["client 1", "client 0"]}
    parts, history = federate(TWO, SHORT, online=who.__getitem__)
    assert [round.clients for round in history] == [("client 0",), ("client 0", "client 1")]
    alone, _ = federate({"client 0": TWO["client 0"]}, replace(SHORT, rounds=1))
    first = next(iter(parts))
    assert torch.equal(parts[first].A[:2], alone[first].A)  # the stack's first round is its own
    with pytest.raises(ValueError, match="at least 2 clients, got 1"):
        federate(TWO, replace(SHORT, fewest=2), online=who.__getitem__)


@pytest.mark.parametrize("how", ["factors", "stack"])
def test_a_server_that_is_killed_goes_on_to_the_same_bits(how, tmp_path):
    rounds = replace(SHORT, how=how)
    whole, _ = federate(TWO, rounds)

    class KilledError(Exception):
        pass

    def kill(round, parts):
        raise KilledError

    with pytest.raises(KilledError):
        federate(TWO, rounds, out=tmp_path, watch=kill)
    parts, history = federate(TWO, rounds, out=tmp_path)
    assert [round.number for round in history] == [2]
    assert equal(parts, whole)
    with pytest.raises(ValueError, match="give another folder"):
        federate(TWO, replace(rounds, lr=1e-3), out=tmp_path)
    with pytest.raises(ValueError, match="after round 2, expected 1 at most"):
        federate(TWO, replace(rounds, rounds=1), out=tmp_path)
    (tmp_path / "rounds.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"rounds\.safetensors"):
        federate(TWO, rounds, out=tmp_path)


@pytest.mark.parametrize("how", ["factors", "frozen_a"])
def test_a_client_leaves_what_it_began_with_as_it_was(how):
    """Or the next client of one process would begin where this one ended."""
    rounds = replace(SHORT, how=how)
    first, kept = first_parts(load_base, rounds), first_parts(load_base, rounds)
    one = client_update(load_base, TWO["client 0"], first, rounds, 1, "a")
    assert equal(first, kept)
    assert equal(one.parts, client_update(load_base, TWO["client 0"], first, rounds, 1, "a").parts)


def test_clipping_bounds_what_a_client_changes_and_noise_has_its_size():
    clipped = replace(SHORT, how="frozen_a", clipping_norm=1e-3)
    noisy = replace(clipped, noise_multiplier=2.0)
    first = first_parts(load_base, clipped)
    plain = client_update(load_base, TWO["client 0"], first, clipped, 1, "a", noise_seed=3)
    change = torch.cat([part.B.flatten() for part in plain.parts.values()])
    assert change.norm().item() == pytest.approx(1e-3, rel=1e-4)
    twice = [client_update(load_base, TWO["client 0"], first, noisy, 1, "a") for _ in range(2)]
    noise = torch.cat([part.B.flatten() for part in twice[0].parts.values()]) - change
    sigma = 2.0 * 2 * 1e-3  # noise multiplier, and two clipped changes are 2 C apart
    assert noise.std().item() == pytest.approx(sigma, rel=0.05)
    assert not equal(twice[0].parts, twice[1].parts)  # secret unless a seed is given
    seeded = [
        client_update(load_base, TWO["client 0"], first, noisy, 1, "a", noise_seed=3)
        for _ in range(2)
    ]
    assert equal(seeded[0].parts, seeded[1].parts)
    assert epsilon(noisy.noise_multiplier, noisy.rounds, 1e-5) < 5


def test_ranks_that_differ_and_bases_of_other_names_meet_in_a_sentence():
    first = first_parts(load_base, replace(SHORT, how="svd"))
    one = client_update(load_base, TWO["client 0"], first, replace(SHORT, how="svd"), 1, "a")
    wider = replace(SHORT, how="svd", r=3)
    parts = first_parts(load_base, wider)
    two = client_update(load_base, TWO["client 1"], parts, wider, 1, "b")
    updates = {"a": one, "b": two}
    assert relative_error(updates, aggregate(updates, "stack")) < 1e-6
    assert {len(part.A) for part in aggregate(updates, "svd", rank=2).values()} == {2}
    with pytest.raises(ValueError, match="needs one for all: take 'svd' or 'stack'"):
        aggregate(updates, "factors")


@pytest.mark.parametrize("how", ["stack", "svd"])
def test_a_client_may_train_a_smaller_rank(how):
    """The whole matrices of what each client sends are the oracle; r = 3 and r = 1, one scaling."""
    rounds = replace(SHORT, how=how, r=3, lora_alpha=5.0, steps=2)
    parts, history = federate(TWO, rounds, ranks={"client 1": 1})
    each = 3 + 1
    assert {len(part.A) for part in parts.values()} == {2 * each if how == "stack" else 3}
    if how == "stack":
        assert max(round.error for round in history) < 1e-6
    assert final_model(load_base, parts, rounds)
    small = rounds.of_rank(1)
    start = first_parts(load_base, rounds)
    own = client_update(load_base, TWO["client 1"], start, small, 1, "client 1")
    assert {len(part.A) for part in own.parts.values()} == {1}
    assert {part.scaling for part in own.parts.values()} == {rounds.lora_alpha / rounds.r}
    path = next(iter(parts))
    before, after = parts, of_rank(parts, 1)
    whole = (before[path].B @ before[path].A).double() * before[path].scaling
    U, S, Vh = torch.linalg.svd(whole)
    best = S[0] * U[:, :1] @ Vh[:1]
    torch.testing.assert_close(
        (after[path].B @ after[path].A).double() * after[path].scaling, best, rtol=1e-4, atol=1e-6
    )


def test_after_a_round_of_small_clients_alone_the_rank_is_the_runs():
    """Round 1 has rank 1 to give; what all begin round 2 with is the same product in rank 4."""
    rounds, seen = replace(SHORT, how="svd", rounds=3, r=4), []

    def online(number):
        return ["client 0"] if number == 1 else [*TWO]

    def watch(round, parts):
        seen.append(parts)

    parts, history = federate(TWO, rounds, ranks={"client 0": 1}, online=online, watch=watch)
    assert [{len(part.A) for part in each.values()} for each in seen] == [{4}] * 3
    small = rounds.of_rank(1)
    start = first_parts(load_base, rounds)
    alone = client_update(load_base, TWO["client 0"], start, small, 1, "client 0")
    for path, part in alone.parts.items():
        torch.testing.assert_close(seen[0][path].B @ seen[0][path].A, part.B @ part.A)
        assert seen[0][path].A[1:].any()
        assert not seen[0][path].B[:, 1:].any()
        assert torch.linalg.matrix_rank((parts[path].B @ parts[path].A).double(), rtol=1e-5) > 1
    assert {part.scaling for part in parts.values()} == {rounds.lora_alpha / rounds.r}
    assert all(round.error < 0.5 for round in history)


def test_scalings_that_differ_by_rounding_alone_are_one():
    """α · r / R / r is not always α / R to the bit."""
    one = LowRank(torch.eye(2, 4), torch.eye(3, 2), 1.6)
    other = one._replace(scaling=math.nextafter(1.6, 2))
    result = aggregate({"a": Update({"q": one}, 1), "b": Update({"q": other}, 1)}, "svd")["q"]
    assert result.scaling == pytest.approx(1.6, rel=1e-12)


def test_a_rank_of_its_own_is_a_smaller_one_and_not_where_factors_are_averaged():
    with pytest.raises(ValueError, match="how='frozen_a' takes one rank for all clients"):
        replace(SHORT, how="frozen_a").of_rank(1)
    for r in (3, 0, True, 1.5):
        with pytest.raises(ValueError, match="a client's r must be from 1 to the run's r=2"):
            SHORT.of_rank(r)
    assert SHORT.of_rank(None) is SHORT


def test_settings_are_checked():
    for bad, words in [
        ({"how": "stck"}, "did you mean 'stack'"),
        ({"rounds": 0}, "rounds must be a whole number of at least 1, got 0"),
        ({"fewest": True}, "fewest must be a whole number"),
        ({"noise_multiplier": 1.0}, "noise without a clipping_norm promises nothing"),
        ({"clipping_norm": -1.0}, "clipping_norm must be a finite positive number, got -1"),
        ({"r": 0}, "r must be"),
        ({"steps": 0}, "steps must be"),
    ]:
        with pytest.raises(ValueError, match=words):
            replace(SHORT, **bad)
    assert Rounds(targets="all-linear").lora().target_modules == "all-linear"


def test_a_data_set_is_dealt_out_whole():
    examples = LOGS.train
    for concentration in (math.inf, 10.0, 0.5):
        dealt = split_among(examples, 3, concentration=concentration, seed=4)
        together = Counter(example for own in dealt.values() for example in own)
        assert together == Counter(examples)
        assert dealt == split_among(examples, 3, concentration=concentration, seed=4)
    skewed = split_among(data.naval_log(600, 1).train, 3, concentration=0.1)
    labels = [Counter(map(first_word, own)) for own in skewed.values()]
    most = [max(own[name] for own in labels) / sum(own[name] for own in labels) for name in
            set().union(*labels)]  # fmt: skip
    assert sum(most) / len(most) > 0.8  # most of a label lies with one client
    for arguments in ({"clients": 0}, {"clients": 61}, {"clients": 3, "least": 21}):
        with pytest.raises(ValueError, match="of 60 examples for each of"):
            split_among(examples, **arguments)
    for concentration in (0, 1e-4, math.nan):  # 1e-4 dealt a label alike to all, most of the time
        with pytest.raises(ValueError, match=r"concentration must be at least 0\.01"):
            split_among(examples, 2, concentration=concentration)
    with pytest.raises(ValueError, match="take a larger concentration"):
        split_among(examples, 6, concentration=0.01, least=10)


def test_the_smallest_concentration_gives_a_label_to_one_client():
    dealt = split_among(data.naval_log(600, 1).train, 2, concentration=0.01, seed=2)
    labels = [Counter(map(first_word, own)) for own in dealt.values()]
    shares = [max(own[name] for own in labels) / sum(own[name] for own in labels)
              for name in set().union(*labels)]  # fmt: skip
    assert sum(shares) / len(shares) > 0.97
