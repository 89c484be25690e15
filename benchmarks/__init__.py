"""What is measured beside the peers: ``make bench`` for all of it, ``python -m benchmarks.forward`` for one."""

import logging

for noisy in ("torchao", "torch.utils._pytree"):  # torchao tells, wherever it is found, of kernels for other machines
    logging.getLogger(noisy).setLevel(logging.ERROR)
