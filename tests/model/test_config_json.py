"""What a config.json of the Llama family means; that a whole folder is refused by name is tested in model/test_pretrained.py."""

import pytest
import transformers

from minilora.model.config_json import llama_config

SIZES = {
    "vocab_size": 16,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}


@pytest.mark.parametrize("family", ["Llama", "Mistral"])
def test_what_a_config_leaves_out_means_what_it_means_in_transformers(tmp_path, family):
    given = {**SIZES, "hidden_size": 64, "num_attention_heads": 16, "sliding_window": None}
    found = llama_config({"model_type": family.lower(), **given}, tmp_path)
    theirs = getattr(transformers, f"{family}Config")(**given)
    for name in (
        "num_key_value_heads",
        "max_position_embeddings",
        "rms_norm_eps",
        "tie_word_embeddings",
    ):
        assert getattr(found, name) == getattr(theirs, name), name
    nulls = dict.fromkeys(
        ("max_position_embeddings", "rms_norm_eps", "tie_word_embeddings", "attention_bias")
    )
    assert llama_config({"model_type": family.lower(), **given, **nulls}, tmp_path) == found
    assert found.head_dim == 4
    assert found.attention_bias is found.mlp_bias is False
    assert found.rope_theta == theirs.rope_parameters["rope_theta"]
    if family == "Mistral":
        with pytest.raises(
            ValueError,
            match=f"sliding_window={transformers.MistralConfig().sliding_window} is not supported",
        ):
            llama_config({"model_type": "mistral", **SIZES}, tmp_path)


def test_a_window_as_long_as_the_longest_text_is_none(tmp_path):
    known = {
        "model_type": "mistral",
        **SIZES,
        "num_key_value_heads": 1,
        "max_position_embeddings": 64,
    }
    for window in (64, 100, None):
        assert (
            llama_config({**known, "sliding_window": window}, tmp_path).max_position_embeddings
            == 64
        )
    with pytest.raises(ValueError, match="sliding_window=63 is not supported"):
        llama_config({**known, "sliding_window": 63}, tmp_path)
