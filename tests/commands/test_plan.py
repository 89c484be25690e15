"""The commands print the plan that they were asked for, as a table, as JSON and as a picture."""

import json
import re

import pytest

from minilora import LoraConfig, ledger
from minilora.commands import plan
from minilora.commands.cli import main


def run(capsys, *words):
    status = main(list(words))
    said = capsys.readouterr()
    return status, said.out, said.err


@pytest.mark.slow
def test_the_issue_s_command_prints_the_published_count(capsys, tmp_path):
    chart = tmp_path / "out.png"
    words = [
        "llama-3-8b",
        "--r",
        "16",
        "--target",
        "all-linear",
        "--qlora",
        "--checkpointing",
        "--chart",
        str(chart),
    ]
    status, out, _ = run(capsys, "plan", *words)
    found = ledger.plan(
        "llama-3-8b",
        LoraConfig(16, 32, "all-linear"),
        "qlora",
        checkpointing=True,
        adapter_dtype="float32",
    )
    assert status == 0
    assert "41,943,040 of 8,072,204,288 (0.5196%)" in out
    for size in (*found.bytes.values(), found.total, found.adapter_file_bytes):
        assert f"{size:,}" in out
    assert "fits         12 GB, 16 GB" in out
    assert chart.read_bytes().startswith(b"\x89PNG")


def test_json_is_for_programs(capsys):
    status, out, _ = run(
        capsys,
        "plan",
        "base",
        "--json",
        "--r",
        "4",
        "--target",
        "q_proj",
        "--dtype",
        "float32",
        "--batch",
        "3",
    )
    read = json.loads(out)
    assert status == 0
    assert read["trainable"] == 6 * 4 * (128 + 128)
    assert read["settings"]["batch"] == 3


def test_a_rank_that_is_too_high_is_a_note_of_one_line(capsys):
    status, out, err = run(capsys, "plan", "base", "--r", "999")
    assert (status, err.count("\n")) == (0, 1)
    assert err.startswith("note: r=999 is above min(in, out) = 64 of")
    assert "r = 999 on 42 Linears" in out


def test_a_full_fine_tune_that_fits_no_card_says_how_many_it_needs(capsys):
    status, out, _ = run(capsys, "plan", "llama-3.1-405b", "--full")
    assert status == 0
    assert "none of 8 GB" in out
    hours = float(re.search(r"time +(\S+) hours a million tokens", out).group(1))
    # 6 FLOPs a parameter and token
    assert hours == pytest.approx(6 * 405.85e9 * 1e6 / 1e14 / 3600, rel=0.04)
    cards = ledger.plan_cards("llama-3.1-405b", method="full")
    assert cards.shards(80 * 10**9) is cards.shards(141 * 10**9) is None  # own batch too large
    assert "by FSDP no number of cards (more: --cards)" in out
    out = run(capsys, "plan", "llama-3.1-405b", "--full", "--checkpointing")[1]
    assert "by FSDP at least 122 cards of 80 GB (more: --cards)" in out
    assert "adapter file" not in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["plan", "lama-3-8b"], "nearest presets: llama-3-8b"),
        (["plan"], "which model? Name a preset"),
        (
            ["plan", "gpt2", "--target", "c_attn,q_proj"],
            "no module matches 'q_proj'; did you mean 'c_proj'?",
        ),
        (
            ["plan", "gpt2", "--target", "q_proj"],
            "no module matches 'q_proj'; did you mean 'c_proj'?",
        ),
        (["plan", "gpt2", "--r", "0"], "r must be at least 1, got 0"),
        (["plan", "gpt2", "--seq", "-5"], "seq must be at least 1, got -5"),
        (["plan", "gpt2", "--chart", "a.pdf"], "saved as .png or .svg, got 'a.pdf'"),
        (["plan", "gpt2", "--full", "--r", "8", "--batch", "0"], "batch must be at least 1, got 0"),
        (["plan", "mixtral-8x22b"], "a mixture of experts is counted from its config.json"),
        (["chart", "spektrum"], "no chart is called 'spektrum'; nearest: spectrum"),
    ],
)
def test_bad_input_is_one_line_and_status_2(capsys, words, message):
    status, _, err = run(capsys, *words)
    assert status == 2
    assert message in err
    assert err.count("\n") == 1


def test_a_config_of_one_s_own_is_planned_and_drawn(capsys, tmp_path):
    config = {
        "model_type": "llama",
        "vocab_size": 96,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
    }
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_attention_heads": 4}))
    assert run(capsys, "plan", str(tmp_path), "--chart", str(tmp_path / "mine.svg"))[0] == 0
    assert (tmp_path / "mine.svg").exists()
    (tmp_path / "config.json").write_text(json.dumps(config))
    status, _, err = run(capsys, "plan", str(tmp_path))
    assert (status, "lacks 'num_attention_heads'" in err) == (2, True)


def test_a_config_is_called_by_its_folder_and_opens_the_page(capsys, tmp_path):
    folder = tmp_path / "ours-72b"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(ledger.presets()["qwen2.5-72b"]))
    out = run(capsys, "plan", str(folder / "config.json"))[1]
    assert "\nours-72b, lora: r = 8 on 560 Linears\n" in out
    assert run(capsys, "plan", str(folder), "--page", str(tmp_path / "p.html"))[0] == 0
    assert '"first":"ours-72b"' in (tmp_path / "p.html").read_text(encoding="utf-8")
    assert run(capsys, "plan", "lama-3-8b", "--page", str(tmp_path / "q.html"))[0] == 2


def test_two_methods_at_once_are_refused_and_each_has_its_own_word(capsys):
    with pytest.raises(SystemExit):
        main(["plan", "gpt2", "--qlora", "--full"])
    assert "--full: not allowed with argument --qlora" in capsys.readouterr().err
    assert run(capsys, "plan", "base", "--lora")[1] == run(capsys, "plan", "base")[1]


def test_a_card_that_just_fails_is_named_and_a_narrow_window_cuts_no_number(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")
    _, out, _ = run(capsys, "plan", "llama-3-70b", "--r", "16", "--qlora", "--checkpointing")
    found = ledger.plan(
        "llama-3-70b", LoraConfig(16, 32, "all-linear"), "qlora", checkpointing=True
    )
    over = found.total / 1e9 - 48
    assert 0 < over < 0.07 * 48
    assert f"close        48 GB: over by {over:.2f} GB" in out
    assert all(f"{size:,}" in out for size in found.bytes.values())


def test_the_chart_has_the_asked_config_and_the_cards_of_each_method():
    config = LoraConfig(64, 128, ["q_proj", "v_proj"])
    figure = plan.plan_figure("llama-3-70b", config, ledger.Settings(checkpointing=True))
    below = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    methods = ("full", "lora", "qlora")
    plans = [ledger.plan_cards("llama-3-70b", config, name, checkpointing=True) for name in methods]
    assert below[0] == f"full\n≥ {plans[0].shards(80 * 10**9)} × 80 GB"
    assert below[1] == f"LoRA\n≥ {plans[1].shards(80 * 10**9)} × 80 GB"
    assert below[2] == "QLoRA\na card of 80 GB"
    assert 48e9 < plans[2].plan.total < 80e9
    assert "r = 64 on q_proj, v_proj" in figure._supxlabel.get_text()
    width, height = figure.get_size_inches()
    assert width / height == pytest.approx(16 / 9, rel=0.01)


def test_presets_and_charts_are_listed_and_one_is_drawn(capsys, tmp_path):
    assert "llama-3.1-405b" in run(capsys, "plan", "--list")[1]
    assert "break-even" in run(capsys, "chart")[1]
    assert run(capsys, "chart", "heat", "--dark", "--out", str(tmp_path / "h.svg"))[0] == 0
    assert (tmp_path / "h.svg").read_text().startswith("<?xml")
    assert run(capsys, "plan", "--page", str(tmp_path / "p.html"))[0] == 0
    assert (tmp_path / "p.html").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--method", "vera", "--target", "q_proj,v_proj"], "vera: r = 256 on 64 Linears"),
        (["--ln"], "ln: on 65 norms"),
        (["--ia3"], "ia3: on 96 Linears"),
        (["--prefix"], "prefix: 20 rows before each text"),
        (["--method", "bottleneck"], "bottleneck: pfeiffer, in each layer"),
        (["--dora", "--r", "4", "--target", "v_proj"], "dora: r = 4 on 32 Linears"),
        (["--adalora"], "adalora: r = 12 on 224 Linears"),
    ],
)
def test_each_method_can_be_planned(words, said, capsys):
    assert main(["plan", "llama-3-8b", *words]) == 0
    assert said in capsys.readouterr().out


def test_the_first_lines_are_the_six_numbers_that_are_asked_for(capsys):
    out = run(capsys, "plan", "llama-3-8b", "--batch", "2")[1].splitlines()
    assert out[0].split() == ["llama-3-8b,", "2", "×", "2048", "tokens", "full", "LoRA", "QLoRA"]
    for line, again in zip(out[1:3], ([], ["--checkpointing"]), strict=True):
        for number, method in zip(line.split()[-3:], ("full", "lora", "qlora"), strict=True):
            words = ["plan", "llama-3-8b", "--batch", "2", "--json", "--method", method, *again]
            total = sum(json.loads(run(capsys, *words)[1])["bytes"].values())
            assert float(number.replace(",", "")) == pytest.approx(total / 1e9, abs=0.051)


def test_a_cousin_has_its_own_column_and_is_the_default_three_elsewhere(capsys):
    out = run(capsys, "plan", "llama-3-8b", "--dora", "--r", "16")[1].splitlines()
    assert out[0].split()[-4:] == ["full", "LoRA", "QLoRA", "dora"]
    for line, checkpointing in zip(out[1:3], (False, True), strict=True):
        config = LoraConfig(16, target_modules="all-linear", use_dora=True)
        total = ledger.plan("llama-3-8b", config, "dora", checkpointing=checkpointing).total
        assert float(line.split()[-1]) == pytest.approx(total / 1e9, abs=0.051)


def test_experts_are_said_to_have_neither_adapter_nor_four_bits(capsys, tmp_path):
    config = ledger.presets()["mistral-7b"] | {"model_type": "mixtral"}
    config |= {"num_local_experts": 8, "num_experts_per_tok": 2}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert "experts      no adapter, no 4 bits" in run(capsys, "plan", str(tmp_path), "--qlora")[1]
    out = run(capsys, "plan", str(tmp_path), "--qlora", "--serve")[1]
    assert "base in 4 bits, its experts in bfloat16;" in out
    assert "experts" not in run(capsys, "plan", "mistral-7b", "--qlora", "--serve")[1]


def test_the_help_names_a_method_once(capsys):
    with pytest.raises(SystemExit):
        main(["plan", "--help"])
    said = capsys.readouterr().out
    assert said.count("bottleneck") == 1
    assert said.startswith("usage: minilora plan [model] [options]\n")


IGNORED = [
    (["--list", "--r", "4"], "--list does not read --r: leave it out"),
    (["llama-3-8b", "--list"], "--list does not read llama-3-8b"),
    (["--list", "--cards"], "--list does not read --cards"),
    (["--list", "--adapter-dtype", "bfloat16"], "--list does not read --adapter-dtype"),
    (["--page", "p.html", "--qlora"], "--page does not read --qlora (--method qlora): leave"),
    (["llama-3-8b", "--dark"], "name its file with --chart"),
]


@pytest.mark.parametrize(("words", "message"), IGNORED, ids=[message for _, message in IGNORED])
def test_an_option_that_would_not_be_read_is_refused(words, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, out, err = run(capsys, "plan", *words)
    assert (status, out, list(tmp_path.iterdir())) == (2, "", [])
    assert message in err
