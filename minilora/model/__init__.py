"""A small Llama with Hugging Face's names, its tokenizer, and the folders it lives in.

In reading order:

    transformer.py  embedding, blocks, head: a whole Llama on a few screens
    generation.py   one token after the other; the protocol that training asks for logits
    tokenizer.py    text to ids and back, and the form of a conversation
    config_json.py  what a ``config.json`` of the family means
    pretrained.py   open and write model folders, in floats or four bits
    base/           the shipped base

Imports ``formats``, ``nf4`` and the ground.
"""

from typing import TYPE_CHECKING

from ..lazy import lazy_imports

if TYPE_CHECKING:
    from .pretrained import load_base, save_model
    from .tokenizer import Tokenizer
    from .transformer import Llama, LlamaConfig

__all__ = ["Llama", "LlamaConfig", "Tokenizer", "load_base", "save_model"]
__getattr__, __dir__ = lazy_imports(__name__)
