"""A data set is read, bad rows are named or left out on request, the summary counts right."""

import json

import pytest

import minilora
from minilora import Example, Task, inject, train
from minilora.training.batches import IGNORE, encode, encode_all
from minilora.training.examples import Conversation, Document, load_jsonl
from minilora.training.readers import read_examples, summarize, turns_of

TOKENIZER = minilora.load_base().tokenizer
GOOD = {"instruction": "a", "output": "b"}


def write(file, rows):
    file.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return file


def test_todays_files_give_todays_examples(tmp_path):
    rows = [GOOD | {"input": "c" * (i % 2)} for i in range(5)]
    file = write(tmp_path / "mine.jsonl", rows)
    assert read_examples(file).examples == load_jsonl(file)


def test_bad_rows_are_named_with_their_lines_or_left_out(tmp_path):
    file = write(tmp_path / "mine.jsonl", [GOOD, {}, GOOD, GOOD | {"output": ""}])
    rows = r"line 2: the row is empty; .*line 4: 'output' is empty"
    message = rf"2 of 4 rows cannot be learnt from\. .*{rows}\. .*--skip-bad"
    with pytest.raises(ValueError, match=message):
        read_examples(file)
    data = read_examples(file, skip_bad=True)
    assert len(data) == 2
    assert [place[-6:] for place in data.places] == ["line 1", "line 3"]
    assert [reason.rpartition("/")[2] for reason in data.skipped] == [
        "mine.jsonl, line 2: the row is empty",
        "mine.jsonl, line 4: 'output' is empty",
    ]


@pytest.mark.parametrize("skip_bad", [False, True])
def test_nothing_to_learn_from_is_an_error_either_way(tmp_path, skip_bad):
    for rows in ([], [{}]):
        with pytest.raises(ValueError, match=r"holds no example|1 of 1 rows cannot"):
            read_examples(write(tmp_path / "mine.jsonl", rows), skip_bad=skip_bad)
    with pytest.raises(ValueError, match="the list holds no example"):
        read_examples([], skip_bad=skip_bad)


def test_a_list_of_dicts_examples_and_paths_is_read(tmp_path):
    file = write(tmp_path / "mine.jsonl", [{"text": "c"}])
    data = read_examples([GOOD, Example("x", "y"), file])
    assert data.examples == (Example("a", "b"), Example("x", "y"), Document("c"))
    assert data.places[:2] == ("row 1", "row 2")
    assert dict(data.forms) == {"Alpaca": 1, "Example": 1, "text": 1}
    assert data[1:] == data.examples[1:]


def test_the_summary_counts_what_the_model_will_see():
    long = {"instruction": "word " * 600, "output": "hi"}
    rows = [GOOD, GOOD | {"id": 1}, long, {}, {"instruction": "a longer one", "output": "b"}]
    summary = summarize(read_examples(rows, skip_bad=True), TOKENIZER, max_length=512)
    with pytest.warns(UserWarning, match="1 of 4 examples are longer"):
        kept = encode_all(TOKENIZER, read_examples(rows, skip_bad=True), 512)
    assert summary.rows == 5
    assert summary.turns == 4
    assert summary.tokens == sum(len(row.ids) for row in kept)
    assert summary.answer_tokens == sum(label != IGNORE for row in kept for label in row.labels)
    assert summary.longest == len(encode(TOKENIZER, Example("word " * 600, "hi")).ids)
    assert summary.longest_place == "row 3"
    assert (summary.too_long, summary.duplicates) == (1, 1)
    lines = str(summary).splitlines()
    assert lines[0] == "the list: 5 rows (Alpaca ×4), 3 to learn from"
    assert lines[2] == f"  longest: {summary.longest:,} tokens (row 3)"
    assert lines[3:] == [
        "  left out, longer than 512 tokens: 1",
        "  left out, bad rows: 1 (row 4: the row is empty)",
        "  rows that repeat an earlier one, and are kept: 1",
        "  columns not used: id (1 rows)",
    ]


def test_a_table_of_texts_with_labels_is_told_of_the_other_task():
    rows = [{"text": "Good food.", "label": "yes"}]
    hint = "did you mean --task classify?"
    assert hint in str(summarize(read_examples(rows), TOKENIZER))
    rows = [{"prompt": "a", "completion": "b", "label": "yes"}]
    assert hint not in str(summarize(read_examples(rows), TOKENIZER))


def test_turns_are_counted_in_conversations():
    talk = Conversation((("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")))
    assert [turns_of(example) for example in (talk, Example("a", "b"), Document("c"))] == [2, 1, 0]


def test_a_document_is_learnt_whole_in_windows_and_its_end_is_the_end_of_text():
    text = "Hull 90%. " * 100
    ids = [*TOKENIZER.encode(text), TOKENIZER.raw.token_to_id("<|endoftext|>")]
    rows = encode_all(TOKENIZER, [Document(text)], 64)
    assert [token for row in rows for token in row.ids] == ids
    assert all(row.ids == row.labels and len(row.ids) <= 64 for row in rows)
    # a last window of one token would predict nothing
    assert len(encode_all(TOKENIZER, [Document(text)], len(ids) - 1)) == 1


@pytest.mark.parametrize("pack", [False, True])
def test_a_model_goes_on_learning_from_texts(pack):
    model = minilora.load_base()
    inject(model)
    data = read_examples([{"text": "Hull 90%. " * 50}, {"text": "Fuel 12%."}])
    task = Task("texts", data.examples, data.examples[:1])
    settings = {"steps": 3, "batch_size": 4, "progress": False, "max_length": 64, "pack": pack}
    history = train(model, task, validate_every=3, valid_answers=2, **settings)
    assert history.validations[-1]["valid_loss"] < history.validations[0]["valid_loss"]


def test_a_model_learns_a_conversation_of_several_turns_from_a_file(tmp_path):
    turns = [
        ("system", "Be brief."),
        ("human", "Hi"),
        ("gpt", "Ahoy!"),
        ("human", "a"),
        ("gpt", "b"),
    ]
    talk = {"conversations": [{"from": role, "value": text} for role, text in turns]}
    data = read_examples(write(tmp_path / "share.jsonl", [talk] * 4))
    assert data[0].messages[1:3] == (("user", "Hi"), ("assistant", "Ahoy!"))
    summary = summarize(data, TOKENIZER)
    assert (summary.turns, summary.duplicates) == (8, 3)
    model = minilora.load_base()
    inject(model)
    losses = train(model, data, steps=6, batch_size=2, progress=False).losses
    assert losses[-1] < losses[0]


def test_a_mark_that_a_document_names_stays_text():
    [row] = encode_all(TOKENIZER, [Document("<|im_end|> ends a turn.")], 64)
    assert TOKENIZER.raw.token_to_id("<|im_end|>") not in row.ids
