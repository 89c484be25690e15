"""What a config.json of the Llama family means: the same as in transformers, or it is refused.

That a whole folder is refused by name is tested in model/test_pretrained.py.
"""

import importlib
import inspect
import json
import logging
import re
from dataclasses import fields

import pytest
import torch
import transformers
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from minilora import load_base
from minilora.model.config_json import FAMILY, NAMES, llama_config

from .. import profiles
from ..tolerance import assert_as_close, exactly

SIZES = {
    **{"vocab_size": 32, "hidden_size": 32, "intermediate_size": 24},
    **{"num_hidden_layers": 2, "num_attention_heads": 4},
}
LEFT_OUT = ("max_position_embeddings", "rms_norm_eps", "tie_word_embeddings", "attention_bias")


def theirs_of(config_json):
    """transformers' config of the same JSON."""
    return transformers.AutoConfig.for_model(**json.loads(json.dumps(config_json)))


@pytest.mark.parametrize("model_type", FAMILY)
def test_what_a_config_leaves_out_means_what_it_means_in_transformers(tmp_path, model_type):
    config_json = {"model_type": model_type, **SIZES, "num_attention_heads": 32, "hidden_size": 64}
    ours, theirs = llama_config(config_json, tmp_path), theirs_of(config_json)
    for name in ("num_key_value_heads", *LEFT_OUT):
        assert getattr(ours, name) == getattr(theirs, name, False), name
    assert ours.head_dim == getattr(theirs, "head_dim", 2)
    assert ours.rope_theta == theirs.rope_parameters["rope_theta"]
    assert ours.sliding_window == getattr(theirs, "sliding_window", None)


def test_null_is_refused_where_transformers_refuses_it(tmp_path):
    """``rms_norm_eps: null`` once opened, with another eps than the model was trained with."""
    for name in LEFT_OUT:
        with pytest.raises(ValueError, match=f"{name}=None is not"):
            llama_config({"model_type": "llama", **SIZES, name: None}, tmp_path)
    may_be_null = dict.fromkeys(("head_dim", "num_key_value_heads", "rope_scaling", "layer_types"))
    config = llama_config({"model_type": "llama", **SIZES, **may_be_null}, tmp_path)
    assert config == llama_config({"model_type": "llama", **SIZES}, tmp_path)


def test_a_llama_has_no_window_but_one_that_hides_nothing(tmp_path):
    config_json = {"model_type": "llama", **SIZES, "max_position_embeddings": 64}
    for window in (64, 100, None):
        config = llama_config({**config_json, "sliding_window": window}, tmp_path)
        assert config.sliding_window is None
    with pytest.raises(ValueError, match="sliding_window=63 is not supported"):
        llama_config({**config_json, "sliding_window": 63}, tmp_path)


ROPES = [
    {"rope_type": "default", "rope_theta": 300.0},
    {"type": "linear", "factor": 4},
    {"rope_type": "linear", "factor": 2.5, "rope_theta": 50},
    {"rope_type": "linear"},
    {"rope_type": "dynamic", "factor": 2.0},
    {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    | {"original_max_position_embeddings": 16},
    {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 0.5, "high_freq_factor": 2.0},
    {"rope_type": "llama3", "factor": 8.0},
    {"rope_type": "default", "partial_rotary_factor": 0.5},
    {"full_attention": {"rope_type": "linear", "factor": 2.0}},
    *({}, None, [], "linear", 0),
]
LAYERS = ["full_attention", "sliding_attention"]
VALUES = {
    "num_key_value_heads": [1, 2, 4, None, 3, "2"],
    "head_dim": [8, 16, 6, None, 8.0],
    "hidden_act": ["silu", "swish", "gelu", None],
    "max_position_embeddings": [8, 64, "64", None],
    "rms_norm_eps": [1e-5, 0.1, 1, None, "x"],
    "tie_word_embeddings": [True, False, None, 1],
    "attention_bias": [True, False, None],
    "mlp_bias": [True, False, None],
    "rope_theta": [100.0, 1e6, 20, None, "x"],
    "rope_scaling": ROPES,
    "rope_parameters": ROPES,
    "partial_rotary_factor": [1.0, 0.5, None],
    "original_max_position_embeddings": [8, 32, None],
    "sliding_window": [1, 3, 1000, 0, None, "3", True],
    "use_sliding_window": [True, False, None],
    "max_window_layers": [0, 1, 2, 28, None],
    "layer_types": [
        LAYERS,
        LAYERS[:1] * 2,
        LAYERS[1:] * 2,
        LAYERS[:1],
        ["mamba"] * 2,
        [],
        None,
        "x",
    ],
    "is_causal": [True, False, None, 0, 1],
    "attention_chunk_size": [4, None],
    "per_layer_config": [{"0": {"num_key_value_heads": 1}}, None],
    "text_config": [{"model_type": "llama"}, None],
    "attention_dropout": [0.5, None],
    "pretraining_tp": [2, None],
    "initializer_range": [0.5],
    "use_cache": [False],
    "pad_token_id": [0, 5, None],
    "bos_token_id": [1, None],
    "eos_token_id": [2, [2, 3], None],
    "output_attentions": [True],
    "logit_scale": [0.5],
    "final_logit_softcapping": [0.1],
    "residual_multiplier": [3.0],
    "dtype": ["bfloat16", "float32", None],
    "torch_dtype": ["float16"],
    "quantization_config": [None, {}],
}
KEYS = st.lists(st.sampled_from(sorted(VALUES)), max_size=5, unique=True)
IDS = torch.randint(0, 32, (2, 20), generator=torch.Generator().manual_seed(0))


@st.composite
def configs(draw):
    """A config with up to five keys at random values, some of them wrong."""
    config_json = {"model_type": draw(st.sampled_from(sorted(FAMILY))), **SIZES}
    config_json |= {"num_key_value_heads": 2} | ({"head_dim": 8} if draw(st.booleans()) else {})
    for name in draw(KEYS):
        config_json[name] = draw(st.sampled_from(VALUES[name]))
    return config_json


def random_weights(config_json):
    """The tensors of a model of the shapes a config asks for, where they are possible."""
    odd = ("rope_scaling", "rope_parameters", "per_layer_config", "text_config", "hidden_act")
    shapes = {n: v for n, v in config_json.items() if n not in odd and "dtype" not in n}
    torch.manual_seed(0)
    with torch.random.fork_rng():
        model = transformers.AutoModelForCausalLM.from_config(theirs_of(shapes))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    tensors = model.state_dict()
    if config_json.get("tie_word_embeddings"):
        del tensors["lm_head.weight"]
    return {name: tensor.clone() for name, tensor in tensors.items()}


def logits_of_transformers(folder):
    """What transformers makes of a folder, and the same in float64; None where it refuses too."""
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        return model.eval()(IDS).logits, exactly(model, IDS)
    except Exception:  # whatever it says, it has not opened the folder
        return None


@settings(
    max_examples=profiles.of(30, 150, 3000),
    suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow],
)
@given(configs())
@torch.no_grad()
def test_a_config_gives_the_logits_of_transformers_or_is_refused(tmp_path_factory, config_json):
    """Where transformers refuses it, ours may be more lenient; it raises ``ValueError`` alone."""
    folder = tmp_path_factory.mktemp("model")
    try:
        save_file(random_weights(config_json), folder / "model.safetensors", {"format": "pt"})
    except Exception:
        assume(False)  # not even the shapes can be built
    (folder / "config.json").write_text(json.dumps(config_json))
    try:
        ours = load_base(folder)(IDS)
    except ValueError:
        return
    logging.disable(logging.WARNING)
    try:
        theirs = logits_of_transformers(folder)
    finally:
        logging.disable(logging.NOTSET)
    if theirs is not None:
        assert_as_close(ours, *theirs)


PLAIN = {
    "llama": {"rope_scaling": ROPES[5], "rope_parameters": ROPES[2]},
    "mistral": {"sliding_window": 3, "rope_scaling": ROPES[1]},
    "qwen2": {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1},
    "qwen3": {
        "rope_theta": 100.0,
        "original_max_position_embeddings": 16,
        "rope_scaling": ROPES[6],
    },
}


@pytest.mark.parametrize("model_type", PLAIN)
@torch.no_grad()
def test_known_keys_are_read_and_not_refused(tmp_path, model_type):
    """``rope_scaling`` beside ``rope_parameters`` once opened wrongly: it counts whole."""
    config_json = {"model_type": model_type, **SIZES, "head_dim": 8, "num_key_value_heads": 2}
    config_json |= PLAIN[model_type]
    save_file(random_weights(config_json), tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps(config_json))
    assert_as_close(load_base(tmp_path)(IDS), *logits_of_transformers(tmp_path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"is_causal": False}, "is_causal=False is not supported, expected True"),
        ({"is_causal": None}, "is_causal=None is not supported, expected True"),
        ({"per_layer_config": {"0": {}}}, "per_layer_config={'0': {}} is not supported"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5 is not supported"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "scaled rotary positions .*yarn"),
        ({"rope_scaling": {"rope_type": "linear"}}, "rotary positions' factor=None is not a pos"),
        ({"rope_parameters": {"full_attention": {}}}, "scaled rotary positions .*full_attention"),
        (
            {"rope_scaling": {**ROPES[6], "high_freq_factor": 0.5}},
            "high_freq_factor=0.5 must be above low_freq_factor=0.5",
        ),
        ({"layer_types": LAYERS}, "layer_types=.* is not a list of full_attention$"),
        ({"max_position_embeddings": True}, "max_position_embeddings=True is not a size"),
        ({"model_type": []}, r"expected model_type .*, got \[\]"),
        ({"model_type": {"a": 1}}, "expected model_type .*, got {'a': 1}"),
        (
            {"model_type": "qwen2", "use_sliding_window": True, "max_window_layers": -1},
            "max_window_layers=-1 is not a whole number from 0 to a billion",
        ),
        (
            {"model_type": "qwen3", "use_sliding_window": True, "layer_types": LAYERS[:1]},
            "layer_types names 1 layers, but num_hidden_layers is 2",
        ),
    ],
)
def test_what_transformers_computes_otherwise_is_refused_by_name(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        llama_config(
            {"model_type": "llama", **SIZES, "num_key_value_heads": 2, **changes}, tmp_path
        )


def test_every_key_of_transformers_configs_is_known_or_changes_no_logits():
    """A new field in a later transformers fails here until somebody has looked at it."""
    harmless = {"initializer_range", "use_cache", "pad_token_id", "bos_token_id", "eos_token_id"}
    harmless |= {"pretraining_tp", "attention_dropout", "dtype", "architectures", "id2label"}
    harmless |= {"transformers_version", "output_hidden_states", "return_dict", "label2id"}
    harmless |= {"problem_type", "chunk_size_feed_forward", "is_encoder_decoder"}
    elsewhere = {"hidden_act", "rope_parameters", "layer_types", *SIZES}
    for model_type, name in NAMES.items():
        theirs = {field.name for field in fields(getattr(transformers, f"{name}Config"))}
        ours = {*FAMILY[model_type], *elsewhere}
        assert theirs <= ours | harmless, model_type
        # a Qwen2 without the field reads it all the same
        assert ours - theirs <= {"layer_types", "head_dim"}, model_type


def names_that_transformers_reads():
    """Every attribute of a config that the code of these families and what they share reads."""
    shared = ("configuration_utils", "modeling_rope_utils", "masking_utils", "cache_utils")
    modules = [f"transformers.{name}" for name in shared]
    modules += [f"transformers.models.{name}.modeling_{name}" for name in FAMILY]
    sources = [inspect.getsource(importlib.import_module(name)) for name in modules]
    reads = r"config\.([a-z_]+)\b(?!\()|getattr\(\s*(?:self\.)?config,\s*\"([a-z_]+)\""
    names = {first or second for text in sources for first, second in re.findall(reads, text)}
    for name in NAMES.values():
        names |= {field.name for field in fields(getattr(transformers, f"{name}Config"))}
    return sorted(names - {"model_type", *SIZES})


ANY = [True, False, 0, 2, 0.5, None, "x", [1], {"a": 1}]
ROPE_KEYS = {"attention_factor": 2.0, "mscale": 2.0, "beta_fast": 8, "partial_rotary_factor": 0.5}
ROPE_KEYS |= {"original_max_position_embeddings": 8, "type": "linear", "rope_theta": None}
ROPE_KEYS |= {"truncate": True, "long_factor": [2.0] * 4, "short_factor": [2.0] * 4}
SCALED = [{**rope, name: value} for rope in ROPES[:7] for name, value in ROPE_KEYS.items()]


@pytest.mark.long
@pytest.mark.parametrize("model_type", FAMILY)
@torch.no_grad()
def test_every_key_at_many_values_gives_the_logits_of_transformers_or_is_refused(
    tmp_path, model_type
):
    """One key at a time; in 2026, of 49 keys 1,174 configs opened in both, and none differed."""
    config_json = {"model_type": model_type, **SIZES, "num_key_value_heads": 2, "head_dim": 8}
    compared = 0
    changes = {name: ANY + VALUES.get(name, []) for name in names_that_transformers_reads()}
    changes |= {"rope_scaling": SCALED, "rope_parameters": SCALED}
    logging.disable(logging.WARNING)
    try:
        for name, value in [(name, each) for name, values in changes.items() for each in values]:
            changed = {**config_json, name: value}
            try:
                save_file(random_weights(changed), tmp_path / "model.safetensors", {"format": "pt"})
            except Exception:  # not even the shapes can be built
                continue
            (tmp_path / "config.json").write_text(json.dumps(changed))
            try:
                ours = load_base(tmp_path)(IDS)
            except ValueError:
                continue
            theirs = logits_of_transformers(tmp_path)
            if theirs is not None:
                compared += 1
                assert_as_close(ours, *theirs)
    finally:
        logging.disable(logging.NOTSET)
    assert compared > 150
