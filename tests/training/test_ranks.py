"""One process alone: all parts are its own; a part's seed is its own too."""

import pytest
import torch
from torch import nn

from minilora.training.config import TrainConfig
from minilora.training.data import polite_log
from minilora.training.ranks import Alone, part_seeds, seed_part
from minilora.training.replay import Examples
from minilora.training.run import set_up

from .runs import TASK, adapted


def test_alone_every_part_is_its_own_and_it_writes(tmp_path):
    alone = Alone()
    assert [list(alone.own(parts)) for parts in (1, 2, 5)] == [[0], [0, 1], [0, 1, 2, 3, 4]]
    assert alone.writes is True
    assert alone.each(3, lambda number: number / 2) == [0, 0.5, 1]
    assert alone.add_up(nn.Identity(), [0.5, 0.25]) == [0.5, 0.25]
    with alone.copy_of(tmp_path / "mine") as file:
        assert file == tmp_path / "mine"
    assert not alone.stopped()
    alone.interrupted.set()
    assert alone.stopped()


def test_alone_a_run_may_replay():
    """Ranks that hold the base together may not: they would have to compute in step."""
    config, old = TrainConfig(steps=1, batch_size=2), Examples(polite_log(3, 1), 0.5)
    parts = set_up(adapted(), TASK, config, old, ranks=Alone()).batches(0)
    assert [part.source for part in parts] == ["task", "examples"]


def test_the_seeds_of_parts_are_many_and_the_generators():
    seeds = part_seeds(1000, torch.Generator().manual_seed(3))
    assert len(set(seeds)) == 1000
    assert min(seeds) >= 0
    assert max(seeds) > 2**60, "all 62 bits are drawn"
    assert seeds == part_seeds(1000, torch.Generator().manual_seed(3))
    assert part_seeds(2, torch.Generator().manual_seed(3)) == seeds[:2]


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_a_part_draws_what_its_seed_says_and_a_single_part_goes_on(parts):
    torch.manual_seed(0)
    seeds = part_seeds(parts)
    assert len(seeds) == (parts if parts > 1 else 0)
    went_on = torch.get_rng_state()
    for part in reversed(range(parts)):
        seed_part(seeds, part)
        drawn = torch.rand(3)
        if seeds:
            expected = torch.rand(3, generator=torch.Generator().manual_seed(seeds[part]))
        else:
            torch.set_rng_state(went_on)
            expected = torch.rand(3)
        assert torch.equal(drawn, expected)
