"""A training that means nothing is refused, and the defaults are the same everywhere."""

import dataclasses
import math

import pytest

from minilora import LoraConfig, TrainConfig
from minilora.commands import cli
from minilora.training.config import rate_for, settings_for


def test_a_config_stays_as_it_was_checked():
    for field in dataclasses.fields(TrainConfig):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(TrainConfig(), field.name, -1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "steps must be a whole number of at least 1, got 0"),
        ({"steps": 1.5}, "steps must be a whole number of at least 1, got 1.5"),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1, got 0"),
        ({"accumulate": 0}, "accumulate must be a whole number of at least 1, got 0"),
        # one token predicts nothing
        ({"max_length": 1}, "max_length must be a whole number of at least 2, got 1"),
        ({"validate_every": -1}, "validate_every must be a whole number of at least 0"),
        ({"valid_examples": -1}, "valid_examples must be a whole number of at least 0"),
        ({"valid_answers": -1}, "valid_answers must be a whole number of at least 0"),
        ({"checkpoint_every": -1}, "checkpoint_every must be a whole number of at least 0"),
        ({"lr": 0.0}, "lr must be positive"),
        ({"lr": math.nan}, "lr must be a finite number"),
        ({"warmup": 2.0}, r"warmup must be a share of the steps, in \[0, 1\]"),
        ({"warmup": -0.1}, r"warmup must be a share of the steps, in \[0, 1\]"),
        ({"clip": -1.0}, "must not be negative"),
        ({"weight_decay": -1.0}, "must not be negative"),
        ({"batch_size": 10, "accumulate": 3}, "batch_size=10 must be a multiple of accumulate=3"),
        ({"resume": True}, "resume and checkpoint_every need out"),
        ({"checkpoint_every": 1}, "resume and checkpoint_every need out"),
        ({"seed": 1.5}, "seed must be a whole number of at most 32 bits, such as 0, got 1.5"),
        ({"seed": True}, "seed must be a whole number .* got True"),
        ({"seed": 2**32}, "seed must be a whole number .* got 4294967296"),
        ({"seed": -(2**32)}, "seed must be a whole number .* got -4294967296"),
        ({"steps": True}, "steps must be a whole number of at least 1, got True"),
        ({"bf16": "false"}, "bf16 must be True or False, got 'false'"),
        ({"keep_best": 1}, "keep_best must be True or False, got 1"),
        ({"pack": "yes"}, r"pack must be True, False or None \(decide\), got 'yes'"),
        ({"resume": "no", "out": "x"}, "resume must be True or False, got 'no'"),
        ({"progress": 0}, "progress must be True or False, got 0"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**settings)


def test_the_smallest_training_is_one_step_on_one_example():
    none = dict.fromkeys(["validate_every", "valid_answers", "checkpoint_every"], 0)
    none |= dict.fromkeys(["clip", "weight_decay", "warmup"], 0)
    TrainConfig(steps=1, batch_size=1, accumulate=1, max_length=2, lr=5e-324, **none)
    TrainConfig(warmup=1)
    TrainConfig(batch_size=12, accumulate=4)
    TrainConfig(resume=True, checkpoint_every=1, out="folder", seed=1 - 2**32)


@pytest.mark.parametrize("field", ["lr", "warmup", "clip", "weight_decay"])
@pytest.mark.parametrize("value", [math.nan, math.inf, "1e-3", True])
def test_numbers_that_are_not_finite_are_refused(field, value):
    with pytest.raises(ValueError, match=f"{field} must be a finite number, got"):
        TrainConfig(**{field: value})


SHARED = ("accumulate", "max_length", "pack", "bf16", "fp16", "checkpointing", "resume", "seed")


def test_defaults_are_the_same_in_python_and_on_the_command_line():
    options = vars(cli.parser_of("train").parse_args(["--data", "some.jsonl", "--out", "folder"]))
    lora, config = LoraConfig(), TrainConfig()
    assert options["r"] is None, "not given: the method's own, as the command's help says"
    assert tuple(options["target"]) == lora.target_modules
    assert (options["dropout"], options["rslora"]) == (lora.lora_dropout, lora.use_rslora)
    assert lora.lora_alpha == 2 * lora.r, "which is what the command's help says of --alpha"
    sizes = {"lr": config.lr, "steps": config.steps, "batch_size": config.batch_size}
    assert settings_for(1_325_696) == sizes, "the shipped base's"
    assert {options[name] for name in ("lr", "steps", "batch")} == {None}, "which is settings_for"
    assert {name: options[name] for name in SHARED} == {
        name: getattr(config, name) for name in SHARED
    }


def test_a_bigger_base_never_gets_a_higher_rate_and_from_a_billion_on_the_papers():
    assert rate_for(10**9 - 1) > rate_for(10**9) == 2e-4
    rates = [rate_for(10**power) for power in range(13)]
    assert rates == sorted(rates, reverse=True)


def test_nothing_that_changes_or_slows_a_training_is_on_unasked():
    config = TrainConfig()
    assert not any([config.bf16, config.pack, config.weight_decay, config.valid_answers])
    assert not any([config.checkpoint_every, config.out, config.resume])
