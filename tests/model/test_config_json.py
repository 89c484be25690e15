"""What a config.json of the Llama family means.

That a whole folder is refused by name is tested in model/test_pretrained.py.
"""

import pytest
import transformers

from minilora.model.config_json import llama_config

SIZES = {
    **{"vocab_size": 16, "hidden_size": 8, "intermediate_size": 12},
    **{"num_hidden_layers": 1, "num_attention_heads": 2},
}
LEFT_OUT = ("max_position_embeddings", "rms_norm_eps", "tie_word_embeddings", "attention_bias")


@pytest.mark.parametrize("family", ["Llama", "Mistral"])
def test_what_a_config_leaves_out_means_what_it_means_in_transformers(tmp_path, family):
    given = {**SIZES, "hidden_size": 64, "num_attention_heads": 16, "sliding_window": None}
    ours = llama_config({"model_type": family.lower(), **given}, tmp_path)
    theirs = getattr(transformers, f"{family}Config")(**given)
    for name in ("num_key_value_heads", *LEFT_OUT):
        assert getattr(ours, name) == getattr(theirs, name, False), name
    nulls = dict.fromkeys(LEFT_OUT)
    assert llama_config({"model_type": family.lower(), **given, **nulls}, tmp_path) == ours
    assert ours.head_dim == 4
    assert ours.attention_bias is ours.mlp_bias is False
    assert ours.rope_theta == theirs.rope_parameters["rope_theta"]


def test_mistrals_default_window_is_refused(tmp_path):
    window = transformers.MistralConfig().sliding_window
    with pytest.raises(ValueError, match=f"sliding_window={window} is not supported"):
        llama_config({"model_type": "mistral", **SIZES}, tmp_path)


def test_a_window_as_long_as_the_longest_text_is_none(tmp_path):
    lengths = {"num_key_value_heads": 1, "max_position_embeddings": 64}
    mistral = {"model_type": "mistral", **SIZES, **lengths}
    for window in (64, 100, None):
        config = llama_config({**mistral, "sliding_window": window}, tmp_path)
        assert config.max_position_embeddings == 64
    with pytest.raises(ValueError, match="sliding_window=63 is not supported"):
        llama_config({**mistral, "sliding_window": 63}, tmp_path)
