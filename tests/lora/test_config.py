"""A config that cannot work is refused when it is made, with what was given and what was needed."""

import dataclasses
import math
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilora import LoraConfig, TrainConfig
from minilora.commands import cli
from minilora.training.config import rate_for


@pytest.mark.parametrize(
    ("field", "value", "error", "message"),
    [
        ("r", 0, ValueError, "r must be at least 1, got 0"),
        ("r", 10**400, ValueError, "r must be at most 9223372036854775807"),
        ("r", -3, ValueError, "r must be at least 1, got -3"),
        ("r", 2.0, TypeError, "r must be a whole number, got 2.0"),
        ("r", True, TypeError, "r must be a whole number, got True"),
        ("lora_alpha", 0, ValueError, "lora_alpha must be positive and finite, got 0"),
        ("lora_alpha", -1, ValueError, "lora_alpha must be positive"),
        ("lora_alpha", math.nan, ValueError, "lora_alpha must be positive and finite, got nan"),
        ("lora_alpha", math.inf, ValueError, "lora_alpha must be positive and finite, got inf"),
        ("lora_alpha", "16", TypeError, "lora_alpha must be a number, got '16'"),
        ("lora_alpha", True, TypeError, "lora_alpha must be a number, got True"),
        ("lora_dropout", 1.0, ValueError, r"lora_dropout must be in \[0, 1\), got 1.0"),
        ("lora_dropout", -0.1, ValueError, r"lora_dropout must be in \[0, 1\)"),
        ("lora_dropout", None, TypeError, "lora_dropout must be a number, got None"),
        ("lora_dropout", False, TypeError, "lora_dropout must be a number, got False"),
        ("use_rslora", 1, TypeError, "use_rslora must be True or False, got 1"),
        ("target_modules", [], ValueError, "target_modules is empty"),
        ("target_modules", "", ValueError, "target_modules is empty"),
        ("target_modules", ["q_proj", 3], TypeError, "target_modules must be names, got 3"),
        ("target_modules", ["q_proj", ""], TypeError, "target_modules must be names, got ''"),
        (
            "target_modules",
            3,
            TypeError,
            "must be a list of names or one regular expression, got 3",
        ),
        ("target_modules", "(q_proj", ValueError, "is not a regular expression"),
        (
            "target_modules",
            {"q_proj": 1},
            TypeError,
            "must be a list of names or one regular expression",
        ),
        (
            "rank_pattern",
            {"q_proj": 0},
            ValueError,
            r"rank_pattern\['q_proj'\]: r must be at least 1, got 0",
        ),
        ("rank_pattern", {"(": 1}, ValueError, r"rank_pattern='\(' is not a regular expression"),
        ("rank_pattern", ["q_proj"], TypeError, "rank_pattern must map names to values"),
        (
            "alpha_pattern",
            {"q_proj": "1"},
            TypeError,
            r"alpha_pattern\['q_proj'\]: lora_alpha must be a number",
        ),
        ("alpha_pattern", {1: 1}, TypeError, "alpha_pattern must have names as keys, got 1"),
        ("alpha_pattern", {"": 1}, TypeError, "alpha_pattern must have names as keys, got ''"),
        ("layers_to_transform", [0, -1], TypeError, "whole numbers from 0, got -1"),
        ("layers_to_transform", True, TypeError, "whole numbers from 0, got True"),
        ("layers_to_transform", [0, 1.0], TypeError, "whole numbers from 0, got 1.0"),
        ("layers_pattern", "h", ValueError, "needs layers_to_transform"),
        (
            "layers_pattern",
            ["h", "("],
            ValueError,
            r"layers_pattern='\(' is not a regular expression",
        ),
        (
            "layers_pattern",
            5,
            TypeError,
            "layers_pattern must be a list of names or one regular expression, got 5",
        ),
        ("exclude_modules", "[", ValueError, "exclude_modules='\\[' is not a regular expression"),
    ],
)
def test_bad_values_are_refused(field, value, error, message):
    with pytest.raises(error, match=message):
        LoraConfig(**{field: value})


@pytest.mark.parametrize(
    ("field", "value", "kept"),
    [
        ("r", 1, 1),
        ("r", sys.maxsize, sys.maxsize),
        ("lora_alpha", 5e-324, 5e-324),
        ("lora_alpha", 1, 1),
        ("lora_alpha", sys.float_info.max, sys.float_info.max),
        ("lora_dropout", 0, 0),
        ("lora_dropout", math.nextafter(1, 0), math.nextafter(1, 0)),
        ("target_modules", "all-linear", "all-linear"),
        ("target_modules", {"q_proj"}, ("q_proj",)),
        ("exclude_modules", None, ()),
        ("rank_pattern", None, {}),
        ("alpha_pattern", {"k_proj": 0.5}, {"k_proj": 0.5}),
        ("layers_to_transform", 0, 0),
        ("layers_to_transform", [0, 2], (0, 2)),
        ("layers_to_transform", range(3), (0, 1, 2)),
        ("layers_to_transform", {1}, (1,)),
    ],
)
def test_the_ends_of_every_range_are_taken_and_kept(field, value, kept):
    """As they are: what is a list, a set or nothing becomes a tuple (or a dict) of the config's own."""
    assert getattr(LoraConfig(**{field: value}), field) == kept


def test_layers_are_counted_after_one_name_or_several():
    for given_, kept in (("h", ("h",)), (["h", "blocks"], ("h", "blocks"))):
        assert LoraConfig(layers_to_transform=1, layers_pattern=given_).layers_pattern == kept
    assert not LoraConfig(layers_pattern="").layers_pattern, "an empty one means none, as in PEFT"


@given(st.integers(1, 512), st.floats(0.01, 1000))
def test_scaling_follows_the_two_papers(r, alpha):
    assert LoraConfig(r=r, lora_alpha=alpha).scaling == alpha / r
    assert LoraConfig(r=r, lora_alpha=alpha, use_rslora=True).scaling == alpha / math.sqrt(r)


def test_a_list_of_targets_cannot_change_afterwards():
    names = ["q_proj"]
    config = LoraConfig(target_modules=names)
    names.append("v_proj")
    assert config.target_modules == ("q_proj",)


def test_layers_narrow_a_list_only():
    with pytest.raises(ValueError, match="narrows a list of target_modules, got 'all-linear'"):
        LoraConfig(target_modules="all-linear", layers_to_transform=1)
    assert LoraConfig(layers_to_transform=[]).layers_to_transform is None


@pytest.mark.parametrize("config", [LoraConfig(), TrainConfig()])
def test_what_was_checked_stays_as_it_was_checked(config):
    for field in dataclasses.fields(config):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(config, field.name, -1)


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
        ({"pack": None}, "pack must be True or False, got None"),
        ({"resume": "no", "out": "x"}, "resume must be True or False, got 'no'"),
        ({"progress": 0}, "progress must be True or False, got 0"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**settings)


def test_the_smallest_training_is_one_step_on_one_example():
    none = {
        "validate_every": 0,
        "valid_answers": 0,
        "checkpoint_every": 0,
        "clip": 0,
        "weight_decay": 0,
        "warmup": 0,
    }
    TrainConfig(steps=1, batch_size=1, accumulate=1, max_length=2, lr=5e-324, **none)
    TrainConfig(warmup=1)
    TrainConfig(
        batch_size=12, accumulate=4, resume=True, checkpoint_every=1, out="folder", seed=1 - 2**32
    )


@pytest.mark.parametrize("field", ["lr", "warmup", "clip", "weight_decay"])
@pytest.mark.parametrize("value", [math.nan, math.inf, "1e-3", True])
def test_numbers_that_are_none_are_refused(field, value):
    with pytest.raises(ValueError, match=f"{field} must be a finite number, got"):
        TrainConfig(**{field: value})


def test_what_is_left_unsaid_means_the_same_in_python_and_on_the_command_line():
    said = vars(cli.parser_of("train").parse_args(["--data", "some.jsonl", "--out", "folder"]))
    lora, config = LoraConfig(), TrainConfig()
    assert (said["r"], tuple(said["target"]), said["dropout"]) == (
        lora.r,
        lora.target_modules,
        lora.lora_dropout,
    )
    assert said["rslora"] == lora.use_rslora
    assert lora.lora_alpha == 2 * lora.r, "which is what the command's help says of --alpha"
    assert said["lr"] is None, "which is rate_for, by the size of the base"
    assert rate_for(1_325_696) == config.lr, "the shipped base's"
    for name in (
        "steps",
        "accumulate",
        "max_length",
        "pack",
        "bf16",
        "checkpoint_every",
        "resume",
        "seed",
    ):
        assert said[name] == getattr(config, name), name
    assert said["batch"] == config.batch_size


def test_a_bigger_base_never_gets_a_higher_rate_and_from_a_billion_on_the_papers():
    assert rate_for(10**9 - 1) > rate_for(10**9) == 2e-4
    rates = [rate_for(10**power) for power in range(13)]
    assert rates == sorted(rates, reverse=True)


def test_nothing_that_changes_or_slows_a_training_is_on_unasked():
    config = TrainConfig()
    assert not any(
        [
            config.bf16,
            config.pack,
            config.weight_decay,
            config.valid_answers,
            config.checkpoint_every,
            config.out,
        ]
    )
