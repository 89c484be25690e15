"""Texts with labels, for a model with a head: BERT and its like.

    loss = mean over the batch of -log softmax(head(text))[label]

The loop is the one of language models (steps.py); only a batch and its loss are others. The model
is transformers' (``AutoModelForSequenceClassification``), its tokenizer the folder's
``tokenizer.json``. What trains is whatever has ``requires_grad``: after ``inject`` with
``task_type="SEQ_CLS"`` the adapters and the head, which starts at random and so must train whole.

Left out: several labels a text, regression, validation while it trains.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..methods.training_hooks import check_run as check_method
from ..methods.training_hooks import update_and_allocate, with_extra_loss
from ..text import listed
from .config import TrainConfig
from .data_files import rows_of
from .optimizer import build_optimizer
from .order import batch_indices
from .steps import steps

AT_ONCE = 64  # texts that are classified together
PLAIN = TrainConfig()
# what would change the training, and is not done here
UNREAD = ("accumulate", "bf16", "fp16", "checkpointing", "pack", "resume", "measure_memory")


class Labelled(NamedTuple):
    """A text and the name of its class."""

    text: str
    label: str


@dataclass(frozen=True)
class Texts:
    """A batch: ids and mask (texts, time), classes (texts,)."""

    ids: Tensor
    mask: Tensor
    classes: Tensor

    @property
    def tokens(self) -> int:
        """Tokens that are not padding."""
        return int(self.mask.sum())


def read_labelled(path: str | Path) -> list[Labelled]:
    """Rows of a table with the columns ``text`` and ``label``; others are ignored.

    A CSV, or any other file that ``data_files.rows_of`` reads. Raises ``ValueError`` for a file
    without these columns, and names the rows that lack either.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder) / "reviews.csv"
    ...     _ = file.write_text("text,label\\nGood case.,positive\\n")
    ...     read_labelled(file)
    [Labelled(text='Good case.', label='positive')]
    """
    rows, bad = [], []
    for row in rows_of(path):
        if row.problem:
            raise ValueError(f"{row.where}: {row.problem}")
        columns = list(row.value) if isinstance(row.value, dict) else []
        if missing := [name for name in ("text", "label") if name not in columns]:
            raise ValueError(
                f"{row.where} has no column {' and no '.join(missing)}: --task classify reads "
                f"rows with text and label, got {columns or repr(row.value)[:60]}"
            )
        cells = [row.value[name] for name in ("text", "label")]
        if odd := [cell for cell in cells if not isinstance(cell, str | int | None)]:
            raise ValueError(f"{row.where}: expected one text and one label, got {odd[0]!r:.60}")
        text, label = ("" if cell is None else str(cell).strip() for cell in cells)
        rows.append(Labelled(text, label))
        bad += [] if text and label else [row.where]
    if bad:
        raise ValueError(f"no text or no label in {listed(bad, 5, ', ')}")
    if not rows:
        raise ValueError(f"{path} holds no rows")
    return rows


class Classifier:
    """A model with a head, its tokenizer and the names of its classes.

    Raises ``ValueError`` when the head has another number of outputs than there are names.
    """

    def __init__(self, model: nn.Module, tokenizer: Any, labels: Sequence[str]):
        outputs = model.config.num_labels  # type: ignore[union-attr]
        if outputs != len(labels):
            raise ValueError(f"the head has {outputs} outputs for {len(labels)} labels: {labels}")
        self.model, self.tokenizer, self.labels = model, tokenizer, list(labels)
        self.device = next(model.parameters()).device

    def batch(self, rows: Sequence[Labelled]) -> Texts:
        """Texts as one batch, padded on the right."""
        encoded = [self.tokenizer.encode(row.text) for row in rows]
        longest = max(len(each.ids) for each in encoded)
        # a decoder's head reads the last token that is not its own padding
        fill = getattr(self.model.config, "pad_token_id", None) or 0
        ids = torch.tensor([e.ids + [fill] * (longest - len(e.ids)) for e in encoded])
        mask = torch.tensor([[1] * len(e.ids) + [0] * (longest - len(e.ids)) for e in encoded])
        index = {label: number for number, label in enumerate(self.labels)}
        classes = torch.tensor([index.get(row.label, -1) for row in rows])  # -1: not known
        return Texts(ids.to(self.device), mask.to(self.device), classes.to(self.device))

    def logits(self, batch: Texts) -> Tensor:
        """(texts, classes)."""
        output: Any = self.model(input_ids=batch.ids, attention_mask=batch.mask)
        return output.logits

    @torch.no_grad()
    def predict(self, rows: Sequence[Labelled]) -> list[str]:
        """The likeliest class of each text, without dropout; the labels of ``rows`` are unused."""
        was_training = self.model.training
        self.model.eval()
        indices: list[int] = []
        for start in range(0, len(rows), AT_ONCE):
            indices += self.logits(self.batch(rows[start : start + AT_ONCE])).argmax(dim=1).tolist()
        self.model.train(was_training)
        return [self.labels[index] for index in indices]

    def accuracy(self, rows: Sequence[Labelled]) -> float:
        """The share of rows whose class is right."""
        pairs = zip(self.predict(rows), rows, strict=True)
        return sum(label == row.label for label, row in pairs) / len(rows)

    def train(self, rows: Sequence[Labelled], config: TrainConfig) -> list[float]:
        """Train what has ``requires_grad``; returns the loss of every step, in nats a text.

        Raises ``ValueError`` for a label without a name here, when nothing would train, and for
        settings that are for language models only.
        """
        if unread := [name for name in UNREAD if getattr(config, name) != getattr(PLAIN, name)]:
            given = f"{unread[0]}={getattr(config, unread[0])!r}"
            raise ValueError(f"{given} is for language models: leave it at its default here")
        if unknown := sorted({row.label for row in rows} - set(self.labels)):
            raise ValueError(f"labels without a class: {listed(unknown, 5, ', ')}")
        config = config.for_examples(len(rows))
        trained = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        if not trained:
            raise ValueError("nothing would train: inject(model, LoraConfig(...)) first")
        check_method(self.model, config.steps)
        rates: dict[str, Any] = {"weight_decay": config.weight_decay, "model": self.model}
        rates["loraplus_ratio"] = config.loraplus_ratio
        optimizer = build_optimizer(trained, config.lr, **rates)
        losses: list[float] = []
        optimizer.register_step_post_hook(
            lambda *_: update_and_allocate(self.model, len(losses) + 1)
        )

        def batches(step: int) -> list[Any]:
            chosen = batch_indices(len(rows), config.batch_size, step, config.seed)
            return [self.batch([rows[i] for i in chosen])]

        def objective(model: nn.Module, parts: Sequence[Any]) -> float:
            (batch,) = parts
            loss = F.cross_entropy(self.logits(batch).float(), batch.classes)
            loss.backward()
            return loss.item()

        self.model.train()
        try:
            total = with_extra_loss(objective)
            for record in steps(self.model, batches, optimizer, config, objective=total):
                losses.append(record["loss"])
            return losses
        finally:
            self.model.eval()


def open_classifier(folder: str | Path, labels: Sequence[str], max_length: int = 128) -> Classifier:
    """transformers' model of a folder with a new head for these labels, and its tokenizer.

    Raises ``ValueError`` without transformers, and for a folder without a model or a tokenizer.
    """
    try:
        import transformers
    except ImportError as error:
        raise ValueError("an encoder needs transformers: pip install 'minilora[llm]'") from error
    from tokenizers import Tokenizer

    file = Path(folder) / "tokenizer.json"
    if not (Path(folder) / "config.json").is_file() or not file.is_file():
        raise ValueError(f"{folder} holds no config.json beside a tokenizer.json")
    names = {"num_labels": len(labels), "id2label": dict(enumerate(labels)), "label2id": {}}
    names["label2id"] = {label: index for index, label in enumerate(labels)}
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()  # or it reports the new head as missing
    folder = Path(folder).resolve()  # the adapter names it as its base, wherever it is opened
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder, **names)
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length)
    return Classifier(model.float(), tokenizer, labels)
