"""Which kernel a peer computes with on this machine, for the few tests whose answer depends on it.

bitsandbytes 0.50.2 has two CPU kernels that dequantize four bits, and chooses by the processor:

    plain      every machine without AVX-512; its values are right for every shape
    AVX-512    starts a new block in each row, where a width is a multiple of 16: wrong, unless it is one of the
               block as well. With AVX512-BF16 most subnormal bfloat16 values become zero, too, and a
               Linear4bit in eval mode computes in bfloat16, whatever the model's dtype.

The library asks the processor itself, so ``ATEN_CPU_CAPABILITY`` changes torch's kernels and not this one.
"""

import torch
from bitsandbytes.cextension import lib
from torch import Tensor, nn


def _says(question: str) -> bool:
    """What the native library answers; no library, or an older one without the question, has no such kernel."""
    try:
        return bool(getattr(lib, question)())
    except (AttributeError, RuntimeError, OSError):
        return False


AVX512 = _says("has_avx512f_cpu")
AVX512_BF16 = _says("has_avx512bf16_cpu")


def misread(weight: Tensor, block_size: int) -> bool:
    """Whether bitsandbytes gives other values than the codes stand for, here and for this weight's rows."""
    width = weight.shape[-1]
    one_row = weight.numel() == width
    return AVX512 and not one_row and width % 16 == 0 and width % block_size != 0


def same_values(ours: Tensor, theirs: Tensor) -> bool:
    """Equal to the bit, but for subnormal bfloat16 where bitsandbytes' kernel knows none (but in a rest of under 16)."""
    if ours.dtype == torch.bfloat16 and AVX512_BF16:
        normal = torch.finfo(ours.dtype).smallest_normal
        ours, theirs = (torch.where(values.abs() < normal, 0, values) for values in (ours, theirs))
    return torch.equal(ours, theirs)


def in_floats(model: nn.Module) -> nn.Module:
    """The same model, whose 4-bit Linears compute in its own dtype on every machine."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model
