"""What ends an answer, where it is named, and what ``save_model`` keeps of a base's folder."""

import json

import pytest
import torch
import transformers

from minilora import (
    LoraConfig,
    Tokenizer,
    inject,
    load_base,
    merge_and_unload,
    save_adapter,
    save_model,
)
from minilora.model.chat import TEMPLATE_SIZE
from minilora.model.pretrained import SHIPPED
from minilora.training.batches import encode
from minilora.training.examples import Example

from .chat_folders import FAMILIES, LLAMA3, byte_level, write_folder

HEADERS = FAMILIES["llama3"][1]


def write(folder, name, **content):
    (folder / name).write_text(json.dumps(content), encoding="utf-8")


def bare(folder):
    """A Llama-3 tokenizer.json alone."""
    raw = byte_level(HEADERS)
    raw.save(str(folder / "tokenizer.json"))
    return {mark: raw.token_to_id(mark) for mark in HEADERS}


@pytest.fixture
def llama3(tmp_path):
    """A model's folder as of Llama-3-Instruct, and the ids of its marks."""
    folder = write_folder(tmp_path, "llama3", pad_token="<|end_of_text|>", auto_map={"x": "y.z"})
    ids = {mark: Tokenizer(folder / "tokenizer.json").raw.token_to_id(mark) for mark in HEADERS}
    ends = [ids["<|end_of_text|>"], ids["<|eot_id|>"]]
    config = transformers.LlamaConfig(
        vocab_size=512,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        bos_token_id=ids["<|begin_of_text|>"],
        eos_token_id=ends,
        pad_token_id=ids["<|end_of_text|>"],
    )
    model = transformers.LlamaForCausalLM(config)
    model.generation_config.update(do_sample=True, temperature=0.6, top_p=0.9)
    model.save_pretrained(folder)
    return folder, ids


def test_a_tokenizer_that_names_no_end_is_refused_never_token_0(tmp_path):
    bare(tmp_path)
    tokenizer = Tokenizer(tmp_path / "tokenizer.json")
    for ask in (lambda: tokenizer.eos_id, lambda: tokenizer.eos_ids):
        with pytest.raises(ValueError, match="nothing says which token ends an answer"):
            ask()
    with pytest.raises(ValueError, match="nothing says which token ends an answer"):
        encode(tokenizer, Example("hi", "there you go"))


@pytest.mark.parametrize("given", ["one", "list", "argument", "arguments"])
@pytest.mark.parametrize("name", ["generation_config.json", "config.json"])
def test_the_end_is_what_any_file_names(tmp_path, given, name):
    ids = bare(tmp_path)
    both = [ids["<|eot_id|>"], ids["<|end_of_text|>"]]
    expected = both if given.endswith(("list", "s")) else both[:1]
    value = expected if len(expected) > 1 else expected[0]
    if given.startswith("argument"):
        tokenizer = Tokenizer(tmp_path / "tokenizer.json", eos_id=value)
    else:
        write(tmp_path, name, eos_token_id=value)
        tokenizer = Tokenizer(tmp_path / "tokenizer.json")
    assert tokenizer.eos_ids == expected
    assert encode(tokenizer, Example("hi", "there you go")).labels[-1] == expected[0]


def test_all_that_are_named_stop_and_the_templates_comes_first(tmp_path):
    ids = bare(tmp_path)
    pad, start = ids["<|start_header_id|>"], ids["<|end_header_id|>"]
    write(tmp_path, "generation_config.json", eos_token_id=[pad, ids["<|eot_id|>"]])
    write(tmp_path, "config.json", eos_token_id=start)
    eos = {"content": "<|end_of_text|>", "special": True}
    write(tmp_path, "tokenizer_config.json", eos_token=eos, bos_token=HEADERS[0])
    named = [pad, ids["<|eot_id|>"], start, ids["<|end_of_text|>"]]
    assert Tokenizer(tmp_path / "tokenizer.json").eos_ids == named
    (tmp_path / "chat_template.jinja").write_text(LLAMA3, encoding="utf-8")
    end, *others = Tokenizer(tmp_path / "tokenizer.json").eos_ids
    assert end == ids["<|eot_id|>"]
    assert [end, *others] == list(dict.fromkeys([end, *named]))


@pytest.mark.parametrize("value", [None, "2", True, [], {}])
def test_what_is_no_id_names_nothing(tmp_path, value):
    bare(tmp_path)
    write(tmp_path, "config.json", eos_token_id=value)
    with pytest.raises(ValueError, match="nothing says"):
        _ = Tokenizer(tmp_path / "tokenizer.json").eos_id


def test_saving_keeps_template_ends_first_and_padding_tokens(llama3, tmp_path_factory):
    folder, ids = llama3
    model, out = load_base(folder), tmp_path_factory.mktemp("saved")
    inject(model, LoraConfig(target_modules=["q_proj"]))
    save_model(merge_and_unload(model), out)
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        was, now = (json.loads((each / name).read_text()) for each in (folder, out))
        kept = [key for key in was if key.endswith(("_token_id", "_token", "template"))]
        assert {key: now.get(key) for key in kept} == {key: was[key] for key in kept}
    assert "auto_map" not in now
    assert json.loads((out / "generation_config.json").read_text())["top_p"] == 0.9
    again, theirs = load_base(out), transformers.AutoTokenizer.from_pretrained(out)
    assert again.tokenizer.eos_ids == [ids["<|eot_id|>"], ids["<|end_of_text|>"]]
    talk = [{"role": "user", "content": "hi"}]
    expected = theirs.apply_chat_template(talk, add_generation_prompt=True, return_dict=False)
    assert again.tokenizer.apply_chat_template(talk, True) == expected
    assert "<|start_header_id|>" in again.tokenizer.prompt("hi")


def test_a_folder_without_tokenizer_keeps_its_ids_too(llama3, tmp_path_factory):
    folder, ids = llama3
    (folder / "tokenizer.json").unlink()
    out = save_model(load_base(folder), tmp_path_factory.mktemp("saved"))
    config = json.loads((out / "config.json").read_text())
    assert config["bos_token_id"] == ids["<|begin_of_text|>"]
    assert (out / "generation_config.json").exists()
    save_model(load_base(), out)  # another model's file does not stay
    assert not (out / "generation_config.json").exists()


@pytest.mark.parametrize("place", ["list", "dict", "files"])
def test_several_named_templates(llama3, place, tmp_path_factory):
    folder, _ = llama3
    tools = "tools: {{ tools | length }}{{ messages[0].content }}"
    about = json.loads((folder / "tokenizer_config.json").read_text())
    named = {"default": LLAMA3, "tool_use": tools}
    if place == "files":
        del about["chat_template"]
        (folder / "chat_template.jinja").write_text(LLAMA3)
        (folder / "additional_chat_templates").mkdir()
        (folder / "additional_chat_templates" / "tool_use.jinja").write_text(tools)
    elif place == "list":
        about["chat_template"] = [{"name": n, "template": t} for n, t in named.items()]
    else:
        about["chat_template"] = named
    write(folder, "tokenizer_config.json", **about)
    talk = [{"role": "user", "content": "hi"}]
    out = save_model(load_base(folder), tmp_path_factory.mktemp("saved"))
    for each in (folder, out):
        tokenizer = load_base(each).tokenizer
        with_tools = tokenizer.apply_chat_template(talk, tools=[{}])
        assert tokenizer.decode(with_tools) == "tools: 1hi"
        assert "<|start_header_id|>" in tokenizer.render(talk)
        theirs = transformers.AutoTokenizer.from_pretrained(each)
        assert theirs.apply_chat_template(talk, tools=[{}], tokenize=False) == "tools: 1hi"


def test_named_templates_without_a_default_are_refused_when_asked(tmp_path):
    folder = write_folder(tmp_path, "llama3", chat_template=[{"name": "rag", "template": LLAMA3}])
    tokenizer = Tokenizer(folder / "tokenizer.json")
    with pytest.raises(ValueError, match=r"named \['rag'\], and none of them is 'default'"):
        tokenizer.prompt("hi")


@pytest.mark.parametrize("content", [b"\xff\xfe", b"a" * (4 * TEMPLATE_SIZE + 1)])
def test_a_template_file_that_is_none_is_refused(tmp_path, content):
    bare(tmp_path)
    (tmp_path / "chat_template.jinja").write_bytes(content)
    with pytest.raises(ValueError, match=r"chat_template.jinja .*(no chat template|UTF-8)"):
        Tokenizer(tmp_path / "tokenizer.json")


def test_a_system_message_of_ones_own_opens_a_foreign_form(tmp_path):
    folder = write_folder(tmp_path, "llama3")
    tokenizer = Tokenizer(folder / "tokenizer.json", system="Be brief.")
    opened = "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
    assert tokenizer.prompt("hi").startswith(opened)
    own = [{"role": "system", "content": "Sing."}, {"role": "user", "content": "hi"}]
    assert "brief" not in tokenizer.render(own)


def test_a_relative_folder_is_named_in_full(llama3, monkeypatch):
    folder, _ = llama3
    monkeypatch.chdir(folder.parent)
    assert load_base(folder.name).name_or_path == str(folder)


def test_an_adapter_says_its_base(llama3, tmp_path_factory):
    folder, _ = llama3
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
    for model, name in ((load_base(folder), folder), (load_base(), SHIPPED), (theirs, folder)):
        inject(model, LoraConfig(target_modules=["q_proj"]))
        out = save_adapter(model, tmp_path_factory.mktemp("adapter"))
        config = json.loads((out / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == str(name)
    layers = torch.nn.Sequential(torch.nn.Linear(4, 4))
    inject(layers, LoraConfig(r=1, target_modules=["0"]))
    out = save_adapter(layers, tmp_path_factory.mktemp("adapter"))
    assert json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"] is None
