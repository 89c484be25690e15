"""TrainConfig: epochs become steps, and a name from another library is answered with ours."""

import dataclasses
import inspect
import math
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import minilora
from minilora import LoraConfig, TrainConfig
from minilora.training.config import TrainSettings
from minilora.training.data import naval_log


@given(st.integers(1, 10_000), st.integers(1, 64), st.integers(1, 20))
def test_epochs_are_the_fewest_steps_that_see_every_example_so_often(count, batch_size, epochs):
    steps = TrainConfig(epochs=epochs, batch_size=batch_size).for_examples(count).steps
    assert steps * batch_size >= epochs * count > (steps - 1) * batch_size


def test_a_part_of_an_epoch_is_not_rounded_up_by_the_arithmetic():
    assert 0.07 * 100 > 7
    assert TrainConfig(epochs=0.07, batch_size=1).for_examples(100).steps == 7
    assert TrainConfig(epochs=1e-9).for_examples(1).steps == 1


def test_steps_stay_without_epochs():
    assert TrainConfig(steps=7).for_examples(100) == TrainConfig(steps=7)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "epochs must be positive, got 0"),
        ({"epochs": math.inf}, "epochs must be a finite number, got inf"),
        ({"epochs": "3"}, "epochs must be a finite number, got '3'"),
        ({"epochs": 1, "steps": 10}, "give steps or epochs, got steps=10, epochs=1"),
        ({"valid_batch": 0}, "valid_batch must be a whole number of at least 1, got 0"),
        ({"valid_batch": 2.0}, "valid_batch must be a whole number of at least 1, got 2.0"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**settings)


@pytest.mark.parametrize(
    ("config", "given", "ours"),
    [
        (TrainConfig, "learning_rate", "lr"),
        (TrainConfig, "num_train_epochs", "epochs"),
        (TrainConfig, "epoch", "epochs"),
        (TrainConfig, "batchsize", "batch_size"),
        (TrainConfig, "per_device_train_batch_size", "batch_size"),
        (LoraConfig, "alpha", "lora_alpha"),
        (LoraConfig, "lora_r", "r"),
        (LoraConfig, "rank", "r"),
        (LoraConfig, "dropout", "lora_dropout"),
    ],
)
def test_another_name_of_a_setting_is_answered_with_ours(config, given, ours):
    with pytest.raises(
        TypeError, match=f"{config.__name__} has no '{given}': did you mean '{ours}'"
    ):
        config(**{given: 1})


def test_train_answers_in_the_same_way():
    with pytest.raises(TypeError, match="TrainConfig has no 'learning_rate': did you mean 'lr'"):
        minilora.train(minilora.load_base(), naval_log(2, 1), learning_rate=1e-3)


def test_editors_still_see_the_fields():
    assert list(inspect.signature(TrainConfig).parameters)[:3] == ["steps", "epochs", "lr"]
    assert "lora_alpha" in inspect.signature(LoraConfig).parameters


def test_train_is_typed_with_the_same_fields():
    """``Unpack`` of a TypedDict is what editors read; the types are the fields' own."""
    fields = {field.name: field.type for field in dataclasses.fields(TrainConfig)}
    typed = {name: each.__forward_arg__ for name, each in TrainSettings.__annotations__.items()}
    assert typed == fields
    settings = inspect.signature(minilora.train).parameters["settings"]
    assert settings.annotation == "Unpack[TrainSettings]"


@pytest.mark.parametrize("dtype", ["float16", torch.int8, "half precision"])
def test_a_dtype_that_is_none_of_floats_is_answered_with_one(dtype, tmp_path):
    meant = ": did you mean torch.float16?" if dtype == "float16" else ""
    expected = "dtype must be a floating-point dtype of torch, such as torch.bfloat16"
    message = f"^{re.escape(f'{expected}, got {dtype!r}{meant}')}$"
    with pytest.raises(ValueError, match=message):
        minilora.load_base(dtype=dtype)
    with pytest.raises(ValueError, match=message):
        minilora.save_model(minilora.load_base(), tmp_path, dtype=dtype)
