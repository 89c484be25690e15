"""The levels: NF4's and FP4's are bitsandbytes', INT4's are the sevenths."""

import pytest
import torch
from bitsandbytes import functional as peer

from minilora.nf4.codebook import codebook, table_of_levels


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_levels_by_code_equal_bitsandbytes(kind):
    assert torch.equal(
        table_of_levels(kind, torch.device("cpu")), peer.get_4bit_type(kind, device="cpu")
    )


@pytest.mark.parametrize("kind", ["nf4", "fp4", "int4"])
def test_levels_ascend_from_minus_one_to_one_with_an_exact_zero(kind):
    levels = codebook(kind).levels
    assert levels == tuple(sorted(levels))
    assert (levels[0], levels[-1]) == (-1, 1)
    assert 0.0 in levels
    assert sorted(codebook(kind).codes) == list(range(len(levels)))


def test_int4_is_even():
    assert torch.equal(torch.tensor(codebook("int4").levels), torch.arange(-7, 8) / 7)


def test_an_unknown_name_is_refused():
    with pytest.raises(
        ValueError, match="unknown codebook 'int3': expected 'nf4', 'fp4' or 'int4'"
    ):
        codebook("int3")
