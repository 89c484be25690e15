"""Tasks, batches, one loop, checkpoints, evaluation.

In reading order:

    examples.py    examples, read from a file and split into two sides
    data.py        the tasks: a ship's log answered politely, or in naval code
    batches.py     examples as rows of tokens, padded or packed; which tokens have a loss
    config.py      ``TrainConfig``: steps, rate, batch
    objective.py   the loss of a batch, and its gradient
    optimizer.py   AdamW, and the rate of each step
    loop.py        ``steps``, one after the other, and ``train``
    observers.py   the journal, validation and checkpoints, which watch the steps
    checkpoint.py  a run's state on disk; a resumed run ends in the same bits
    history.py     what happened, step by step
    progress.py    the bar
    evaluation.py  exact match, bits a byte

Imports ``model``, ``lora`` and the ground.
"""

from typing import TYPE_CHECKING

from ..lazy import lazy_imports

if TYPE_CHECKING:
    from .config import TrainConfig
    from .data import Example, Task
    from .evaluation import bits_per_byte, exact_match
    from .history import History
    from .loop import train

__all__ = ["Example", "History", "Task", "TrainConfig", "bits_per_byte", "exact_match", "train"]
__getattr__, __dir__ = lazy_imports(__name__)
