"""What the environment tells a process of the ranks that it was started with.

    WORLD_SIZE   how many ranks there are           1 without RANK
    RANK         which of them this is              read by torch
    LOCAL_RANK   its number on this machine         which card is its own

torchrun sets them (torch's documentation of ``torchrun``, "Environment Variables"), and where the
ranks meet.
"""

from __future__ import annotations

import os
from datetime import timedelta

import torch
import torch.distributed as dist


def world_size() -> int:
    """How many ranks there are: 1 without ``RANK``, which whoever starts ranks gives to each.

    Clusters export ``WORLD_SIZE`` for other purposes too. Raises ``ValueError`` unless it is a
    whole number above 0.

    >>> world_size()
    1
    """
    size = os.environ.get("WORLD_SIZE", "1")
    if "RANK" not in os.environ:
        return 1
    if not size.isdecimal() or int(size) < 1:
        raise ValueError(f"WORLD_SIZE: expected a whole number of ranks, got {size!r}")
    return int(size)


def choose_card(device: str) -> None:
    """Make this rank's card its own. Raises ``ValueError`` where there are fewer cards."""
    cards = torch.cuda.device_count()
    if (torch.device(device).index or 0) >= cards:
        raise ValueError(
            f"this rank wants {device}, and this machine has {cards} cards: start as many ranks "
            "here, or take --device cpu"
        )
    torch.cuda.set_device(device)


def own_device(device: str) -> str:
    """The device of this rank: with ``cuda`` the card of its number on this machine.

    >>> own_device("cpu")
    'cpu'
    """
    local = os.environ.get("LOCAL_RANK")
    return f"cuda:{local}" if device == "cuda" and local is not None else device


def meet(backend: str, timeout: timedelta) -> None:
    """Form the group; each join of a process under a name of its own.

    Under one name, a rank would find the addresses that the others had in an earlier join.
    """
    store, rank, world = next(dist.rendezvous("env://", timeout=timeout))
    own = dist.PrefixStore(f"join {store.add(f'joins of rank {rank}', 1)}", store)
    dist.init_process_group(backend, store=own, rank=rank, world_size=world, timeout=timeout)
