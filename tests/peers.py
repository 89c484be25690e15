"""Which kernel a peer computes with on this machine, for the few tests whose answer depends on it.

bitsandbytes 0.50.2 has two CPU kernels that dequantize four bits, and chooses by the processor:

    plain      every machine without AVX-512; its values are right for every shape
    AVX-512    starts a new block in each row if the width is a multiple of 16: wrong, unless the
               width is a multiple of the block size too. With AVX512-BF16, most subnormal bfloat16
               values become zero as well, and a Linear4bit in eval mode computes in bfloat16,
               whatever the model's dtype.

The library asks the processor itself, so ``ATEN_CPU_CAPABILITY`` changes torch's kernels and not
this one.
"""

import torch
from bitsandbytes.cextension import lib
from torch import Tensor, nn


def library_says(question: str) -> bool:
    """The native library's answer; False without a library or with one too old for the question."""
    try:
        return bool(getattr(lib, question)())
    except (AttributeError, RuntimeError, OSError):
        return False


AVX512 = library_says("has_avx512f_cpu")
AVX512_BF16 = library_says("has_avx512bf16_cpu")


def misread(weight: Tensor, block_size: int) -> bool:
    """Whether bitsandbytes misreads the codes of a weight with these rows, on this machine."""
    width = weight.shape[-1]
    one_row = weight.numel() == width
    return AVX512 and not one_row and width % 16 == 0 and width % block_size != 0


def same_values(ours: Tensor, theirs: Tensor) -> bool:
    """Equal to the bit, but for subnormal bfloat16, mostly zero in an AVX512-BF16 kernel."""
    if ours.dtype == torch.bfloat16 and AVX512_BF16:
        normal = torch.finfo(ours.dtype).smallest_normal
        ours, theirs = (torch.where(values.abs() < normal, 0, values) for values in (ours, theirs))
    return torch.equal(ours, theirs)


def in_floats(model: nn.Module) -> nn.Module:
    """The same model; its 4-bit Linears then compute in its own dtype on every machine."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model
