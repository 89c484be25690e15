"""Solutions of lesson 00."""


def adapter_size(shapes, r):
    """A is (r, in) and B is (out, r): r (in + out) numbers for each matrix."""
    return sum(r * (out + into) for out, into in shapes)
