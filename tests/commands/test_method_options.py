"""``train --method``: each method from the command line to a file and back, and what is refused."""

import json

import pytest

import minilora
from minilora.commands.cli import main, parser_of
from minilora.commands.method_options import TAKES, UNSET, config_of, for_steps
from minilora.lora.attached import adapters_of
from minilora.training.data import naval_log

SETTINGS = {"adalora": ["--r=2"], "vera": ["--r=8"], "bottleneck": ["--kind=houlsby"]}
SETTINGS |= {"prompt": ["--virtual-tokens=3", "--prompt-text=naval code"]}
SETTINGS |= {"prefix": ["--virtual-tokens=2"], "lora": ["--loraplus-ratio=16"]}
TYPES = dict.fromkeys(("lora", "rslora", "dora", "pissa", "olora"), "LORA")
TYPES |= {"adalora": "ADALORA", "vera": "VERA", "ia3": "IA3", "bitfit": "BITFIT", "ln": "LN_TUNING"}
TYPES |= {"prompt": "PROMPT_TUNING", "prefix": "PREFIX_TUNING", "bottleneck": "BOTTLENECK"}
WHY_NOT = {"prompt": "a soft prompt is input, not a weight", "bitfit": "biases that its config"}
WHY_NOT |= {"prefix": "not a weight", "bottleneck": "so no weight does what it does"}


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    """Twelve examples in a file."""
    file = tmp_path_factory.mktemp("methods") / "mine.jsonl"
    keys = ("instruction", "input", "output")
    rows = [{key: getattr(e, key) for key in keys} for e in naval_log(12, 1).train]
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return file


@pytest.mark.parametrize("method", TAKES)
def test_each_method_trains_is_saved_and_answers(method, examples, tmp_path, capsys):
    command = ["train", "--data", str(examples), "--out", str(tmp_path), "--method", method]
    short = ["--steps=3", "--batch=2", "--validate-every=0"]
    assert main([*command, *short, *SETTINGS.get(method, [])]) == 0
    saved = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert saved["peft_type"] == TYPES[method]
    model = minilora.load_adapter(minilora.load_base(), tmp_path / "adapter")
    assert list(adapters_of(model))
    assert main(["generate", "--adapter", str(tmp_path / "adapter"), "Status?"]) == 0
    merged = main(["merge", "--adapter", str(tmp_path / "adapter"), "--out", str(tmp_path / "m")])
    printed = capsys.readouterr()
    why = WHY_NOT.get(method)
    assert merged == (2 if why else 0), printed.err
    assert why is None or why in printed.err


def options_of(*words):
    """The options of ``train`` for these words."""
    return parser_of("train").parse_args(["--data=mine.jsonl", "--out=mine", *words])


VALUES = {"target": ["--target", "k_proj"], "rslora": ["--rslora"], "kind": ["--kind=parallel"]}
VALUES |= {"prompt_text": ["--prompt-text=a"], "dropout": ["--dropout=0.5"]}
PAIRS = [(method, name) for method, takes in TAKES.items() for name in UNSET if name not in takes]


@pytest.mark.parametrize(("method", "name"), PAIRS)
def test_an_option_that_a_method_has_no_use_for_is_refused(method, name):
    flag = f"--{name.replace('_', '-')}"
    options = options_of(f"--method={method}", *VALUES.get(name, [f"{flag}=3"]))
    with pytest.raises(ValueError, match=f"--method {method} has no use for {flag}: leave it out"):
        config_of(options)


def test_the_options_reach_the_config():
    config = config_of(
        options_of("--method=vera", "--r=64", "--dropout=0.25", "--target", "q_proj")
    )
    assert (config.r, config.vera_dropout, config.target_modules) == (64, 0.25, ("q_proj",))
    config = config_of(options_of("--method=adalora", "--r=4", "--alpha=3", "--dropout=0.5"))
    assert (config.init_r, config.target_r, config.lora_alpha, config.lora_dropout) == (
        6,
        4,
        3,
        0.5,
    )
    config = for_steps(config, 50)
    assert (config.total_step, config.tinit, config.tfinal) == (50, 5, 10)
    assert config_of(options_of("--method=dora", "--rslora")).use_rslora
    assert config_of(options_of("--method=rslora")).use_rslora
    assert config_of(options_of("--method=bitfit")).target_modules == "all-linear"
    assert config_of(options_of("--method=prompt")).prompt_tuning_init == "SAMPLE_VOCAB"
    assert config_of(options_of("--method=bottleneck", "--size=5")).size == 5


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--full", "--method=vera"], "--full trains every parameter"),
        (["--adapter=mine", "--method=vera"], "leave --method out"),
        (["--task=classify", "--method=prefix", "--base=b"], "which --method prefix cannot here"),
        (["--method=lora", "--loraplus-ratio=-1"], "loraplus_ratio must be positive"),
        (["--method=prompt", "--virtual-tokens=0"], "num_virtual_tokens must be"),
    ],
)
def test_what_contradicts_is_refused_before_anything_is_written(
    words, message, examples, tmp_path, capsys
):
    out = tmp_path / "out"
    assert main(["train", "--data", str(examples), "--out", str(out), "--steps=1", *words]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()
