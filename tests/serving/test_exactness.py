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


def test_the_probe_tries_short_and_long_prompts_and_every_number_of_tokens():
    base, random = small_base(), torch.Generator().manual_seed(0)
    asked = [exactness.random_request(base, random, number) for number in range(600)]
    assert {len(request.prompt) for request in asked} == set(range(1, 41))
    assert {request.sampling.max_new_tokens for request in asked} == set(range(1, 9))


def test_the_probes_adapters_reach_every_linear_but_the_head_at_every_rank():
    base, random = small_base(), torch.Generator().manual_seed(0)
    adapters = [exactness.random_adapter(base, 4, random)[0] for _ in range(24)]
    linears = {path for path, m in base.named_modules() if isinstance(m, torch.nn.Linear)}
    assert set().union(*adapters) == linears - {"lm_head"}
    pairs = [pair for factors in adapters for pair in factors.values()]
    assert {len(pair.A) for pair in pairs} == {1, 2, 3, 4}
    for pair in pairs:  # x of unit variance has an A x of unit variance
        assert 0.3 < pair.A.square().sum(dim=1).mean() < 3


def test_where_every_product_is_exact_it_says_yes():
    base = small_base()
    for p in base.parameters():
        torch.nn.init.zeros_(p)
    assert exactness.rows_are_exact(base, max_rank=4, rows=3) is True
