"""``minilora chat`` reads lines, remembers, and changes adapters whole or not at all."""

import argparse
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


def inside(tmp_path, config):
    """A folder with an adapter that changes the answers."""
    model = minilora.load_base()
    minilora.inject(model, config)
    generator = torch.Generator().manual_seed(0)
    for parameter in filter(lambda p: p.requires_grad, model.parameters()):
        parameter.data += torch.randn(parameter.shape, generator=generator) * 0.5
    return minilora.save_adapter(model, tmp_path / "inside")


@pytest.mark.parametrize(
    "config",
    [
        minilora.PromptTuningConfig(4),
        minilora.PrefixTuningConfig(4),
        minilora.BottleneckConfig("houlsby", 4),
        minilora.LoraConfig(modules_to_save=["model.norm"]),
    ],
    ids=["prompt", "prefix", "bottleneck", "copies"],
)
def test_whatever_is_inside_goes_whole_and_comes_back_whole(tmp_path, config):
    folder = inside(tmp_path, config)
    model, ids = minilora.load_base(), torch.tensor([[5, 6, 7]])
    base = model(ids)
    options = main_options("--adapter", str(folder), "--hub", str(tmp_path))
    minilora.load_adapter(model, folder)
    talk, adapted = chat.Talk(model, options, folder), model(ids)
    assert not torch.equal(base, adapted)
    (tmp_path / "empty").mkdir()
    for bad in ("nowhere", str(tmp_path / "empty")):
        assert bad in talk.command(f"/adapter {bad}")
        assert torch.equal(model(ids), adapted)
    assert talk.command("/adapter") == "the base answers"
    assert torch.equal(model(ids), base)
    assert "answers; the conversation continues" in talk.command(f"/adapter {folder}")
    assert torch.equal(model(ids), adapted)


def test_an_old_adapter_that_is_gone_is_said_to_be(tmp_path):
    folder = inside(tmp_path, minilora.LoraConfig())
    model = minilora.load_adapter(minilora.load_base(), folder)
    talk = chat.Talk(model, main_options("--hub", str(tmp_path)), folder)
    (folder / "adapter_model.safetensors").unlink()
    (tmp_path / "empty").mkdir()
    assert "cannot be read again" in talk.command(f"/adapter {tmp_path / 'empty'}")


def main_options(*given):
    """Options of ``minilora chat``, parsed."""
    parser = argparse.ArgumentParser()
    chat.add_options(parser)
    return parser.parse_args(given)
