"""train, generate and merge as an engineer meets them: their own base, four bits, and the mistakes that are likely."""

import json
import warnings

import pytest

import minilora
from minilora import Example, finetune
from minilora.cli import main, parser
from minilora.config import rate_for
from minilora.data import naval_log
from minilora.footprint import describe_footprints
from minilora.pretrained import SHIPPED


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A JSONL, and what ``train --qlora`` made of it on a base that counts as big."""
    folder = tmp_path_factory.mktemp("finetune")
    lines = [json.dumps({"instruction": e.instruction, "input": e.input, "output": e.output}) for e in naval_log(20, 1).train]
    (folder / "mine.jsonl").write_text("\n".join(lines), encoding="utf-8")
    command = ["train", "--base", str(SHIPPED), "--data", str(folder / "mine.jsonl"), "--out", str(folder / "out"), "--qlora"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("minilora.config.BIG", 10**6)
        assert main([*command, "--target", "q_proj,v_proj", "--steps", "4", "--batch", "2"]) == 0
    return folder


def folder_bytes(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_commas_between_targets_are_read_as_spaces(trained):
    config = json.loads((trained / "out" / "adapter" / "adapter_config.json").read_text())
    assert config["target_modules"] == ["q_proj", "v_proj"]


def test_a_big_base_takes_a_smaller_rate_and_a_given_one_counts(trained):
    rates = [json.loads(line).get("lr", 0) for line in (trained / "out" / "metrics.jsonl").read_text().splitlines()]
    assert max(rates) == 1e-3
    model = minilora.load_base()
    assert finetune.with_rate(minilora.TrainConfig(lr=0.25), 0.25, model).lr == 0.25
    assert finetune.with_rate(minilora.TrainConfig(), None, model).lr == 5e-3
    assert [rate_for(10**power) for power in (6, 8, 9, 11)] == [5e-3, 1e-3, 2e-4, 2e-4]


def test_only_the_method_that_ran_is_measured_on_a_big_base(trained, capsys, monkeypatch):
    """The other two would put the base into memory in floats, which is what QLoRA was chosen to avoid."""
    monkeypatch.setattr("minilora.config.BIG", 10**6)
    common = ["--data", str(trained / "mine.jsonl"), "--out", str(trained / "again"), "--qlora", "--steps", "1", "--batch", "2"]
    assert main(["train", *common]) == 0
    printed = capsys.readouterr().out
    assert "\nQLoRA  " in printed
    assert "\nfull  " not in printed
    assert "\nLoRA  " not in printed
    assert "1 steps of 2 out of 18 examples, 2 held out; rate 0.001" in printed
    assert main(["train", *common]) == 0
    assert f"{trained / 'again'} holds an earlier run: this one replaces it" in capsys.readouterr().out


def test_the_table_of_one_method_says_where_the_others_are():
    measured = minilora.ledger.Measured({}, {}, {})
    assert "minilora plan mine predicts" in describe_footprints({"QLoRA": measured}, "mine")
    assert "minilora plan" not in describe_footprints({"LoRA": measured, "QLoRA": measured}, "mine")


def test_an_adapter_from_four_bits_is_used_and_merged_on_the_same_four_bits(trained, capsys):
    adapter, merged = str(trained / "out" / "adapter"), trained / "merged"
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no "made for a base with other values"
        assert main(["generate", "--base", str(SHIPPED), "--qlora", "--adapter", adapter, "Status?"]) == 0
        assert main(["merge", "--qlora", "--adapter", adapter, "--out", str(merged), "--dtype", "float32"]) == 0
    wanted = minilora.load_adapter(minilora.load_base(quantize="nf4"), adapter)
    minilora.merge_and_unload(wanted, onto="dequantized")
    found = minilora.load_base(merged).state_dict()
    assert all(found[name].equal(tensor) for name, tensor in wanted.state_dict().items())
    with pytest.warns(UserWarning, match="a base with other values"):
        assert main(["generate", "--adapter", adapter, "Status?"]) == 0


def test_a_merge_never_writes_over_what_it_reads(trained, capsys):
    base, adapter = trained / "base", trained / "out" / "adapter"
    minilora.save_model(minilora.load_base(), base)
    before = folder_bytes(base), folder_bytes(adapter)
    for out in (base, base / ".." / "base", adapter):
        assert main(["merge", "--base", str(base), "--qlora", "--adapter", str(adapter), "--out", str(out)]) == 2
        assert "choose another --out" in capsys.readouterr().err
    onto = ["--onto", str(base), "--out", str(base)]
    assert main(["merge", "--qlora", "--adapter", str(adapter), *onto]) == 2
    assert (folder_bytes(base), folder_bytes(adapter)) == before


def test_the_folder_above_the_adapter_is_recognised(trained, capsys):
    assert main(["generate", "--adapter", str(trained / "out"), "Status?"]) == 2
    assert f"did you mean {trained / 'out' / 'adapter'}?" in capsys.readouterr().err


def test_another_bases_adapter_is_called_that_before_the_list_of_tensors(trained):
    sizes = minilora.LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    with pytest.raises(ValueError, match=r"does not fit this model: was made for a base of another architecture.*; .*lora_A"):
        minilora.load_adapter(minilora.Llama(sizes), trained / "out" / "adapter")


def test_a_warning_is_one_line_without_a_line_of_code(monkeypatch):
    seen, before = [], warnings.formatwarning
    monkeypatch.setattr(finetune, "run_generate", lambda _: seen.append(warnings.formatwarning("so", UserWarning, "x.py", 1)))
    assert main(["generate", "Hi"]) == 0
    assert seen == ["minilora generate: so\n"]
    assert warnings.formatwarning is before


def test_each_number_that_train_would_take_is_in_its_help(capsys):
    with pytest.raises(SystemExit):
        parser().parse_args(["train", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    for default in ("(default: q_proj v_proj)", "rank (default: 8)", "(default: 500)", "(default: 32)", "(default: 512)"):
        assert default in said


@pytest.mark.parametrize("tokenizer", [None, object()], ids=["none", "another library's"])
def test_a_model_without_our_tokenizer_is_told_how_to_get_one(tokenizer):
    model = minilora.load_base()
    minilora.inject(model)
    model.tokenizer = tokenizer
    with pytest.raises(ValueError, match=r"model\.tokenizer = minilora\.tokenizer\.Tokenizer\('folder/tokenizer\.json'\)"):
        minilora.train(model, [Example("a", "b")], steps=1)
