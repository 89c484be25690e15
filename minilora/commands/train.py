"""``minilora train``: a fine-tune on your own examples, from a folder to a folder.

    base (+ four bits) + examples  ->  adapter, metrics, checkpoint

Under torchrun several processes train the one adapter (scale/distributed.py): the first writes and
speaks, the others are quiet. One that torchrun started again, after a failure, goes on from the
last checkpoint.

Everything is checked before anything is written; ``cli.py`` prints a ``ValueError`` on one line.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from functools import partial
from pathlib import Path
from shlex import quote
from typing import Any

from .hub_names import adapter_folder, check_push, push_trained
from .method_options import config_of, for_steps
from .options import check_device, check_out
from .train_options import (
    add_options,
    check_adapter,
    check_half,
    check_resume,
    replay_of,
    settings_of,
)

__all__ = ["add_options", "run"]


def run(options: argparse.Namespace) -> int:
    """``minilora train``, in this process or in all that torchrun started."""
    from ..scale.distributed import join
    from ..scale.environment import own_device

    options.device = own_device(options.device)
    with join(options.device) as ranks, speaking(ranks.writes):
        return run_together(options, ranks)


@contextmanager
def speaking(aloud: bool) -> Iterator[None]:
    """A context in which nothing is printed, unless ``aloud``; errors always are."""
    with (
        open(os.devnull, "w", encoding="utf-8") as nowhere,
        redirect_stdout(sys.stdout if aloud else nowhere),
    ):
        yield


def run_together(options: argparse.Namespace, ranks: Any) -> int:
    """The run of one rank."""
    import torch

    from ..formats.save_and_load import load_adapter
    from ..lora.injection import print_trainable_parameters, trainable_parameters
    from ..methods.injection import inject
    from ..model.pretrained import load_base
    from ..training.examples import Document
    from ..training.loop import train
    from ..training.readers import summarize

    if options.task == "classify":
        return classify_alone(options, ranks)
    if ranks.writes:
        check_out(options.out)
    parent = check_push(options) if ranks.writes else ""
    again = started_again(options, ranks)  # whatever --resume says: all ranks ask together
    options.resume = options.resume or again
    (task, read), adapter, _ = read_task(options), config_of(options), settings_of(options)
    replay = replay_of(options)
    device = check_device(options.device)
    check_half(options, device)
    if ranks.writes:  # the others get its checkpoint
        check_resume(options)
    askable = sum(not isinstance(example, Document) for example in task.valid)
    torch.manual_seed(options.seed)
    model = load_base(options.base, device=device, quantize="nf4" if options.qlora else None)
    config = settings_of(options, trainable_parameters(model)[1])
    config = replace(config, valid_answers=min(20, askable))
    if options.adapter:
        load_adapter(model, adapter_folder(options.adapter, options.hub))
        print(f"Training {options.adapter} further.")
    elif not options.full:
        print(inject(model, for_steps(adapter, config.for_examples(len(task.train)).steps)))
    print_trainable_parameters(model)
    if model.tokenizer is not None:  # without one, train says what is missing
        print(summarize(read, model.tokenizer, config.max_length))
    announce(task, config)
    show_form(model.tokenizer, task)
    trackers = trackers_of(options, model) if ranks.writes else []
    history = train(model, task, config, replay=replay, callbacks=trackers, ranks=ranks)
    if not ranks.writes:
        return 130 if history.interrupted else 0
    if history.interrupted and not history.unsaved:
        print(f"Stopped at step {len(history.steps)}. Continue with the same command and --resume.")
        return 130
    folder = save_trained(options, model, read, config, history)
    if history.interrupted:
        print(f"Stopped at step {len(history.steps)}, whose state is in {folder}.")
        return 130
    if options.push:
        scores = scores_of(history)
        pushed = push_trained(options, folder, task, config, scores, parent)
        print(f"Pushed {pushed}.")
    show_memory(history, options.base)
    show_next(options, folder)
    return 0


def classify_alone(options: argparse.Namespace, ranks: Any) -> int:
    """``--task classify``, which knows of no ranks. Raises ``ValueError`` under torchrun."""
    from .classify import run_classify

    if ranks.world > 1:
        raise ValueError("--task classify trains in one process: start it without torchrun")
    return run_classify(options, config_of(options), settings_of(options))


def save_trained(
    options: argparse.Namespace, model: Any, read: Any, config: Any, history: Any
) -> Path:
    """Write the model with ``--full``, else the adapter and its card; where they could be kept."""
    from ..formats.save_and_load import save_adapter
    from ..hub.lineage import card_sections
    from ..model.pretrained import save_model
    from .keeping import save_somewhere

    if options.full:
        return save_somewhere(partial(save_model, model), options.out / "model")
    card = card_sections(read, config, history, "nf4" if options.qlora else None)
    return save_somewhere(partial(save_adapter, model, card=card), options.out / "adapter")


def started_again(options: argparse.Namespace, ranks: Any) -> bool:
    """Whether torchrun started these processes again and there is a checkpoint: rank 0 says."""
    from ..training.run import checkpoint_file

    if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
        return False
    file = checkpoint_file(settings_of(options))
    return bool(ranks.each(1, lambda _: float(file is not None and file.is_file()))[0])


def trackers_of(options: argparse.Namespace, model: Any) -> list[Any]:
    """The callbacks that the options ask for."""
    from ..training.trackers import tensorboard_callback, wandb_callback

    trackers = [tensorboard_callback(options.out, model)] if options.tensorboard else []
    if options.wandb:
        settings = {name: str(value) for name, value in vars(options).items()}
        options.out.mkdir(parents=True, exist_ok=True)  # without it, wandb takes another folder
        begun = {"project": options.wandb, "config": settings, "dir": str(options.out)}
        trackers.append(wandb_callback(model, **begun))
    return trackers


def scores_of(history: Any) -> dict[str, float]:
    """The numbers of the validation whose state was kept."""
    kept = [each for each in history.validations if each["step"] == history.best_step]
    return {
        name: float(value)
        for name, value in (kept or history.validations or [{}])[-1].items()
        if name in ("valid_loss", "exact_match")
    }


def read_task(options: argparse.Namespace) -> tuple[Any, Any]:
    """The examples to train on and those held out; and all of ``--data``, as it was read."""
    from ..training.examples import Task, overlap, split_examples
    from ..training.readers import read_examples

    if options.full and options.qlora:
        raise ValueError(
            "--full trains the weights themselves, which four bits cannot follow: "
            "give --full or --qlora, not both"
        )
    check_adapter(options)
    read, name = read_examples(options.data, skip_bad=options.skip_bad), options.data.stem
    if options.valid is None:
        return split_examples(read, name, seed=options.seed), read
    valid = read_examples(options.valid, skip_bad=options.skip_bad)
    task = Task(name, read.examples, valid.examples)
    if message := overlap(task):
        warnings.warn(message, stacklevel=2)
    return task, read


def announce(task: Any, config: Any) -> None:
    """The plan of the run, for whoever now waits for the first validation."""
    length = f"{config.steps} steps" if config.epochs is None else count_epochs(config.epochs)
    print(
        f"{length} of {config.batch_size} out of {len(task.train)} examples, "
        f"{len(task.valid)} held out; rate {config.lr:g}"
    )
    if not config.resume and (Path(config.out) / "metrics.jsonl").exists():
        print(f"{config.out} holds an earlier run: this one replaces it")


def count_epochs(epochs: float) -> str:
    """``1 epoch``, ``2.5 epochs``."""
    return "1 epoch" if epochs == 1 else f"{epochs:g} epochs"


def show_form(tokenizer: Any, task: Any) -> None:
    """How the base writes a conversation: the first example, before any time is spent on it."""
    from .first_example import describe_first_example, describe_form

    if tokenizer is None or not task.train:  # train says so
        return
    if form := describe_form(tokenizer):
        print(form)
    print(describe_first_example(tokenizer, task.train[0]))


def show_memory(history: Any, base: str | None) -> None:
    """What a step held in memory, where the run measured it."""
    from ..ledger.measurement import Measured
    from ..model.pretrained import SHIPPED
    from .footprint import describe_footprints

    if history.memory is not None:
        measured = {"QLoRA": Measured(**history.memory)}
        print(describe_footprints(measured, SHIPPED if base is None else base))


def show_next(options: argparse.Namespace, folder: Path) -> None:
    """The commands that use the folder that was just written."""
    base = (f"--base {quote(options.base)} " if options.base else "") + "--qlora " * options.qlora
    name, merged = quote(str(folder)), quote(str(options.out / "merged"))
    model = f"--base {name}" if options.full else f"{base}--adapter {name}"
    print(f"Saved {folder}. Next:")
    print(f'  minilora generate {model} "your question"')
    if not options.full:
        print(f"  minilora merge {base}--adapter {name} --out {merged}")
