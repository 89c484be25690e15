"""Each question is answered in the first line; docs/planner.md shows what the commands print.

``python -m tests.commands.test_plan_questions`` writes its consoles anew.
"""

import argparse
import contextlib
import io
import re
import shlex
from pathlib import Path

import pytest

from minilora import LoraConfig, ledger
from minilora.commands.cli import main
from minilora.commands.quantities import amount, duration, duration_with_unit

PAGE = Path(__file__).parents[2] / "docs" / "planner.md"
SPOT = ("--spot", "--between", "30m")
CONSOLE = re.compile(r"(?ms)^```console\n\$ (minilora plan [^\n]*)\n(.*?)```$")


def run(*words):
    """(status, what was printed, what was said on standard error)."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(["plan", *words])
    return status, out.getvalue(), err.getvalue()


def consoles():
    """(command, what the page shows of it)."""
    return CONSOLE.findall(PAGE.read_text(encoding="utf-8"))


def test_the_page_shows_every_question():
    shown = " ".join(command for command, _ in consoles())
    for question in ("serve", "cards", "cost", "spot", "store", "claims"):
        assert f"--{question}" in shown


@pytest.mark.parametrize("number", range(len(consoles())))
def test_the_page_shows_what_the_command_prints(number):
    command, shown = consoles()[number]
    assert run(*shlex.split(command)[2:]) == (0, shown, "")


def test_the_answers_are_the_ledger_s():
    plan = ledger.plan_serving("gpt2", LoraConfig(8, target_modules="all-linear"), adapters=7)
    out = run("gpt2", "--serve", "--adapters", "7", "--streams", "1")[1]
    assert out.startswith(f"gpt2: a card of 8 GB serves it: {plan.total / 1e9:.1f} GB\n")
    assert f"{plan.tenants(24 * 10**9):,}" in out
    config = LoraConfig(8, target_modules="all-linear")
    cards = ledger.plan_cards("llama-3.1-405b", config, "qlora", checkpointing=True)
    out = run("llama-3.1-405b", "--cards", "--qlora", "--checkpointing")[1]
    fewest = cards.shards(80 * 10**9)
    assert out.startswith(f"llama-3.1-405b, qlora: at least {fewest} cards of 80 GB\n")
    out = run("llama-2-70b", "--cards", "--qlora")[1]
    assert out.startswith("llama-2-70b, qlora: one card of 141 GB; --checkpointing")
    out = run("llama-3.1-405b", "--cards", "--full")[1]
    assert out.startswith("llama-3.1-405b, full: no number of cards; --checkpointing makes")


def test_the_smallest_card_that_holds_it_alone_is_named_first():
    plan = ledger.plan(
        "llama-3-8b", LoraConfig(16, target_modules="all-linear"), checkpointing=True
    )
    assert 16e9 < plan.total < 24e9
    out = run("llama-3-8b", "--cards", "--checkpointing", "--r", "16")[1]
    assert out.startswith("llama-3-8b, lora: one card of 24 GB\n")
    assert "any number" in out


def test_spot_that_does_not_pay_says_so():
    out = run("--spot", "--between", "10m", "--checkpoint", "2m", "--discount", "0.1")[1]
    assert re.match(r"10% off loses \d+\.\d%; it pays from a discount of \d+\.\d% on", out)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--serve"], "which model?"),
        (["gpt2", "--serve", "--json"], "--serve's numbers are functions of minilora.ledger"),
        (["gpt2", "--serve", "--method", "vera"], "--serve plans lora and qlora, got 'vera'"),
        (["gpt2", "--serve", "--full"], "--serve plans lora and qlora, got 'full'"),
        (["gpt2", "--cards", "--ia3"], "--cards plans full, lora and qlora, got 'ia3'"),
        (["gpt2", "--price", "2"], "--price belongs to --serve and --cost and --spot, and none"),
        (["gpt2", "--cards", "--adapters", "3"], "--serve and --store, and --cards does not read"),
        (["gpt2", "--store", "--chart", "a.png"], "--json and --chart are for the plan of a step"),
        (["gpt2", "--claims"], "--claims plans its own six rows: leave 'gpt2' out"),
        (["roberta-base", "--serve"], "does not write text"),
        (["gpt2", "--cost"], "--cost needs --tokens"),
        (
            ["--cost", "--tokens", "1e9", "--speed", "0"],
            "speed must be a finite positive number, got 0",
        ),
        (["--cost", "--tokens", "1", "--speed", "1", "--price", "-2"], "price must be"),
        (["gpt2", "--serve", "--price", "-2"], "price must be a finite positive number, got -2"),
        (["gpt2", "--serve", "--price", "nan"], "price must be a finite positive"),
        ([*SPOT, "--price", "2", "--discount", "0.5", "--devices", "0"], "at least 1 card, got 0"),
        (
            [*SPOT, "--price", "2", "--discount", "0.5", "--devices", "-3"],
            "at least 1 card, got -3",
        ),
        ([*SPOT, "--price", "-2"], "price must be a finite positive number, got -2"),
        ([*SPOT, "--price", "2"], "give --discount with --price"),
        (["--spot"], "--spot needs --between"),
        (["--spot", "--between", "30m", "--discount", "70"], "discount must be a share"),
        (["gpt2", "--store", "--full"], "--store compares adapters with copies"),
        (["gpt2", "--store", "--adapters", "0", "--target", "c_attn"], "count must be"),
    ],
)
def test_what_is_missing_or_wrong_is_said(words, message):
    status, out, err = run(*words)
    assert (status, out) == (2, "")
    assert message in err


def test_times_are_read():
    assert [duration(text) for text in ("90", "90s", "30m", "10h", "2d", "1w")] == [
        *(90, 90, 1800, 36000, 172800, 604800)
    ]
    with pytest.raises(argparse.ArgumentTypeError, match="expected a time as 90s"):
        duration_with_unit("90")
    with pytest.raises(SystemExit):
        run("--spot", "--between", "soon")


def test_amounts_are_read_as_people_write_them():
    found = [amount(text) for text in ("1e9", "1B", "2.5k", "300M", "70%", "0.7", "-2")]
    assert found == pytest.approx([1e9, 1e9, 2500, 3e8, 0.7, 0.7, -2])
    same = ("--cost", "--devices", "8", "--price", "2")
    assert run(*same, "--tokens", "1B", "--speed", "3k") == (
        run(*same, "--tokens", "1e9", "--speed", "3000")
    )
    for text in ("1G", "many", "", "%"):
        with pytest.raises(argparse.ArgumentTypeError, match="expected a number as"):
            amount(text)


def write_page():
    """Put into the page what the commands print."""

    def again(match):
        printed = run(*shlex.split(match[1])[2:])[1]
        return f"```console\n$ {match[1]}\n{printed}```"

    PAGE.write_text(CONSOLE.sub(again, PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    write_page()
