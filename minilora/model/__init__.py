"""A small Llama with Hugging Face's names, its tokenizer, and the folders it lives in.

In reading order:

    config.py           the sizes and switches of a Llama, and of its kin
    rotary.py           positions as angles, stretched for long texts
    cache.py            keys and values of past tokens, one slot a row, written in place
    blocks.py           one layer: norm, attention, MLP
    transformer.py      embedding, blocks, head: a whole Llama on a few screens
    decoding.py         one new token a row, in fewer calls than the modules make
    sampling.py         the likeliest token, or one drawn with a temperature, top_k and top_p
    generation.py       one token after the other; the protocol that training asks for logits
    sandbox.py          Jinja for strangers, with limits on time and size
    chat.py             a folder's chat template, rendered as transformers renders it
    own_forms.py        our own two forms of a conversation, for folders without a template
    marks.py            tokens that structure a conversation, and text that only looks like one
    turns.py            which tokens of a conversation are learnt
    tokenizer_folder.py chat templates, special tokens and ends beside a ``tokenizer.json``
    tokenizer.py        text to ids and back, conversations too
    tokenizer_files.py  a base's tokenizer, read and written
    config_json.py      what a ``config.json`` of the family means
    weights.py          the tensors of a folder, in one file or in shards
    pretrained.py       open and write model folders, in floats or four bits
    foreign.py          transformers' models, asked and saved as ours
    gguf_vocab.py       a tokenizer in llama.cpp's terms
    gguf_export.py      a model, or an adapter alone, as a GGUF file
    base/               the shipped base

Imports ``formats``, ``lora``, ``nf4`` and the ground.
"""

from typing import TYPE_CHECKING

from ..lazy import lazy_imports

if TYPE_CHECKING:
    from .config import LlamaConfig
    from .foreign import add_tokenizer
    from .gguf_export import export_adapter_gguf, export_gguf
    from .pretrained import load_base, save_model
    from .tokenizer import Tokenizer
    from .transformer import Llama

__all__ = [
    "Llama",
    "LlamaConfig",
    "Tokenizer",
    "add_tokenizer",
    "export_adapter_gguf",
    "export_gguf",
    "load_base",
    "save_model",
]
if not TYPE_CHECKING:  # or a type checker would take every name for there
    __getattr__, __dir__ = lazy_imports(__name__)
