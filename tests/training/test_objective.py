"""The loss is the mean over the answer tokens of the whole batch, however it is cut or computed."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DataParallel

import minilora
from minilora import train
from minilora.training.batches import IGNORE, Batch, encode_all, pack, pad
from minilora.training.objective import (
    keeps_examples_apart,
    logits_at,
    mean_over_answers,
    summed_loss,
)

from ..test_foreign import make
from ..tolerance import Wider, assert_as_close, in_float64, loss_bound
from .runs import IDS, TASK, filled, parts_of


def test_accumulation_gives_the_gradient_of_the_whole_batch(optimizer_steps):
    """Parts of different length: averaging part by part would weigh short answers more."""
    whole, *others = (parts_of(filled(), accumulate=n) for n in (1, 2, 4))
    for (seen, record), n in zip(others, (2, 4), strict=True):
        assert seen == [(8 // n, False, False)] * n
        assert abs(record["loss"] - whole[1]["loss"]) <= loss_bound(filled(), IDS)
    wide = in_float64(filled())
    with Wider():
        parts_of(wide)
    (plain, _), *accumulated, (truth, _) = optimizer_steps
    for gradient, _ in accumulated:
        assert_as_close(gradient, plain, truth)


def test_a_batch_is_packed_and_computed_in_bf16_where_asked(optimizer_steps):
    plain, record = parts_of(filled())
    assert plain == [(8, False, False)]
    assert parts_of(filled(), bf16=True)[0] == [(8, False, True)]
    [(rows, segments, _)], packed = parts_of(filled(), pack=True, max_length=160)
    assert rows < 8
    assert segments
    assert abs(packed["loss"] - record["loss"]) <= loss_bound(filled(), IDS)
    (padded, _), _, (gradient, _) = optimizer_steps[:3]
    wide = in_float64(filled())
    with Wider():
        parts_of(wide)
    assert_as_close(gradient, padded, optimizer_steps[-1][0])


def test_the_loss_is_the_mean_over_answer_tokens_only():
    model = minilora.load_base()
    record = train(model, TASK, steps=1, batch_size=40, validate_every=0, progress=False).steps[0]
    model, tokens, nats = minilora.load_base(), 0, 0.0
    for e in TASK.train:
        prompt = model.tokenizer.encode(model.tokenizer.prompt(e.instruction, e.input))
        answer = model.tokenizer.answer(e.output)
        logp = model(torch.tensor([prompt + answer]))[0].log_softmax(-1)
        nats -= sum(logp[len(prompt) + i - 1, t].item() for i, t in enumerate(answer))
        tokens += len(answer)
    assert abs(record["loss"] - nats / tokens) <= loss_bound(model, IDS)


class Tokens(nn.Module):
    """Logits that are a function of the token alone, returned as a tensor or as transformers do."""

    def __init__(self, wrapped=False):
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Parameter(torch.randn(7, 7))
        self.wrapped, self.seen = wrapped, []

    def forward(self, ids):
        self.seen.append(ids)
        self.in_bf16 = torch.is_autocast_enabled("cpu")
        logits = self.table[ids]
        return type("Output", (), {"logits": logits}) if self.wrapped else logits


BATCH = Batch(
    ids=torch.tensor([[1, 2, 3, 4], [5, 6, 0, 0]]),
    labels=torch.tensor([[IGNORE, IGNORE, 3, 4], [IGNORE, 6, IGNORE, IGNORE]]),
    segments=None,
)
PREDICTED = ([2, 3, 5], [3, 4, 6])  # the token before each label, and the label


@pytest.mark.parametrize("wrapped", [False, True])
def test_each_label_is_predicted_by_the_token_before_it(wrapped):
    """In nats, summed; the last token predicts nothing, so the model never sees it."""
    model = Tokens(wrapped)
    loss = summed_loss(model, BATCH)
    before, labels = (torch.tensor(ids) for ids in PREDICTED)
    expected = F.cross_entropy(model.table[before], labels, reduction="sum")
    torch.testing.assert_close(loss, expected)
    assert torch.equal(model.seen[0], BATCH.ids[:, :-1])


def test_half_precision_logits_are_summed_in_float32():
    assert summed_loss(Tokens().bfloat16(), BATCH).dtype == torch.float32


def test_the_gradient_is_left_behind_and_added_to_what_is_there():
    once, twice = Tokens(), Tokens()
    loss = mean_over_answers(once, [BATCH])
    assert loss == pytest.approx(summed_loss(once, BATCH).item() / 3)
    mean_over_answers(twice, [BATCH])
    mean_over_answers(twice, [BATCH])
    torch.testing.assert_close(twice.table.grad, 2 * once.table.grad)


def test_bf16_is_used_only_where_it_is_asked_for():
    model = Tokens()
    for asked, settings in ((False, {}), (True, {"bf16": True}), (False, {"bf16": False})):
        mean_over_answers(model, [BATCH], **settings)
        assert model.in_bf16 == asked


def test_parts_of_different_length_count_by_their_answer_tokens():
    """Three tokens in one part and one in the other, as one batch of four."""
    short = Batch(torch.tensor([[2, 1]]), torch.tensor([[IGNORE, 1]]), None)
    model = Tokens()
    loss = mean_over_answers(model, [BATCH, short])
    total = summed_loss(model, BATCH) + summed_loss(model, short)
    assert loss == pytest.approx(total.item() / 4)


def test_a_model_of_another_kind_gives_all_its_logits_and_the_rest_is_dropped():
    model, inputs, _ = make("Llama")
    labelled = torch.zeros(2, 9, dtype=torch.bool)
    labelled[0, 3] = labelled[1, 8] = True
    logits = logits_at(model, inputs["input_ids"], labelled, None)
    assert torch.equal(logits, model(**inputs).logits[labelled])


def test_our_llama_is_asked_where_there_is_a_label_and_keeps_examples_apart(base):
    rows = encode_all(base.tokenizer, TASK.train[:6], 512)
    packed, padded = pack(rows, 160), pad(rows)
    assert packed.segments is not None
    assert keeps_examples_apart(base)
    assert keeps_examples_apart(DataParallel(base))
    assert not keeps_examples_apart(DataParallel(make("Llama")[0]))
    assert not keeps_examples_apart(make("Llama")[0])
    with torch.no_grad():
        plain, wrapped = (summed_loss(model, packed).item() for model in (base, DataParallel(base)))
        alone = summed_loss(base, padded).item()
    bound = padded.answer_tokens * loss_bound(base, padded.ids)
    assert abs(plain - alone) <= bound
    assert abs(wrapped - alone) <= bound
    base.forward = None  # the head is computed for the labels only: the whole is never asked for
    assert summed_loss(base, padded).item() > 0
