"""Llama 3's rope, linear rope, Mistral, Qwen 2 and 3: transformers' open here, ours there."""

import json

import peft
import pytest
import torch
import transformers

import minilora
from minilora import load_base, save_model
from minilora.model.cache import KVCache
from minilora.model.transformer import attention_mask_4d

from ..tolerance import assert_as_close, exactly

SIZES = {"vocab_size": 97, "hidden_size": 64, "intermediate_size": 80, "num_hidden_layers": 3}
SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
SIZES |= {"eos_token_id": 96, "bos_token_id": None, "tie_word_embeddings": False}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 16, "rope_theta": 500.0}
KIN = {
    "llama 3.1": ("Llama", {"rope_parameters": LLAMA3}),
    "llama 3.2, tied": ("Llama", {"rope_parameters": LLAMA3, "tie_word_embeddings": True}),
    "linear rope": (
        "Llama",
        {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}},
    ),
    "mistral": ("Mistral", {"sliding_window": 5, "head_dim": 24}),
    "mistral without a window": ("Mistral", {"sliding_window": None}),
    "qwen 2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen 2 with windows": (
        "Qwen2",
        {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    ),
    "qwen 3": ("Qwen3", {"head_dim": 32, "rope_parameters": {**LLAMA3, "rope_theta": 1e6}}),
    "qwen 3 with biases and windows": (
        "Qwen3",
        {
            **{"head_dim": 8, "attention_bias": True, "use_sliding_window": True},
            **{"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]},
            **{"num_hidden_layers": 2},
        },
    ),
}
IDS = torch.randint(0, 97, (2, 24), generator=torch.Generator().manual_seed(0))


def theirs_of(name):
    """A tiny model of transformers' with weights far from the initialisation."""
    family, changes = KIN[name]
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**SIZES | changes)
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture(params=KIN)
def theirs(request):
    return theirs_of(request.param)


@torch.no_grad()
def test_a_model_of_transformers_opens_here_and_ours_there_with_equal_logits(theirs, tmp_path):
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load_base(tmp_path / "theirs")
    truth, expected = exactly(theirs, IDS), theirs(IDS).logits
    assert_as_close(ours(IDS), expected, truth)
    assert (ours(IDS) - expected).abs().max() <= 1e-5 * expected.abs().max()
    save_model(ours, tmp_path / "ours")
    again = load_base(tmp_path / "ours")
    assert again.config == ours.config
    assert torch.equal(again(IDS), ours(IDS))
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype=torch.float32)
    assert type(back) is type(theirs)
    assert torch.equal(back(IDS).logits, expected)


@torch.no_grad()
def test_the_cache_and_generation_agree_with_transformers(theirs, tmp_path):
    theirs.save_pretrained(tmp_path)
    ours, cache = load_base(tmp_path), KVCache()
    parts = [ours(part, cache=cache) for part in (IDS[:, :9], IDS[:, 9:10], IDS[:, 10:])]
    assert_as_close(torch.cat(parts, dim=1), theirs(IDS).logits, exactly(theirs, IDS))
    settings = {"max_new_tokens": 20, "do_sample": False, "pad_token_id": 0}
    mask = torch.ones_like(IDS)
    mask[0, :7] = 0  # padding on the left
    expected = theirs.generate(IDS, attention_mask=mask, **settings)
    for use_cache in (True, False):
        continued = ours.generate(IDS, 20, attention_mask=mask, eos_id=96, use_cache=use_cache)
        ended = (continued == 96).cumsum(1) > (continued == 96).long()  # what fills up an ended row
        assert torch.equal(continued.where(~ended, 0), expected.where(~ended, 0))


def test_an_adapter_travels_to_peft(theirs, tmp_path):
    theirs.save_pretrained(tmp_path / "base")
    ours = load_base(tmp_path / "base")
    minilora.inject(ours, minilora.LoraConfig(r=3, target_modules="all-linear"))
    for name, parameter in ours.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    minilora.save_adapter(ours, tmp_path / "adapter")
    adapted = peft.PeftModel.from_pretrained(theirs, tmp_path / "adapter").eval()
    with torch.no_grad():
        assert_as_close(ours(IDS), adapted(IDS).logits, exactly(adapted, IDS))
        merged = minilora.merge_and_unload(ours)
        assert_as_close(merged(IDS), adapted(IDS).logits, exactly(adapted, IDS))


def test_four_bits_come_back(theirs, tmp_path):
    theirs.save_pretrained(tmp_path / "base")
    ours = load_base(tmp_path / "base", quantize="nf4")
    biases = {name for name, _ in theirs.named_parameters() if name.endswith(".bias")}
    assert biases == {name for name, _ in ours.named_parameters() if name.endswith(".bias")}
    assert torch.equal(ours(IDS), minilora.quantize_base(load_base(tmp_path / "base"))(IDS))
    save_model(ours, tmp_path / "packed")
    assert torch.equal(load_base(tmp_path / "packed")(IDS), ours(IDS))


def test_checkpointing_gives_the_same_gradients_with_windows(tmp_path):
    theirs_of("qwen 2 with windows").save_pretrained(tmp_path)
    model, gradients = load_base(tmp_path).train(), []
    for switch in (False, True):
        model.model.gradient_checkpointing = switch
        model.zero_grad()
        model(IDS).square().mean().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert all(map(torch.equal, *gradients))


def test_a_window_is_the_last_tokens_of_the_same_segment():
    segments = torch.tensor([[0, 1, 1, 1, 2, 2]])
    mask = attention_mask_4d(segments, 6, torch.device("cpu"), window=2)[0, 0]
    seen = [[key for key in range(6) if mask[query, key]] for query in range(6)]
    assert seen == [[0], [1], [1, 2], [2, 3], [4], [4, 5]]


def test_a_window_of_a_cache_is_a_rows_last_tokens():
    cache = KVCache()
    for time, expected in ((3, [[0], [0, 1], [1, 2]]), (1, [[2, 3]]), (2, [[3, 4], [4, 5]])):
        cache.open(1, time)
        cache.write(0, torch.ones(1, 1, time, 2), torch.ones(1, 1, time, 2))
        mask = cache.mask(2, torch.float32)[0, 0]
        assert [(row == 0).nonzero()[:, 0].tolist() for row in mask] == expected
        cache.close()
        assert cache.mask(6, torch.float32) is None or time > 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "gpt2"}, "model_type must be one of .*'qwen3'.*, got 'gpt2'"),
        ({"sliding_window": 4}, "llama has no sliding_window, got 4"),
        ({"model_type": "qwen2", "mlp_bias": True}, "qwen2 has no mlp_bias, got True"),
        (
            {"model_type": "qwen3", "layer_types": ("full_attention",)},
            "layer_types names 1 layers, but num_hidden_layers is 5",
        ),
        ({"model_type": "mistral", "sliding_window": 0}, "must be at least 1"),
    ],
)
def test_a_config_of_another_family_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        minilora.LlamaConfig(**fields)


def test_what_is_saved_can_be_read_by_transformers_4_as_well(tmp_path):
    """It knows ``rope_theta`` and ``rope_scaling``, not ``rope_parameters``."""
    theirs_of("llama 3.1").save_pretrained(tmp_path / "theirs")
    save_model(load_base(tmp_path / "theirs"), tmp_path / "ours")
    about = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert about["rope_theta"] == LLAMA3["rope_theta"]
    assert about["rope_scaling"] == {n: v for n, v in LLAMA3.items() if n != "rope_theta"}
    assert "rope_parameters" not in about
