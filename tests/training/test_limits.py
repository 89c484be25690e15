"""What a model cannot take is refused or warned of before the first step: dtypes, positions."""

import warnings

import pytest
import torch
import transformers

import minilora
from minilora import Example, LoraConfig, PromptTuningConfig, inject, train
from minilora.training.data import naval_log

TASK = naval_log(8, 2)
QUICK = {"batch_size": 2, "progress": False, "validate_every": 0, "steps": 1}
TOKENIZER = minilora.load_base().tokenizer


def half_everything():
    return minilora.load_base(dtype=torch.float16).requires_grad_(True)


def half_adapter():
    model = minilora.load_base()
    inject(model)
    return model.half()


@pytest.mark.parametrize("error", [ValueError, FloatingPointError])
@pytest.mark.parametrize("make", [half_everything, half_adapter])
def test_float16_weights_are_refused_before_the_first_step(make, error):
    """AdamW would make each of them NaN (huggingface/peft #341 and many others)."""
    model = make()
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(error, match=r"parameters to train are float16 .* eps=1e-8 is 0 there"):
        train(model, TASK, **QUICK)
    assert all(map(torch.equal, before, model.parameters()))


def test_a_float16_base_under_a_float32_adapter_and_bfloat16_weights_train():
    model = minilora.load_base(dtype=torch.bfloat16).requires_grad_(True)
    train(model, TASK, **QUICK)
    assert all(p.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("saved", [False, True])
def test_a_step_that_makes_a_weight_infinite_says_that_the_good_ones_are_gone(
    saved, tmp_path, monkeypatch
):
    """Loss and gradient are finite; the next step's loss would be the first to show it."""
    step, taken = torch.optim.AdamW.step, []

    def overflow(self):
        step(self)
        taken.append(self)
        if len(taken) == 2:
            self.param_groups[0]["params"][-1].data[0] = float("inf")

    monkeypatch.setattr(torch.optim.AdamW, "step", overflow)
    model = minilora.load_base()
    inject(model)
    where = {"out": tmp_path, "checkpoint_every": 1} if saved else {}
    with pytest.raises(FloatingPointError, match="step 2: a trained weight is not") as error:
        train(model, TASK, **QUICK | {"steps": 3}, **where)
    advice = "checkpoint.safetensors, which is older" if saved else "load the base again"
    assert advice in str(error.value)
    assert "kept" not in str(error.value)


def gpt2(**sizes):
    config = transformers.GPT2Config(n_embd=16, n_layer=1, n_head=2, **sizes)
    model = transformers.GPT2LMHeadModel(config)
    model.tokenizer = TOKENIZER
    return model


LONG = [Example("Log: Hull 90%. " * 30, "Hull 90%.")]


def test_a_token_without_embedding_is_refused_with_both_sizes():
    end = TOKENIZER.eos_id
    with pytest.raises(ValueError, match=rf"token \d+, but the model has only vocab_size={end}"):
        train(gpt2(vocab_size=end, n_positions=512), LONG, **QUICK)


def test_a_text_longer_than_learnt_positions_is_refused_with_both_sizes():
    model = gpt2(vocab_size=len(TOKENIZER), n_positions=32)
    with pytest.raises(
        ValueError, match=r"has \d+ tokens to read, the model has 32 positions .*wpe"
    ):
        train(model, LONG, **QUICK)


def test_a_text_as_long_as_the_positions_trains():
    tokens = len(TOKENIZER.encode(TOKENIZER.prompt(LONG[0].instruction)))
    tokens += len(TOKENIZER.answer(LONG[0].output))
    model = gpt2(vocab_size=len(TOKENIZER), n_positions=tokens - 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(train(model, LONG, **QUICK).losses) == QUICK["steps"]


def test_a_text_that_a_soft_prompt_pushes_out_of_the_positions_is_refused():
    model = minilora.load_base()
    inject(model, PromptTuningConfig(480, "SAMPLE_VOCAB"))
    told = r"has \d+ tokens to read, and the adapter puts 480 rows .* lower max_length to 33,"
    with pytest.raises(ValueError, match=told):
        train(model, LONG, **QUICK)
    with pytest.raises(ValueError, match="no example fits max_length=33 tokens"):
        train(model, LONG, **QUICK, max_length=33)
    with pytest.warns(UserWarning, match="1 of 2"):
        train(model, [Example("A?", "B"), *LONG], **QUICK, max_length=33)


def test_a_rotary_model_is_warned_of_a_text_beyond_its_positions():
    model = minilora.load_base()
    inject(model, LoraConfig(r=2))
    with pytest.warns(UserWarning, match=r"has \d+ tokens to read, the model has 512 positions"):
        train(model, [Example("word " * 600, "hi")], max_length=4096, **QUICK)
