"""Our Llama is Hugging Face's, by name and by number; its cache changes nothing but the time."""

import pytest
import torch
import torch.nn.functional as F
import transformers
from hypothesis import given
from hypothesis import strategies as st

from minilora import LoraConfig, inject
from minilora.lora.layer import lora_layers
from minilora.model.cache import KVCache
from minilora.model.config_json import family_fields
from minilora.model.transformer import Llama, LlamaConfig, RMSNorm, attention_mask_4d

from ..tolerance import assert_as_close, exactly

TIED, UNTIED = {"tie_word_embeddings": True}, {"tie_word_embeddings": False}
SIZES = [
    {"num_attention_heads": 4, "num_key_value_heads": 4, **TIED},
    {"num_attention_heads": 4, "num_key_value_heads": 2, **UNTIED},
    {"num_attention_heads": 6, "num_key_value_heads": 2, "attention_bias": True, **TIED},
    {
        **{"num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 16},
        **{"mlp_bias": True, **UNTIED},
    },
]


def tiny(seed=0, **changes):
    torch.manual_seed(seed)
    sizes = {"vocab_size": 97, "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 3}
    model = Llama(LlamaConfig(**sizes | changes)).eval()
    for p in model.parameters():  # far from the initialisation, where much would look equal
        torch.nn.init.normal_(p, std=0.3)
    return model


def with_dropout(model):
    """A filled adapter in training mode, whose dropout is to be seen."""
    inject(model, LoraConfig(r=4, lora_dropout=0.5))
    for _, layer in lora_layers(model):
        torch.nn.init.normal_(layer.lora_B, std=0.5)
    return model.train()


def hugging_face(model):
    """transformers' Llama of the same config, which has weights of its own."""
    settings = family_fields(model.config)
    rope = {"rope_type": "default", "rope_theta": settings.pop("rope_theta")}
    config = transformers.LlamaConfig(**settings, rope_parameters=rope)
    return transformers.LlamaForCausalLM(config).eval()


@pytest.mark.parametrize(
    "sizes", SIZES, ids=["plain", "grouped untied", "grouped tied bias", "one kv head, wide heads"]
)
def test_the_state_dict_moves_to_transformers_and_back_with_equal_logits(sizes):
    ours = tiny(**sizes, rope_theta=500.0)
    theirs = hugging_face(ours)
    theirs.load_state_dict(ours.state_dict())
    ids = torch.randint(0, 97, (2, 40))
    assert_as_close(ours(ids), theirs(ids).logits, exactly(theirs, ids))
    back = Llama(ours.config)
    back.load_state_dict(theirs.state_dict())
    assert torch.equal(back(ids), ours(ids))


@given(st.integers(1, 12), st.integers(0, 11), st.integers(0, 1000))
def test_the_cache_gives_the_logits_of_the_whole_sequence(time, cut, seed):
    model, ids = tiny(seed, **SIZES[1]), torch.randint(0, 97, (2, time))
    cache, cut = KVCache(), min(cut, time - 1)
    parts = [model(part, cache=cache) for part in (ids[:, :cut], ids[:, cut:]) if part.shape[1]]
    assert_as_close(torch.cat(parts, dim=1), model(ids), exactly(model, ids))
    assert cache.lengths == [time, time]


def test_left_padding_changes_no_answer():
    model = tiny(**SIZES[1])
    short, pad = torch.randint(0, 97, (1, 5)), 4
    alone = model.generate(short, 12)[:, 5:]
    ids = torch.cat([torch.zeros(1, pad, dtype=torch.long), short], dim=1)
    mask = torch.tensor([[0] * pad + [1] * 5])
    for use_cache in (True, False):
        padded = model.generate(ids, 12, attention_mask=mask, use_cache=use_cache)
        assert torch.equal(padded[:, 5 + pad :], alone)


def test_segments_of_a_packed_row_do_not_see_each_other():
    model = tiny(**SIZES[1])
    one, two = torch.randint(0, 97, (1, 6)), torch.randint(0, 97, (1, 4))
    packed = torch.cat([one, two, torch.zeros(1, 3, dtype=torch.long)], dim=1)
    segments = torch.tensor([[1] * 6 + [2] * 4 + [0] * 3])
    logits = model(packed, attention_mask=segments)
    assert_as_close(logits[:, :6], model(one), exactly(model, one))
    assert_as_close(logits[:, 6:10], model(two), exactly(model, two))
    assert torch.isfinite(logits).all()


def test_no_mask_is_made_where_causal_says_it_all():
    device = torch.device("cpu")
    assert attention_mask_4d(None, 5, device) is None
    assert attention_mask_4d(None, 5, device, window=5) is None
    assert attention_mask_4d(None, 5, device, window=2).shape == (1, 1, 5, 5)


def test_embeddings_take_the_place_of_ids():
    model, ids = tiny(**SIZES[1]), torch.randint(0, 97, (2, 9))
    embedded = model.model.embed_tokens(ids)
    assert torch.equal(model(inputs_embeds=embedded), model(ids))
    for both in ({}, {"input_ids": ids, "inputs_embeds": embedded}):
        with pytest.raises(ValueError, match="token ids or embeddings, one of the two"):
            model(**both)


def test_padding_between_soft_tokens_and_text_shifts_nothing():
    """As in prompt tuning with padding on the left: positions count what is kept."""
    model = tiny(**SIZES[1])
    soft, ids = torch.randn(1, 3, 48), torch.randint(0, 97, (1, 5))
    text, pads = model.model.embed_tokens(ids), torch.randn(1, 4, 48)
    alone = torch.cat([soft, text], dim=1)
    apart = torch.cat([soft, pads, text], dim=1)
    mask = torch.tensor([[1] * 3 + [0] * 4 + [1] * 5])
    expected, truth = model(inputs_embeds=alone), exactly(model, inputs_embeds=alone)
    keep = mask[0].bool()
    for cache in (None, KVCache()):
        logits = model(attention_mask=mask, inputs_embeds=apart, cache=cache)
        assert_as_close(logits[:, keep], expected, truth)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_norm_takes_its_mean_in_float32(dtype):
    """300² does not fit float16: a mean taken there would be infinite, and the norm zero."""
    x = torch.full((1, 8), 300.0, dtype=dtype)
    assert torch.equal(RMSNorm(8, 1e-5).to(dtype)(x), torch.ones(1, 8, dtype=dtype))


def test_bf16_autocast_keeps_the_attention_core_in_float32(monkeypatch):
    model, ids = tiny(**SIZES[1]), torch.randint(0, 97, (2, 16))
    seen, attention = set(), F.scaled_dot_product_attention

    def watched(q, k, v, **more):
        seen.update((q.dtype, k.dtype, v.dtype))
        return attention(q, k, v, **more)

    monkeypatch.setattr(F, "scaled_dot_product_attention", watched)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(ids)
    assert out.dtype == torch.bfloat16
    assert seen == {torch.float32}
    assert torch.corrcoef(torch.stack([out.float().flatten(), model(ids).flatten()]))[0, 1] > 0.99


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"num_attention_heads": 4, "num_key_value_heads": 3},
            "num_attention_heads=4 must be a multiple of num_key_value_heads=3",
        ),
        ({"hidden_size": 12, "num_attention_heads": 4}, "head_dim=3 must be even"),
        (
            {"hidden_size": 160, "num_attention_heads": 6},
            "hidden_size=160 must be a multiple of num_attention_heads=6",
        ),
        ({"vocab_size": 0}, "must be at least 1, got {'vocab_size': 0}"),
        ({"num_attention_heads": -1}, "must be at least 1"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        LlamaConfig(**fields)


@pytest.mark.parametrize("lora", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients_to_the_bit(base, lora):
    """Frozen inputs are no obstacle (huggingface/peft #137); dropout is drawn again as it was.

    A block is computed twice.
    """
    base.train()
    if lora:
        inject(base, LoraConfig(target_modules="all-linear", lora_dropout=0.2))
        for _, layer in lora_layers(base):
            torch.nn.init.normal_(layer.lora_B, std=0.02)
    ids = torch.arange(60).view(2, 30)
    gradients, computed = [], []
    base.model.layers[0].register_forward_pre_hook(
        lambda *_: computed.append(base.model.gradient_checkpointing)
    )
    for switch in (False, True):
        base.model.gradient_checkpointing = switch
        base.zero_grad()
        torch.manual_seed(0)
        base(ids).square().mean().backward()
        gradients.append([p.grad for p in base.parameters() if p.requires_grad])
    assert computed == [False, True, True]
    assert len(gradients[0]) == (84 if lora else 56)
    assert all(map(torch.equal, *gradients))
