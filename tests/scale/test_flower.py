"""Flower's two apps: in this process through a Grid of twenty lines, then as processes on loopback.

They run where flwr is installed, in an environment of its own (docs/scale.md, make test-flower).
"""

import io
import json
import math
import random
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

flwr = pytest.importorskip("flwr", reason="flwr lives in its own environment: make test-flower")
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict  # noqa: E402

from benchmarks.flower_grid import NODES, OneProcess, serve  # noqa: E402
from benchmarks.flower_loopback import machines_in  # noqa: E402
from benchmarks.flower_loopback import write_logs as write_shards  # noqa: E402
from minilora import data, load_base  # noqa: E402
from minilora.formats.save_and_load import load_adapter  # noqa: E402
from minilora.lora.combining import low_rank_parts  # noqa: E402
from minilora.scale import Rounds, federate, split_among  # noqa: E402
from minilora.scale.flower import LoraRounds, client_app, packed, rounds_of, unpacked, write_app  # noqa: E402
from minilora.scale.privacy import flower_sigma  # noqa: E402
from minilora.scale.rounds import answer_tokens, first_parts  # noqa: E402
from minilora.scale.wire import read_round, sent  # noqa: E402

from .flower_wire import Recorder, check, leaks  # noqa: E402

LOGS = data.naval_log(40, 10)
CONFIG = {"rounds": 2, "steps": 1, "batch-size": 2, "r": 2, "fewest": 2, "lora-alpha": 4.0}


def write_logs(folder, clients=2):
    """Each client's own file of logs."""
    return write_shards(folder, split_among(LOGS.train, clients))


@pytest.mark.parametrize("how", ["stack", "factors", "frozen_a", "svd"])
def test_the_apps_do_what_one_process_does_and_only_a_and_b_and_counts_leave(how, tmp_path):
    files = write_logs(tmp_path)
    grid = OneProcess(files, {**CONFIG, "how": how})
    serve(grid, {**CONFIG, "how": how}, tmp_path / "out")
    rounds = rounds_of({**CONFIG, "how": how})
    shards = split_among(LOGS.train, 2)
    named = {str(node): own for node, own in zip(NODES, shards.values(), strict=True)}
    oracle, history = federate(named, rounds)
    parts, done = read_round(tmp_path / "out" / "rounds.safetensors", rounds)
    assert done == 2
    for path, part in parts.items():
        torch.testing.assert_close(part.B @ part.A, oracle[path].B @ oracle[path].A)
    saved = load_adapter(load_base(), tmp_path / "out" / "adapter")
    assert low_rank_parts(saved).keys() == parts.keys()
    assert len(grid.messages) == 4
    for sent_out, reply in grid.messages:
        content = reply.content
        assert list(content) == ["arrays", "counts"]
        assert all(key.endswith(("lora_A.weight", "lora_B.weight")) for key in content["arrays"])
        if how == "frozen_a":
            assert not any("lora_A" in key for key in content["arrays"])
        assert set(content["counts"]) == {"tokens", "examples"}
        assert all(isinstance(count, int) for count in content["counts"].values())
        assert not content.config_records
        assert set(sent_out.content["config"]) == {"server-round"}
        body = b"".join(array.data for array in content["arrays"].values())
        numbers = sum(array.numpy().nbytes for array in content["arrays"].values())
        assert numbers == history[0].bytes_up
        assert len(body) - numbers <= 128 * len(content["arrays"])  # numpy's headers, no more
        wire = bytes(reply.content.deflate()) + body
        for own in shards.values():
            assert not any(example.input.encode() in wire for example in own)


@pytest.mark.parametrize("how", ["stack", "svd"])
def test_a_node_s_own_rank_is_that_of_one_process(how, tmp_path):
    config = {**CONFIG, "how": how}
    grid = OneProcess(write_logs(tmp_path), config, ranks=(None, 1))
    serve(grid, config, tmp_path / "out")
    shards = split_among(LOGS.train, 2)
    named = {str(node): own for node, own in zip(NODES, shards.values(), strict=True)}
    oracle, _ = federate(named, rounds_of(config), ranks={"22": 1})
    parts, _ = read_round(tmp_path / "out" / "rounds.safetensors", rounds_of(config))
    for path, part in parts.items():
        torch.testing.assert_close(part.B @ part.A, oracle[path].B @ oracle[path].A)
    replies = [reply.content["arrays"] for _, reply in grid.messages]
    ranks = {len(each[name].numpy()) for each in replies for name in each if "lora_A" in name}
    assert ranks == {1, 2}


def test_a_node_that_is_gone_has_no_say_and_too_few_make_no_round(tmp_path):
    files = write_logs(tmp_path)
    config = {**CONFIG, "fewest": 1, "how": "svd"}
    serve(OneProcess(files, config, broken=[22]), config, tmp_path / "one")
    only = {"11": split_among(LOGS.train, 2)["client 0"]}
    oracle, _ = federate(only, rounds_of(config))
    parts, done = read_round(tmp_path / "one" / "rounds.safetensors", rounds_of(config))
    assert done == 2
    path = next(iter(parts))
    torch.testing.assert_close(parts[path].B @ parts[path].A, oracle[path].B @ oracle[path].A)
    for how in ("svd", "stack"):
        config, out = {**CONFIG, "how": how}, tmp_path / f"none {how}"
        with pytest.raises(RuntimeError, match=r"no round was made in 2: .* least fewest=2"):
            serve(OneProcess(files, config, broken=[22]), config, out)
        assert not out.exists()


SECRET = "The engines of the Anna are too hot."


def test_a_client_that_fails_tells_the_server_nothing_but_that(tmp_path, caplog):
    """Flower sends an exception's type and words; a reader's error quotes the line and the path."""
    files = write_logs(tmp_path)
    files[0].write_text(f'{{"instruction": "{SECRET}', encoding="utf-8")
    config = {**CONFIG, "how": "svd"}
    with pytest.raises(RuntimeError) as caught:
        serve(OneProcess(files, config), config, tmp_path / "out")
    assert str(caught.value) == "this client failed; its own log says why"
    assert SECRET in caplog.text
    assert "line 1: not valid JSON" in caplog.text


def test_a_server_goes_on_after_its_last_whole_round(tmp_path):
    files = write_logs(tmp_path)
    one = {**CONFIG, "rounds": 1}
    serve(OneProcess(files, one), one, tmp_path / "out")
    grid = OneProcess(files, CONFIG)
    serve(grid, CONFIG, tmp_path / "out")
    assert len(grid.messages) == 2
    assert grid.messages[0][0].content["config"]["server-round"] == 2
    serve(OneProcess(files, CONFIG), CONFIG, tmp_path / "whole")
    resumed, whole = (
        read_round(tmp_path / name / "rounds.safetensors", rounds_of(CONFIG))[0]
        for name in ("out", "whole")
    )
    assert all(torch.equal(resumed[path].B, whole[path].B) for path in whole)


def spoiled(record, kind):
    """A record whose first array is bytes that no client of ours would send."""
    first = next(iter(record.values()))
    if kind == "no bytes":
        first.data = b""
    elif kind == "zip":
        buffer = io.BytesIO()
        np.savez(buffer, first.numpy())
        first.data = buffer.getvalue()
    elif kind == "text":
        first.data = Array(np.array(["a", "b"])).data
    elif kind == "stype":
        first.stype = "pickle"
    return record


WRONG = ("nan", "name", "shape", "no tokens", "half a token", "tokens in a list", "endless tokens",
         "int64", "float16", "no bytes", "zip", "text", "stype", "no arrays", "no A",
         "A that is frozen")  # fmt: skip


@pytest.mark.parametrize("kind", WRONG)
def test_a_reply_that_does_not_fit_is_left_out(kind, tmp_path):
    how = "frozen_a" if kind == "A that is frozen" else "svd"
    rounds = rounds_of({**CONFIG, "fewest": 1, "how": how})
    first = first_parts(load_base, rounds)
    grid = OneProcess(write_logs(tmp_path), CONFIG)
    strategy = LoraRounds(rounds, first, 0, tmp_path / "rounds.safetensors")
    asked = [*strategy.configure_train(1, packed(sent(first, rounds)), ConfigRecord(), grid)]

    def reply(message, spoil):
        tensors, tokens = sent(first, rounds), 5
        name = next(iter(tensors))
        if spoil == "nan":
            tensors[name] = torch.full_like(tensors[name], float("nan"))
        elif spoil == "name":
            tensors["prompts"] = torch.ones(1)
        elif spoil == "shape":
            tensors[name] = torch.ones(2, 3)
        elif spoil == "no A":
            del tensors[name.replace("lora_B", "lora_A")]
        elif spoil == "A that is frozen":
            tensors = {key: 1 + tensor for key, tensor in sent(first, rounds_of({})).items()}
        elif spoil in ("int64", "float16"):
            tensors = {key: tensor.to(getattr(torch, spoil)) for key, tensor in tensors.items()}
        tokens = {"no tokens": 0, "half a token": 5.5, "tokens in a list": [5],
                  "endless tokens": math.inf}.get(spoil, tokens)  # fmt: skip
        counts = MetricRecord({"tokens": tokens})
        records = {"arrays": spoiled(packed(tensors), spoil), "counts": counts}
        if spoil == "no arrays":
            del records["arrays"]
        return Message(RecordDict(records), reply_to=message)

    arrays, counts = strategy.aggregate_train(1, [reply(asked[0], kind), reply(asked[1], "")])
    assert counts["clients"] == 1
    assert {tensor.dtype for tensor in unpacked(arrays).values()} == {torch.float32}


def test_flowers_own_noise_has_the_size_that_the_accountant_takes(tmp_path):
    config = {**CONFIG, "how": "frozen_a", "clipping-norm": 0.01, "flower-epsilon": 2.0}
    grid = OneProcess(write_logs(tmp_path), config)
    rounds = rounds_of(config)
    start = packed(sent(first_parts(load_base, rounds), rounds))
    arrays = RecordDict({"arrays": start, "config": ConfigRecord({"server-round": 1})})
    message = Message(arrays, dst_node_id=11, message_type="train")
    reply = client_app(message, grid.contexts[11])
    noise = np.concatenate([a.numpy().ravel() for a in reply.content["arrays"].values()])
    sigma = flower_sigma(0.02, 2.0, 1e-5)
    assert noise.std() == pytest.approx(sigma, rel=0.06)


def test_arrays_come_back_bit_by_bit_and_a_pickle_is_refused():
    tensors = {"x": torch.randn(3, 4), "empty": torch.zeros(0, 4)}
    back = unpacked(packed(tensors))
    assert all(torch.equal(back[name], tensors[name]) for name in tensors)
    danger, buffer = ArrayRecord({"x": Array(np.zeros(1))}), io.BytesIO()
    np.save(buffer, np.array([{"any": "object"}], dtype=object), allow_pickle=True)
    danger["x"].data = buffer.getvalue()
    with pytest.raises(ValueError, match="allow_pickle=False"):
        unpacked(danger)


def test_a_runs_config_is_checked():
    with pytest.raises(ValueError, match="no setting 'stepps'; known are batch_size"):
        rounds_of({"stepps": 1})
    assert rounds_of(CONFIG) == replace(Rounds(), rounds=2, steps=1, batch_size=2, r=2, fewest=2,
                                        lora_alpha=4.0)  # fmt: skip
    private = {**CONFIG, "how": "svd", "clipping-norm": 1.0, "flower-epsilon": 2.0}
    rounds_of({**private, "flower-sensitivity": 2.0})
    for bad, words in [
        ({"how": "stack"}, "flower-epsilon cannot go with how='stack'"),
        ({"clipping-norm": 0.0}, "flower-epsilon without a clipping-norm"),
        ({"noise-multiplier": 1.0}, "flower-epsilon or noise-multiplier, got both"),
        ({"flower-sensitivity": 1.0}, r"must be at least 2\.0, twice the clipping-norm"),
        ({"flower-epsilon": -1.0}, "flower-epsilon must be a finite positive number, got -1"),
        ({"flower-delta": 1.0}, "delta must be between 0 and 1"),
        ({"timeout": 0}, "timeout must be a finite positive number, got 0"),
    ]:
        with pytest.raises(ValueError, match=words):
            rounds_of({**private, **bad})


def test_the_apps_folder_holds_the_settings_whatever_stands_in_them(tmp_path):
    """TOML's own reader is the oracle."""
    tomllib = pytest.importorskip("tomllib", reason="Python 3.11 brings it")
    config = {**CONFIG, "out": 'a "new" folder\\no\ttab é', "lr": 1e-5}
    folder = write_app(tmp_path / "app", config)
    text = (folder / "pyproject.toml").read_text(encoding="utf-8")
    settings = tomllib.loads(text)["tool"]["flwr"]["app"]["config"]
    assert {key: settings[key] for key in config} == config


@pytest.fixture
def machines(tmp_path):
    with machines_in(tmp_path) as machines:
        yield machines


def done_rounds(file):
    """The rounds that the server has kept, by the file's own header."""
    if not file.exists():
        return 0
    content = file.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return json.loads(header["__metadata__"]["federated"])["done"]


@pytest.mark.scale
@pytest.mark.long
def test_on_the_wire_a_node_sends_its_factors_two_counts_and_nothing_of_a_bad_line(
    machines, tmp_path
):
    """Every byte that two of three supernodes send: one trains, one has a line that is no JSON."""
    config = {**CONFIG, "out": str(tmp_path / "out"), "how": "svd"}
    dealt = split_among(LOGS.train, 3)
    files = write_shards(tmp_path, dealt)
    files[2].write_text(f'{{"instruction": "{SECRET}', encoding="utf-8")
    machines.link()
    trains, fails = Recorder(machines.port), Recorder(machines.port)
    machines.node("trains", files[0], r=1, port=trains.port)
    machines.node("other", files[1])
    machines.node("fails", files[2], port=fails.port)
    machines.wait_for(lambda: machines.nodes_are_there(3))
    print(machines.flwr("run", str(write_app(tmp_path / "app", config)), "here"))
    machines.wait_for((tmp_path / "out" / "adapter" / "adapter_config.json").exists)
    small = rounds_of({**config, "r": 1, "lora-alpha": 2.0})
    arrays, own = sent(first_parts(load_base, small), small), dealt["client 0"]
    counts = {"tokens": answer_tokens(load_base(), own), "examples": len(own)}
    texts = [text for example in own for text in (example.input, example.output)]
    expected = arrays, counts, CONFIG["rounds"], texts
    check(trains.requests(), *expected)
    check(fails.requests(), {}, {}, CONFIG["rounds"], [SECRET, str(files[2])])
    assert SECRET in machines.log("fails")
    assert SECRET not in machines.log("link")
    for said, leaky in leaks(trains.requests(), texts):  # or the check would prove nothing
        with pytest.raises(AssertionError, match=said):
            check(leaky, *expected)


@pytest.mark.scale
@pytest.mark.long
@pytest.mark.parametrize("clients", [2, 8])
def test_processes_on_loopback_make_the_rounds(clients, machines, tmp_path):
    config = {**CONFIG, "fewest": clients, "out": str(tmp_path / "out")}
    app = write_app(tmp_path / "app", config)
    machines.link()
    for number, file in enumerate(write_logs(tmp_path, clients)):
        machines.node(f"node {number}", file)
    print(machines.flwr("run", str(app), "here"))
    file = tmp_path / "out" / "rounds.safetensors"
    machines.wait_for((tmp_path / "out" / "adapter" / "adapter_config.json").exists)
    parts, done = read_round(file, rounds_of({k: v for k, v in config.items() if k != "out"}))
    assert done == 2
    assert {len(part.A) for part in parts.values()} == {2 * 2 * clients}
    saved = load_adapter(load_base(), tmp_path / "out" / "adapter")
    assert low_rank_parts(saved).keys() == parts.keys()


@pytest.mark.scale
@pytest.mark.long
def test_a_client_is_killed_and_the_rounds_go_on_without_it_and_then_with_it(machines, tmp_path):
    config = {**CONFIG, "rounds": 6, "fewest": 1, "how": "svd", "out": str(tmp_path / "out")}
    app = write_app(tmp_path / "app", config)
    files = write_logs(tmp_path)
    machines.link()
    machines.node("one", files[0])
    machines.node("two", files[1])
    machines.wait_for(lambda: machines.log("link").count("Activated node_id") == 2)
    print(machines.flwr("run", str(app), "here"))
    file = tmp_path / "out" / "rounds.safetensors"
    machines.wait_for(lambda: done_rounds(file) >= 1)
    time.sleep(random.uniform(0, 3))
    machines.kill("two")
    seen = done_rounds(file)
    machines.wait_for(lambda: done_rounds(file) >= seen + 1)
    machines.node("two", files[1])
    machines.wait_for((tmp_path / "out" / "adapter" / "adapter_config.json").exists)
    assert done_rounds(file) == 6
