"""Checkers of lesson 09. The oracle allocates it all, takes a step, and adds up the storages."""

import torch
from hypothesis import strategies as st

from minilora.learn import cases, close

DTYPES = {8: torch.uint8, 16: torch.bfloat16, 32: torch.float32, 64: torch.float64}


def allocated_bytes(frozen, bits, trainable):
    """What torch really holds after a step of AdamW."""
    held = [torch.zeros(frozen, dtype=DTYPES[bits])]
    if trainable:
        trained = torch.nn.Parameter(torch.ones(trainable))
        optimizer = torch.optim.AdamW([trained])
        trained.square().sum().backward()
        optimizer.step()
        state = optimizer.state[trained]
        held += [trained.data, trained.grad, state["exp_avg"], state["exp_avg_sq"]]
    return sum(tensor.untyped_storage().nbytes() for tensor in held)


@cases(frozen=st.integers(0, 5000), bits=st.sampled_from([*DTYPES]), trainable=st.integers(0, 500))
def check_training_bytes(answer, frozen, bits, trainable):
    """Any sizes, whole bytes; and fractions of a bit, scaled from whole bytes."""
    case = f"frozen = {frozen:,} weights of {bits} bits, trainable = {trainable:,}"
    right = float(allocated_bytes(frozen, bits, trainable))
    close(answer(frozen, bits, trainable), right, what="bytes", case=case, tolerance=1e-6)
    case = f"frozen = {16 * frozen:,} weights of {bits / 16} bits, trainable = {trainable:,}"
    of_parts = answer(16 * frozen, bits / 16, trainable)
    close(of_parts, right, what="bytes", case=case, tolerance=1e-6)


WRONG = {
    "training_bytes": {
        "bits taken for bytes": lambda frozen, bits, trainable: frozen * bits + 16 * trainable,
        "no moments": lambda frozen, bits, trainable: frozen * bits / 8 + 8 * trainable,
        "one moment": lambda frozen, bits, trainable: frozen * bits / 8 + 12 * trainable,
        "a gradient for the frozen": lambda frozen, bits, trainable: (
            frozen * bits / 8 + 4 * frozen + 16 * trainable
        ),
        "whole bits only": lambda frozen, bits, trainable: frozen * (bits // 8) + 16 * trainable,
        "trained weights in the base's bits": lambda frozen, bits, trainable: (
            (frozen + 4 * trainable) * bits / 8
        ),
    }
}
