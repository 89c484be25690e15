"""Checkers of lesson 11. Scales by what the codes give back; bits by a real tensor's bytes."""

import torch
from hypothesis import strategies as st

from minilora import nf4
from minilora.learn import Wrong, cases, close, forbid


@cases(
    first={"blocks": 300, "spread": 1.0, "power": 1.0, "seed": 0},
    blocks=st.integers(1, 700),
    spread=st.sampled_from([0.0, 0.1, 1.0]),
    power=st.sampled_from([0.2, 1.0, 5.0]),
    seed=st.integers(0, 999),
)
def check_parts(answer, blocks, spread, power, seed):
    """Offset and absmax2 by definition, run by run; codes by the half-step bound."""
    absmax = 2 + spread * torch.rand(blocks, generator=torch.Generator().manual_seed(seed)) ** power
    case = f"{blocks} scales from {absmax.min():.2f} to {absmax.max():.2f}"
    parts = answer(absmax.clone())
    if not isinstance(parts, tuple) or len(parts) != 3:
        kind = type(parts).__name__
        raise Wrong(f"for {case}: expected a tuple of 3, (codes, absmax2, offset), got {kind}")
    codes, absmax2, offset = parts
    mean = absmax.mean().item()
    close(offset, absmax.mean(), what="offset, the mean of all scales,", case=case)
    largest = [max(abs(scale - mean) for scale in run.tolist()) for run in absmax.split(256)]
    what = "absmax2, the largest |scale - offset| of each 256,"
    close(absmax2, torch.tensor(largest), what=what, case=case, tolerance=1e-3)
    all_finite = torch.ones(blocks, dtype=torch.bool)
    close(codes.float().isfinite(), all_finite, what="codes that are finite", case=case)
    if codes.dtype != torch.int8:
        raise Wrong(
            f"codes are {codes.dtype} for {case}; a right answer is torch.int8, a byte each"
        )
    for i, (code, scale) in enumerate(zip(codes.tolist(), absmax.tolist(), strict=True)):
        step = largest[i // 256] / 127
        back = code * step + mean
        error = abs(back - scale)
        if error > step / 2 + 1e-5:
            raise Wrong(
                f"for {case}, code {code} at {i} gives back {back:.5f} for the scale {scale:.5f}: "
                f"off by {error:.2g}; rounding to the nearest is off by {step / 2:.2g} at most"
            )


def check_quantize_scales(answer):
    """The rule, then the three tensors."""
    forbid(answer, loops=True)
    check_parts(answer)


@cases(
    first={"n": 1001, "block_size": 64},
    n=st.integers(1, 70_000),
    block_size=st.sampled_from([32, 64, 128, 256]),
)
def check_bits_per_weight(answer, n, block_size):
    """Against the storage of a real tensor."""
    right = nf4.quantize(torch.ones(n), block_size, double_quant=True).bits_per_weight
    case = f"n = {n:,}, block_size = {block_size}"
    close(answer(n, block_size), right, what="bits", case=case, tolerance=1e-9)


def runs_of_256(values):
    """(runs, 256), padded with zeros."""
    return torch.nn.functional.pad(values, (0, -len(values) % 256)).view(-1, 256)


def encode(centred, absmax2, top=127, rounding=torch.round):
    """Codes by the given spread."""
    spread = absmax2.repeat_interleave(256)[: len(centred)].clamp(min=1e-30)
    return rounding(top * centred / spread).to(torch.int8)


def without_offset(absmax):
    """The mean stays in: half of the codes idle."""
    absmax2 = runs_of_256(absmax).abs().amax(dim=1)
    return encode(absmax, absmax2), absmax2, torch.tensor(0.0)


def one_spread_for_all(absmax):
    """One absmax2 for all runs."""
    centred = absmax - absmax.mean()
    absmax2 = centred.abs().max().repeat(-(-len(absmax) // 256))
    return encode(centred, absmax2), absmax2, absmax.mean()


def signed_maximum(absmax):
    """The largest value, not the largest magnitude."""
    centred = absmax - absmax.mean()
    absmax2 = runs_of_256(centred).amax(dim=1)
    return encode(centred, absmax2), absmax2, absmax.mean()


def rounds_down(absmax):
    """Biased rounding."""
    centred = absmax - absmax.mean()
    absmax2 = runs_of_256(centred).abs().amax(dim=1)
    return encode(centred, absmax2, rounding=torch.floor), absmax2, absmax.mean()


def half_the_range(absmax):
    """Codes from -63 to 63: a bit is wasted."""
    centred = absmax - absmax.mean()
    absmax2 = runs_of_256(centred).abs().amax(dim=1)
    return encode(centred, absmax2, top=63), absmax2, absmax.mean()


def mean_of_each_run(absmax):
    """An offset a run, where one is stored."""
    means = torch.stack(list(map(torch.mean, absmax.split(256))))
    centred = absmax - means.repeat_interleave(256)[: len(absmax)]
    absmax2 = runs_of_256(centred).abs().amax(dim=1)
    return encode(centred, absmax2), absmax2, means


def run_by_run(absmax):
    """Right, with a Python loop over the runs."""
    offset = absmax.mean()
    runs = [run - offset for run in absmax.split(256)]
    absmax2 = torch.stack([run.abs().max() for run in runs])
    return encode(torch.cat(runs), absmax2), absmax2, offset


def scales_in_32_bits(n, block_size):
    """No double quantization."""
    return 8 * (-(-n // 2) + 4 * -(-n // block_size)) / n


def formula_of_long_tensors(n, block_size):
    """As if nothing were ever begun and not filled."""
    return 4 + 8 / block_size + 32 / (256 * block_size)


def no_offset(n, block_size):
    """Forgets four bytes."""
    blocks = -(-n // block_size)
    return 8 * (-(-n // 2) + blocks + 4 * -(-blocks // 256)) / n


def rounds_blocks_down(n, block_size):
    """A last block for nothing."""
    blocks = n // block_size
    return 8 * (-(-n // 2) + blocks + 4 * (blocks // 256) + 4) / n


def bytes_for_bits(n, block_size):
    """Off by eight."""
    blocks = -(-n // block_size)
    return (-(-n // 2) + blocks + 4 * -(-blocks // 256) + 4) / n


WRONG = {
    "quantize_scales": {
        "without the offset": without_offset,
        "one spread for all": one_spread_for_all,
        "no magnitude": signed_maximum,
        "rounds down": rounds_down,
        "half the range": half_the_range,
        "a mean a run": mean_of_each_run,
        "run by run": run_by_run,
    },
    "bits_per_weight": {
        "scales still in 32 bits": scales_in_32_bits,
        "the formula of long tensors": formula_of_long_tensors,
        "no offset": no_offset,
        "rounds blocks down": rounds_blocks_down,
        "bytes for bits": bytes_for_bits,
    },
}
