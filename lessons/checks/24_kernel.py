"""Checkers of lesson 24. Oracles: hexadecimal text for codes, a loop over single weights."""

import numpy as np
from hypothesis import strategies as st

from minilora.learn import Wrong, cases, close

SHIFTS = np.array([4, 0, 12, 8, 20, 16, 28, 24], dtype=np.uint32)


@cases(words=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=5))
def check_codes_of_words(answer, words):
    """Against the hexadecimal digits of the bytes, lowest byte first."""
    codes = answer(np.array(words, dtype=np.uint32))
    digits = "".join(word.to_bytes(4, "little").hex() for word in words)
    right = np.array([int(digit, 16) for digit in digits])
    case = "the words " + ", ".join(f"0x{word:08x}" for word in words)
    close(codes, right, what="codes", case=case, tolerance=0)
    if codes.dtype != np.uint8:
        raise Wrong(f"codes are {codes.dtype} for {case}; a right answer is uint8, one byte each")


@cases(
    first={"rows": 3, "blocks": 2, "half": 3, "seed": 0},
    rows=st.integers(1, 3),
    blocks=st.integers(1, 3),
    half=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def check_one_pass_product(answer, rows, blocks, half, seed):
    """Against a loop over single weights."""
    block, dice = 2 * half, np.random.default_rng(seed)
    columns = blocks * block
    packed = dice.integers(0, 256, size=rows * columns // 2, dtype=np.uint8)
    scales, levels = dice.uniform(0.5, 2, size=rows * blocks), np.sort(dice.normal(size=16))
    x = dice.normal(size=columns)
    digits = packed.tobytes().hex()
    right = [0.0] * rows
    for i, digit in enumerate(digits):
        right[i // columns] += levels[int(digit, 16)] * scales[i // block] * x[i % columns]
    given = (x.copy(), packed.copy(), scales.copy(), levels.copy(), block)
    case = f"{rows} rows of {columns} weights in blocks of {block}"
    close(answer(*given), np.array(right), what="y", case=case)


def low_half_first(words):
    """Halves exchanged."""
    return ((words[:, None] >> np.arange(0, 32, 4, dtype=np.uint32)) & 15).astype(np.uint8).ravel()


def big_endian(words):
    """The highest byte first."""
    return (
        ((words[:, None] >> np.arange(28, -4, -4).astype(np.uint32)) & 15).astype(np.uint8).ravel()
    )


def unmasked(words):
    """The bits above stay."""
    return (words[:, None] >> SHIFTS).astype(np.uint8).ravel()


def signed(words):
    """A signed shift of bytes: codes from 8 up become negative."""
    halves = words.astype("<u4").view(np.int8)
    return np.stack([halves >> 4, halves & 15], axis=1).ravel()


def lanes_first(words):
    """All first codes, then all second codes."""
    return ((words[:, None] >> SHIFTS) & 15).astype(np.uint8).T.ravel()


def product(x, packed, scales, levels, block, swap=False, per_row=False, scaled=True):
    """The right loop, with slips to choose from."""
    y = np.zeros(2 * len(packed) // len(x))
    for b in range(len(scales)):
        row, start = b * block // len(x), b * block % len(x)
        half = packed[b * block // 2 : (b + 1) * block // 2]
        halves = [half & 15, half >> 4] if swap else [half >> 4, half & 15]
        table = levels * (scales[row if per_row else b] if scaled else 1.0)
        y[row] += table[np.stack(halves, axis=1).ravel()] @ x[start : start + block]
    return y


def halves_exchanged(*given):
    """The low half first."""
    return product(*given, swap=True)


def a_scale_a_row(*given):
    """The scale of the row's number."""
    return product(*given, per_row=True)


def unscaled(*given):
    """Levels alone."""
    return product(*given, scaled=False)


def x_from_the_start(x, packed, scales, levels, block):
    """Each block takes the first part of x."""
    return product(np.resize(x[:block], len(x)), packed, scales, levels, block)


WRONG = {
    "codes_of_words": {
        "low half first": low_half_first,
        "highest byte first": big_endian,
        "unmasked": unmasked,
        "signed bytes": signed,
        "lanes first": lanes_first,
    },
    "one_pass_product": {
        "halves exchanged": halves_exchanged,
        "a scale a row": a_scale_a_row,
        "unscaled": unscaled,
        "x from the start": x_from_the_start,
    },
}
