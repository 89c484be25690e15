"""Solutions of lesson 21."""

import torch


def mixed_rows(x, W, A, B, scaling):
    """One product for the base, two batched ones for all adapters, each row scaled by its own."""
    h = torch.bmm(x, A.mT)  # (rows, time, r)
    return x @ W.T + scaling[:, None, None] * torch.bmm(h, B.mT)


def slot_step(keys, lengths, new):
    """Each row writes behind its own end, and sees what is before its new end."""
    keys[torch.arange(len(keys)), lengths] = new
    lengths += 1
    return torch.arange(keys.shape[1]) < lengths[:, None]
