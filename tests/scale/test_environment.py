"""What the environment says of ranks, as torchrun sets it and as clusters do."""

import pytest
import torch

from minilora.scale import join
from minilora.scale.environment import own_device, world_size


def test_a_rank_has_the_card_of_its_number(monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert own_device("cuda") == "cuda"
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert own_device("cuda") == "cuda:3"
    assert own_device("cpu") == "cpu"


def test_a_rank_without_a_card_says_so(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", str(torch.cuda.device_count()))
    with pytest.raises(ValueError, match="this rank wants cuda:"), join("cuda"):
        pass


def test_a_size_without_a_rank_is_somebody_else_s(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    for size in ("", "two", "4"):
        monkeypatch.setenv("WORLD_SIZE", size)
        assert world_size() == 1
    monkeypatch.setenv("RANK", "0")
    assert world_size() == 4
    for size in ("", "two", "0", "-1"):
        monkeypatch.setenv("WORLD_SIZE", size)
        with pytest.raises(ValueError, match=f"expected a whole number of ranks, got {size!r}"):
            world_size()
