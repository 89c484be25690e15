"""A config that cannot work is refused when it is made, with what was given and what was needed."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilora import LoraConfig


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
        ("lora_dropout", 1.0, ValueError, r"lora_dropout must be in \[0, 1\), got 1.0"),
        ("lora_dropout", -0.1, ValueError, r"lora_dropout must be in \[0, 1\)"),
        ("lora_dropout", None, TypeError, "lora_dropout must be a number, got None"),
        ("target_modules", [], ValueError, "target_modules is empty"),
        ("target_modules", "", ValueError, "target_modules is empty"),
        ("target_modules", ["q_proj", 3], TypeError, "target_modules must be names, got 3"),
        ("target_modules", "(q_proj", ValueError, "is no regular expression"),
        ("target_modules", {"q_proj": 1}, TypeError, "must be a list of names or one regular expression"),
        ("rank_pattern", {"q_proj": 0}, ValueError, r"rank_pattern\['q_proj'\]: r must be at least 1, got 0"),
        ("rank_pattern", {"(": 1}, ValueError, r"rank_pattern='\(' is no regular expression"),
        ("rank_pattern", ["q_proj"], TypeError, "rank_pattern must map names to values"),
        ("alpha_pattern", {"q_proj": "1"}, TypeError, r"alpha_pattern\['q_proj'\]: lora_alpha must be a number"),
        ("alpha_pattern", {1: 1}, TypeError, "alpha_pattern must have names as keys, got 1"),
        ("layers_to_transform", [0, -1], TypeError, "whole numbers from 0, got -1"),
        ("layers_to_transform", True, TypeError, "whole numbers from 0, got True"),
        ("layers_pattern", "h", ValueError, "needs layers_to_transform"),
        ("exclude_modules", "[", ValueError, "exclude_modules='\\[' is no regular expression"),
    ],
)
def test_bad_values_are_refused(field, value, error, message):
    with pytest.raises(error, match=message):
        LoraConfig(**{field: value})


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
    with pytest.raises(ValueError, match="narrows a list of target_modules, not 'all-linear'"):
        LoraConfig(target_modules="all-linear", layers_to_transform=1)
    assert LoraConfig(layers_to_transform=[]).layers_to_transform is None
