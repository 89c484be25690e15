"""More than one machine, on engines that exist: torchrun, Flower, Ray Serve.

Ours is what they cannot know: that only A and B travel, that the loss is counted in answer tokens,
and that averaging A and B separately is wrong.

In reading order:

    environment.py   what torchrun tells a process: how many ranks, and which card is its own
    distributed.py   several processes train one adapter: ``join``, for torchrun
    fsdp.py          a base that one card cannot hold, sharded over them
    federated.py     many clients' A and B as one adapter: what is exact, and what is not
    privacy.py       clipping, noise, and how much privacy they come to
    shards.py        one data set dealt to clients, alike or not
    settings.py      the settings of a federation
    wire.py          what travels, and what the server keeps
    rounds.py        what a client does, what the server does, and both in one process
    flower.py        the same between real machines; needs flwr
    replica.py       the server's application inside one process of a fleet
    ray_serve.py     replicas on Ray Serve: adapters multiplexed, another try before the first byte

Imports the library's wings, the hub and serving. Their own libraries are the extra ``[scale]``.
"""

from typing import TYPE_CHECKING

from ..lazy import lazy_imports

if TYPE_CHECKING:
    from ..training.ranks import RankLost
    from .distributed import Ranks, join
    from .federated import Update, aggregate, relative_error
    from .fsdp import save_together, shard_base
    from .privacy import clip, epsilon
    from .rounds import Round, federate, final_model
    from .settings import Rounds
    from .shards import split_among

__all__ = [
    "RankLost",
    "Ranks",
    "Round",
    "Rounds",
    "Update",
    "aggregate",
    "clip",
    "epsilon",
    "federate",
    "final_model",
    "join",
    "relative_error",
    "save_together",
    "shard_base",
    "split_among",
]
if not TYPE_CHECKING:  # or a type checker would take every name for there
    __getattr__, __dir__ = lazy_imports(__name__)
