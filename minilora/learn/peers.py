"""PEFT and transformers in a lesson: without the notes that they write while they load."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_peers() -> Iterator[None]:
    """A context without log lines and warnings of other libraries; errors are raised as ever.

    >>> with quiet_peers():
    ...     warnings.warn("is deprecated", stacklevel=1)
    ...     logging.getLogger("bitsandbytes").warning("no module named 'kernels'")
    """
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
