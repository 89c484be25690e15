"""A base that one card cannot hold, sharded over the ranks (FSDP2); the adapters stay whole.

    at rest             each rank keeps 1/world of every base weight
    a block's forward   all ranks gather the block's weights, compute, and drop them again
    its backward        the same once more; the frozen weights have no gradients to send
    A and B             whole on every rank; their gradients are added up as in distributed.py

Source: ZeRO stage 3 (arXiv 1910.02054), as torch's ``fully_shard`` does it. FSDP2
shards tensor by tensor, so that frozen and trained ones may stand in one block, and
``ignored_params`` leaves A and B alone. A run is that of whole bases up to rounding: the gathered
weights are the same, but lie elsewhere in memory (tests/scale/test_fsdp.py).

    with minilora.scale.join("cuda") as ranks:
        model = minilora.load_base(folder)                  # on the host; the cards get shards
        minilora.inject(model, minilora.LoraConfig())
        shard_base(model, ranks)
        minilora.train(model, task, ranks=ranks)
        save_together(model, "adapter", ranks)

What does not work, and is refused: four bits (an ``NF4Linear`` keeps its codes in buffers, which
``fully_shard`` leaves whole), more than adapters, replay (the rows
that are due vary, and with them a step's parts), ``merge`` (load the adapter beside a
whole base, on a host that holds it). Each host needs memory for the whole base while it is loaded.
Left out: loading shard by shard, offloading, sharding within a machine and copies between machines.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

from ..formats.save_and_load import save_adapter
from ..lora.attached import adapters_of
from ..lora.linears import is_sharded
from ..model.generation import CausalLM
from ..nf4.linear import NF4Linear
from ..training.ranks import Alone
from ..training.teacher import only_adapters_train

ENTRANCES = ("logits_at", "next_logits")  # by which training and generation call our models


def shard_base(model: nn.Module, ranks: Alone) -> int:
    """Shard the frozen base over the ranks, in place; returns the bytes that stay on this rank.

    Call it after ``inject``, before anything is trained, on all ranks. A step then has a multiple
    of ``ranks.world`` parts, since the ranks gather every block together. In one process nothing
    changes. Raises ``ValueError``, with the model as it was, for a base in four bits, for merged
    adapters, and where more than adapters train.

    >>> import minilora
    >>> model = minilora.load_base()
    >>> _ = minilora.inject(model)
    >>> shard_base(model, Alone()) == 4 * sum(p.numel() for p in model.parameters())
    True
    """
    check_shardable(model)
    if ranks.world > 1:
        whole = {p for p in model.parameters() if p.requires_grad}
        for module in [*blocks_of(model), model]:  # the outermost takes what is left
            fully_shard(module, ignored_params=whole)
        if isinstance(model, CausalLM):
            for name in ENTRANCES:
                register_fsdp_forward_method(model, name)
        ranks.sharded = True
    return sum(bytes_here(p) for p in model.parameters())


def check_shardable(model: nn.Module) -> None:
    """Raise ``ValueError`` for what cannot be trained on a sharded base."""
    if any(isinstance(module, NF4Linear) for module in model.modules()):
        raise ValueError("a base in four bits cannot be sharded: load it without quantize=")
    if not adapters_of(model) or not only_adapters_train(model):
        raise ValueError(
            "shard_base keeps what trains whole on every rank, so only adapters may train: "
            "inject(model, LoraConfig(...)) first, without bias= and modules_to_save="
        )
    if merged := [path for path, layer in adapters_of(model) if layer.merged]:
        raise ValueError(f"{merged[0]} is merged: unmerge(model) before the base is sharded")


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The layers of a transformer, which are gathered one at a time: its longest list of modules.

    >>> [type(block).__name__ for block in blocks_of(nn.Sequential(nn.ModuleList([nn.Identity()])))]
    ['Identity']
    """
    lists = [list(module) for module in model.modules() if isinstance(module, nn.ModuleList)]
    return max(lists, key=len, default=[])


def bytes_here(parameter: Tensor) -> int:
    """The bytes of a parameter, or of this rank's shard of it."""
    shared: Any = parameter
    own = shared.to_local() if is_sharded(parameter) else parameter
    return own.numel() * own.element_size()


def save_together(model: nn.Module, folder: str | Path, ranks: Alone) -> Path:
    """``save_adapter`` where the base is sharded: the first rank writes, all lend their shards.

    The file says which base the adapter belongs to, and for that the base is read, tensor by
    tensor. Returns the first rank's folder.

    >>> import minilora
    >>> model = minilora.load_base()
    >>> _ = minilora.inject(model)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_together(model, Path(folder) / "adapter", Alone()).name
    'adapter'
    """
    with tempfile.TemporaryDirectory() as nowhere:
        save_adapter(model, folder if ranks.writes else Path(nowhere) / "adapter")
    return Path(folder)
