"""Checks of lesson 00. The oracle counts the numbers of real arrays."""

import numpy as np
from hypothesis.strategies import integers, lists, tuples

from minilora.learn import Wrong, cases

size = integers(1, 12)


@cases(shapes=lists(tuples(size, size), max_size=4), r=integers(1, 6))
def check_adapter_size(answer, shapes, r):
    """None, one or several matrices, square ones and others."""
    counted = sum(np.zeros((r, into)).size + np.zeros((out, r)).size for out, into in shapes)
    given = answer(list(shapes), r)
    if given != counted:
        raise Wrong(f"for shapes {shapes} and r = {r} it gives {given}, and A and B have {counted}")


def product(shapes, r):
    return sum(r * out * into for out, into in shapes)


def only_a(shapes, r):
    return sum(r * into for _, into in shapes)


def first_only(shapes, r):
    return r * sum(shapes[0]) if shapes else 0


def without_r(shapes, r):
    return sum(out + into for out, into in shapes)


def whole(shapes, r):
    return sum(out * into for out, into in shapes)


WRONG = {
    "adapter_size": {
        "the whole matrix times r": product,
        "A without B": only_a,
        "the first matrix only": first_only,
        "r is left out": without_r,
        "the matrix itself": whole,
    }
}
