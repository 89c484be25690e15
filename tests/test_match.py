"""Modules that look like Linears but would pass an adapter by are refused by name."""

import pytest
import torch
from torch import nn

from minilora import LoraConfig, inject
from minilora.match import has_plain_weight


class Model(nn.Module):
    def __init__(self, part):
        super().__init__()
        self.fine, self.part = nn.Linear(4, 4), part


@pytest.mark.parametrize(
    ("part", "target"),
    [
        (nn.MultiheadAttention(8, 2), "out_proj"),
        (nn.TransformerEncoderLayer(8, 2, 16), "linear1"),
    ],
)
def test_linears_whose_weight_is_read_without_calling_them_are_refused(part, target):
    """torch's fused attention never calls the module: the adapter would train (or not even that) and never be used."""
    with pytest.raises(ValueError, match=f"{target}, but {type(part).__name__} reads its weight without calling it"):
        inject(Model(part), LoraConfig(target_modules=["fine", target]))


@pytest.mark.parametrize("wrap", [nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm])
def test_a_weight_that_is_computed_from_others_is_refused_and_listed_nowhere(wrap):
    model = Model(wrap(nn.Linear(4, 4)))
    with pytest.raises(ValueError, match=r"matches part: .*no plain floating-point weight"):
        inject(model, LoraConfig(target_modules=["part"]))
    assert not has_plain_weight(model.part)
    report = inject(model, LoraConfig(target_modules=["fine"]))
    assert [match.name for match in report.matches] == ["fine"]


def test_numbers_inside_a_name_are_no_index():
    report = inject(nn.ModuleDict({"fc1": nn.Linear(3, 3), "fc2": nn.Linear(3, 3)}), LoraConfig(target_modules=["fc1"]))
    assert str(report).splitlines()[1].split()[:2] == ["fc1", "1"]


def test_an_exclusion_that_leaves_nothing_out_is_a_typo():
    with pytest.raises(ValueError, match="exclude_modules: no module matches 'dwon_proj'"):
        inject(Model(nn.Linear(4, 4)), LoraConfig(target_modules=["fine"], exclude_modules=["dwon_proj"]))


def test_a_quantized_or_integer_weight_is_refused():
    part = nn.Linear(4, 4)
    part.weight = nn.Parameter(torch.ones(4, 4, dtype=torch.int8), requires_grad=False)
    with pytest.raises(ValueError, match="no plain floating-point weight"):
        inject(Model(part), LoraConfig(target_modules=["part"]))
