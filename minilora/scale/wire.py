"""What travels between a federation's clients and its server, and what the server keeps.

    <path>.lora_A.weight (r, in)        <path>.lora_B.weight (out, r)       PEFT's names

Under ``frozen_a`` only B travels. Of a client's error only the fact that there was one travels. A
round that is whole is kept in one file, written under another name and then renamed: a server that
is killed goes on after it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

from torch import Tensor

from ..lora.combining import LowRank
from ..tensor_files import read_tensors_and_metadata, write_tensors
from .settings import Rounds

A, B = "lora_A.weight", "lora_B.weight"
Parts = Mapping[str, LowRank]


def sent(parts: Parts, rounds: Rounds) -> dict[str, Tensor]:
    """What travels of factors, by PEFT's names: A and B, or B alone where A is frozen."""
    keys = (B,) if rounds.how == "frozen_a" else (A, B)
    return {
        f"{path}.{key}": part.A if key == A else part.B
        for path, part in parts.items()
        for key in keys
    }


def received(tensors: Mapping[str, Tensor], known: Parts) -> dict[str, LowRank]:
    """Factors out of what has travelled; an A that does not, and the scaling, are the known ones.

    Raises ``ValueError`` where the names are not those of the known factors.
    """
    expected = {f"{path}.{B}" for path in known}
    if {name for name in tensors if not name.endswith(A)} != expected:
        other = sorted({name for name in tensors if not name.endswith(A)} ^ expected)[0]
        raise ValueError(f"what came does not fit this adapter: {other} is missing or unknown")
    return {
        path: LowRank(tensors.get(f"{path}.{A}", part.A), tensors[f"{path}.{B}"], part.scaling)
        for path, part in known.items()
    }


@contextmanager
def errors_stay_here(log: logging.Logger) -> Iterator[None]:
    """Keep an error's words, which may quote this client's data or paths, in its own log.

    What carries the messages may send an exception to the server as it is. It gets a
    ``RuntimeError`` that says only that there was one.

    >>> with errors_stay_here(logging.getLogger("doctest")):
    ...     raise ValueError("logs.jsonl, line 1: 'the engines of the Anna are'")
    Traceback (most recent call last):
    RuntimeError: this client failed; its own log says why
    """
    try:
        yield
    except Exception:  # of any kind: each may have a line of data, a path or a size in it
        log.exception("this client's part of the round failed")
        raise RuntimeError("this client failed; its own log says why") from None


def size(tensors: Mapping[str, Tensor]) -> int:
    """Bytes of the numbers alone."""
    return sum(tensor.nbytes for tensor in tensors.values())


def write_round(file: Path, parts: Parts, number: int, rounds: Rounds) -> None:
    """Keep a whole round, in one rename."""
    tensors = {f"{path}.{key}": value for path, part in parts.items()
               for key, value in ((A, part.A), (B, part.B))}  # fmt: skip
    scalings = {path: part.scaling for path, part in parts.items()}
    about = {"done": number, "rounds": asdict(rounds), "scalings": scalings}
    write_tensors(file, tensors, {"federated": json.dumps(about)})


def read_round(file: Path, rounds: Rounds) -> tuple[dict[str, LowRank], int]:
    """The kept round; ``ValueError`` where it is of other settings (more rounds are welcome)."""
    tensors, metadata = read_tensors_and_metadata(file)
    try:
        about = json.loads(metadata["federated"])
        kept, done, scalings = Rounds(**about["rounds"]), int(about["done"]), about["scalings"]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file} holds no federated round: {error}") from error
    if replace(kept, rounds=rounds.rounds) != rounds:
        raise ValueError(f"{file} is of {kept}, not of {rounds}: give another folder")
    if done > rounds.rounds:
        raise ValueError(f"{file} is after round {done}, expected {rounds.rounds} at most")
    parts = {
        path: LowRank(tensors[f"{path}.{A}"], tensors[f"{path}.{B}"], scaling)
        for path, scaling in scalings.items()
    }
    return parts, done
