"""Before training, the first example is shown as the model will see it."""

import json

import pytest

from minilora import Example, Tokenizer, load_base, save_model
from minilora.commands.cli import main
from minilora.commands.first_example import LONGEST, describe_first_example, describe_form
from minilora.training.examples import Conversation

from ..model.chat_folders import FAMILIES, sentencepiece, write_folder

TALK = Conversation((("user", "hi"), ("assistant", "Aye."), ("user", "so"), ("assistant", "No.")))


def test_marks_are_visible_and_labels_stand_in_brackets_or_in_colour():
    tokenizer = load_base().tokenizer
    shown = describe_first_example(tokenizer, TALK, in_colour=False)
    assert shown.endswith(
        "<|im_start|> user\nhi<|im_end|> \n<|im_start|> assistant\n[[ Aye.<|im_end|>]] \n"
        "<|im_start|> user\nso<|im_end|> \n<|im_start|> assistant\n[[ No.<|im_end|>]]"
    )
    green = describe_first_example(tokenizer, TALK, in_colour=True)
    assert "\033[32m Aye.<|im_end|>\033[0m" in green


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "qwen3"])
def test_every_form_is_shown_with_both_answers(tmp_path, family):
    tokenizer = Tokenizer(write_folder(tmp_path, family, sentencepiece) / "tokenizer.json")
    shown = describe_first_example(tokenizer, TALK, in_colour=False)
    answers = [part.split("]]")[0].replace(" ", "") for part in shown.split("[[")[2:]]
    assert answers == [f"{text}{FAMILIES[family][-1]}" for text in ("Aye.", "No.")]


def test_a_long_example_is_shown_by_its_two_ends():
    shown = describe_first_example(load_base().tokenizer, Example("why " * 5000, "so"), False)
    assert len(shown) < LONGEST + 200
    assert shown.endswith("so<|im_end|>]]")


def test_train_shows_it_and_says_that_a_base_has_no_template(tmp_path, capsys):
    data = tmp_path / "mine.jsonl"
    data.write_text(json.dumps({"instruction": "hi", "output": "Aye."}), encoding="utf-8")
    base = save_model(load_base(), tmp_path / "base")
    write_folder(base, "llama2", chat_template=None)
    about = json.loads((base / "config.json").read_text())
    about["eos_token_id"] = Tokenizer(base / "tokenizer.json").raw.token_to_id("</s>")
    (base / "config.json").write_text(json.dumps(about))
    command = ["train", "--data", str(data), "--steps", "1", "--base", str(base)]
    assert main([*command, "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "This base has no chat template" in printed
    assert "User: hi\nAssistant:[[ Aye.</s>]]" in printed
    assert describe_form(load_base().tokenizer) == ""
