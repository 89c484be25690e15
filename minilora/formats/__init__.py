"""Files that other libraries read: PEFT's adapters, bitsandbytes' four bits, their base.

In reading order:

    model_card.py         an adapter's README.md, as PEFT and model hubs have it
    peft_files.py         an adapter's files, read strictly and written whole
    base_fingerprint.py   which base an adapter was made on
    factors.py            A and B by their names in the files
    beside.py             what a file holds beside A and B: a head, biases, token rows
    mismatches.py         everything that does not fit, in one list
    plain_lora.py         one rank and one alpha, for readers without patterns
    method_files.py       the files of the other methods
    attached_files.py     soft prompts, prefixes, bottlenecks
    save_and_load.py      ``save_adapter`` and ``load_adapter``
    combined_files.py     adapter folders as factors, without a base; several folders as one
    bitsandbytes_4bit.py  the tensors of a 4-bit checkpoint
    gguf_file.py          llama.cpp's file: settings and tensors in f32, f16 or q8_0

Imports ``methods``, ``lora``, ``nf4`` and the ground.
"""

from typing import TYPE_CHECKING

from ..lazy import lazy_imports

if TYPE_CHECKING:
    from .base_fingerprint import Fingerprint, fingerprint
    from .combined_files import combine_folders, load_low_rank
    from .save_and_load import load_adapter, save_adapter

__all__ = [
    "Fingerprint",
    "combine_folders",
    "fingerprint",
    "load_adapter",
    "load_low_rank",
    "save_adapter",
]
if not TYPE_CHECKING:  # or a type checker would take every name for there
    __getattr__, __dir__ = lazy_imports(__name__)
