"""Solutions of lesson 09."""


def training_bytes(frozen, bits, trainable):
    """A frozen weight costs its bits; a trained number itself, its gradient and two moments."""
    return frozen * bits / 8 + trainable * (4 + 4 + 8)


def two_settings():
    """Checkpointing takes the activations; half-size or 8-bit parts of the adapter the rest."""
    return {"checkpointing": True, "optimizer": "adamw8bit"}
