"""Callbacks for TensorBoard and Weights & Biases: loss curves, and how far each module has moved.

    ‖A‖, ‖B‖, ‖ΔW‖    of every module with a LoRA adapter, Frobenius, ΔW = scaling · B A

B starts at zero, so ‖ΔW‖ shows which modules learn, and which have not begun. Both trackers get
every number of every record; the norms come with each validation and every ``NORMS_EVERY`` steps.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..lora.layer import lora_layers
from .history import Callback, Record

NORMS_EVERY = 20  # steps


@torch.no_grad()
def adapter_norms(model: nn.Module) -> dict[str, float]:
    """``norm_A/<path>``, ``norm_B/<path>`` and ``norm_dW/<path>`` of each module with LoRA.

    >>> import minilora
    >>> layers = nn.Sequential(nn.Linear(4, 2))
    >>> _ = minilora.inject(layers, minilora.LoraConfig(r=1, target_modules=["0"]))
    >>> sorted(adapter_norms(layers)), adapter_norms(layers)["norm_dW/0"]
    (['norm_A/0', 'norm_B/0', 'norm_dW/0'], 0.0)
    """
    norms: dict[str, float] = {}
    for path, layer in lora_layers(model):
        tensors = {"A": layer.lora_A, "B": layer.lora_B, "dW": layer.delta_weight()}
        norms |= {f"norm_{name}/{path}": float(t.norm()) for name, t in tensors.items()}
    return norms


def numbers(record: Record, model: nn.Module | None) -> dict[str, float]:
    """What a tracker draws of a record, and the model's norms where they are due."""
    of_record = {
        name: value
        for name, value in record.items()
        if name != "step" and isinstance(value, int | float)
    }
    due = "valid_loss" in record or record["step"] % NORMS_EVERY == 0
    return of_record | (adapter_norms(model) if model is not None and due else {})


def tensorboard_callback(folder: str | Path, model: nn.Module | None = None) -> Callback:
    """A callback that writes for TensorBoard; with a ``model``, its adapters' norms as well.

    Raises ``ValueError`` when TensorBoard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ValueError("TensorBoard is not installed: pip install tensorboard") from error
    writer = SummaryWriter(str(folder))

    def write(record: Record) -> None:
        for name, value in numbers(record, model).items():
            writer.add_scalar(name, value, record["step"])
        writer.flush()

    return write


def wandb_callback(model: nn.Module | None = None, **init: Any) -> Callback:
    """A callback that writes to a new run of Weights & Biases; with a ``model``, norms as well.

    ``init`` goes to ``wandb.init``: ``project``, ``config``, ``dir``, ``mode="offline"``. The run
    ends with the process, with ``wandb.finish()``, or where another begins. Raises ``ValueError``
    when wandb is not installed, and when it cannot begin, as without a login.
    """
    try:
        import wandb
    except ImportError as error:
        raise ValueError("Weights & Biases is not installed: pip install wandb") from error
    try:
        run = wandb.init(**{"reinit": "finish_previous", **init})
    except wandb.Error as error:
        raise ValueError(
            f"Weights & Biases cannot begin a run ({str(error).strip()}): "
            "wandb login, or WANDB_MODE=offline"
        ) from error

    def write(record: Record) -> None:
        run.log(numbers(record, model), step=record["step"])

    return write
