"""Our Llama is Hugging Face's: same names, same numbers; and its cache changes nothing but the time."""

import pytest
import torch
import torch.nn.functional as F
import transformers
from hypothesis import given
from hypothesis import strategies as st

from minilora import LoraConfig, inject
from minilora.lora.injection import lora_layers
from minilora.model.transformer import (
    KVCache,
    Llama,
    LlamaConfig,
    RMSNorm,
    attention_mask_4d,
    sample,
)

from ..tolerance import assert_as_close, exactly

SIZES = [
    {"num_attention_heads": 4, "num_key_value_heads": 4, "tie_word_embeddings": True},
    {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": False},
    {
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
        "attention_bias": True,
    },
    {
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "tie_word_embeddings": False,
        "head_dim": 16,
        "mlp_bias": True,
    },
]


def tiny(seed=0, **sizes):
    torch.manual_seed(seed)
    config = {
        "vocab_size": 97,
        "hidden_size": 48,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        **sizes,
    }
    model = Llama(LlamaConfig(**config)).eval()
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
    c = model.config
    same = (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
    )
    same += (
        "head_dim",
        "max_position_embeddings",
        "rms_norm_eps",
        "tie_word_embeddings",
        "attention_bias",
        "mlp_bias",
    )
    config = transformers.LlamaConfig(
        **{n: getattr(c, n) for n in same},
        rope_parameters={"rope_type": "default", "rope_theta": c.rope_theta},
    )
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


@pytest.mark.parametrize("sizes", SIZES)
def test_generation_with_a_cache_equals_generation_without(sizes):
    model = tiny(**sizes)
    ids = torch.randint(0, 97, (3, 7))
    for sampling in ({}, {"temperature": 0.8, "top_k": 20, "seed": 5}):
        assert torch.equal(
            model.generate(ids, 30, **sampling),
            model.generate(ids, 30, use_cache=False, **sampling),
        )


@given(st.integers(1, 12), st.integers(0, 11), st.integers(0, 1000))
def test_the_cache_gives_the_logits_of_the_whole_sequence(time, cut, seed):
    model, ids = tiny(seed, **SIZES[1]), torch.randint(0, 97, (2, time))
    cache, cut = KVCache(), min(cut, time - 1)
    parts = [model(part, cache=cache) for part in (ids[:, :cut], ids[:, cut:]) if part.shape[1]]
    assert_as_close(torch.cat(parts, dim=1), model(ids), exactly(model, ids))
    assert cache.length == time


def test_greedy_generation_equals_transformers():
    ours = tiny(**SIZES[1])
    theirs = hugging_face(ours)
    theirs.load_state_dict(ours.state_dict())
    ids = torch.randint(0, 97, (1, 9))
    wanted = theirs.generate(
        ids, max_new_tokens=20, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    assert torch.equal(ours.generate(ids, 20), wanted)


def test_sampling_repeats_with_a_seed_and_is_greedy_at_the_limits():
    model, ids = tiny(), torch.randint(0, 97, (1, 4))
    one, same, other = (model.generate(ids, 40, temperature=1.5, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    greedy = model.generate(ids, 10)
    assert torch.equal(model.generate(ids, 10, temperature=9.0, top_k=1), greedy)
    assert torch.equal(model.generate(ids, 10, temperature=1e-4), greedy)


@pytest.mark.parametrize(
    ("temperature", "top_k"), [(1.0, None), (0.5, None), (3.0, None), (1.0, 2), (2.0, 3), (1.0, 9)]
)
def test_tokens_are_drawn_from_the_softmax_over_the_likeliest(temperature, top_k):
    """Frequencies of 20,000 draws lie within five standard deviations, 0.018 at most."""
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    wanted = (logits / temperature).softmax(0)
    wanted[top_k or 4 :] = 0
    drawn = sample(logits.repeat(20_000, 1), temperature, top_k, torch.Generator().manual_seed(0))
    found = drawn.bincount(minlength=4) / 20_000
    assert ((found - wanted / wanted.sum()).abs() < 0.018).all()
    assert not found[wanted == 0].any()


def test_left_padding_changes_no_answer():
    model = tiny(**SIZES[1])
    short, pad = torch.randint(0, 97, (1, 5)), 4
    alone = model.generate(short, 12)[:, 5:]
    ids = torch.cat([torch.zeros(1, pad, dtype=torch.long), short], dim=1)
    mask = torch.tensor([[0] * pad + [1] * 5])
    assert torch.equal(model.generate(ids, 12, attention_mask=mask)[:, 5 + pad :], alone)


def test_a_row_that_ended_is_filled_with_the_end_token_and_all_ended_stops_early():
    model, ids = tiny(), torch.randint(0, 97, (2, 4))
    first = model.generate(ids, 1)[:, -1]
    out = model.generate(ids, 20, eos_id=int(first[0]))
    assert (out[0, 4:] == first[0]).all()
    assert model.generate(ids[:1], 20, eos_id=int(first[0])).shape[1] == 5


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
    assert attention_mask_4d(None, 0, 5, device) is None
    assert attention_mask_4d(None, 7, 1, device) is None
    assert attention_mask_4d(None, 2, 3, device).shape == (1, 1, 3, 5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_norm_takes_its_mean_in_float32(dtype):
    """300² does not fit float16: a mean that was taken there would be infinite, and the norm zero."""
    x = torch.full((1, 8), 300.0, dtype=dtype)
    assert torch.equal(RMSNorm(8, 1e-5).to(dtype)(x), torch.ones(1, 8, dtype=dtype))


def test_dropout_is_off_while_a_text_is_generated_and_the_mode_is_as_before():
    model, ids = with_dropout(tiny()), torch.arange(8).view(1, 8)
    found = model.generate(ids, 12)
    assert model.training
    assert torch.equal(found, model.eval().generate(ids, 12))
    assert not model.training


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


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"top_k": 0}, "top_k"),
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
    with pytest.raises(ValueError, match="pad on the left"):
        tiny().generate(
            torch.zeros(1, 3, dtype=torch.long), 2, attention_mask=torch.tensor([[1, 1, 0]])
        )


@pytest.mark.parametrize("lora", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients_to_the_bit(base, lora):
    """Frozen inputs are no obstacle (huggingface/peft #137); dropout is drawn again as it was. A block is computed twice."""
    base.train()
    if lora:
        inject(base, LoraConfig(target_modules="all-linear", lora_dropout=0.2))
        for _, layer in lora_layers(base):
            torch.nn.init.normal_(layer.lora_B, std=0.02)
    ids = torch.arange(60).view(2, 30)
    found, computed = [], []
    base.model.layers[0].register_forward_pre_hook(
        lambda *_: computed.append(base.model.gradient_checkpointing)
    )
    for switch in (False, True):
        base.model.gradient_checkpointing = switch
        base.zero_grad()
        torch.manual_seed(0)
        base(ids).square().mean().backward()
        found.append([p.grad for p in base.parameters() if p.requires_grad])
    assert computed == [False, True, True]
    assert len(found[0]) == (84 if lora else 56)
    assert all(map(torch.equal, *found))
