"""``minilora chat`` reads lines, remembers, and changes adapters whole or not at all."""

import io

import pytest
import torch

import minilora
from minilora.commands import chat
from minilora.commands.cli import main


@pytest.fixture
def adapter(tmp_path):
    """An adapter whose answers are other than the base's."""
    torch.manual_seed(0)  # of A, or an answer may begin with a new line
    model = minilora.load_base()
    minilora.inject(model)
    for _, layer in minilora.lora_layers(model):
        torch.nn.init.normal_(layer.lora_B, std=0.3, generator=torch.Generator().manual_seed(0))
    return minilora.save_adapter(model, tmp_path / "adapter")


def talk(monkeypatch, capsys, lines, *options):
    """What is printed for lines of input."""
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines)))
    assert main(["chat", "--max-new-tokens", "12", *options]) == 0
    return capsys.readouterr().out.splitlines()


def answer(*messages, adapter=None):
    """What a model answers to alternating messages of a user and itself."""
    model = minilora.load_base()
    if adapter:
        minilora.load_adapter(model, adapter)
    roles = ["user", "assistant"] * len(messages)
    asked = [{"role": r, "content": c} for r, c in zip(roles, messages, strict=False)]
    return model.generate_text(asked, max_new_tokens=12)


def test_it_remembers_until_it_is_told_to_forget(monkeypatch, capsys):
    first = answer("Status?")
    second = answer("Status?", first, "And Hull?")
    printed = talk(
        monkeypatch, capsys, ["Status?", "", "And Hull?", "/reset", "Status?", "/quit", "x"]
    )
    assert printed == [first, second, "forgotten", first]
    assert second != answer("And Hull?")


def test_adapters_come_and_go_and_a_bad_one_changes_nothing(monkeypatch, capsys, adapter):
    base, adapted = answer("Status?"), answer("Status?", adapter=adapter)
    assert base != adapted
    lines = ["Status?", "/reset", "/adapter nowhere", "Status?", "/reset", "/adapter", "Status?"]
    lines += ["/reset", f"/adapter {adapter}", "Status?", "/dance"]
    out = talk(monkeypatch, capsys, lines, "--adapter", str(adapter))
    assert out[0] == out[3] == adapted
    assert "nowhere" in out[2]
    assert out[5:7] == ["the base answers", base]
    assert "answers; the conversation continues" in out[8]
    assert out[9] == adapted
    assert out[10].startswith("/dance is unknown: /adapter FOLDER")


def test_a_system_message_opens_the_conversation(monkeypatch, capsys):
    seen = []

    def stream_text(self, messages, **sampling):
        seen.append([message["role"] for message in messages])
        if len(seen) == 2:
            raise ValueError("the chat template cannot write these messages: no")
        if len(seen) == 3:
            raise KeyboardInterrupt
        yield "Aye"

    monkeypatch.setattr(minilora.Llama, "stream_text", stream_text)
    out = talk(monkeypatch, capsys, ["a", "b", "c", "/reset", "d"], "--system", "Be brief.")
    assert out[0] == "Aye"
    assert "no. /reset forgets the conversation" in out[1]
    assert out[2] == " …"
    first, second = ["system", "user"], ["system", "user", "assistant", "user"]
    assert seen == [first, second, second, first]


def test_settings_that_mean_nothing_are_refused_at_once(capsys):
    assert main(["chat", "--temperature", "-1"]) == 2
    assert "temperature must be 0" in capsys.readouterr().err


def test_a_terminal_is_told_the_commands(monkeypatch, capsys):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr("sys.stdin", Terminal("/quit\n"))
    assert main(["chat"]) == 0
    assert capsys.readouterr().out.startswith(chat.HELP)
