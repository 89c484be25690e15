"""A head on an encoder: the loop learns it, and PEFT opens what is saved."""

import pytest
import torch
import transformers
from peft import PeftModel
from tokenizers import Tokenizer, models, pre_tokenizers

from minilora import AdaLoraConfig, LoraConfig, inject, load_adapter, save_adapter
from minilora.commands.cli import main
from minilora.lora.adapter_layer import adapter_layers
from minilora.training.classification import Classifier, Labelled, open_classifier, read_labelled
from minilora.training.config import TrainConfig

WORDS = ["[PAD]", "good", "bad", "plot", "food", "very", "not"]
ROWS = [
    Labelled(f"{word} {thing}", label)
    for word, label in (("good", "yes"), ("very good", "yes"), ("bad", "no"), ("very bad", "no"))
    for thing in ("plot", "food")
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny BERT and its tokenizer."""
    torch.manual_seed(0)
    place = tmp_path_factory.mktemp("bert")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 16, "vocab_size": len(WORDS), "max_position_embeddings": 16}
    transformers.BertModel(transformers.BertConfig(**sizes)).save_pretrained(place)
    vocab = {word: index for index, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="not"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(place / "tokenizer.json"))
    return place


def trained(folder):
    torch.manual_seed(1)
    classifier = open_classifier(folder, ["no", "yes"])
    inject(classifier.model, LoraConfig(r=4, target_modules="all-linear", task_type="SEQ_CLS"))
    losses = classifier.train(ROWS, TrainConfig(steps=120, batch_size=8, lr=3e-2))
    return classifier, losses


def test_it_learns_and_only_the_adapter_and_the_head_change(folder, tmp_path):
    classifier, losses = trained(folder)
    assert losses[-1] < losses[0] / 2
    assert classifier.accuracy(ROWS) == 1
    assert classifier.predict([Labelled("good food", "?")]) == ["yes"]
    base = transformers.BertModel.from_pretrained(folder)
    after = classifier.model.bert.embeddings.state_dict()
    assert all(torch.equal(after[n], t) for n, t in base.embeddings.state_dict().items())
    save_adapter(classifier.model, tmp_path)
    fresh = open_classifier(folder, ["no", "yes"])
    peft = PeftModel.from_pretrained(fresh.model, tmp_path).eval()
    batch = classifier.batch(ROWS)
    theirs = peft(input_ids=batch.ids, attention_mask=batch.mask).logits
    torch.testing.assert_close(classifier.logits(batch), theirs, rtol=1e-5, atol=1e-6)
    again = open_classifier(folder, ["no", "yes"])
    load_adapter(again.model, tmp_path)
    assert torch.equal(again.logits(batch), classifier.logits(batch))


def test_a_text_gets_the_same_class_alone_and_in_a_batch(folder):
    classifier, _ = trained(folder)
    together = classifier.logits(classifier.batch(ROWS))
    alone = torch.cat([classifier.logits(classifier.batch([row])) for row in ROWS])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_the_loop_knows_of_the_methods(folder):
    """AdaLoRA's pruning and length, and LoRA+'s rate."""
    classifier = open_classifier(folder, ["no", "yes"])
    config = AdaLoraConfig(init_r=3, target_r=2, total_step=4, target_modules=["query", "value"])
    inject(classifier.model, config)
    with pytest.raises(ValueError, match="total_step=4, this run has steps=3"):
        classifier.train(ROWS, TrainConfig(steps=3, batch_size=8))
    classifier.train(ROWS, TrainConfig(steps=4, batch_size=8))
    assert sum(int(layer.alive.sum()) for _, layer in adapter_layers(classifier.model)) == 4
    classifier = open_classifier(folder, ["no", "yes"])
    inject(classifier.model, LoraConfig(r=2, target_modules=["query"]))
    (_, layer), *_ = adapter_layers(classifier.model)
    classifier.train(ROWS, TrainConfig(steps=1, batch_size=8, lr=1e-3, warmup=0, loraplus_ratio=4))
    assert layer.lora_B.abs().max().item() == pytest.approx(4e-3, rel=0.05)  # AdamW's eps


def test_the_command_trains_on_a_csv_and_says_what_it_reached(folder, tmp_path, capsys):
    data = tmp_path / "reviews.csv"
    lines = [f'"{row.text}",{row.label}' for row in ROWS * 3]
    data.write_text("text,label\n" + "\n".join(lines) + "\n", encoding="utf-8")
    words = ["train", "--task", "classify", "--base", str(folder), "--data", str(data)]
    words += [
        "--valid",
        str(data),
        "--out",
        str(tmp_path / "out"),
        "--steps",
        "120",
        "--lr",
        "0.03",
    ]
    with pytest.warns(
        UserWarning, match="8 of the held-out texts are trained on too, such as 'bad"
    ):
        assert main([*words, "--batch", "8", "--target", "all-linear"]) == 0
    printed = capsys.readouterr().out
    assert "held-out accuracy" in printed
    assert "-> 100.0%" in printed
    assert (tmp_path / "out" / "adapter" / "adapter_model.safetensors").is_file()
    assert (tmp_path / "out" / "labels.json").read_text().count('"yes"') == 1
    assert main([*words, "--qlora"]) == 2
    assert "--qlora is for language models" in capsys.readouterr().err


LANGUAGE = ["--valid-batch=2", "--valid-examples=9", "--validate-every=5", "--checkpoint-every=3"]
LANGUAGE += ["--skip-bad", "--tensorboard", "--wandb=mine", "--replay-from=old.jsonl"]


@pytest.mark.parametrize("option", LANGUAGE)
def test_what_is_for_language_models_is_refused(option, capsys):
    words = ["train", "--task=classify", "--base=x", "--data=x.csv", "--out=x", option]
    assert main(words) == 2
    assert f"{option.split('=')[0]} is for language models" in capsys.readouterr().err


def test_the_command_needs_an_encoder(capsys):
    assert main(["train", "--task=classify", "--data=x.csv", "--out=x"]) == 2
    assert "--task classify needs --base" in capsys.readouterr().err


WRONG = {
    "text,class\na,b\n": r"x\.csv, line 2 has no column label: .* got \['text', 'class'\]",
    "text,label\ngood,\n": r"no text or no label in .*x\.csv, line 2",
    "text,label\n": "holds no rows",
}


@pytest.mark.parametrize("content", WRONG)
def test_a_file_without_what_is_needed_is_named(content, tmp_path):
    file = tmp_path / "x.csv"
    file.write_text(content)
    with pytest.raises(ValueError, match=WRONG[content]):
        read_labelled(file)


def test_what_cannot_be_trained_is_refused(folder):
    classifier = open_classifier(folder, ["no", "yes"])
    with pytest.raises(ValueError, match="labels without a class: maybe"):
        classifier.train([Labelled("good", "maybe")], TrainConfig(steps=1))
    with pytest.raises(ValueError, match="the head has 2 outputs for 1 labels"):
        Classifier(classifier.model, classifier.tokenizer, ["no"])
    classifier.model.requires_grad_(False)
    with pytest.raises(ValueError, match="nothing would train"):
        classifier.train(ROWS, TrainConfig(steps=1))
    with pytest.raises(ValueError, match=r"holds no config.json beside a tokenizer.json"):
        open_classifier(folder / "none", ["no", "yes"])


def test_a_label_that_is_a_list_is_refused(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "good", "label": ["a", "b"]}\n', encoding="utf-8")
    with pytest.raises(ValueError, match=r"line 1: expected one text and one label, got \["):
        read_labelled(file)


def test_a_decoder_s_class_does_not_depend_on_its_neighbours(tmp_path):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 16, "vocab_size": len(WORDS), "max_position_embeddings": 16}
    torch.manual_seed(0)
    model = transformers.LlamaModel(transformers.LlamaConfig(**sizes, pad_token_id=5))
    model.save_pretrained(tmp_path)
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="not"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    classifier = open_classifier(tmp_path, ["no", "yes"])
    classifier.model.eval()
    rows = [Labelled("good plot", "yes"), Labelled("not very good food plot", "no")]
    alone = torch.cat([classifier.logits(classifier.batch([row])) for row in rows])
    together = classifier.logits(classifier.batch(rows))
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "setting",
    [{"resume": True, "out": "run"}, {"bf16": True}, {"accumulate": 4}, {"checkpointing": True}],
    ids=lambda setting: next(iter(setting)),
)
def test_a_setting_that_would_not_be_heeded_is_refused(folder, setting):
    classifier = open_classifier(folder, ["no", "yes"])
    with pytest.raises(ValueError, match=f"{next(iter(setting))}=.* is for language models"):
        classifier.train(ROWS, TrainConfig(steps=1, batch_size=8, **setting))
