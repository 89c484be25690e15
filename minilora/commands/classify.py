"""``minilora train --task classify``: an encoder with a new head, LoRA, a CSV of text and label.

base folder + text,label  ->  adapter with its head (PEFT's SEQ_CLS), labels.json
"""

from __future__ import annotations

import argparse
import random
import warnings
from dataclasses import replace
from typing import Any

BERT_TARGETS = ("query", "value")
RATE, EPOCHS = 1e-3, 3.0  # where none is given
WITH_A_HEAD = ("lora", "rslora", "dora", "pissa", "olora")  # those of a LoraConfig
OTHER_WAYS = (
    *("full", "qlora", "adapter", "resume", "replay", "pack", "push", "accumulate"),
    *("bf16", "fp16", "checkpointing", "wandb", "tensorboard", "skip_bad", "replay_from"),
    *("valid_batch", "valid_examples", "validate_every", "checkpoint_every"),
)
DEFAULTS = {"accumulate": 1, "replay_from": "self", "valid_examples": 256, "validate_every": 50}


def run_classify(options: argparse.Namespace, lora: Any, config: Any) -> int:
    """Read, split, train, score, save; everything is checked before anything is written."""
    import torch

    from ..files import json_writer, write_together
    from ..formats.save_and_load import save_adapter
    from ..lora.injection import inject, print_trainable_parameters
    from ..training.classification import Classifier, open_classifier, read_labelled
    from ..training.config import TrainConfig
    from .options import check_device, check_out

    check_out(options.out)
    check_options(options)
    rows = list(dict.fromkeys(read_labelled(options.data)))
    labels = sorted({row.label for row in rows})
    if len(labels) < 2:
        raise ValueError(f"{options.data} has one label only, {labels[0]!r}: nothing to tell apart")
    train, valid = (
        split(rows, options.seed) if options.valid is None else (rows, read_labelled(options.valid))
    )
    if both := set(rows) & set(valid) if options.valid is not None else set():
        shown = f"{min(both).text!r:.60}"
        message = f"{len(both)} of the held-out texts are trained on too, such as {shown}"
        warnings.warn(f"{message}: take them out of one side", stacklevel=2)
    named = options.target != ["q_proj", "v_proj"]  # the default is of language models
    targets = lora.target_modules if named else BERT_TARGETS
    lora = replace(lora, target_modules=targets, task_type="SEQ_CLS")
    config = replace(config, lr=options.lr or RATE, validate_every=0)
    if options.epochs is None and options.steps is None:
        config = replace(config, epochs=EPOCHS, steps=TrainConfig.steps)
    device = check_device(options.device)
    torch.manual_seed(options.seed)
    classifier = open_classifier(options.base, labels, options.max_length)
    print(inject(classifier.model, lora))
    print_trainable_parameters(classifier.model)
    classifier = Classifier(classifier.model.to(device), classifier.tokenizer, labels)
    print(f"{len(train)} texts, {len(valid)} held out; classes: {', '.join(labels)}")
    before = classifier.accuracy(valid)
    losses = classifier.train(train, config)
    after = classifier.accuracy(valid)
    print(f"{len(losses)} steps, loss {losses[0]:.3f} -> {losses[-1]:.3f}")
    print(f"held-out accuracy: {before:.1%} with the new head -> {after:.1%}")
    folder = save_adapter(classifier.model, options.out / "adapter")
    write_together(options.out, {"labels.json": json_writer({"labels": labels})})
    print(f"Wrote {folder}, which PEFT opens (task_type SEQ_CLS, the head included), and the names")
    print(f"of the classes, {options.out / 'labels.json'}.")
    return 0


def check_options(options: argparse.Namespace) -> None:
    """Raise ``ValueError`` for an option that means nothing here, and without a base."""
    if options.method not in WITH_A_HEAD:
        raise ValueError(
            "--task classify trains a new head beside the adapter, "
            f"which --method {options.method} cannot here: choose {', '.join(WITH_A_HEAD)}"
        )
    for name in OTHER_WAYS:
        if getattr(options, name) not in (DEFAULTS.get(name), None, False):
            option = name.replace("_", "-")
            raise ValueError(f"--{option} is for language models: leave it out of --task classify")
    if options.base is None:
        raise ValueError(
            "--task classify needs --base, the folder of an encoder such as BERT: the shipped base "
            "is a language model"
        )


def split(rows: list[Any], seed: int) -> tuple[list[Any], list[Any]]:
    """Nine tenths to train, one tenth held out, in a shuffled order."""
    shuffled = rows.copy()
    random.Random(seed).shuffle(shuffled)
    held_out = max(1, len(rows) // 10)
    return shuffled[held_out:], shuffled[:held_out]
