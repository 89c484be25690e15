"""Spectra and cosines from A and B alone, against the dense ΔW; what differs is shown."""

import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minilora.hub import Hub
from minilora.hub.compare import inner, rank, spectrum

from .adapters import make_adapter

sizes = st.integers(1, 12)


@given(sizes, sizes, sizes, sizes, st.floats(0.1, 8), st.integers(0, 2**32))
def test_spectrum_and_inner_product_are_those_of_the_dense_deltas(
    out, inputs, r, r2, scaling, seed
):
    generator = torch.Generator().manual_seed(seed)
    A, A2 = (torch.randn(each, inputs, generator=generator) for each in (r, r2))
    B, B2 = (torch.randn(out, each, generator=generator) for each in (r, r2))
    one, other = scaling * B.double() @ A.double(), 2 * B2.double() @ A2.double()
    dense = torch.linalg.svdvals(one)
    singular = spectrum(A, B, scaling)
    bound = 100 * torch.finfo(torch.float64).eps * (1 + dense.max())
    assert (singular[: len(dense)] - dense[: len(singular)]).abs().max() <= bound
    assert inner((A, B, scaling), (A2, B2, 2.0)) == pytest.approx(
        (one * other).sum().item(), rel=1e-9, abs=1e-9
    )


def test_the_rank_of_a_product_that_lost_one():
    A, B = torch.randn(4, 20), torch.randn(10, 4)
    B[:, 3] = B[:, 0]
    assert rank(spectrum(A, B, 1.0)) == 3
    assert rank(torch.zeros(2)) == 0


def test_deltas_are_compared_and_not_factors(tmp_path):
    """(B M)(M⁻¹ A) is the same ΔW with other factors."""
    from minilora.tensor_files import read_tensors, write_tensors

    hub, folder = Hub(tmp_path / "hub"), make_adapter(tmp_path / "mine")
    hub.push("naval", folder)
    tensors, M = (
        read_tensors(folder / "adapter_model.safetensors"),
        torch.tensor([[2.0, 1], [1, 1]]),
    )
    for name in tensors:
        tensors[name] = (
            tensors[name] @ M if "lora_B" in name else torch.linalg.inv(M) @ tensors[name]
        )
    write_tensors(folder / "adapter_model.safetensors", tensors)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        hub.push("naval", folder)
    comparison = hub.compare("naval@1", "naval@2")
    assert not comparison.same_content
    assert [pair.cosine for pair in comparison.deltas] == pytest.approx([1.0, 1.0], abs=1e-6)
    assert comparison.base == "base unknown"


def test_what_differs_is_shown(tmp_path):
    hub = Hub(tmp_path / "hub")
    hub.push(
        "a", make_adapter(tmp_path / "a"), metadata={"metrics": {"exact": 0.5}, "data_sha": "x"}
    )
    other = make_adapter(tmp_path / "b", 1, r=4, targets=("q_proj", "v_proj"))
    hub.push("b", other, metadata={"metrics": {"exact": 0.75, "bits": 1.5}, "data_sha": "x"})
    shown = str(hub.compare("a", "b"))
    for line in (
        "a@1.0.0 and b@1.0.0: the same base; the same data",
        "r               2        4",
        "target_modules  q_proj   q_proj+v_proj",
        "exact           0.5      0.75",
        "bits            -        1.5",
    ):
        assert line in shown
    pairs = {pair.module: pair for pair in hub.compare("a", "b").deltas}
    assert pairs["layers.0.q_proj"].ranks == (2, 4)
    assert abs(pairs["layers.0.q_proj"].cosine) < 0.9
    assert pairs["layers.1.v_proj"].norms[0] == 0
    assert pairs["layers.1.v_proj"].cosine is None
    assert "one adapter under two names" in str(hub.compare("a", "a"))


def test_one_line_that_differs_is_shown(tmp_path):
    hub, folder = Hub(tmp_path / "hub"), make_adapter(tmp_path / "mine")
    for name, exact in (("a", 0.5), ("b", 0.75)):
        hub.push(name, folder, metadata={"metrics": {"exact": exact}})
    lines = [line.split() for line in str(hub.compare("a", "b")).splitlines()]
    assert ["a@1.0.0", "b@1.0.0"] in lines
    assert ["exact", "0.5", "0.75"] in lines


@pytest.mark.parametrize("other", ["fresh", "wider"])
def test_no_angle_to_a_change_of_nothing_nor_to_one_of_another_shape(tmp_path, other):
    """A fresh adapter's B is 0; a Linear of another width has no inner product with this one."""
    from minilora.tensor_files import read_tensors, write_tensors

    hub = Hub(tmp_path / "hub")
    hub.push("a", make_adapter(tmp_path / "mine"))
    folder = make_adapter(tmp_path / "other", 1, width=8 if other == "fresh" else 12)
    if other == "fresh":
        file = folder / "adapter_model.safetensors"
        zeros = {n: 0 * t if "lora_B" in n else t for n, t in read_tensors(file).items()}
        write_tensors(file, zeros)
    hub.push("b", folder)
    for pair in hub.compare("a", "b").deltas:
        assert pair.cosine is None
        assert (pair.norms[1] == 0) == (other == "fresh")
        assert pair.norms[0] > 0
