"""What a rank holds, against ``fully_shard`` of torch with a process group that only pretends."""

import pytest
import torch
import torch.distributed as dist

from minilora import LoraConfig, ledger
from minilora.ledger.cards import MOST, Settings, plan_cards, unit_bytes
from minilora.ledger.shapes import architecture

from ..serving.small import small_base
from .test_families import real


def group(ranks):
    """A process group of so many ranks, of which this process is the first and only one."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", rank=0, world_size=ranks, store=FakeStore())


@pytest.mark.parametrize("ranks", [2, 4])
def test_a_rank_holds_the_share_that_is_predicted(ranks):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = small_base()
    group(ranks)
    try:
        mesh = init_device_mesh("cpu", (ranks,))
        for block in model.model.layers:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
        held = sum(p.to_local().nbytes for p in model.parameters())
    finally:
        dist.destroy_process_group()
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 1536}
    config = {"model_type": "llama", "tie_word_embeddings": True, **sizes, **heads}
    cards = plan_cards(config, dtype="float32", seq=16)
    assert held == -(-cards.divided // ranks)
    assert cards.shared(ranks) == held + cards.gathered + cards.own


@pytest.mark.parametrize("name", ["llama-2-7b", "gpt2", "qwen3-4b"])
def test_what_is_gathered_are_two_real_blocks_and_the_rest(name):
    model = real(ledger.presets()[name])
    units = unit_bytes(architecture(name), Settings(), four_bit=False)
    blocks = next(m for m in model.modules() if isinstance(m, torch.nn.ModuleList))
    one = 2 * sum(p.numel() for p in blocks[0].parameters())
    inside = sum(2 * sum(p.numel() for p in block.parameters()) for block in blocks)
    outside = 2 * sum(p.numel() for p in model.parameters()) - inside
    assert (set(units.values()), units[""]) == ({one, outside}, outside)
    config = LoraConfig(target_modules="all-linear")
    assert plan_cards(name, config).gathered == 2 * one + outside
    assert plan_cards(name, method="full").gathered == 3 * one + outside


def test_the_fewest_cards_hold_it_and_one_less_does_not():
    for model, method in [("llama-2-70b", "lora"), ("llama-3.1-405b", "full"), ("gpt2", "full")]:
        cards = plan_cards(model, method=method, checkpointing=True)
        for size in (24 * 10**9, 80 * 10**9, 141 * 10**9):
            n = cards.shards(size)
            if n is None:
                assert cards.shared(MOST) > size
                continue
            assert cards.shared(n) <= size
            assert n == 1 or cards.shared(n - 1) > size


def test_a_card_that_cannot_hold_what_is_gathered_is_too_small_in_any_number():
    cards = plan_cards("llama-3.1-405b", checkpointing=True)
    assert cards.gathered > 14 * 10**9
    assert cards.shards(12 * 10**9) is None
    assert not cards.copies(141 * 10**9)


def test_only_the_adapters_gradients_travel():
    lora = plan_cards("llama-2-7b", LoraConfig(16, target_modules="all-linear"))
    full = plan_cards("llama-2-7b", method="full")
    assert lora.sent(2, shared=False) == lora.plan.trainable * 4
    assert full.sent(2, shared=False) == full.plan.parameters * 2
    assert lora.sent(2, shared=True) == full.plan.parameters * 2 + lora.plan.trainable * 4
    assert lora.sent(1, shared=False) == 0
