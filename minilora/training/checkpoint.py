"""A training run's state in one safetensors file, so that it can stop anywhere and resume exactly.

One file, renamed into place, because two could disagree after a crash: tensors (trained weights,
AdamW's moments, the best state) under prefixed names, everything else as JSON in the metadata.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..lora.linears import whole
from ..tensor_files import read_tensors, write_tensors
from .loss_scaling import LossScaler

# AdamW's state of one parameter; ``step`` counts only the steps that had a gradient
MOMENTS = ("step", "exp_avg", "exp_avg_sq")


class State:
    """What a step changes: trained parameters, optimizer, step count, best state, history.

    ``planned`` steps were to be taken when it was saved; ``scaler`` is there in float16 only;
    ``learnt`` is what a method keeps besides parameters.
    """

    def __init__(
        self,
        parameters: dict[str, Tensor],
        optimizer: torch.optim.AdamW,
        history: Any,
        planned: int | None = None,
        scaler: LossScaler | None = None,
        learnt: dict[str, Tensor] | None = None,
    ):
        self.parameters, self.optimizer, self.history = parameters, optimizer, history
        self.step, self.planned, self.scaler = 0, planned, scaler
        self.learnt = learnt or {}
        self.best: dict[str, Tensor] | None = None

    @property
    def changing(self) -> dict[str, Tensor]:
        """All that a step changes in the model."""
        return {**self.parameters, **self.learnt}

    def remember_best(self) -> None:
        """Copy the parameters as they are now, and what the method keeps beside them."""
        self.best = {name: t.detach().clone() for name, t in self.changing.items()}

    @torch.no_grad()
    def restore_best(self) -> None:
        """Put the remembered parameters back."""
        for name, value in (self.best or {}).items():
            self.changing[name].copy_(value)

    def tensors(self) -> dict[str, Tensor]:
        """Everything to save, by prefixed name."""
        tensors = {f"parameter/{name}": p.detach() for name, p in self.parameters.items()}
        for name, p in self.parameters.items():
            moments = self.optimizer.state.get(p, {})
            tensors |= {f"{key}/{name}": moments[key] for key in MOMENTS if key in moments}
        tensors |= {f"learnt/{name}": tensor for name, tensor in self.learnt.items()}
        return tensors | {f"best/{name}": value for name, value in (self.best or {}).items()}


def save_checkpoint(
    file: Path, state: State, identity: dict[str, Any], history: dict[str, Any]
) -> None:
    """Write the state, atomically."""
    scaler = None if state.scaler is None else asdict(state.scaler)
    about = {"step": state.step, "planned": state.planned, "scaler": scaler}
    about |= {"identity": identity, "history": history}
    write_tensors(file, state.tensors(), {"minilora_checkpoint": json.dumps(about)})


@torch.no_grad()
def load_checkpoint(file: Path, state: State, identity: dict[str, Any]) -> dict[str, Any]:
    """Fill the state from a file and return the history that it holds.

    ``state.planned`` becomes that of the run that wrote it. Raises ``ValueError``, changing
    nothing, when the file is missing or damaged, when a run with other settings wrote it, or when
    it is past the last step.
    """
    if not file.is_file():
        raise ValueError(
            f"nothing to resume: {file} does not exist; "
            "start without resume, with checkpoint_every=N"
        )
    tensors, about = read_tensors(file), read_about(file)
    check_identity(file, about["identity"], identity)
    check_tensors(file, tensors, state)
    if state.planned is not None and about["step"] > state.planned:
        raise ValueError(
            f"{file} is of step {about['step']}, and steps={state.planned} ends before it: "
            "resume with as many steps or more"
        )
    state.step, state.planned = about["step"], about.get("planned", state.planned)
    if state.scaler is not None and about.get("scaler"):
        state.scaler.scale, state.scaler.clean = about["scaler"]["scale"], about["scaler"]["clean"]
    for name, p in state.parameters.items():
        p.copy_(tensors[f"parameter/{name}"])
        if f"step/{name}" in tensors:
            # the step too, which the fused AdamW counts on the parameter's device
            moments = {key: tensors[f"{key}/{name}"].to(p.device) for key in MOMENTS}
            state.optimizer.state[p] = moments
    for name, tensor in state.learnt.items():
        tensor.copy_(tensors[f"learnt/{name}"])
    kept = [name for name in state.changing if f"best/{name}" in tensors]
    best = {name: tensors[f"best/{name}"].to(state.changing[name].device) for name in kept}
    state.best = best or None
    return about["history"]


def check_identity(file: Path, saved: dict[str, Any], identity: dict[str, Any]) -> None:
    """Raise ``ValueError``, with the settings that differ, when another run wrote a checkpoint."""
    now = json.loads(json.dumps(identity))
    changed = [key for key in now if saved.get(key) != now.get(key)]
    if changed:
        settings = "; ".join(f"{k}: {saved.get(k)} there, {now.get(k)} here" for k in changed)
        raise ValueError(
            f"{file} belongs to a run with other settings ({settings}): resume with the same ones"
        )


def check_tensors(file: Path, tensors: dict[str, Tensor], state: State) -> None:
    """Raise ``ValueError`` when a checkpoint's tensors are not those of this run."""
    expected = {f"parameter/{name}": p for name, p in state.parameters.items()}
    expected |= {f"learnt/{name}": tensor for name, tensor in state.learnt.items()}
    for key, p in expected.items():
        if key not in tensors or tensors[key].shape != p.shape:
            raise ValueError(
                f"{file} does not fit this model: {key} is missing or has another shape"
            )
    for name in state.parameters:
        kept = sum(f"{key}/{name}" in tensors for key in MOMENTS)
        if kept not in (0, len(MOMENTS)):  # none: no gradient yet
            raise ValueError(
                f"{file} is damaged: of {', '.join(MOMENTS)} for {name} it holds only some"
            )


def read_about(file: Path) -> dict[str, Any]:
    """The JSON in a checkpoint's metadata; ``ValueError`` when the file is not a checkpoint."""
    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened:
        text = (opened.metadata() or {}).get("minilora_checkpoint")
    if text is None:
        raise ValueError(f"{file} is a safetensors file, but not a checkpoint of a training run")
    return json.loads(text)


def digest(value: Any) -> str:
    """A short hash of a value that JSON can hold."""
    text = json.dumps(value, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def checksum(tensors: Iterable[Tensor]) -> int:
    """A number that changes when any bit of any tensor does."""
    total = 0
    for tensor in tensors:
        values = whole(tensor.detach()).cpu().contiguous().view(-1)
        total = zlib.crc32(values.view(torch.uint8).numpy().data, total)
    return total
