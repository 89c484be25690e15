"""The script that made the base: its parts, and that a short run of it really runs."""

import json

import pytest
import torch

from minilora import data, load_base
from minilora.model.pretrained import SHIPPED
from minilora.model.rotary import rotary_angles, rotate
from minilora.model.transformer import Llama
from minilora.recipes import induction_head, pretrain
from minilora.training.batches import IGNORE
from minilora.training.evaluation import PROSE

SPEECHES = [PROSE.read_text(encoding="utf-8")[i * 2000 : (i + 1) * 2000] for i in range(31)]


def test_every_twentieth_speech_is_held_out():
    train, heldout = pretrain.split([str(i) for i in range(45)])
    assert heldout == ["10", "30"]
    assert len(train) == 43


def test_dialogues_have_labels_on_the_answer_only_and_share_no_log_with_the_held_out_side():
    dialogues = pretrain.Dialogues(load_base().tokenizer, seed=0)
    batch = dialogues.batch(64)
    ids, labels = batch.ids, batch.labels
    assert ids.shape == labels.shape
    for row, row_labels in zip(ids, labels, strict=True):
        labelled = row_labels != IGNORE
        assert torch.equal(row[labelled], row_labels[labelled])
        text = dialogues.tokenizer.decode(row.tolist())
        log = next(line for line in text.splitlines() if line.startswith("Log: "))
        assert not data.is_heldout(log)
    assert len(dialogues.words) > 300


def test_recall_asks_for_the_second_of_every_pair_again():
    batch = pretrain.Dialogues(load_base().tokenizer, seed=0).recall(32)
    ids, labels = batch.ids, batch.labels
    for row, row_labels in zip(ids.tolist(), labels.tolist(), strict=True):
        for place, value in enumerate(row_labels):
            if value != IGNORE:
                assert row[place] == value
                name = row[place - 1]
                earlier = max(i for i in range(place - 1) if row[i] == name)
                assert row[earlier + 1] == value


def test_the_planted_head_looks_back_one_token_and_finds_a_former_occurrence():
    """Before any training.

    Layer 0 attends to the token before, layer 1 to the one after a token's former occurrence.
    """
    torch.manual_seed(0)
    model = Llama(pretrain.CONFIG)
    induction_head.initialise(model)
    half = torch.randint(300, 1500, (16, 20))
    attention = attention_of(model, torch.cat([half, half], dim=1))  # 2 of (batch, heads, 40, 40)
    back = torch.stack([attention[0][:, 0, t, t - 1] for t in range(5, 40)]).mean()
    after = torch.stack([attention[1][:, 2, t, t - 19] for t in range(20, 40)]).mean()
    assert back > 0.8
    assert after > 3 * (1 / 30), "a uniform head would give each place about one in thirty"


@torch.no_grad()
def attention_of(model, ids):
    """Softmax weights of layers 0 and 1, recomputed from their projections."""
    c, x, weights = model.config, model.model.embed_tokens(ids), []
    cos, sin = rotary_angles(c.head_dim, c.rope_theta, torch.arange(ids.shape[1])[None])
    for layer in list(model.model.layers)[:2]:
        attention, normed = layer.self_attn, layer.input_layernorm(x)
        projected = (attention.q_proj(normed), attention.k_proj(normed))
        heads = (each.unflatten(-1, (-1, c.head_dim)).transpose(1, 2) for each in projected)
        q, k = (rotate(each, cos, sin) for each in heads)
        k = k.repeat_interleave(attention.groups, dim=1)
        scores = q @ k.transpose(2, 3) / c.head_dim**0.5
        causal = torch.ones_like(scores[0, 0]).tril().bool()
        weights.append(scores.masked_fill(~causal, -torch.inf).softmax(-1))
        x = layer(x, cos, sin, None, None)
    return weights


def test_the_rate_warms_up_and_falls_to_its_floor():
    rates = [pretrain.rate_at(step, pretrain.PEAK_RATE, 1000) for step in range(1000)]
    assert rates[0] == pytest.approx(pretrain.PEAK_RATE / pretrain.WARM_UP)
    assert max(rates) == pytest.approx(pretrain.PEAK_RATE, rel=0.05)
    assert rates[-1] == pytest.approx(pretrain.FLOOR * pretrain.PEAK_RATE, rel=0.01)


@pytest.mark.slow
def test_a_short_run_makes_a_base_that_opens(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pretrain, "fetch_speeches", lambda: SPEECHES)
    monkeypatch.setattr(pretrain, "RECALL_STEPS", 1)
    monkeypatch.setattr(pretrain, "LOOKUP_STEPS", 1)
    monkeypatch.setattr(pretrain, "exact_match", lambda model, examples: 0.0)
    pretrain.pretrain(tmp_path, steps=4, report_every=2)
    log = [json.loads(line) for line in (tmp_path / "pretrain_log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in log] == [2, 4]
    assert log[0]["prose_loss"] is None
    assert log[0]["dialogue_loss"] > 0
    assert log[1]["prose_loss"] > 0
    assert load_base(tmp_path).config == load_base().config


def test_the_committed_log_ends_with_what_the_base_can_do():
    log = [json.loads(line) for line in (SHIPPED / "pretrain_log.jsonl").read_text().splitlines()]
    assert log[-1]["exact_match"] >= 0.95
    assert log[-1]["prose_bits_per_byte"] < 1.45
