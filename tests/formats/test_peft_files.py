"""The two files always belong together, whatever is killed; damage is refused or read exactly."""

import copy
import dataclasses
import json
import os
import random
import signal
import struct
import time
from collections import Counter
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft.utils.other import get_pattern_key
from safetensors.numpy import load
from torch import nn

from minilora import LoraConfig, inject, load_adapter, save_adapter
from minilora.formats import peft_files
from minilora.formats.model_card import CARD
from minilora.formats.peft_files import (
    ASIDE,
    CONFIG,
    TENSORS,
    UNSUPPORTED,
    is_tame,
    lora_config,
    names_its_targets,
)
from minilora.lora.layer import lora_layers

from .. import profiles
from ..lora.test_injection import fill
from ..strategies import damaged


def adapted(r=2, lora_alpha=3.0, seed=0):
    """Two tiny Linears with adapters."""
    torch.manual_seed(7)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    torch.manual_seed(seed)
    inject(model, LoraConfig(r=r, lora_alpha=lora_alpha, target_modules=["0", "1"]))
    fill(model)
    return model


def plain():
    torch.manual_seed(7)
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))


X = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))


# ---- A save that is killed ----


def in_a_child(action):
    """Run an action in a forked process and kill it after ten seconds; its exit status."""
    child = os.fork()
    if child == 0:
        try:
            action()
        finally:
            os._exit(0)
    end = time.monotonic() + 10
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    pytest.fail("the child hung")


def what_peft_would_serve(folder):
    """(tensors, alpha) as PEFT combines them: both files as they are; None without a config."""
    if not (folder / CONFIG).exists():
        return None
    config = json.loads((folder / CONFIG).read_text())
    tensors = load((folder / TENSORS).read_bytes())
    assert config["r"] == tensors["base_model.model.0.lora_A.weight"].shape[0]
    return {key: value.tobytes() for key, value in tensors.items()}, config["lora_alpha"]


def die_before(step, monkeypatch):
    """Let the process kill itself just before the given file operation of a save."""
    count = iter(range(1000))

    def counted(real):
        def operation(*arguments, **named):
            if next(count) == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **named)

        return operation

    monkeypatch.setattr(os, "replace", counted(os.replace))
    monkeypatch.setattr(Path, "unlink", counted(Path.unlink))
    monkeypatch.setattr(Path, "chmod", counted(Path.chmod))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("other_alpha", [3.0, 5.0], ids=["same config", "another config"])
def test_killed_before_any_file_operation_a_save_leaves_the_old_adapter_or_the_new(
    tmp_path, monkeypatch, other_alpha
):
    old, new = adapted(seed=1), adapted(lora_alpha=other_alpha, seed=2)
    seen, killed = set(), 0
    for step in range(20):
        folder = tmp_path / str(step)
        save_adapter(old, folder)
        served = [what_peft_would_serve(folder)]

        def save(step=step, folder=folder):
            with monkeypatch.context() as patch:
                die_before(step, patch)
                save_adapter(new, folder)

        status = in_a_child(save)
        killed += os.WIFSIGNALED(status)
        answer = load_adapter(plain(), folder)(X)
        assert torch.equal(answer, old(X)) or torch.equal(answer, new(X))
        in_peft = what_peft_would_serve(folder)
        save_adapter(new, tmp_path / "new")
        served.append(what_peft_would_serve(tmp_path / "new"))
        none_seen = in_peft is None
        assert in_peft in served or (none_seen and other_alpha != 3.0), "old, new, or no adapter"
        seen.add((torch.equal(answer, new(X)), none_seen))
        save_adapter(load_adapter(plain(), folder), folder)  # and so it is repaired
        assert sorted(f.name for f in folder.iterdir() if f.name[0] != ".") == [
            CARD,
            CONFIG,
            TENSORS,
        ]
        if not os.WIFSIGNALED(status):
            break
    assert killed >= 4
    assert seen >= {(False, False), (True, False)}
    assert ((True, True) in seen) == (other_alpha != 3.0)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_at_a_random_moment_of_many_saves_one_whole_adapter_is_there(tmp_path):
    models = [adapted(r=2, lora_alpha=3.0, seed=1), adapted(r=1, lora_alpha=5.0, seed=2)]
    answers = [model(X) for model in models]
    rng = random.Random(0)
    save_adapter(models[0], tmp_path)
    for _ in range(30):
        child = os.fork()
        if child == 0:
            while True:
                for model in models:
                    save_adapter(model, tmp_path)
        time.sleep(rng.uniform(0.001, 0.02))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        loaded = load_adapter(plain(), tmp_path)(X)
        assert any(torch.equal(loaded, answer) for answer in answers)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_reader_beside_a_writer_gets_one_whole_adapter(tmp_path):
    """Same rank, other scale: a mixture would load without a complaint."""
    models = [adapted(lora_alpha=3.0, seed=1), adapted(lora_alpha=5.0, seed=2)]
    answers = [model(X) for model in models]
    save_adapter(models[0], tmp_path)
    child = os.fork()
    if child == 0:
        while True:
            for model in models:
                save_adapter(model, tmp_path)
                time.sleep(0.001)
    try:
        for _ in range(100):
            loaded = load_adapter(plain(), tmp_path)(X)
            assert any(torch.equal(loaded, answer) for answer in answers)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_save_in_the_middle_of_a_load_is_noticed(tmp_path, monkeypatch):
    """New tensors after the old config was read: same rank, another scale, no other complaint."""
    old, new = adapted(lora_alpha=3.0, seed=1), adapted(lora_alpha=5.0, seed=2)
    save_adapter(old, tmp_path)
    read, reads = peft_files.read_tensors_and_metadata, []

    def slowly(path):
        if not reads:
            save_adapter(new, tmp_path)
        reads.append(path)
        return read(path)

    monkeypatch.setattr(peft_files, "read_tensors_and_metadata", slowly)
    assert torch.equal(load_adapter(plain(), tmp_path)(X), new(X))
    assert len(reads) == 2


def test_an_adapter_of_pefts_that_a_killed_save_left_without_a_config_is_found_aside(tmp_path):
    model = adapted()
    save_adapter(model, tmp_path)
    from safetensors.torch import load_file, save_file

    # PEFT's files hold no copy of the config
    save_file(load_file(tmp_path / TENSORS), tmp_path / TENSORS)
    (tmp_path / CONFIG).rename(tmp_path / ASIDE)
    assert torch.equal(load_adapter(plain(), tmp_path)(X), model(X))


def test_a_save_that_fails_half_way_puts_the_config_back(tmp_path, monkeypatch):
    old = adapted()
    save_adapter(old, tmp_path)
    real = os.replace

    def replace(source, target):
        if str(target).endswith(TENSORS):
            raise OSError(28, "No space left on device")
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(OSError, match=r"could not write .*No space left.*Nothing was changed"):
        save_adapter(adapted(lora_alpha=9, seed=3), tmp_path)
    assert sorted(f.name for f in tmp_path.iterdir()) == [CARD, CONFIG, TENSORS]
    assert torch.equal(load_adapter(plain(), tmp_path)(X), old(X))


def test_a_folder_that_may_not_be_read_or_written_is_an_error_that_names_it(tmp_path):
    folder = save_adapter(adapted(), tmp_path / "adapter")
    tmp_path.chmod(0o755)
    folder.chmod(0)
    as_root = os.geteuid() == 0
    if as_root:
        os.seteuid(65534)
    try:
        denied = r"adapter_config.json cannot be read: .*Permission denied"
        with pytest.raises(ValueError, match=denied):
            load_adapter(plain(), folder)
        denied = r"could not write .*adapter_model.safetensors: Permission denied"
        with pytest.raises(OSError, match=denied):
            save_adapter(adapted(), folder)
    finally:
        if as_root:
            os.seteuid(0)
        folder.chmod(0o755)
    assert torch.equal(load_adapter(plain(), folder)(X), adapted()(X))


# ---- Files that somebody damaged ----


def with_header(header, data=b""):
    text = json.dumps(header).encode() if not isinstance(header, bytes) else header
    return struct.pack("<Q", len(text)) + text + data


F32 = {"dtype": "F32", "shape": [2, 3]}
A = "base_model.model.0.lora_A.weight"


def tensor_at(start, end, **changes):
    return {**F32, "data_offsets": [start, end], **changes}


HOSTILE = {
    "empty": b"",
    "header past the end": struct.pack("<Q", 10**6) + b"{}",
    "header of 2**63": struct.pack("<Q", 2**63) + b"{}",
    "header bomb": struct.pack("<Q", 99 * 10**6) + b"{" * 1000,
    "deep header": with_header(b"[" * 200_000),
    "overlap": with_header({A: tensor_at(0, 24), A + "2": tensor_at(8, 32)}, bytes(32)),
    "offset past the end": with_header({A: tensor_at(0, 2**62)}, bytes(24)),
    "backwards": with_header({A: tensor_at(24, 0)}, bytes(24)),
    "shape overflow": with_header({A: tensor_at(0, 24, shape=[2**40, 2**40])}, bytes(24)),
    "shape wraps to 0": with_header({A: tensor_at(0, 0, shape=[2**32, 2**32])}),
    "negative shape": with_header({A: tensor_at(0, 24, shape=[-2, -3])}, bytes(24)),
    "trailing bytes": with_header({A: tensor_at(0, 24)}, bytes(48)),
    "unknown dtype": with_header({A: tensor_at(0, 24, dtype="PICKLE")}, bytes(24)),
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_hostile_tensor_files_are_refused_at_once(tmp_path, content):
    save_adapter(adapted(), tmp_path)
    (tmp_path / TENSORS).write_bytes(content)
    start = time.monotonic()
    with pytest.raises(
        ValueError, match=r"not a readable safetensors file|does not fit this model"
    ):
        load_adapter(plain(), tmp_path)
    assert time.monotonic() - start < 2


@pytest.mark.parametrize(
    ("pattern", "tame"),
    [
        ("q_proj", True),
        (r".*\.layers\.\d+\.mlp\.(up|down)_proj", True),
        ("(a+)+$", False),
        ("(a|aa)*!", False),
        (".*" * 5, False),
        (r".*\.layers\.\d+\.(self_attn|mlp)\.(q_proj|k_proj|v_proj|up_proj|down_proj)", True),
        ("|".join(rf"layers\.{i}\.mlp" for i in range(99)), True),
        (rf".*layers\.({'|'.join(map(str, range(32)))})\..*proj", True),
        (r"[(|*+]{2}\)\|\*(?:a|b)?", True),
        ("".join(rf"(.|\S|{letter})" for letter in "model.layers") + "X", False),
        ("a?" * 30 + "a" * 30, False),
        ("(?=a)", False),
        ("a" * 2001, False),
    ],
)
def test_patterns_that_could_take_forever_are_not_tried(pattern, tame):
    assert is_tame(pattern) == tame


def test_a_hostile_pattern_does_not_hang_the_loader(tmp_path):
    model = nn.ModuleDict({"a" * 60: nn.Linear(3, 4)})
    inject(model, LoraConfig(r=1, target_modules=["a" * 60]))
    save_adapter(model, tmp_path)
    config = json.loads((tmp_path / CONFIG).read_text())
    start, layers = time.monotonic(), {"layers_to_transform": [0], "layers_pattern": ["(a+)+!"]}
    for change in ({"target_modules": "(a+)+!"}, {"exclude_modules": "(a+)+!"}, layers):
        hostile = {**config, **change}
        assert not names_its_targets(hostile, lora_config(hostile)[0]), "or it would be tried"
        (tmp_path / CONFIG).write_text(json.dumps(hostile))
        load_adapter(model, tmp_path)  # the tensors say which module is meant
    (tmp_path / CONFIG).write_text(json.dumps({**config, "alpha_pattern": {"(a+)+!": 2}}))
    with pytest.raises(ValueError, match="could take forever"):
        load_adapter(model, tmp_path)
    assert time.monotonic() - start < 2


def alpha_by_peft(config, name):
    """The alpha of a module by PEFT's own function."""
    pattern = config.get("alpha_pattern") or {}
    return pattern.get(get_pattern_key(pattern.keys(), name), config.get("lora_alpha", 8))


@pytest.mark.filterwarnings("ignore:the adapter in")
def test_damaged_files_are_refused_or_read_exactly(tmp_path):
    """A file that loads gives its numbers (as other code reads them), finite, at its own scale."""
    save_adapter(adapted(), tmp_path)
    whole = {name: (tmp_path / name).read_bytes() for name in (CONFIG, TENSORS)}
    count, base, other = Counter(), plain(), adapted(seed=5)

    @settings(max_examples=profiles.of(dev=100, ci=1000, thorough=20_000))
    @given(damaged(whole), st.booleans())
    def load_damaged(files, injected):
        for name, data in files.items():
            (tmp_path / name).write_bytes(data)
        model, start = copy.deepcopy(other if injected else base), time.monotonic()
        before = {name: p.clone() for name, p in model.named_parameters()}
        try:
            load_adapter(model, tmp_path)
        except (ValueError, OSError):
            count["refused"] += 1
            after = dict(model.named_parameters())
            assert after.keys() == before.keys()
            assert all(torch.equal(p, before[name]) for name, p in after.items())
        else:
            count["loaded"] += 1
            check_against_the_files(model, tmp_path)
        assert time.monotonic() - start < 5

    load_damaged()
    assert count["loaded"] > count.total() / 50
    assert count["refused"] > count.total() / 3


def check_against_the_files(model, folder):
    """Every number, rank and scale of the adapters is that of the files, as peers read them."""
    config = json.loads((folder / CONFIG).read_bytes())
    tensors = load((folder / TENSORS).read_bytes())
    assert len(tensors) == 4
    for name, layer in lora_layers(model):
        for factor in ("lora_A", "lora_B"):
            in_file = tensors[f"base_model.model.{name}.{factor}.weight"].astype(np.float32)
            assert np.isfinite(in_file).all()
            assert np.array_equal(getattr(layer, factor).detach().numpy(), in_file)
        r = tensors[f"base_model.model.{name}.lora_A.weight"].shape[0]
        assert layer.r == r
        divisor = r**0.5 if config.get("use_rslora") else r
        assert layer.scaling == alpha_by_peft(config, name) / divisor


# Where an adapter comes from, how its first values were made, and two settings that do nothing
# without another one that is refused.
HARMLESS = "task_type auto_mapping peft_version base_model_name_or_path revision inference_mode"
HARMLESS += " fan_in_fan_out loftq_config eva_config corda_config lora_ga_config runtime_config"
HARMLESS += " qalora_group_size megatron_core"


def test_every_setting_that_peft_knows_is_read_refused_or_harmless():
    """A new one that changes what the tensors mean must not be passed over in silence."""
    theirs, ours = (
        {field.name for field in dataclasses.fields(config)}
        for config in (peft.LoraConfig, LoraConfig)
    )
    assert theirs - ours - {"peft_type", "init_lora_weights"} - set(HARMLESS.split()) <= set(
        UNSUPPORTED
    )


def test_a_config_without_rank_or_alpha_has_pefts():
    ours, wrong = lora_config({"peft_type": "LORA", "target_modules": ["0"]})
    theirs = peft.LoraConfig()
    assert not wrong
    for name in ("r", "lora_alpha", "lora_dropout", "use_rslora"):
        assert getattr(ours, name) == getattr(theirs, name), name


@pytest.mark.parametrize(
    "content", ["[]", "3", '"LORA"', "null", "", "{", "[" * 100_000, '{"r": 1' + "0" * 5000 + "}"]
)
def test_a_config_that_is_no_object_is_refused(tmp_path, content):
    save_adapter(adapted(), tmp_path)
    (tmp_path / CONFIG).write_text(content)
    refused = r"adapter_config.json (is not a readable JSON|must hold a JSON object)"
    with pytest.raises(ValueError, match=refused):
        load_adapter(plain(), tmp_path)
