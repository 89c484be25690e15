"""The scale follows the two papers, and a number that cannot work is refused with its reason."""

import math
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from minilora import LoraConfig, LoRALayer
from minilora.lora.hyperparameters import check_alpha, check_dropout, check_rank, scaling_of


def check_rslora(value):
    LoraConfig(use_rslora=value)


@given(st.integers(1, 512), st.floats(0.01, 1000))
def test_scaling_follows_the_two_papers(r, alpha):
    """α/r (arXiv 2106.09685), α/√r (arXiv 2312.03732); α ≠ r, or a missing r would not show."""
    assert scaling_of(r, alpha, False) == LoraConfig(r, alpha).scaling == alpha / r
    root = alpha / math.sqrt(r)
    assert scaling_of(r, alpha, True) == LoraConfig(r, alpha, use_rslora=True).scaling == root


def test_a_layer_has_the_scale_of_its_config():
    assert LoRALayer(nn.Linear(4, 4), r=4, lora_alpha=8).scaling == 2
    assert LoRALayer(nn.Linear(4, 4), r=4, lora_alpha=8, use_rslora=True).scaling == 4


@pytest.mark.parametrize(
    ("check", "value", "error", "message"),
    [
        (check_rank, 0, ValueError, "r must be at least 1, got 0: it is the number of directions"),
        (check_rank, -3, ValueError, "r must be at least 1, got -3"),
        (check_rank, 10**400, ValueError, "r must be at most 9223372036854775807"),
        (check_rank, sys.maxsize + 1, ValueError, "r must be at most 9223372036854775807"),
        (check_rank, 2.0, TypeError, "r must be a whole number, got 2.0"),
        (check_rank, True, TypeError, "r must be a whole number, got True"),
        (check_alpha, 0, ValueError, "lora_alpha must be positive and finite, got 0"),
        (check_alpha, -1, ValueError, "lora_alpha must be positive and finite, got -1"),
        (check_alpha, math.nan, ValueError, "lora_alpha must be positive and finite, got nan"),
        (check_alpha, math.inf, ValueError, "lora_alpha must be positive and finite, got inf"),
        (check_alpha, "16", TypeError, "lora_alpha must be a number, got '16'"),
        (check_alpha, True, TypeError, "lora_alpha must be a number, got True"),
        (check_dropout, 1.0, ValueError, r"lora_dropout must be in \[0, 1\), got 1.0"),
        (check_dropout, -0.1, ValueError, r"lora_dropout must be in \[0, 1\), got -0.1"),
        (check_dropout, math.nan, ValueError, r"lora_dropout must be in \[0, 1\), got nan"),
        (check_dropout, None, TypeError, "lora_dropout must be a number, got None"),
        (check_dropout, False, TypeError, "lora_dropout must be a number, got False"),
        (check_rslora, 1, TypeError, "use_rslora must be True or False, got 1"),
        (check_rslora, None, TypeError, "use_rslora must be True or False, got None"),
    ],
)
def test_a_number_that_cannot_work_is_refused(check, value, error, message):
    with pytest.raises(error, match=message):
        check(value)


@pytest.mark.parametrize(
    ("check", "values"),
    [
        (check_rank, [1, sys.maxsize]),
        (check_alpha, [5e-324, 1, sys.float_info.max]),
        (check_dropout, [0, 0.0, math.nextafter(1, 0)]),
        (check_rslora, [True, False]),
    ],
)
def test_the_ends_of_every_range_are_taken(check, values):
    for value in values:
        check(value)
