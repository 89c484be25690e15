"""CKA against its definition with kernels, blocks that did not change, effects that add up."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from minilora.analysis.representations import (
    additivity,
    anisotropy,
    block_changes,
    blocks_of,
    centered_alignment,
    cumulative_similarity,
    hidden_states,
)

from ..lora.test_injection import tiny
from ..strategies import seeds

IDS = torch.randint(0, 16, (3, 7), generator=torch.Generator().manual_seed(0))


def kernel_form(X, Y):
    """HSIC(K, L) / √(HSIC(K, K) HSIC(L, L)) of linear kernels: the paper's equation 3."""
    n = len(X)
    H = np.eye(n) - 1 / n
    K, L = X @ X.T, Y @ Y.T

    def hsic(a, b):
        return np.trace(a @ H @ b @ H)

    return hsic(K, L) / np.sqrt(hsic(K, K) * hsic(L, L))


@given(seeds, st.integers(3, 8), st.integers(1, 5), st.integers(1, 5))
def test_alignment_is_the_papers_with_kernels_and_ignores_rotation_and_scale(seed, n, d, e):
    random = np.random.default_rng(seed)
    X, Y = random.normal(size=(n, d)), random.normal(size=(n, e))
    ours = centered_alignment(torch.from_numpy(X), torch.from_numpy(Y))
    assert ours == pytest.approx(kernel_form(X, Y))
    Q, _ = np.linalg.qr(random.normal(size=(d, d)))
    turned = torch.from_numpy(3 * X @ Q + 5)
    assert centered_alignment(torch.from_numpy(X), turned) == pytest.approx(1)


def change(model, layer):
    changed = copy.deepcopy(model)
    weight = changed.model.layers[layer].mlp.down_proj.weight
    weight.data.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
    return changed


def test_the_cumulative_view_blames_blocks_that_never_changed():
    """Only block 0 differs: what is written says so, CKA does not."""
    base = tiny().eval()
    tuned = change(base, 0)
    written = block_changes(base, tuned, IDS)
    assert written[0] > 0.1
    assert written[1] == 0
    similar = cumulative_similarity(base, tuned, IDS)
    assert similar[0] == pytest.approx(1)
    assert max(similar[1:]) < 0.99


def test_before_the_changed_block_nothing_differs():
    base = tiny().eval()
    similar = cumulative_similarity(base, change(base, 1), IDS)
    assert similar[:2] == pytest.approx([1, 1])
    assert similar[2] < 0.99


def test_hidden_states_are_the_streams_of_the_tokens_that_count():
    model = tiny().eval()
    mask = torch.zeros(3, 7, dtype=torch.bool)
    mask[0, :2] = True
    states = hidden_states(model, IDS, mask)
    assert len(states) == len(blocks_of(model)) + 1
    torch.testing.assert_close(states[0], model.model.embed_tokens(IDS[0, :2]))
    last = model.lm_head(model.model.norm(states[-1]))
    torch.testing.assert_close(last, model(IDS)[0, :2], rtol=1e-4, atol=1e-5)
    assert not any(block._forward_hooks for block in blocks_of(model))


class Straight(nn.Module):
    """Blocks that are plain matrices: effects of one matrix add up exactly."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(16, 4)
        self.blocks = nn.ModuleList(nn.Linear(4, 4, bias=False) for _ in range(2))
        self.double()

    def forward(self, ids):
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x)
        return x


def test_in_a_linear_model_updates_of_one_block_add_up_and_of_two_they_multiply():
    model = Straight()
    U, V = torch.randn(2, 4, 4, dtype=torch.float64)
    same = additivity(model, {"blocks.0": U}, {"blocks.0": V}, IDS)
    assert max(same) < 1e-12
    x = model.embed(IDS).view(-1, 4)
    W = [block.weight for block in model.blocks]
    first, second = additivity(model, {"blocks.0": U}, {"blocks.1": V}, IDS)
    assert first < 1e-12
    both = x @ (W[0] + U).T @ (W[1] + V).T - x @ W[0].T @ W[1].T
    cross = x @ U.T @ V.T
    assert second == pytest.approx((cross.norm() / both.norm()).item())
    tenth = additivity(model, {"blocks.0": U}, {"blocks.1": V}, IDS, dose=0.01)[1]
    assert tenth < 0.1 * second


def test_nothing_together_is_refused():
    U = torch.ones(4, 4, dtype=torch.float64)
    with pytest.raises(ValueError, match="change nothing together"):
        additivity(Straight(), {"blocks.0": U}, {"blocks.0": -U}, IDS)


def test_anisotropy_knows_one_direction_and_every_direction():
    model = Straight()
    model.embed.weight.data[:] = torch.ones(4, dtype=torch.float64)
    for block in model.blocks:
        block.weight.data.copy_(torch.eye(4))
    assert anisotropy(model, IDS) == pytest.approx([1, 1, 1])
    model.embed.weight.data[::2] = -1.0
    ids = torch.arange(16)[None]
    # two different tokens of eight and eight: the same sign in 7 of 15 pairs
    assert anisotropy(model, ids, pairs=20000)[0] == pytest.approx(-1 / 15, abs=0.04)
    with pytest.raises(ValueError, match="at least two tokens, got 1"):
        anisotropy(model, torch.ones(1, 1).long())


def test_a_model_without_blocks_is_refused():
    with pytest.raises(ValueError, match="ModuleList of blocks"):
        blocks_of(nn.Linear(2, 2))
