"""Models of other libraries, asked and saved as ours: transformers' language models.

    add_tokenizer(model, folder)      model.tokenizer, and model.generate_text(…) as a Llama has it
    speaking(model)                   the face that generation and evaluation ask
    save_foreign(model, folder)       save_pretrained, with the tokenizer, whole or not at all

transformers calls its models with names, wraps the logits, and keeps a cache of its own, which
``Foreign`` translates. Rows that are padded on the left need positions that begin behind the
padding: a model that takes ``position_ids`` gets them, any other counts by its mask.

Left out: encoders with decoders, and models that generate by other means than the next token.
"""

from __future__ import annotations

import inspect
import os
import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from ..files import SAVING, is_running, json_writer, read_json, write_together
from ..lora.adapter_layer import adapter_layers
from ..lora.paths import unwrapped
from .generation import CausalLM
from .tokenizer import Tokenizer
from .tokenizer_files import TOKENIZER_FILES, tokenizer_files
from .weights import size_in_bytes, stale_weights

WORDS = ("generate_text", "generate_texts", "stream_text")


class ForeignCache:
    """transformers' cache of keys and values, and the mask of all tokens in it."""

    def __init__(self) -> None:
        self.past: Any = None
        self.mask: Tensor | None = None


class Foreign(CausalLM):
    """A transformers model with the face of ours, for as long as it is asked."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model, self.training = model, model.training
        self.tokenizer: Any = getattr(model, "tokenizer", None)
        self.takes = set(inspect.signature(model.forward).parameters)

    @property
    def config(self) -> Any:
        """transformers' config of the model."""
        return self.model.config

    def new_cache(self) -> Any:
        """An empty cache; None for a model that has none, which then reads the whole text again."""
        return ForeignCache() if {"past_key_values", "use_cache"} <= self.takes else None

    def next_logits(
        self, ids: Tensor, mask: Tensor | None, cache: Any, last: Tensor | None = None
    ) -> Tensor:
        """As in ``CausalLM``."""
        mask = torch.ones_like(ids) if mask is None else mask
        if cache is not None and cache.mask is not None:
            mask = torch.cat([cache.mask, mask], dim=1)  # (batch, past + time)
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        given: dict[str, Any] = {
            "input_ids": ids,
            "attention_mask": mask,
            "position_ids": positions,
        }
        if cache is not None:
            given |= {"past_key_values": cache.past, "use_cache": True}
        output = self.model(**{name: each for name, each in given.items() if name in self.takes})
        if cache is not None:
            cache.past, cache.mask = output.past_key_values, mask
        logits = getattr(output, "logits", output)
        return logits[:, -1] if last is None else logits[torch.arange(len(ids)), last]


def speaking(model: nn.Module) -> CausalLM:
    """The model as one that can be asked in words.

    Raises ``ValueError`` for an encoder-decoder, and for what is neither ours nor transformers'.
    """
    model = unwrapped(model)
    if isinstance(model, CausalLM):
        return model
    config = getattr(model, "config", None)  # transformers'
    takes = inspect.signature(model.forward).parameters
    if config is None or "input_ids" not in takes:
        raise ValueError(
            "answers need a minilora Llama with a tokenizer, as load_base() makes it, or a "
            f"language model of transformers, got a {type(model).__name__}"
        )
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(
            f"{type(model).__name__} is an encoder-decoder, which answers by its own generate()"
        )
    return Foreign(model)


def add_tokenizer(model: nn.Module, source: str | Path | Any) -> nn.Module:
    """Give a transformers model its tokenizer, and the words of ours; returns the model.

    ``source`` is the model's folder or a fast tokenizer of transformers: its template, first, last
    and padding tokens count. Then ``model.tokenizer`` writes the chat form for ``train``, and
    ``model.generate_text``, ``generate_texts`` and ``stream_text`` answer as a Llama's do. Raises
    ``ValueError`` without a ``tokenizer.json``, or where the model has no embedding for a token.

    >>> import minilora, tempfile
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = minilora.save_model(minilora.load_base(), folder)
    ...     theirs = add_tokenizer(LlamaForCausalLM.from_pretrained(path), path)
    >>> theirs.generate_text("Status?", "Log: Hull 90%, Fuel 12%.")
    'Hello! I am happy to report Hull 90 percent and Fuel 12 percent.'
    """
    speaking(model)  # refuses what cannot be asked
    if isinstance(source, str | Path):
        tokenizer = read_tokenizer(Path(source))
    else:
        with tempfile.TemporaryDirectory() as place:
            # all three are transformers' own: what they write is what a folder of the model holds
            for part in (source, model.config, getattr(model, "generation_config", None)):
                if part is not None:
                    part.save_pretrained(place)  # type: ignore[union-attr, operator]
            tokenizer = read_tokenizer(Path(place))
    rows = model.get_input_embeddings().weight.shape[0]  # type: ignore[operator, union-attr]
    if highest := [n for n in tokenizer.raw.get_vocab().values() if n >= rows]:
        raise ValueError(
            f"the tokenizer has token {max(highest)}, but the model's embedding only {rows} rows"
        )
    model.tokenizer = tokenizer  # type: ignore[assignment]
    for name in WORDS:
        setattr(model, name, MethodType(partial(ask, name), model))
    return model


def ask(name: str, model: nn.Module, *arguments: Any, **settings: Any) -> Any:
    """Call a method of ``CausalLM`` for a foreign model."""
    return getattr(speaking(model), name)(*arguments, **settings)


def read_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a folder. Raises ``ValueError`` where it has none that is read here."""
    if not (folder / "tokenizer.json").is_file():
        raise ValueError(
            f"{folder} holds no tokenizer.json: only fast tokenizers are read; save one with "
            "transformers' AutoTokenizer.from_pretrained(…, use_fast=True).save_pretrained(folder)"
        )
    return Tokenizer(folder / "tokenizer.json")


def save_foreign(
    model: nn.Module, folder: Path, dtype: torch.dtype | None, shard: str | int | None
) -> Path:
    """Write a transformers model with its ``save_pretrained``, and its tokenizer beside it.

    The folder is swapped whole. Raises ``ValueError`` for adapters inside, and for a model without
    ``save_pretrained``.
    """
    if not hasattr(model, "save_pretrained"):  # transformers' own method
        raise ValueError(
            "save_model writes a minilora Llama or a model of transformers, "
            f"got {type(model).__name__}: save other models with their own library"
        )
    if adapters := [path for path, _ in adapter_layers(model)]:
        raise ValueError(
            f"an adapter is inside ({adapters[0]}): call merge_and_unload(model) or unload(model) "
            "first, or save_adapter(model, folder) to keep it apart"
        )
    options: dict[str, Any] = {} if shard is None else {"max_shard_size": size_in_bytes(shard)}
    if dtype is not None:
        options["state_dict"] = converted(model, dtype)
    folder.parent.mkdir(parents=True, exist_ok=True)
    sweep_places(folder)
    place = Path(tempfile.mkdtemp(f".{os.getpid()}{SAVING}", f".{folder.name}.", folder.parent))
    try:
        model.save_pretrained(place, **options)  # type: ignore[operator]
        moves: dict[str, Callable[[Path], None]]
        moves = {file.name: partial(os.replace, file) for file in sorted(place.iterdir())}
        if isinstance(tokenizer := getattr(model, "tokenizer", None), Tokenizer):
            moves |= tokenizer_files(tokenizer)
        config = read_json(place / "config.json")
        config |= {} if dtype is None else {"dtype": str(dtype).removeprefix("torch.")}
        moves.pop("config.json")
        moves["config.json"] = json_writer(config)  # last: a folder that has it is whole
        known = ["config.json", "generation_config.json", *TOKENIZER_FILES]
        write_together(folder, moves, remove=[*known, *stale_weights(folder, moves)])
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return folder


def converted(model: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    """The state dict in another dtype; tied tensors stay one tensor, so that one is written."""
    seen: dict[tuple[int, torch.Size], Tensor] = {}
    state = model.state_dict()
    for name, tensor in state.items():
        if tensor.is_floating_point():
            key = (tensor.data_ptr(), tensor.shape)
            state[name] = seen[key] = seen.get(key, tensor.to(dtype))
    return state


def sweep_places(folder: Path) -> None:
    """Remove what killed saves of this folder left beside it."""
    for place in folder.parent.glob(f".{folder.name}.*{SAVING}"):
        owner = place.name.removesuffix(SAVING).rpartition(".")[2]
        if owner.isdecimal() and not is_running(int(owner)):
            shutil.rmtree(place, ignore_errors=True)
