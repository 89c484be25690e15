"""The probe says no where a row depends on its neighbours."""

import torch
import torch.nn.functional as F

from minilora.serving import exactness, row_batch

from .small import small_base


def test_a_product_that_depends_on_the_number_of_rows_is_found(monkeypatch):
    def by_rows(x, weight, bias=None):
        return torch.matmul(x, weight.T) * (1 + 1e-6 * (x.numel() // x.shape[-1]))

    base = small_base()
    monkeypatch.setattr(F, "linear", by_rows)
    assert row_batch.least_rows(base) == 1
    assert not exactness.rows_are_exact(base, max_rank=4)


def test_the_least_rows_are_those_from_which_on_products_agree(monkeypatch):
    def like_below_five(x, weight, bias=None):
        rows = x.numel() // x.shape[-1]
        return (x.double() @ weight.double().T).float() + (rows < 5)

    monkeypatch.setattr(F, "linear", like_below_five)
    assert row_batch.least_rows(small_base()) == 5
