"""The demo is true: naval code is learnt, the base is untouched, the peers open the files."""

import signal
from dataclasses import replace

import pytest
import torch
import transformers

import minilora
from minilora import load_base
from minilora.commands import demo as demo_command
from minilora.commands.demo import run_demo
from minilora.lora.layer import lora_layers
from minilora.training.data import naval_log

from ..test_readme import FIRST_SCREEN, printed_by

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """One whole run, as a newcomer starts it: (folder, figures)."""
    out = tmp_path_factory.mktemp("demo")
    return out, run_demo(out)


def test_naval_code_is_learnt_from_nothing(demo):
    _, figures = demo
    assert figures["before"]["exact_match"] == 0
    assert figures["after"]["exact_match"] >= 0.90  # 94 to 96%, by machine and seed
    assert figures["train_seconds"] < 1200, (
        "on two idle cores it is about 60; this one is overloaded beyond use"
    )


def test_little_prose_is_forgotten_and_much_without_replay(demo):
    _, figures = demo
    known = figures["before"]["bits_per_byte"]
    lost = figures["after"]["bits_per_byte"] - known
    without = figures["without_replay"]["bits_per_byte"] - known
    assert lost < 0.1
    assert without > 4 * lost  # after a fifth of the steps


def test_the_base_is_untouched_and_the_merge_is_exact(demo):
    _, figures = demo
    assert figures["base_unchanged"]
    assert figures["unmerged_to_the_bit"]
    assert figures["merge_error"] < 1e-5


def test_the_artifacts_open_in_the_peers(demo):
    from peft import PeftModel

    from minilora.commands.demo_picture import ASKED
    from minilora.model.pretrained import SHIPPED

    out, figures = demo
    log, question = ASKED[1]
    theirs = transformers.AutoModelForCausalLM.from_pretrained(SHIPPED, dtype=torch.float32)
    models = [
        PeftModel.from_pretrained(theirs, out / "adapter").eval(),
        transformers.AutoModelForCausalLM.from_pretrained(out / "merged"),
    ]
    tokenizer = load_base().tokenizer
    ids = torch.tensor([tokenizer.encode(tokenizer.prompt(question, log))])
    greedy = {"max_new_tokens": 40, "do_sample": False, "pad_token_id": 0}
    greedy["eos_token_id"] = tokenizer.eos_id
    for model in models:
        generated = model.generate(input_ids=ids, **greedy)
        answer = tokenizer.decode(generated[0, ids.shape[1] :].tolist())
        assert answer == figures["answers"][1]


def test_the_first_screen_of_the_readme_prints_what_stands_below_it(demo, tmp_path, monkeypatch):
    """Its one slow line is the demo's training, so the trained adapter is loaded instead."""
    folder, figures = demo

    def train_as_in_the_demo(model, task, *, steps, replay, progress):
        assert (task, steps) == (naval_log(), len(figures["history"].steps))
        assert replay.share == figures["history"].replay[0]["rows"]
        minilora.load_adapter(model, folder / "adapter")  # refuses another rank, scale or target

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(minilora, "train", train_as_in_the_demo)
    code, output = FIRST_SCREEN
    assert printed_by(code) == output


def test_the_figure_is_a_picture_and_not_blank(demo):
    import matplotlib.image

    picture = matplotlib.image.imread(demo[0] / "demo.png")
    assert picture.shape[1] > 1000
    assert picture[..., :3].std() > 0.05


def test_the_demo_in_four_bits(tmp_path, capsys):
    """A short run of all its parts: the codes stay, the merge goes into floats, memory is saved."""
    figures = run_demo(tmp_path, steps=40, qlora=True, replay=0)
    assert figures["without_replay"] is None
    printed = capsys.readouterr().out
    assert figures["base_unchanged"]
    assert figures["unmerged_to_the_bit"]
    assert figures["merge_error"] < 1e-5
    assert 0 < figures["before"]["bits_per_byte"] - figures["bits_per_byte_in_floats"] < 0.05
    full, lora, qlora = (figures["footprints"][name] for name in ("full", "LoRA", "QLoRA"))
    assert full.peak > lora.peak > qlora.peak
    assert "Back in four bits it would lose" in printed
    assert load_base(tmp_path / "merged").generate_text("Status?", "Log: Hull 90%.")


def test_ctrl_c_says_how_to_go_on_and_resume_ends_in_the_same_bits(tmp_path, capsys, monkeypatch):
    """Of the demo the training alone, six steps, the first of them interrupted."""

    def adapted(resume, out):
        torch.manual_seed(0)
        model = load_base()
        pace = demo_command.pace_for(model, 6, 0, 0)
        demo_command.insert_lora(model, minilora.LoraConfig(r=8, target_modules=["q_proj"]))
        quick = {"validate_every": 0, "keep_best": False, "progress": False}
        settings = replace(pace.settings, out=out, resume=resume, **quick)
        history, unchanged = demo_command.train_adapter(model, pace, settings)
        assert unchanged
        return history, [layer.lora_B for _, layer in lora_layers(model)]

    def interrupted(model, task, settings, replay):
        callbacks = [lambda _: signal.raise_signal(signal.SIGINT)]
        return minilora.train(model, task, settings, replay=replay, callbacks=callbacks)

    whole, right = adapted(resume=False, out=tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(demo_command, "train", interrupted)
        first, _ = adapted(resume=False, out=tmp_path / "cut")
    assert len(first.steps) == 1
    assert "The same command with --resume trains the rest.\n" in capsys.readouterr().out
    resumed, ours = adapted(resume=True, out=tmp_path / "cut")
    assert "--resume" not in capsys.readouterr().out
    assert resumed.losses == whole.losses
    assert all(torch.equal(one, other) for one, other in zip(ours, right, strict=True))
