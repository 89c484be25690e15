# %% [markdown]
# # 24 · Why are four bits slow, and which instruction helps?
#
# Know first: lesson 12 · Difficulty ●●● · 14 minutes to read · 30 seconds to run
#
# Four bits are an eighth of a float's 32. So a layer in four bits should be eight times as fast:
# there is that much less to read. Yet the version that one writes first, with tensors, is slower
# than floats, as the table below will show. Lesson 12 paid that price in silence. Here we look at
# where the time goes, and at the one instruction that gets it back.
#
#     y = x Ŵᵀ        ŵ = level[code] · scale, a scale for each block of 64
#
# First: the weight of one square layer, in four bits.

# %%
import re
import time

import numpy as np
import torch

from minilora.learn import check, full_or_short, show
from minilora.nf4 import kernel
from minilora.nf4.tensor import dequantize_by_tensors, quantize
from minilora.plots.style import hue, in_house_style, one_axes

WIDTH = 1024
torch.set_num_threads(1)
torch.manual_seed(0)
weight = torch.randn(WIDTH, WIDTH)
four = quantize(weight)
dense = four.dequantize()
print(f"{weight.nbytes / 1e6:.1f} MB in float32, {four.nbytes / 1e6:.2f} MB in four bits")
print("the compiled kernel:", *kernel.status())

# %% [markdown]
# Dequantizing with tensors takes steps, and each step reads one array from memory and writes
# another: bytes to codes, codes to levels, levels times scales.
#
# ## Predict

# %% [predict] traffic
# A weight has half a byte of code and 4 bytes when it is done. How many bytes go over memory for
# each weight, when a step reads the codes (½ byte) and writes them as one byte each, the next reads
# those and writes float levels, and a last one reads the levels, multiplies and writes them?
# answer: three_passes

# %% [predict] one_row
# One row of input, as for one generated token. A float Linear reads all of its 4-byte weights. In
# four bits and in one pass we read ½ byte and never write Ŵ. How many times fewer bytes?
# answer: 4 / 0.5

# %% [predict] who_wins
# With one row of input: which takes longest?
# - a) the float Linear
# - b) dequantize with tensors, then a matrix product
# - c) the compiled kernel, in one pass
# answer: "abc"[int(np.argmax([times[1][name] or 0 for name in WAYS]))]

# %% [markdown]
# ## Run


# %%
three_passes = (0.5 + 1) + (1 + 4) + (4 + 4)  # read + write of each step
print(f"three passes: {three_passes:.1f} bytes a weight; one pass: {0.5 + 4:.1f}")

WAYS = ("float Linear", "tensors, then product", "kernel, one pass")
ROWS = full_or_short((1, 2, 4, 8, 16, 32, 64), (1, 8))


def seconds(function):
    """Processor time of the quickest of a few calls: other programs do not count."""
    function()
    measured = []
    for _ in range(full_or_short(7, 3)):
        start = time.thread_time()
        function()
        measured.append(time.thread_time() - start)
    return min(measured)


def by_tensors(x):
    out = torch.empty(WIDTH * WIDTH)
    dequantize_by_tensors(four, out)
    return x @ out.view(WIDTH, WIDTH).T


packed_weight = kernel.Weight(
    (four.packed, four.absmax, four.absmax2, four.offset), four.block_size, four.kind
)
times, errors = {}, {}
for rows in ROWS:
    x = torch.randn(rows, WIDTH)
    few = kernel.product(x, None, packed_weight, WIDTH)  # None: no kernel, or too many rows for it
    errors[rows] = (few - x @ dense.T).abs().max().item() if few is not None else None
    times[rows] = {
        "float Linear": seconds(lambda x=x: torch.nn.functional.linear(x, dense)),
        "tensors, then product": seconds(lambda x=x: by_tensors(x)),
        "kernel, one pass": None
        if few is None
        else seconds(lambda x=x: kernel.product(x, None, packed_weight, WIDTH)),
    }
print("\nms     " + "".join(f"{name:>24}" for name in WAYS))
for rows, row in times.items():
    cells = ["—" if row[name] is None else f"{1000 * row[name]:.3f}" for name in WAYS]
    print(f"{rows:2} rows" + "".join(f"{cell:>24}" for cell in cells))

by_hand = torch.empty(WIDTH * WIDTH)
dequantize_by_tensors(four, by_hand)
assert torch.equal(by_hand.view_as(dense), dense)  # both ways: the same bits
assert all(error is None or error < 1e-3 for error in errors.values())
assert times[1]["tensors, then product"] > times[1]["float Linear"]  # written with tensors

# %% [markdown]
# ## Look: the roofline
#
# Two limits hold on every machine. Bytes come at the speed of memory, operations at the speed of
# the arithmetic:
#
#     time ≥ max(bytes / bandwidth, operations / peak)
#
# Draw operations a second over operations a *byte*, and both limits become a roof: a slope on the
# left, where one waits for memory, a flat part on the right. We measure the roof of this machine (a
# large copy, a large matrix product), then put each layer under it.

# %%
large = torch.randn(full_or_short(2**25, 2**22))
target = torch.empty_like(large)
bandwidth = 2 * large.nbytes / seconds(lambda: target.copy_(large))
square = torch.randn(1024, 1024)
peak = 2 * 1024**3 / seconds(lambda: square @ square)
print(f"memory {bandwidth / 1e9:.1f} GB/s, arithmetic {peak / 1e9:.0f} GFLOP/s, one thread")
print(f"so the roof bends at {peak / bandwidth:.1f} operations a byte")

BYTES = {"float Linear": 4.0, "tensors, then product": three_passes + 4, "kernel, one pass": 0.52}


@in_house_style
def roofline():
    figure, axes = one_axes(width=8.4, height=4.8)
    reach = np.logspace(-1.5, 2.5, 50)  # operations a byte
    axes.loglog(reach, np.minimum(reach * bandwidth, peak) / 1e9, color="gray", label="the roof")
    for colour, name in enumerate(WAYS):
        points = [(2 * n / BYTES[name], 2 * n * WIDTH**2 / row[name] / 1e9)
                  for n, row in times.items() if row[name]]  # fmt: skip
        if points:
            axes.loglog(*np.array(points).T, "o-", color=hue(colour), label=name)
    axes.set(xlabel="operations for each byte of weight traffic", ylabel="GFLOP/s reached")
    axes.set_title("one point a number of rows: 1 on the left, more to the right")
    axes.legend(loc="lower right")
    return figure


show(roofline(), alt="operations a second over operations a byte, under the machine's roof")

# %% [markdown]
# One row does two operations a weight. In floats that is {{ 2 / 4}} operations a byte, far left:
# the layer waits for memory. (Where the weight fits into the processor's cache, as here, memory is
# nearer than the slope says, and points may lie above it.) Four bits move the layer to the right by
# {{ 4 / 0.5:.0f}}; three passes move it to the left again. With many rows all of them reach the
# flat part, and there a blocked matrix product is better than anything in 200 lines: the kernel
# leaves more rows to it than {{ kernel.FEW_ROWS["avx512"]}} (AVX-512), {{ kernel.FEW_ROWS["avx2"]}}
# (AVX2) or {{ kernel.FEW_ROWS["plain"]}} (plain C).
#
# ## Explain: sixteen numbers in a register
#
# One pass means: read codes, look up, multiply, add, all in registers. The look-up is the hard
# part. A processor loads 8 or 16 numbers that lie *side by side* in one instruction; 8 numbers
# from 8 places are 8 loads. But the table of NF4 has only 16 entries of 4 bytes, and a register of
# AVX-512 has 64 bytes. So the table *lives in a register*, and an instruction that was made for
# permuting lanes (`vpermps`) looks up 16 codes at once. AVX2 has half of that: two tables of eight,
# two permutations, and a blend by the fourth bit.

# %%
source = kernel.SOURCE.with_name("kernel_x86.h").read_text(encoding="utf-8")
for name in ("look_up", "eight"):
    print(re.search(rf"AVX2 INLINE __m256 {name}\(.*?\n}}", source, re.DOTALL)[0], "\n")

# %% [markdown]
# The same in NumPy, an array of 8 for a register. A 32-bit word holds eight codes, and its first
# byte is the *lowest* (little-endian): code 0 lies in bits 4 to 7, code 1 in bits 0 to 3, code 2 in
# bits 12 to 15. Every lane gets the whole word and shifts it by an amount of its own:

# %%
SHIFTS = np.array([4, 0, 12, 8, 20, 16, 28, 24], dtype=np.uint32)
levels = np.array(sorted(set(dense.flatten()[:64].tolist())))  # the values in the first block
print(f"{len(levels)} different values in a block of 64: a table of 16 holds them all")


def permute(table, indices):
    """vpermps: lane i gets table[the lowest three bits of indices[i]]."""
    return table[indices & 7]


def look_up(table, codes):
    low, high = permute(table[:8], codes), permute(table[8:], codes)
    return np.where(codes & 8, high, low)  # vblendvps: by the fourth bit


def eight(table, word):
    return look_up(table, word >> SHIFTS)  # bits above the fourth are never looked at


packed = four.packed.numpy().ravel()
codes = np.stack([packed >> 4, packed & 15], axis=1).ravel()
words = packed.view("<u4")
table = np.linspace(-1, 1, 16).astype("float32")
assert all(np.array_equal(eight(table, words[i]), table[codes[8 * i : 8 * i + 8]])
           for i in range(0, len(words), 997))  # fmt: skip

# %% [markdown]
# ### The loop, line by line
#
# With AVX-512 this is the whole of dequantizing: a block, then the codes of a block.

# %%
for name in ("__m512 sixteen", "void put_avx512", "void expand_avx512"):
    print(re.search(rf"AVX512 INLINE {name}\(.*?\n}}", source, re.DOTALL)[0], "\n")

# %% [markdown]
# - `table_avx512` multiplies the scale into the table: 16 products for a block of 64, not 64.
# - `sixteen` takes two words, the second for the upper eight lanes, and looks up 16 codes at once.
# - bfloat16 is rounded 16 times a block too, in the table. Two halves fit into a lane, as two codes
#   fit into a byte: one look-up for the even code, one for the odd, joined by *or*.
# - `put` has two stores. An ordinary one reads the 64 bytes that it overwrites, so a float crosses
#   the memory bus twice: {{ 0.5 + 2 * 4}} bytes a weight in place of {{ 0.5 + 4}}. Above 4 MB, more
#   than a core's cache is likely to keep, `stream` writes past the caches. `sfence` makes such
#   stores visible before another thread reads them.
# - `past` asks for an address that 64 divides: `stream` ends the process at any other.
#
# What is not here is the remainder: a piece that begins or ends inside a block goes in steps of 32
# and then weight by weight (`span_at` in kernel.c). And several threads take shares of 16,384
# weights from a common counter until none is left, so a late thread delays no other.
#
# ## Break it
#
# Two slips that such a kernel invites. A byte that is *signed*: shifting it right copies its sign,
# so that codes from 8 up turn negative. And the halves in the wrong order.

# %%
signed = packed.view(np.int8) >> 4
print("code of the first half, bytes unsigned and signed:")
first_high = np.flatnonzero(packed >= 128)[:6]
print(" ", packed[first_high] >> 4, signed[first_high])
wrong_table = table[signed]  # NumPy, too, reads negative indices: from the end, without a word
right_table = table[packed >> 4]
same = np.array_equal(wrong_table, right_table)
print("looked up in a table of 16:", "the same, by luck" if same else "other values")
assert (signed[first_high] < 0).all()
assert same  # -8 … -1 count from the end of 16, and so hide the slip; C would read before the table

swapped = np.stack([packed & 15, packed >> 4], axis=1).ravel()
moved = (table[swapped] != table[codes]).mean()
error = np.linalg.norm(table[swapped] - table[codes]) / np.linalg.norm(table[codes])
print(f"halves exchanged: {moved:.0%} of the weights are wrong, relative error {error:.2f}")
print("their mean and spread:", table[swapped].mean(), table[swapped].std(), "— unchanged")
assert error > 1
assert np.allclose(table[swapped].std(), table[codes].std())

# %% [markdown]
# Neither announces itself. The signed shift is right in NumPy and torch, by luck, and reads foreign
# memory in C. Exchanged halves keep every statistic of the weights and ruin the model. Only a
# comparison with the slow, plain version finds both, so that version stays forever.
#
# ## Build: nibbles in order
#
# Difficulty ●●○ · Importance ●●● · 10 minutes


# %% [exercise] codes_of_words
import numpy as np


def codes_of_words(words):
    """Eight codes from each little-endian word: words (n,) uint32, to (8n,) uint8, each 0 to 15.

    A word's lowest byte is the first of four. In each byte the first code is the high half.
    No loop over words: every lane shifts the whole word by its own amount.
    """
    raise NotImplementedError(
        "TODO: words as a column, eight shifts as a row, the lowest four bits"
    )


# %% [hints] codes_of_words
# 1. Byte k of a word is `(word >> 8 * k) & 255`; its two halves are four bits more and none.
# 2. The shifts are 4, 0 for the first byte, 12, 8 for the second, and so on up to 28, 24.
# 3. `shifts = np.array([4, 0, 12, 8, 20, 16, 28, 24], dtype=np.uint32)`, then
#    `return ((words[:, None] >> shifts) & 15).astype(np.uint8).ravel()`

# %%
check(codes_of_words)

# %% [markdown]
# ## Build: the one-pass product
#
# Difficulty ●●● · Importance ●●○ · 15 minutes


# %% [exercise] one_pass_product
import numpy as np


def one_pass_product(x, packed, scales, levels, block):
    """y = Ŵ x without ever holding a row of Ŵ: y (out,).

    x (in,) float64. packed (out · in / 2,) uint8, row after row, the first code in the high
    half. scales (out · in / block,): one a block. levels (16,). block divides in. Go block by
    block: scale the table (16 products), look up the block's codes, add their dot product with x.
    """
    raise NotImplementedError("TODO: for each block: table = levels * scale, then look up and add")


# %% [hints] one_pass_product
# 1. Block b has the weights b·block to (b + 1)·block; its row is `b * block // len(x)`, and its
#    part of x begins at `b * block % len(x)`.
# 2. Its codes: `half = packed[b * block // 2 : (b + 1) * block // 2]`, then `half >> 4` and
#    `half & 15` in turn.
# 3. `codes = np.stack([half >> 4, half & 15], axis=1).ravel()`, then
#    `y[row] += (levels * scales[b])[codes] @ x[start : start + block]`

# %%
check(one_pass_product)

# %% [markdown]
# ## What you can now defend
#
# - Four bits are slow when they are *unpacked*: {{ three_passes:.1f}} bytes over memory for a
#   weight of half a byte.
# - One row of input waits for memory, many rows for arithmetic. So four bits can win where one
#   token is generated, and only if Ŵ is never written.
# - A table of 16 numbers fits into a register, and a permutation of lanes is a look-up.
# - A kernel is as trustworthy as its comparison with the plain version: the weights have the same
#   bits, the products err as a float32 dot product may.
#
# ## Open question
#
# Training has many rows, so there four bits save memory and no time. On a GPU the roof bends much
# further to the right. What does that change for a row, and for sixteen?
