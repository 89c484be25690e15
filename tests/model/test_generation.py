"""Generated text equals transformers', cache or not; sampling draws from the softmax."""

import pytest
import torch

import minilora
from minilora import Tokenizer
from minilora.model.generation import CausalLM

from .chat_folders import FAMILIES, byte_level, sentencepiece, write_folder
from .test_transformer import SIZES, hugging_face, tiny, with_dropout


@pytest.mark.parametrize("sizes", SIZES)
def test_generation_with_a_cache_equals_generation_without(sizes):
    model = tiny(**sizes)
    ids = torch.randint(0, 97, (3, 7))
    for sampling in ({}, {"temperature": 0.8, "top_k": 20, "top_p": 0.9, "seed": 5}):
        with_cache = model.generate(ids, 30, **sampling)
        assert torch.equal(with_cache, model.generate(ids, 30, use_cache=False, **sampling))


def test_greedy_generation_equals_transformers():
    ours = tiny(**SIZES[1])
    theirs = hugging_face(ours)
    theirs.load_state_dict(ours.state_dict())
    ids = torch.randint(0, 97, (1, 9))
    greedy = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    assert torch.equal(ours.generate(ids, 20), theirs.generate(ids, max_new_tokens=20, **greedy))


def test_sampling_repeats_with_a_seed_and_is_greedy_at_the_limits():
    model, ids = tiny(), torch.randint(0, 97, (1, 4))
    one, same, other = (model.generate(ids, 40, temperature=1.5, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    greedy = model.generate(ids, 10)
    assert torch.equal(model.generate(ids, 10, temperature=9.0, top_k=1), greedy)
    assert torch.equal(model.generate(ids, 10, temperature=1e-4), greedy)
    assert torch.equal(model.generate(ids, 10, temperature=9.0, top_p=1e-6), greedy)


def test_a_row_that_ended_is_filled_with_the_end_token_and_all_ended_stops_early():
    model, ids = tiny(), torch.randint(0, 97, (2, 4))
    first = model.generate(ids, 1)[:, -1]
    out = model.generate(ids, 20, eos_id=int(first[0]))
    assert (out[0, 4:] == first[0]).all()
    assert model.generate(ids[:1], 20, eos_id=int(first[0])).shape[1] == 5


def test_dropout_is_off_while_a_text_is_generated_and_the_mode_is_as_before():
    model, ids = with_dropout(tiny()), torch.arange(8).view(1, 8)
    while_training = model.generate(ids, 12)
    assert model.training
    assert torch.equal(while_training, model.eval().generate(ids, 12))
    assert not model.training


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"temperature": -1}, "temperature must be 0 .* at least 1e-6, got -1"),
        ({"top_k": 0}, "top_k"),
        ({"top_p": 0.0}, r"top_p must be above 0 and at most 1, or None, got 0\.0"),
        ({"top_p": 90}, "top_p must be above 0 and at most 1, or None, got 90"),
        ({"temperature": float("nan")}, "temperature"),
    ],
)
def test_sampling_settings_that_mean_nothing_are_refused(sampling, message):
    with pytest.raises(ValueError, match=message):
        tiny().generate(torch.zeros(1, 2, dtype=torch.long), **sampling)


def test_text_without_a_tokenizer_is_refused():
    with pytest.raises(ValueError, match="no tokenizer: load it with load_base"):
        tiny().generate_text("Status?")


def test_generation_after_right_padding_is_refused():
    ids, mask = torch.zeros(2, 3, dtype=torch.long), torch.tensor([[1, 1, 1], [1, 1, 0]])
    with pytest.raises(ValueError, match=r"attention_mask ends in \[1, 0\]: pad on the left"):
        tiny().generate(ids, 2, attention_mask=mask)


def asked(question="Status?", context="Log: Hull 90%, Fuel 12%."):
    return [{"role": "user", "content": f"{context}\n{question}"}]


def test_a_list_of_messages_is_answered_as_the_instruction_that_it_holds(base):
    answer = base.generate_text("Status?", "Log: Hull 90%, Fuel 12%.")
    assert answer == base.generate_text(asked())
    assert base.generate_texts([asked(), ("Status?", "Log: Hull 90%, Fuel 12%.")]) == [answer] * 2
    second = [*asked(), {"role": "assistant", "content": answer}, *asked("And Hull?", "")]
    assert base.generate_text(second) != base.generate_text(asked("And Hull?", ""))
    with pytest.raises(ValueError, match="expected at least one prompt"):
        base.generate_texts([])


@pytest.mark.parametrize(
    "sampling", [{}, {"temperature": 1.5, "seed": 3, "top_p": 0.9}, {"max_new_tokens": 3}]
)
def test_streamed_pieces_are_the_text(base, sampling):
    pieces = list(base.stream_text("Status?", "Log: Hull 90%, Fuel 12%.", **sampling))
    assert "".join(pieces) == base.generate_text("Status?", "Log: Hull 90%, Fuel 12%.", **sampling)
    assert len(pieces) > 1
    assert all(pieces)
    assert not base.training


def test_a_stream_that_is_left_gives_the_mode_back(base):
    base.train()
    stream = base.stream_text(asked())
    assert next(stream)
    assert not base.training
    stream.close()
    assert base.training


class Scripted(CausalLM):
    """Says what it is told to, token by token, whatever it is asked."""

    def __init__(self, tokenizer, ids):
        super().__init__()
        self.tokenizer, self.ids = tokenizer, ids
        self.weight, self.said = torch.nn.Parameter(torch.zeros(1)), 0

    def forward(self, ids, mask=None, cache=None):
        logits = torch.zeros(*ids.shape, self.tokenizer.raw.get_vocab_size())
        logits[:, -1, self.ids[self.said]] = 1
        self.said += 1
        return logits


@pytest.mark.parametrize("maker", [byte_level, sentencepiece])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("text", ["hi", "    return 1\n  é 🙂🙂", "a\n\n", "  "])
def test_every_letter_arrives_whole_and_leading_spaces_stay(tmp_path, family, maker, text):
    tokenizer = Tokenizer(write_folder(tmp_path, family, maker) / "tokenizer.json")
    talk = [{"role": "user", "content": "q"}]
    if not text.strip():
        ids = []
    else:  # as the whole conversation has them behind its prompt
        prompt = tokenizer.apply_chat_template(talk, add_generation_prompt=True)
        lead = {"llama2": " ", "mistral": " ", "qwen3": "<think>\n\n</think>\n\n"}.get(family, "")
        untrimmed = tokenizer.render(talk, add_generation_prompt=True) + lead
        ids = tokenizer.encode(untrimmed + text)[len(prompt) :]
    for end in tokenizer.eos_ids:
        model = Scripted(tokenizer, [*ids, end, *ids])
        pieces = list(model.stream_text(talk))
        assert "".join(pieces) == text.rstrip()
        assert not any("\ufffd" in piece for piece in pieces)
        if len(text) > 10:
            assert len(pieces) > 3


def test_a_text_beyond_the_models_positions_is_warned_of(base):
    long = "Log: " + "Hull 90%. " * 200
    with pytest.warns(UserWarning, match="the model knows 512 positions"):
        text = base.generate_text(long, max_new_tokens=2)
    with pytest.warns(UserWarning, match="the model knows 512 positions"):
        assert "".join(base.stream_text(long, max_new_tokens=2)) == text


def test_a_row_ends_at_any_of_several_tokens_and_is_filled_with_the_first():
    model, ids = tiny(), torch.randint(0, 97, (1, 4))
    free = model.generate(ids, 6)[0, 4:].tolist()
    other = next(token for token in range(97) if token not in free)
    out = model.generate(ids, 6, eos_id=[other, free[2]])
    assert out[0, 4:].tolist() == free[: free.index(free[2]) + 1]
    two = torch.cat([ids, torch.randint(0, 97, (1, 4))])
    out = model.generate(two, 20, eos_id=[other, free[0]])
    assert out[0, 4:].tolist() == [free[0], *[other] * (out.shape[1] - 5)]


@pytest.mark.parametrize("use_cache", [True, False])
def test_logits_that_are_nan_are_an_error_and_not_an_answer(use_cache):
    model = minilora.load_base()
    model.model.norm.weight.data.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="logits are NaN"):
        model.generate(torch.tensor([[1, 2]]), 3, use_cache=use_cache)
