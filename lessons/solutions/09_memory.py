"""Solutions of lesson 09."""


def training_bytes(frozen, bits, trainable):
    """frozen · bits / 8 for what stands still; 16 bytes for each trained number: itself, its gradient, two moments."""
    return frozen * bits / 8 + trainable * (4 + 4 + 8)
