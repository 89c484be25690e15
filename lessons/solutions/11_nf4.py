"""Solutions of lesson 11."""

import torch


def quantize_scales(absmax):
    """Scales (blocks,) to codes (blocks,) int8, absmax2 (⌈blocks/256⌉,) and offset (): absmax quantization around the mean."""
    blocks, offset = len(absmax), absmax.mean()
    centred = absmax - offset
    # zeros never are a run's largest magnitude
    runs = torch.nn.functional.pad(centred, (0, -blocks % 256)).view(-1, 256)
    absmax2 = runs.abs().amax(dim=1)
    spread = absmax2.repeat_interleave(256)[:blocks]
    codes = torch.round(127 * centred / spread.clamp(min=1e-30)).to(torch.int8)
    return codes, absmax2, offset


def bits_per_weight(n, block_size):
    """Bits a weight with double quantization: codes, a byte a block, 4 bytes for 256 blocks, 4 for the offset."""
    blocks = -(-n // block_size)
    return 8 * (-(-n // 2) + blocks + 4 * -(-blocks // 256) + 4) / n
