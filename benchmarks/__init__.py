"""What is measured beside the peers: ``make bench`` for all of it, ``python -m benchmarks.forward`` for one."""

import logging

# torchao tells, wherever it is found, of kernels for other machines
for noisy in ("torchao", "torch.utils._pytree"):
    logging.getLogger(noisy).setLevel(logging.ERROR)
