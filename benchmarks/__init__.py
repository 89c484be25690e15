"""Measurements beside the peers: ``make bench`` runs all, ``python -m benchmarks.forward`` one."""

import logging

# where torchao is installed, it logs about kernels for other machines
for noisy in ("torchao", "torch.utils._pytree"):
    logging.getLogger(noisy).setLevel(logging.ERROR)
