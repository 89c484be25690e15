"""train, generate and merge as an engineer meets them: own base, four bits, likely mistakes."""

import json
import sys
import warnings
from argparse import Namespace

import pytest
import torch
from safetensors.torch import load_file

import minilora
from minilora import Example, TrainConfig
from minilora.commands import generate, method_options, train_options
from minilora.commands.cli import main, parser_of
from minilora.commands.footprint import describe_footprints
from minilora.commands.train import count_epochs, run_together, trackers_of
from minilora.lora.layer import lora_layers
from minilora.model.pretrained import SHIPPED
from minilora.training.config import rate_for
from minilora.training.data import load_jsonl, naval_log
from minilora.training.history import History
from minilora.training.ranks import Alone


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A JSONL, and what ``train --qlora`` made of it on a base that counts as big."""
    folder = tmp_path_factory.mktemp("finetune")
    lines = [
        json.dumps({"instruction": e.instruction, "input": e.input, "output": e.output})
        for e in naval_log(20, 1).train
    ]
    (folder / "mine.jsonl").write_text("\n".join(lines), encoding="utf-8")
    command = [
        "train",
        "--base",
        str(SHIPPED),
        "--data",
        str(folder / "mine.jsonl"),
        "--out",
        str(folder / "out"),
        "--qlora",
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("minilora.training.config.BIG", 10**6)
        assert main([*command, "--target", "q_proj,v_proj", "--steps", "4", "--batch", "2"]) == 0
    return folder


@pytest.fixture
def seen(monkeypatch):
    """(model, task, config) of each call of the loop by ``minilora train``; nothing is trained."""
    calls = []

    def train(model, task, config, replay, callbacks, ranks):
        assert replay is None
        calls.append((model, task, config))
        return History(interrupted=True)

    monkeypatch.setitem(sys.modules["minilora.training.loop"].__dict__, "train", train)
    return calls


def test_every_option_of_train_reaches_the_loop(trained, seen):
    data, valid, out = trained / "mine.jsonl", trained / "valid.jsonl", trained / "out"
    valid.write_text("\n".join(data.read_text(encoding="utf-8").splitlines()[:3]), encoding="utf-8")
    words = [
        "--steps=7",
        "--lr=0.25",
        "--batch=6",
        "--accumulate=3",
        "--max-length=99",
        "--pack",
        "--bf16",
        "--seed=5",
    ]
    words += [
        "--checkpointing",
        "--checkpoint-every=2",
        "--validate-every=9",
        "--valid-batch=4",
        "--resume",
        "--r=3",
        "--alpha=5",
        "--dropout=0.25",
        "--rslora",
        "--target",
        "k_proj",
    ]
    assert (
        main(["train", "--data", str(data), "--valid", str(valid), "--out", str(out), *words])
        == 130
    )
    [(model, task, config)] = seen
    assert config == TrainConfig(
        steps=7, lr=0.25, batch_size=6, accumulate=3, max_length=99, pack=True, bf16=True, seed=5,
        out=out, checkpoint_every=2, resume=True, valid_answers=3, validate_every=9, valid_batch=4,
        checkpointing=True,
    )  # fmt: skip
    assert (task.train, task.valid) == (load_jsonl(data), load_jsonl(valid))
    for name, layer in lora_layers(model):
        assert name.endswith("k_proj")
        assert (layer.r, layer.lora_alpha, layer.lora_dropout, layer.use_rslora) == (
            3,
            5,
            0.25,
            True,
        )


def test_alpha_is_twice_the_rank_unless_it_is_given():
    for words, alpha in ((["--r=3"], 6), (["--r=3", "--alpha=5"], 5)):
        options = parser_of("train").parse_args(["--data=mine.jsonl", "--out=mine", *words])
        assert method_options.config_of(options).lora_alpha == alpha


def test_the_seed_of_train_decides_the_adapter_and_what_is_held_out(trained, seen):
    for number in (5, 5, 6):
        torch.manual_seed(len(seen))  # torch's own state must not matter
        main(
            [
                "train",
                "--data",
                str(trained / "mine.jsonl"),
                "--out",
                str(trained / "out"),
                "--seed",
                str(number),
            ]
        )
    first, same, other = (next(lora_layers(model))[1].lora_A for model, _, _ in seen)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    assert seen[0][1] == seen[1][1] != seen[2][1]


def test_every_option_of_generate_reaches_the_model(monkeypatch, capsys):
    calls = []
    monkeypatch.setattr(
        minilora.Llama, "generate_text", lambda self, *a, **more: calls.append((a, more)) or "Aye."
    )
    words = [
        "--context",
        "c",
        "--max-new-tokens",
        "5",
        "--temperature",
        "0.7",
        "--top-k",
        "3",
        "--top-p",
        "0.9",
        "--seed",
        "9",
    ]
    assert main(["generate", "Hi", *words]) == 0
    sampling = {"temperature": 0.7, "top_k": 3, "top_p": 0.9, "seed": 9}
    assert calls == [(("Hi", "c", 5), sampling)]
    assert capsys.readouterr().out == "Aye.\n"


def folder_bytes(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_commas_between_targets_are_read_as_spaces(trained):
    config = json.loads((trained / "out" / "adapter" / "adapter_config.json").read_text())
    assert config["target_modules"] == ["q_proj", "v_proj"]


def test_a_big_base_takes_a_smaller_rate_and_a_given_one_counts(trained):
    rates = [
        json.loads(line).get("lr", 0)
        for line in (trained / "out" / "metrics.jsonl").read_text().splitlines()
    ]
    assert max(rates) == 1e-3

    def settings(size, *words):
        options = parser_of("train").parse_args(["--data=mine.jsonl", "--out=mine", *words])
        return train_options.settings_of(options, size)

    small, big = settings(1_325_696), settings(134_515_008)
    assert (small.lr, small.steps, small.batch_size) == (5e-3, 500, 32)
    assert (big.lr, big.steps, big.batch_size) == (1e-3, 150, 8)
    given = settings(134_515_008, "--lr=0.25", "--epochs=2", "--batch=16")
    assert (given.lr, given.epochs, given.batch_size) == (0.25, 2, 16)
    assert [rate_for(10**power) for power in (6, 8, 9, 11)] == [5e-3, 1e-3, 2e-4, 2e-4]


@pytest.mark.slow
def test_the_memory_is_that_of_the_run_itself(trained, capsys, monkeypatch):
    """The other two would put the base into memory in floats, which QLoRA is there to avoid."""
    monkeypatch.setattr("minilora.training.config.BIG", 10**6)
    loaded, load = [], minilora.load_base
    monkeypatch.setattr(
        "minilora.model.pretrained.load_base", lambda *a, **k: loaded.append(a) or load(*a, **k)
    )
    data, out = str(trained / "mine.jsonl"), trained / "with space"
    common = ["--data", data, "--out", str(out), "--qlora", "--steps", "2", "--batch", "2"]
    assert main(["train", *common]) == 0
    printed = capsys.readouterr().out
    assert len(loaded) == 1
    assert "\nQLoRA  " in printed
    assert f"minilora plan {SHIPPED} predicts their memory" in printed
    assert "\nfull  " not in printed
    assert "\nLoRA  " not in printed
    assert "2 steps of 2 out of 18 examples, 2 held out; rate 0.001" in printed
    assert f"minilora generate --qlora --adapter '{out}/adapter' \"your question\"" in printed
    assert f"minilora merge --qlora --adapter '{out}/adapter' --out '{out}/merged'" in printed
    assert main(["train", *common]) == 0
    assert f"{out} holds an earlier run: this one replaces it" in capsys.readouterr().out


def test_an_adapter_is_trained_further_in_the_form_it_has(trained, seen, tmp_path, capsys):
    adapter = trained / "out" / "adapter"
    command = ["train", "--data", str(trained / "mine.jsonl"), "--out", str(tmp_path / "more")]
    command += ["--qlora", "--adapter", str(adapter)]
    assert main(command) == 130
    [(model, _, _)] = seen
    saved = load_file(adapter / "adapter_model.safetensors")
    layers = dict(lora_layers(model))
    assert len(saved) == 2 * len(layers)
    for path, layer in layers.items():
        assert layer.lora_B.equal(saved[f"base_model.model.{path}.lora_B.weight"])
        assert layer.lora_B.requires_grad
        assert not layer.base.packed.requires_grad
    assert f"Training {adapter} further." in capsys.readouterr().out
    assert main([*command, "--r=4", "--rslora"]) == 2
    said = capsys.readouterr().err
    assert "--adapter brings its own modules, rank and scale: leave --r and --rslora out" in said


def test_what_cannot_go_on_is_refused_in_the_commands_words(trained, capsys):
    common = ["train", "--data", str(trained / "mine.jsonl"), "--out", str(trained / "none")]
    assert main([*common, "--full", "--resume"]) == 2
    said = capsys.readouterr()
    assert "does not exist (--full keeps one only with --checkpoint-every N)" in said.err
    assert main([*common, "--fp16"]) == 2
    assert said.out == capsys.readouterr().out == ""


def test_epochs_are_counted_in_words():
    assert [count_epochs(n) for n in (1, 1.0, 2.5)] == ["1 epoch", "1 epoch", "2.5 epochs"]


def test_wandbs_files_go_to_out(tmp_path, monkeypatch):
    begun = []
    monkeypatch.setattr(
        "minilora.training.trackers.wandb_callback", lambda *_, **b: begun.append(b)
    )
    out = tmp_path / "out"
    trackers_of(Namespace(out=out, tensorboard=False, wandb="mine"), None)
    assert begun[0]["dir"] == str(out)
    assert out.is_dir()


def test_a_finished_run_goes_on_to_more_steps(trained, capsys):
    out = trained / "longer"
    common = ["train", "--data", str(trained / "mine.jsonl"), "--out", str(out), "--batch=2"]
    assert main([*common, "--steps=2"]) == 0
    capsys.readouterr()
    assert main([*common, "--steps=3", "--resume"]) == 0
    assert "resumed with steps=3 instead of 2" in capsys.readouterr().err
    lines = (out / "metrics.jsonl").read_text().splitlines()
    assert [row["step"] for row in map(json.loads, lines) if "loss" in row] == [1, 2, 3]


def test_the_table_of_one_method_says_where_the_others_are():
    measured = minilora.ledger.Measured({}, {}, {})
    assert "minilora plan mine predicts" in describe_footprints({"QLoRA": measured}, "mine")
    assert "minilora plan" not in describe_footprints({"LoRA": measured, "QLoRA": measured}, "mine")


@pytest.mark.slow
def test_an_adapter_from_four_bits_is_used_and_merged_on_the_same_four_bits(trained, capsys):
    adapter, merged = str(trained / "out" / "adapter"), trained / "merged"
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no "made for a base with other values"
        assert (
            main(["generate", "--base", str(SHIPPED), "--qlora", "--adapter", adapter, "Status?"])
            == 0
        )
        assert (
            main(
                [
                    "merge",
                    "--qlora",
                    "--adapter",
                    adapter,
                    "--out",
                    str(merged),
                    "--dtype",
                    "float32",
                ]
            )
            == 0
        )
    wanted = minilora.load_adapter(minilora.load_base(quantize="nf4"), adapter)
    minilora.merge_and_unload(wanted, onto="dequantized")
    found = minilora.load_base(merged).state_dict()
    assert all(found[name].equal(tensor) for name, tensor in wanted.state_dict().items())
    with pytest.warns(UserWarning, match="a base with other values"):
        assert main(["generate", "--adapter", adapter, "Status?"]) == 0


def test_a_merge_goes_onto_the_folder_that_was_named_in_half_precision(trained):
    adapter, original = trained / "out" / "adapter", minilora.load_base()
    for p in original.parameters():
        p.data.mul_(1.25)  # no base that could be meant otherwise
    minilora.save_model(original, trained / "original")
    where = ["--onto", str(trained / "original"), "--out", str(trained / "onto")]
    assert main(["merge", "--qlora", "--adapter", str(adapter), *where]) == 0
    tensors = load_file(trained / "onto" / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    for name, layer in lora_layers(
        minilora.load_adapter(minilora.load_base(quantize="nf4"), adapter)
    ):
        wanted = original.get_submodule(name).weight + layer.delta_weight()
        assert torch.equal(tensors[f"{name}.weight"], wanted.half()), name


def test_a_merge_never_writes_over_what_it_reads(trained, capsys):
    base, adapter = trained / "base", trained / "out" / "adapter"
    minilora.save_model(minilora.load_base(), base)
    before = folder_bytes(base), folder_bytes(adapter)
    for out in (base, base / ".." / "base", adapter):
        assert (
            main(
                [
                    "merge",
                    "--base",
                    str(base),
                    "--qlora",
                    "--adapter",
                    str(adapter),
                    "--out",
                    str(out),
                ]
            )
            == 2
        )
        assert "choose another --out" in capsys.readouterr().err
    onto = ["--onto", str(base), "--out", str(base)]
    assert main(["merge", "--qlora", "--adapter", str(adapter), *onto]) == 2
    assert (folder_bytes(base), folder_bytes(adapter)) == before


def test_the_folder_above_the_adapter_is_recognised(trained, capsys):
    assert main(["generate", "--adapter", str(trained / "out"), "Status?"]) == 2
    assert f"did you mean {trained / 'out' / 'adapter'}?" in capsys.readouterr().err


def test_another_bases_adapter_is_called_that_before_the_list_of_tensors(trained):
    sizes = minilora.LlamaConfig(
        vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2
    )
    with pytest.raises(
        ValueError,
        match=r"does not fit this model: was made for a base of another architecture.*; .*lora_A",
    ):
        minilora.load_adapter(minilora.Llama(sizes), trained / "out" / "adapter")


def test_a_warning_is_one_line_without_a_line_of_code(monkeypatch):
    seen, before = [], warnings.formatwarning

    def warn(options):
        seen.append(warnings.formatwarning("so", UserWarning, "x.py", 1))

    monkeypatch.setattr(generate, "run", warn)
    assert main(["generate", "Hi"]) == 0
    assert seen == ["minilora generate: so\n"]
    assert warnings.formatwarning is before


def test_each_number_that_train_would_take_is_in_its_help(capsys):
    with pytest.raises(SystemExit):
        parser_of("train").parse_args(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    for default in (
        "(default: q_proj v_proj)",
        "rank (default: 8; vera 256)",
        "(default: 500, for a big base 150)",
        "(default: 32, for a big base 8)",
        "(default: 512)",
    ):
        assert default in said


@pytest.mark.parametrize("tokenizer", [None, object()], ids=["none", "another library's"])
def test_a_model_without_our_tokenizer_is_told_how_to_get_one(tokenizer):
    model = minilora.load_base()
    minilora.inject(model)
    model.tokenizer = tokenizer
    with pytest.raises(
        ValueError, match=r"model\.tokenizer = minilora\.Tokenizer\('folder/tokenizer\.json'\)"
    ):
        minilora.train(model, [Example("a", "b")], steps=1)


def test_bad_rows_stop_train_until_they_are_skipped_and_the_summary_names_them(
    tmp_path, seen, capsys
):
    data = tmp_path / "mine.csv"
    data.write_text("prompt,completion,tag\nHi,Ahoy!,x\nStatus?,,y\nHi,Ahoy!,z\n")
    command = ["train", "--data", str(data), "--out", str(tmp_path / "out"), "--epochs=2"]
    assert main(command) == 2
    assert "line 3: 'completion' is empty. Mend them, or go on" in capsys.readouterr().err
    assert not seen
    assert main([*command, "--skip-bad"]) == 130
    [(_, task, config)] = seen
    assert task.train == (Example("Hi", "Ahoy!"),) * 2
    assert config.epochs == 2
    printed = capsys.readouterr().out
    assert f"{data}: 3 rows (prompt, completion ×2), 2 to learn from" in printed
    assert "line 3: 'completion' is empty" in printed
    assert "rows that repeat an earlier one, and are kept: 1" in printed
    assert "columns not used: tag (2 rows)" in printed
    assert "2 epochs of 32 out of 2 examples, 0 held out" in printed


def test_a_held_out_file_that_is_trained_on_is_warned_of(trained, tmp_path, seen):
    file = str(trained / "mine.jsonl")
    with pytest.warns(UserWarning, match="20 of 20 held-out examples are trained on too"):
        assert main(["train", "--data", file, "--valid", file, "--out", str(tmp_path)]) == 130


def test_only_questions_are_asked_of_a_held_out_side_of_texts(tmp_path, seen):
    data = tmp_path / "mine.jsonl"
    data.write_text("\n".join(json.dumps({"text": f"page {i}"}) for i in range(20)))
    assert main(["train", "--data", str(data), "--out", str(tmp_path / "out")]) == 130
    [(_, task, config)] = seen
    assert len(task.valid) == 2
    assert config.valid_answers == 0


def test_steps_and_epochs_are_not_given_together(capsys):
    with pytest.raises(SystemExit):
        parser_of("train").parse_args(["--data=a", "--out=b", "--steps=1", "--epochs=1"])
    assert "not allowed with argument --steps" in capsys.readouterr().err


def test_after_a_restart_all_ranks_ask_the_first_whatever_resume_says(tmp_path, monkeypatch):
    """Else the one that has --resume would leave the others waiting for its sum."""

    class Asked(Exception):
        """The ranks met."""

    class Second(Alone):
        rank, world = 1, 2

        def each(self, count, value):
            raise Asked

    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    words = ["--data", str(tmp_path / "any.jsonl"), "--out", str(tmp_path), "--resume"]
    with pytest.raises(Asked):
        run_together(parser_of("train").parse_args(words), Second())
    (tmp_path / "taken").write_text("")  # where only the first writes, and so only it looks
    words[3] = str(tmp_path / "taken")
    with pytest.raises(Asked):
        run_together(parser_of("train").parse_args(words), Second())
