"""Text survives the way to tokens and back; a conversation is written as the model learnt it."""

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from minilora import load_base
from minilora.model.pretrained import SHIPPED
from minilora.model.tokenizer import END, END_OF_TEXT, START, Tokenizer, default_system

TOKENIZER = load_base().tokenizer


@given(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=60).filter(
        lambda text: "<|" not in text
    )
)
def test_any_text_comes_back(text):
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text


@pytest.mark.parametrize("number", range(101))
def test_a_reading_is_one_token(number):
    """One token is copied as a whole, which is learnt sooner."""
    assert len(TOKENIZER.encode(str(number))) == 1


def test_a_systems_name_is_one_token_and_the_same_at_the_start_of_an_answer_as_inside_it():
    from minilora.training.data import SYSTEMS

    for name in SYSTEMS:
        alone = TOKENIZER.encode(name)
        assert len(alone) == 1
        assert TOKENIZER.encode(f"Log: {name}")[-1:] == alone


def test_a_conversation_in_chatml():
    assert TOKENIZER.prompt("Status?", "Log: Hull 1%.") == (
        "<|im_start|>user\nLog: Hull 1%.\nStatus?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert (
        TOKENIZER.prompt("Status?")
        == "<|im_start|>user\nStatus?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert (
        TOKENIZER.answer("Hull 1%.")[-1]
        == TOKENIZER.eos_id
        == TOKENIZER.raw.token_to_id("<|im_end|>")
    )
    assert len(TOKENIZER) == 1536


def test_a_system_message_opens_the_conversation():
    with_system = Tokenizer(TOKENIZER.file, system="Be brief.")
    assert with_system.prompt("Hi").startswith(
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi"
    )


def test_a_tokenizer_without_the_marks_gets_a_plain_form(tmp_path):
    plain = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0, "</s>": 1}, []))
    plain.save(str(tmp_path / "tokenizer.json"))
    tok = Tokenizer(tmp_path / "tokenizer.json")
    assert tok.prompt("Status?", "Log.") == "User: Log.\nStatus?\nAssistant:"
    assert tok.eos_id == 1
    assert tok.answer("a")[-1] == 1
    assert Tokenizer(tmp_path / "tokenizer.json", eos_id=0).eos_id == 0


@pytest.mark.parametrize(
    ("vocabulary", "eos"),
    [({"a": 0, START: 1, "</s>": 2}, 2), ({"a": 0, "</s>": 1, END_OF_TEXT: 2}, 2)],
)
def test_half_of_chatml_is_none_and_ends_are_looked_for_in_order(tmp_path, vocabulary, eos):
    tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, [])).save(
        str(tmp_path / "tokenizer.json")
    )
    tokenizer = Tokenizer(tmp_path / "tokenizer.json")
    assert not tokenizer.is_chatml
    assert tokenizer.eos_id == eos


def test_an_answer_in_chatml_ends_with_its_mark_whatever_the_config_says():
    end, end_of_text = (TOKENIZER.raw.token_to_id(mark) for mark in (END, END_OF_TEXT))
    assert end_of_text not in (None, end)
    assert Tokenizer(TOKENIZER.file, eos_id=end_of_text).eos_id == end


@pytest.mark.parametrize("content", ["", "{}", "nonsense"])
def test_a_broken_file_is_refused(tmp_path, content):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ValueError, match=r"tokenizer.json is not a readable tokenizer.json"):
        Tokenizer(tmp_path / "tokenizer.json")


def test_truncation_and_padding_saved_with_a_tokenizer_are_switched_off(tmp_path):
    raw = tokenizers.Tokenizer.from_file(str(TOKENIZER.file))
    raw.enable_truncation(4)
    raw.enable_padding(length=64)
    raw.save(str(tmp_path / "tokenizer.json"))
    text = "The people of the United States are at peace."
    assert Tokenizer(tmp_path / "tokenizer.json").encode(text) == TOKENIZER.encode(text)
    assert Tokenizer(tmp_path / "tokenizer.json").encode("a") == TOKENIZER.encode("a")


def test_a_beginning_that_a_tokenizer_would_add_is_not_added(tmp_path):
    """Llama's tokenizer.json puts <s> before every text; the chat form says where marks stand."""
    raw = tokenizers.Tokenizer.from_file(str(TOKENIZER.file))
    mark = raw.token_to_id(END_OF_TEXT)
    raw.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"{END_OF_TEXT} $A", special_tokens=[(END_OF_TEXT, mark)]
    )
    raw.save(str(tmp_path / "tokenizer.json"))
    plain = TOKENIZER.encode("Hull 90%.")
    assert raw.encode("Hull 90%.").ids == [mark, *plain]
    assert Tokenizer(tmp_path / "tokenizer.json").encode("Hull 90%.") == plain


def smol(system):
    """SmolLM2's chat template, with another message."""
    return (
        "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
        "{{ '<|im_start|>system\n" + system + "<|im_end|>\n' }}{% endif %}"
        "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )


@pytest.mark.parametrize(
    "system",
    ["", "You are a helpful AI assistant named SmolLM, trained by Hugging Face", "It's\n2 \\ 1."],
)
def test_prompts_are_those_of_transformers_chat_template(tmp_path, system):
    """Both ways: the system message is read out of a model's template, and written into ours."""
    import transformers

    from minilora import load_base, save_model

    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(SHIPPED / "tokenizer.json"))
    model = load_base()
    model.tokenizer.system = system
    save_model(model, tmp_path)
    ours = load_base(tmp_path).tokenizer
    assert ours.system == system
    messages = [{"role": "user", "content": "Log: Hull 90%.\nStatus?"}]
    as_text = {"tokenize": False, "add_generation_prompt": True}
    prompt = ours.prompt("Status?", "Log: Hull 90%.")
    saved = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert saved.apply_chat_template(messages, **as_text) == prompt
    if "SmolLM" in system:
        template = smol(system)
        assert default_system(template) == system
        rendered = theirs.apply_chat_template(messages, chat_template=template, **as_text)
        assert rendered == prompt


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{{ messages }}",
        "{{ '<|im_start|>system\n' + messages[0]['content'] + '<|im_end|>\n' }}",
    ],
)
def test_a_template_without_a_message_of_its_own_gives_none(text):
    assert default_system(text) == ""


@pytest.mark.parametrize("system", ["", "It's\n2 \\ 1."])
def test_a_tokenizer_without_chatml_gets_a_template_of_the_plain_form(tmp_path, system):
    """A model that was trained on User: and Assistant: must be asked in the same form elsewhere."""
    import transformers

    from minilora import Llama, LlamaConfig, save_model

    words = tokenizers.models.WordLevel({"<unk>": 0, "</s>": 1, "User:": 2}, unk_token="<unk>")
    tokenizers.Tokenizer(words).save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer(tmp_path / "tokenizer.json", system)
    sizes = LlamaConfig(
        vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2
    )
    save_model(Llama(sizes, tokenizer), tmp_path / "model")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    messages = [{"role": "user", "content": "Log: Hull 90%.\nStatus?"}]
    prompt = tokenizer.prompt("Status?", "Log: Hull 90%.")
    asked = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert asked == prompt
    messages.append({"role": "assistant", "content": "Hull 90%."})
    answered = theirs.apply_chat_template(messages, tokenize=False)
    assert answered == f"{prompt} Hull 90%.</s>\n"
