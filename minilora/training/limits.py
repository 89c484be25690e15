"""What must hold before a run: a model that can learn; examples, dtypes, ids and positions that fit
it.

Everything here is asked before the first step. Past it torch answers with an IndexError, a card
with a device-side assert, and half precision with NaN.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..lora.attached import adapters_of, attached_modules
from ..lora.paths import unwrapped
from .batches import ChatTokenizer, Encoded
from .config import TrainConfig
from .evaluation import asked_in_words
from .examples import Learnt, Task
from .objective import keeps_examples_apart
from .recomputation import check_recomputable


class HalfPrecision(ValueError, FloatingPointError):
    """Parameters to train are float16, whose arithmetic AdamW cannot survive."""


def check_precision(parameters: Sequence[tuple[str, Tensor]]) -> None:
    """Raise ``HalfPrecision`` when a parameter that would train is float16.

    AdamW divides by sqrt(v) + eps. In float16 eps = 1e-8 is 0, and so is v = g^2 for |g| < 2e-4:
    the quotient is 0 / 0 wherever a gradient is zero, as all of A's are in the first step.
    """
    if half := [name for name, p in parameters if p.dtype == torch.float16]:
        raise HalfPrecision(
            f"{len(half)} of {len(parameters)} parameters to train are float16 ({half[0]} first): "
            "AdamW's eps=1e-8 is 0 there, and one step makes every weight NaN. Keep what trains in "
            "float32 or bfloat16: load_base(dtype=torch.bfloat16), or .float() for the adapter"
        )


@torch.no_grad()
def all_finite(parameters: Sequence[Tensor]) -> bool:
    """Whether every element of every tensor is finite; asks the device once."""
    return bool(torch.stack([p.isfinite().all() for p in parameters]).all())


def check_sizes(model: nn.Module, rows: Sequence[Encoded]) -> None:
    """Hold token ids and lengths against the model's tables.

    Raises ``ValueError`` for an id without embedding, and for a text longer than a table of learnt
    positions, or pushed out of them by a soft prompt. A model that computes its positions, as
    rotary ones do, is warned of.
    """
    config = getattr(model, "config", None)
    vocab_size = getattr(config, "vocab_size", None)
    highest = max(max(row.ids) for row in rows)
    if vocab_size is not None and highest >= vocab_size:
        raise ValueError(
            f"the tokenizer gives token {highest}, but the model has only vocab_size={vocab_size} "
            "embeddings: take the tokenizer it was made with, or make its embedding larger "
            "(transformers: model.resize_token_embeddings)"
        )
    # transformers calls GPT-2's n_positions by the second name too
    positions = getattr(config, "max_position_embeddings", None)
    lengths = [len(row.ids) - 1 for row in rows]  # the last token is predicted, not read
    if positions is None:
        return
    before = sum(part.rows_before for _, part in attached_modules(model))
    if pushed := [length for length in lengths if length <= positions < length + before]:
        raise ValueError(
            f"an example has {max(pushed)} tokens to read, and the adapter puts {before} rows "
            f"before them, but the model has {positions} positions: lower max_length to "
            f"{positions - before + 1}, which leaves longer examples out"
        )
    longest = max(lengths)
    if longest <= positions:
        return
    sizes = f"the longest example has {longest} tokens to read, the model has {positions} positions"
    tables = [name for name, module in model.named_modules() if isinstance(module, nn.Embedding)]
    # GPT-2 calls its table wpe, OPT embed_positions
    learnt = [name for name in tables if name.endswith("wpe") or "position" in name]
    if learnt:
        raise ValueError(
            f"{sizes} ({learnt[0]}): lower max_length to {positions}, which leaves longer examples "
            "out, or shorten them"
        )
    warnings.warn(
        f"{sizes}: beyond them it was never trained; max_length={positions} leaves longer examples "
        "out",
        stacklevel=2,
    )


def check_run(model: nn.Module, task: Task, config: TrainConfig) -> None:
    """Raise ``ValueError`` when this model cannot be trained on this task in this way."""
    check_trainable(model)
    check_examples(task)
    if config.pack and not keeps_examples_apart(model):
        for path, part in attached_modules(model):
            if part.rows_before:
                raise ValueError(
                    f"pack=True lays several examples in one row, and the {type(part).__name__} at "
                    f"{path} stands before a row once: leave pack=True out"
                )
        raise ValueError(
            f"pack=True needs a minilora Llama: {type(model).__name__} would let packed examples "
            "see each other"
        )
    if config.valid_answers and task.valid:
        asked_in_words(model)
    if config.checkpointing:
        check_recomputable(model)
    if config.fp16 and all(p.device.type == "cpu" for p in model.parameters() if p.requires_grad):
        raise ValueError(
            "fp16=True is for cards without bfloat16; this model is on a CPU, where float16 is no "
            "faster and overflows: leave it out, or take bf16=True"
        )


def check_trainable(model: nn.Module) -> None:
    """Raise ``ValueError`` when nothing would learn, or the model cannot be asked for logits."""
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if not trained:
        raise ValueError(
            "nothing would train: no parameter has requires_grad; "
            "inject(model, LoraConfig(...)) first"
        )
    check_precision(trained)
    layers = adapters_of(model)
    if any(not layer.enabled for _, layer in layers):
        raise ValueError(
            "the adapters are switched off by disable_adapter: train outside that context"
        )
    if merged := [path for path, layer in layers if layer.merged]:
        raise ValueError(
            f"{merged[0]} is merged, so its adapter takes no part: unmerge(model) before training"
        )
    # transformers' models say so in their config
    asked = unwrapped(model)
    if getattr(getattr(asked, "config", None), "is_encoder_decoder", False):
        raise ValueError(
            f"{type(asked).__name__} is an encoder-decoder: minilora.train continues one text, and "
            "has no second input; train it with transformers' Trainer, where injected adapters "
            "work as they are"
        )
    if not isinstance(tokenizer := getattr(asked, "tokenizer", None), ChatTokenizer):
        raise ValueError(
            f"train needs model.tokenizer, got {type(tokenizer).__name__}: load_base() finds it in "
            "a folder with a tokenizer.json; elsewhere set "
            "model.tokenizer = minilora.Tokenizer('folder/tokenizer.json')"
        )


def check_examples(task: Task) -> None:
    """Raise ``ValueError`` when there is nothing to learn from, or anything but examples."""
    if not task.train:
        raise ValueError("train needs at least one example, got none")
    for example in (*task.train, *task.valid):
        if not isinstance(example, Learnt):
            raise ValueError(
                "train needs minilora.Example(instruction, output, input) or a Conversation, "
                f"got {type(example).__name__}: {example!r:.80}; read_examples reads rows and files"
            )
