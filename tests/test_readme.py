"""What the README shows happens: its Python prints what stands below it, its commands run."""

import contextlib
import io
import re
import shlex
import shutil
from pathlib import Path

import pytest

from benchmarks.methods_table import lines_of
from minilora import load_base
from minilora.bugs import BUGS
from minilora.commands.cli import main
from minilora.learn.course import list_lessons
from minilora.model.pretrained import SHIPPED
from minilora.plots import gallery
from minilora.training.data import naval_log

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
USING = (ROOT / "docs" / "using.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README + USING, re.DOTALL)
PYTHON = [(code, BLOCKS[i + 1][1]) for i, (kind, code) in enumerate(BLOCKS) if kind == "python"]
FIRST_SCREEN = PYTHON[0]  # tests/commands/test_demo.py runs it


def commands(text):
    """The words of each minilora command that a text shows, without comments."""
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    lines = [line for code in blocks for line in code.splitlines()]
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("minilora ")]


def printed_by(code):
    """What a block of Python prints."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "README.md", "exec"), {})
    return printed.getvalue()


@pytest.mark.parametrize(("code", "output"), PYTHON[1:], ids=["four bits", "own model"])
def test_python_prints_what_the_readme_shows(code, output, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert printed_by(code) == output


def test_the_first_example_has_twelve_lines_of_code():
    assert (
        sum(
            1
            for line in PYTHON[0][0].splitlines()
            if line and not line.startswith(("import", "from"))
        )
        <= 12
    )


@pytest.mark.slow
def test_the_commands_run_in_the_order_shown(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        gallery, "CHARTS", {name: gallery.CHARTS[name] for name in ("memory", "disk")}
    )  # plots/test_charts.py has all
    lines = [
        f'{{"instruction": "{e.instruction}", "input": "{e.input}", "output": "{e.output}"}}'
        for e in naval_log(40, 1).train
    ]
    Path("my.jsonl").write_text("\n".join(lines), encoding="utf-8")
    course = [
        "learn",
        "learn",
        "book",
        "zoo",
        "notebook",
        "grade",
        "book",
    ]  # tests/learn, tests/zoo
    used = ["train", "generate", "merge", "export"]
    plans = ["plan", "plan", "chart"]
    readme, using = commands(README), commands(USING)
    assert [words[0] for words in readme] == [*course, *used, *plans]
    assert [words[0] for words in using] == [*used, "generate"]
    assert readme[len(course) :][: len(used)] == using[: len(used)]
    shown = using + readme[-len(plans) :]
    answers = []
    for words in shown:
        if words[0] == "train":
            words[words.index("--steps") + 1] = "3"
        assert main(words) == 0
        answers += [capsys.readouterr().out] if words[0] == "generate" else []
    assert all("90" in answer for answer in answers)
    served, bank, other_family = (code for kind, code in BLOCKS if kind == "py")
    shutil.copytree("mine/adapter", "naval")
    two = printed_by(bank)
    assert two.count("90") == 2
    shutil.copytree(SHIPPED, "base")
    assert "90" in printed_by(served)  # the merged model answers in transformers as it does here
    save_small_gpt2("gpt2")
    printed_by(other_family.replace("steps=500", "steps=2"))
    assert Path("mine/gpt2/adapter_config.json").exists()
    assert Path("mine/gpt2-merged/model.safetensors").exists()
    assert "chat_template" in Path("mine/gpt2-merged/tokenizer_config.json").read_text()


def save_small_gpt2(folder):
    """A folder as transformers writes it, of another family, with the shipped tokenizer."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=load_base().config.vocab_size,
        n_embd=16,
        n_layer=1,
        n_head=2,
        bos_token_id=0,
        eos_token_id=0,
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    shutil.copy(SHIPPED / "tokenizer.json", folder)


def test_what_the_readme_counts_is_there():
    """Lessons and bugs are added; the README must not be forgotten."""
    assert README.count(f"{len(BUGS)} bugs") == 2
    assert f"{len(list_lessons())} lessons, from" in README
    assert len(README.splitlines()) < 250
    core = [ROOT / "minilora" / "level0.py"]
    core += [file for wing in ("nf4", "lora") for file in (ROOT / "minilora" / wing).glob("*.py")]
    assert "about 3,000 lines of code" in README
    assert round(sum(map(lines_of, core)), -3) == 3000


def test_make_and_pip_do_the_same():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "make demo" in README
    assert "make test" in README
    for line in re.findall(r"pip install [^`\n]*", README):  # the package is on no registry
        assert "-c constraints.txt -e" in line
    assert "--constraint constraints.txt --editable ." in makefile
    assert '--editable ".[test]"' in makefile
    assert "make test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_tests_and_modules_that_the_readme_names_exist():
    for name in re.findall(r"`(test_\w+\.py)`", README):
        assert (ROOT / "tests" / name).exists(), name
    for name in re.findall(r"`(\w+\.py)`", README):
        assert (ROOT / "minilora" / name).exists() or (ROOT / "tests" / name).exists(), name
