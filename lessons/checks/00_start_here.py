"""Checks of lesson 00. The oracle counts the numbers of real arrays."""

import numpy as np
from hypothesis.strategies import integers, lists, tuples

from minilora.learn import cases, close

size = integers(1, 12)


@cases(
    first={"shapes": [(7, 5), (3, 4)], "r": 3},
    shapes=lists(tuples(size, size), max_size=4),
    r=integers(1, 6),
)
def check_adapter_size(answer, shapes, r):
    """None, one or several matrices, square ones and others."""
    counted = sum(np.zeros((r, into)).size + np.zeros((out, r)).size for out, into in shapes)
    case = f"shapes {shapes} and r = {r}"
    close(answer(list(shapes), r), counted, what="the count", case=case, tolerance=0)


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
