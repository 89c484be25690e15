"""A training run's state in one safetensors file, so that it can stop anywhere and go on to the same bits.

One file, renamed into place, because two could disagree after a crash: tensors (trained weights, AdamW's moments, the best
state) under prefixed names, everything else as JSON in the metadata.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..files import read_tensors, write_tensors

# AdamW's state of one parameter; its steps are those that had a gradient
MOMENTS = ("step", "exp_avg", "exp_avg_sq")


class State:
    """What a step changes: the trained parameters, the optimizer, the step count, the best state so far, the history."""

    def __init__(self, parameters: dict[str, Tensor], optimizer: torch.optim.AdamW, history: Any):
        self.parameters, self.optimizer, self.history = parameters, optimizer, history
        self.step = 0
        self.best: dict[str, Tensor] | None = None

    def remember_best(self) -> None:
        """Copy the parameters as they are now."""
        self.best = {name: p.detach().clone() for name, p in self.parameters.items()}

    @torch.no_grad()
    def restore_best(self) -> None:
        """Put the remembered parameters back."""
        for name, value in (self.best or {}).items():
            self.parameters[name].copy_(value)

    def tensors(self) -> dict[str, Tensor]:
        """Everything to save, by prefixed name."""
        found = {f"parameter/{name}": p.detach() for name, p in self.parameters.items()}
        for name, p in self.parameters.items():
            moments = self.optimizer.state.get(p, {})
            found |= {f"{key}/{name}": moments[key] for key in MOMENTS if key in moments}
        return found | {f"best/{name}": value for name, value in (self.best or {}).items()}


def save_checkpoint(
    file: Path, state: State, identity: dict[str, Any], history: dict[str, Any]
) -> None:
    """Write the state, atomically."""
    about = {"step": state.step, "identity": identity, "history": history}
    write_tensors(file, state.tensors(), {"minilora_checkpoint": json.dumps(about)})


@torch.no_grad()
def load_checkpoint(file: Path, state: State, identity: dict[str, Any]) -> dict[str, Any]:
    """Fill the state from a file and return the history that it holds.

    Raises ``ValueError``, changing nothing, when the file is missing or damaged or was written by a run with other settings.
    """
    if not file.is_file():
        raise ValueError(
            f"nothing to resume: {file} does not exist; start without resume, with checkpoint_every=N"
        )
    tensors, about = read_tensors(file), read_about(file)
    was, now = about["identity"], json.loads(json.dumps(identity))
    if changed := [
        f"{k}: {was.get(k)} there, {now.get(k)} here" for k in now if was.get(k) != now.get(k)
    ]:
        raise ValueError(
            f"{file} belongs to a run with other settings ({'; '.join(changed)}): resume with the same ones"
        )
    wanted = {f"parameter/{name}": p.shape for name, p in state.parameters.items()}
    if wrong := [
        name
        for name, shape in wanted.items()
        if name not in tensors or tensors[name].shape != shape
    ]:
        raise ValueError(
            f"{file} does not fit this model: {wrong[0]} is missing or has another shape"
        )
    kept = {name: sum(f"{key}/{name}" in tensors for key in MOMENTS) for name in state.parameters}
    # none: no gradient yet
    if torn := [name for name, count in kept.items() if count not in (0, len(MOMENTS))]:
        raise ValueError(
            f"{file} is damaged: of {', '.join(MOMENTS)} for {torn[0]} it holds only some"
        )
    state.step = about["step"]
    for name, p in state.parameters.items():
        p.copy_(tensors[f"parameter/{name}"])
        if kept[name]:
            moments = {
                key: tensors[f"{key}/{name}"].to(p.device) for key in ("exp_avg", "exp_avg_sq")
            }
            state.optimizer.state[p] = {"step": tensors[f"step/{name}"], **moments}
    best = {
        name: tensors[f"best/{name}"].to(p.device)
        for name, p in state.parameters.items()
        if f"best/{name}" in tensors
    }
    state.best = best or None
    return about["history"]


def read_about(file: Path) -> dict[str, Any]:
    """The JSON in a checkpoint's metadata; ``ValueError`` when it is no checkpoint."""
    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened:
        text = (opened.metadata() or {}).get("minilora_checkpoint")
    if text is None:
        raise ValueError(f"{file} is a safetensors file, but no checkpoint of a training run")
    return json.loads(text)


def checksum(tensors: Iterable[Tensor]) -> int:
    """A number that changes when any bit of any tensor does."""
    total = 0
    for tensor in tensors:
        total = zlib.crc32(
            tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data, total
        )
    return total
