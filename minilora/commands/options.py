"""Options that several commands share, and what checks them."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any


def add_base_option(parser: argparse.ArgumentParser) -> None:
    """``--base``: the folder of a model."""
    parser.add_argument("--base", help="base folder (default: the shipped base)")


def add_seed_option(parser: argparse.ArgumentParser) -> None:
    """``--seed``; ``cli.py`` checks its value."""
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")


def add_sampling_options(parser: argparse.ArgumentParser) -> None:
    """``--temperature``, ``--top-k``, ``--top-p`` and ``--seed``."""
    add = parser.add_argument
    add("--temperature", type=float, default=0.0, help="0 takes the likeliest token (the default)")
    add("--top-k", type=int, help="sample from the k likeliest tokens (default: from all)")
    share = "sample from the fewest tokens that together have this probability, such as 0.9"
    add("--top-p", type=float, help=share)
    add_seed_option(parser)


def sampling_of(options: argparse.Namespace) -> dict[str, Any]:
    """The sampling options as ``generate_text`` takes them."""
    return {name: getattr(options, name) for name in ("temperature", "top_k", "top_p", "seed")}


def add_device_option(parser: argparse.ArgumentParser) -> None:
    """``--device``."""
    parser.add_argument("--device", default="cpu", help="cpu, cuda, … (default: %(default)s)")


def check_device(device: str) -> str:
    """The device, if torch can compute on it; ``ValueError`` otherwise."""
    import torch

    try:
        torch.zeros(1, device=device).item()  # "meta" has no numbers
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"device {device!r} is not available ({reason}); use --device cpu"
        ) from error
    return device


def check_limit(seconds: float) -> None:
    """Raise ``ValueError`` unless a check may take some time."""
    if not seconds > 0:
        raise ValueError(f"--limit: expected a positive number of seconds, got {seconds:g}")


def check_folder(folder: Path, option: str) -> Path:
    """What there is of a folder's path already; ``ValueError`` where that is a file."""
    above = next(each for each in (folder, *folder.parents) if each.exists())
    if not above.is_dir():
        raise ValueError(f"{option}: expected a folder, got {folder}, and {above} is a file")
    return above


def check_out(folder: Path, option: str = "--out") -> None:
    """Raise ``ValueError`` where a folder cannot be made, or nothing can be written into it."""
    above = check_folder(folder, option)
    as_whom = {"effective_ids": os.access in os.supports_effective_ids}
    if not os.access(above, os.W_OK | os.X_OK, **as_whom):
        raise ValueError(
            f"{option}: {above} cannot be written; choose another folder, or change its rights"
        )


def check_out_file(file: Path, option: str = "--out") -> None:
    """Raise ``ValueError`` where a file cannot be written."""
    if file.is_dir():
        raise ValueError(f"{option}: expected a file, got {file}, which is a folder")
    check_out(file.parent, option)


def check_picture(file: Path, option: str = "--out") -> None:
    """Raise ``ValueError`` where a picture cannot be written, or is neither PNG nor SVG."""
    from ..plots.style import picture_kind

    picture_kind(file)
    check_out_file(file, option)
