"""Checkers of lesson 10. The oracle goes through hexadecimal text, without arithmetic on halves."""

import torch
from hypothesis import strategies as st

from minilora.learn import Wrong, cases, close

codes_of_any_length = st.lists(st.integers(0, 15), min_size=1, max_size=40)


def packed_by_text(codes):
    """The bytes of a list of codes, by way of their hexadecimal digits."""
    digits = "".join(f"{code:x}" for code in codes) + "7" * (len(codes) % 2)
    return list(bytes.fromhex(digits))


@cases(first={"codes": [3, 1, 0, 2, 6]}, codes=codes_of_any_length)
def check_pack_nibbles(answer, codes):
    """Bytes and dtype, for even and odd lengths."""
    packed, right = answer(torch.tensor(codes)), torch.tensor(packed_by_text(codes))
    close(packed, right, what="packed", case=f"the {len(codes)} codes {codes}", tolerance=0)
    if packed.dtype != torch.uint8:
        raise Wrong(
            f"packed is {packed.dtype} for {len(codes)} codes; a right answer is torch.uint8, one "
            "byte each"
        )


@cases(first={"codes": [3, 1, 0, 2, 6]}, codes=codes_of_any_length)
def check_unpack_nibbles(answer, codes):
    """The codes that went in, none of the padding."""
    packed = torch.tensor(packed_by_text(codes), dtype=torch.uint8)
    unpacked = answer(packed, len(codes))
    case = f"the bytes {packed.tolist()} and n = {len(codes)}"
    close(unpacked, torch.tensor(codes), what="codes", case=case, tolerance=0)
    if unpacked.dtype != torch.int64:
        raise Wrong(
            f"codes are {unpacked.dtype} for n = {len(codes)}; a right answer is torch.int64, "
            "which can index a table"
        )


def padded(codes, value=7):
    """An even number of codes."""
    return torch.cat([codes, torch.full((len(codes) % 2,), value)])


def pack_low_first(codes):
    """The first code in the low half."""
    codes = padded(codes)
    return (codes[::2] + 16 * codes[1::2]).to(torch.uint8)


def pack_halves(codes):
    """Element i shares a byte with element i + n/2."""
    codes = padded(codes)
    half = len(codes) // 2
    return (16 * codes[:half] + codes[half:]).to(torch.uint8)


def pack_zero_padded(codes):
    """Padded with code 0, which is the lowest value and not zero."""
    codes = padded(codes, value=0)
    return (16 * codes[::2] + codes[1::2]).to(torch.uint8)


def pack_fifteen(codes):
    """Off by one: fifteen for sixteen."""
    codes = padded(codes)
    return (15 * codes[::2] + codes[1::2]).to(torch.uint8)


def pack_drops_the_tail(codes):
    """The last of an odd number is lost."""
    codes = codes[: len(codes) // 2 * 2]
    return (16 * codes[::2] + codes[1::2]).to(torch.uint8)


def pack_wide(codes):
    """Right numbers in eight bytes each."""
    codes = padded(codes)
    return 16 * codes[::2] + codes[1::2]


def unpack_low_first(packed, n):
    """The low half first."""
    return torch.stack([packed & 15, packed >> 4], dim=1).flatten()[:n].long()


def unpack_all_highs_first(packed, n):
    """All high halves, then all low ones."""
    return torch.cat([packed >> 4, packed & 15])[:n].long()


def unpack_padding_too(packed, n):
    """The padding is not cut off."""
    return torch.stack([packed >> 4, packed & 15], dim=1).flatten().long()


def unpack_unmasked(packed, n):
    """The high half is left in the low code."""
    return torch.stack([packed >> 4, packed], dim=1).flatten()[:n].long()


WRONG = {
    "pack_nibbles": {
        "low half first": pack_low_first,
        "first half with second half": pack_halves,
        "padded with code 0": pack_zero_padded,
        "fifteen for sixteen": pack_fifteen,
        "drops the tail": pack_drops_the_tail,
        "not bytes": pack_wide,
    },
    "unpack_nibbles": {
        "low half first": unpack_low_first,
        "all highs first": unpack_all_highs_first,
        "padding not cut off": unpack_padding_too,
        "no mask": unpack_unmasked,
    },
}
