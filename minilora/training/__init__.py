"""Tasks, batches, one loop, checkpoints, evaluation.

In reading order:

    data_files.py  rows of a data file, whatever its container
    examples.py    what a model learns from: examples, conversations, documents; two sides
    data_forms.py  the forms in which people write examples down
    readers.py     ``read_examples``, with an account of what was read
    data.py        the tasks: a ship's log answered politely, or in naval code
    batches.py     examples as rows of tokens, padded or packed; which tokens have a loss
    config.py      ``TrainConfig``: steps, rate, batch
    order.py       which examples a step gets; padded, packed or grouped by length
    ranks.py       the processes that train together, of which there is mostly one
    loss_scaling.py   float16's small gradients, and its overflows
    objective.py   the loss of a batch, and its gradient
    recomputation.py  activation checkpointing: memory for time
    optimizer.py   AdamW, and the rate of each step
    limits.py      what a model can take: dtypes, ids, positions
    mixture.py     batches of several sources, and their one loss
    teacher.py     the model before the fine-tune: what it writes, and its logits
    replay.py      ``SelfReplay``, ``Examples``, ``Prose``: old rows beside the new
    steps.py       the steps, one after the other
    run.py         one run's parts: batches, what trains, the optimizer
    loop.py        ``train``: a run from start to end
    side_by_side.py   several runs' batches in one, with a group of rows for each adapter
    many.py        ``train_many``: several adapters at once, each as from a run of its own
    classification.py  texts with labels, for an encoder with a head
    observers.py   the journal, validation and checkpoints, which watch the steps
    rounding.py    bfloat16 weights that hardly move
    checkpoint.py  a run's state on disk; a resumed run ends in the same bits
    history.py     what happened, step by step
    trackers.py    curves and norms for TensorBoard and Weights & Biases
    progress.py    the bar, and the lines without a terminal
    evaluation.py  exact match, bits a byte

Imports ``model``, ``lora`` and the ground.
"""

from typing import TYPE_CHECKING

from ..lazy import lazy_imports

if TYPE_CHECKING:
    from .config import TrainConfig
    from .data import Example, Task
    from .evaluation import bits_per_byte, exact_match
    from .examples import Conversation, Document
    from .history import History
    from .loop import train
    from .many import Job, Outcome, train_many
    from .readers import read_examples
    from .replay import Examples, Prose, SelfReplay

__all__ = [
    "Conversation",
    "Document",
    "Example",
    "Examples",
    "History",
    "Job",
    "Outcome",
    "Prose",
    "SelfReplay",
    "Task",
    "TrainConfig",
    "bits_per_byte",
    "exact_match",
    "read_examples",
    "train",
    "train_many",
]
if not TYPE_CHECKING:  # or a type checker would take every name for there
    __getattr__, __dir__ = lazy_imports(__name__)
