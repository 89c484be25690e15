"""Checkers of lesson 09. The oracle allocates it all, takes a step, and adds up the storages."""

import torch
from hypothesis import strategies as st

from minilora import LoraConfig
from minilora.learn import Wrong, cases, close, forbid
from minilora.ledger.estimate import plan

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


@cases(
    first={"frozen": 1001, "bits": 16, "trainable": 77},
    frozen=st.integers(0, 5000),
    bits=st.sampled_from([*DTYPES]),
    trainable=st.integers(0, 500),
)
def check_sizes(answer, frozen, bits, trainable):
    """Any sizes, whole bytes; and fractions of a bit, scaled from whole bytes."""
    case = f"frozen = {frozen:,} weights of {bits} bits, trainable = {trainable:,}"
    right = float(allocated_bytes(frozen, bits, trainable))
    close(answer(frozen, bits, trainable), right, what="bytes", case=case, tolerance=1e-6)
    case = f"frozen = {16 * frozen:,} weights of {bits / 16} bits, trainable = {trainable:,}"
    of_parts = answer(16 * frozen, bits / 16, trainable)
    close(of_parts, right, what="bytes", case=case, tolerance=1e-6)


def check_training_bytes(answer):
    """The rule, then the numbers, then a size at which a hidden loop takes hours."""
    forbid(answer, loops=True)
    check_sizes(answer)
    frozen, trainable = 6_738_415_616, 39_976_960
    right = frozen * 4.127 / 8 + 4 * trainable * 4
    case = f"{frozen:,} weights of 4.127 bits, trainable = {trainable:,}"
    close(answer(frozen, 4.127, trainable), right, what="bytes", case=case, tolerance=1e-6)


CARD = 16e9
RUN = {"batch": 2, "seq": 448, "checkpointing": False, "optimizer": "adamw"}
RUN |= {"adapter_dtype": "float32", "dtype": "bfloat16"}
WIDE = LoraConfig(r=64, lora_alpha=128, target_modules="all-linear")
MAY = ("checkpointing", "optimizer", "adapter_dtype")


def check_two_settings(answer):
    """The ledger's peak of the changed run."""
    changes = answer()
    if not isinstance(changes, dict) or len(changes) != 2:
        raise Wrong(f"expected 2 settings, {{name: value, name: value}}, got {changes!r}")
    if unknown := [name for name in changes if name not in RUN]:
        raise Wrong(
            f"{unknown[0]!r} is not one of the {len(RUN)} settings of RUN: {', '.join(RUN)}"
        )
    moved = [name for name in changes if name not in MAY and changes[name] != RUN[name]]
    if moved or changes.get("optimizer") == "sgd":
        name, allowed = (moved or ["optimizer"])[0], ", ".join(MAY)
        raise Wrong(
            f"{name} = {changes[name]!r} is another run, where it was {RUN[name]!r}: the rule "
            f"allows {allowed}, and 2 kinds of AdamW"
        )
    try:
        planned = plan("llama-2-7b", WIDE, "lora", **RUN | changes)
    except (ValueError, TypeError) as error:
        raise Wrong(f"with {changes}: {error}") from error
    if planned.peak > CARD:
        parts = sorted(planned.bytes.items(), key=lambda part: -part[1])
        largest = ", ".join(f"{name} {size / 1e9:.2f} GB" for name, size in parts[:4])
        raise Wrong(
            f"with {changes} the peak is {planned.peak / 1e9:.2f} GB and the card has "
            f"{CARD / 1e9:.0f}. The largest parts: {largest}"
        )


def slow(frozen, bits, trainable):
    """The specification itself."""
    held = 0.0
    for _ in range(frozen):
        held += bits / 8
    for _ in range(trainable):
        held += 16
    return held


def slow_sum(frozen, bits, trainable):
    """The same loop under another name."""
    return sum(bits / 8 for _ in range(frozen)) + sum(16 for _ in range(trainable))


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
        "the slow loop": slow,
        "a loop in sum": slow_sum,
    },
    "two_settings": {
        "checkpointing alone": lambda: {"checkpointing": True},
        "checkpointing, and nothing else": lambda: {"checkpointing": True, "dtype": "bfloat16"},
        "no checkpointing": lambda: {"optimizer": "adamw8bit", "adapter_dtype": "bfloat16"},
        "fewer tokens": lambda: {"batch": 1, "checkpointing": True},
        "another optimizer": lambda: {"checkpointing": True, "optimizer": "sgd"},
        "a smaller rank": lambda: {"checkpointing": True, "r": 16},
        "a name of its own": lambda: {"checkpointing": True, "optimizer": "adam8"},
        "three": lambda: {"checkpointing": True, "optimizer": "adamw8bit", "batch": 1},
    },
}
