"""A config that cannot work is refused when it is made, with what was given and what was needed.

The checks themselves have tests of their own: test_hyperparameters.py and test_patterns.py.
"""

import dataclasses

import pytest
from torch import nn

from minilora import LoraConfig, LoRALayer
from minilora.lora.config import read_targets


@pytest.mark.parametrize(
    ("field", "value", "error", "message"),
    [
        ("r", 0, ValueError, "r must be at least 1, got 0"),
        ("lora_alpha", 0, ValueError, "lora_alpha must be positive and finite, got 0"),
        ("lora_dropout", 1.0, ValueError, r"lora_dropout must be in \[0, 1\), got 1.0"),
        ("use_rslora", 1, TypeError, "use_rslora must be True or False, got 1"),
        (
            "target_modules",
            [],
            ValueError,
            r'target_modules is empty: .* as \["q_proj", "v_proj"\]',
        ),
        ("target_modules", "", ValueError, "target_modules is empty"),
        ("target_modules", ["q_proj", 3], TypeError, "target_modules must be names, got 3"),
        ("target_modules", "(q", ValueError, "target_modules='.q' is not a regular expression"),
        ("exclude_modules", "[", ValueError, r"exclude_modules='\[' is not a regular expression"),
        ("rank_pattern", {"q": 0}, ValueError, r"rank_pattern\['q'\]: r must be at least 1, got 0"),
        ("alpha_pattern", {"q": "1"}, TypeError, r"alpha_pattern\['q'\]: lora_alpha must be a n"),
        ("layers_to_transform", [0, -1], TypeError, "layers_to_transform must be .*, got -1"),
        ("layers_pattern", "h", ValueError, r"layers_pattern=\('h',\) needs layers_to_transform: "),
        ("layers_pattern", ["h", "("], ValueError, r"layers_pattern='\(' is not a regular expr"),
        ("layers_pattern", 5, TypeError, "layers_pattern must be a list of names .*, got 5"),
    ],
)
def test_bad_values_are_refused(field, value, error, message):
    with pytest.raises(error, match=message):
        LoraConfig(**{field: value})


@pytest.mark.parametrize(
    ("field", "value", "kept"),
    [
        ("target_modules", "all-linear", "all-linear"),
        ("target_modules", {"q_proj"}, ("q_proj",)),
        ("exclude_modules", None, ()),
        ("exclude_modules", ["q"], ("q",)),
        ("rank_pattern", None, {}),
        ("alpha_pattern", {"k_proj": 0.5}, {"k_proj": 0.5}),
        ("layers_to_transform", 0, 0),
        ("layers_to_transform", [0, 2], (0, 2)),
        ("layers_to_transform", [], None),
    ],
)
def test_lists_become_tuples_of_the_configs_own(field, value, kept):
    assert getattr(LoraConfig(**{field: value}), field) == kept


def test_layers_are_counted_after_one_name_or_several():
    for names, kept in (("h", ("h",)), (["h", "blocks"], ("h", "blocks"))):
        assert LoraConfig(layers_to_transform=1, layers_pattern=names).layers_pattern == kept
    assert not LoraConfig(layers_pattern="").layers_pattern, "an empty one means none, as in PEFT"


def test_a_list_of_targets_cannot_change_afterwards():
    names = ["q_proj"]
    config = LoraConfig(target_modules=names)
    names.append("v_proj")
    assert config.target_modules == ("q_proj",)


def test_layers_narrow_a_list_only():
    with pytest.raises(ValueError, match="narrows a list of target_modules, got 'all-linear'"):
        LoraConfig(target_modules="all-linear", layers_to_transform=1)


def test_a_config_stays_as_it_was_checked():
    for field in dataclasses.fields(LoraConfig):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(LoraConfig(), field.name, -1)


def test_a_module_gets_the_rank_and_alpha_of_the_first_key_that_fits():
    config = LoraConfig(8, 16, rank_pattern={"0.q": 2, "q": 4}, alpha_pattern={"1.q": 3})
    assert config.rank_and_alpha("layers.0.q") == (2, 16)
    assert config.rank_and_alpha("layers.1.q") == (4, 3)
    assert config.rank_and_alpha("layers.1.k") == (8, 16)


def test_a_config_wraps_a_module_with_all_that_it_says():
    config = LoraConfig(8, 16, ["q"], 0.1, True, rank_pattern={"q": 2}, alpha_pattern={"q": 3})
    layer = config.wrap(base := nn.Linear(4, 4), "layers.0.q")
    assert type(layer) is LoRALayer
    assert layer.base is base
    assert (layer.r, layer.lora_alpha) == (2, 3)
    assert (layer.lora_dropout, layer.use_rslora) == (0.1, True)


def test_a_bare_layer_has_the_defaults_of_a_config():
    config, layer = LoraConfig(), LoRALayer(nn.Linear(3, 3))
    for name in ("r", "lora_alpha", "lora_dropout", "use_rslora"):
        assert getattr(layer, name) == getattr(config, name), name


def test_targets_on_a_command_line_are_words_or_stand_between_commas():
    assert read_targets(["q_proj", "v_proj"]) == read_targets(["q_proj,v_proj"])
    assert read_targets(["q_proj,,", "v_proj"]) == ("q_proj", "v_proj")
    assert read_targets(["all-linear"]) == "all-linear"
    assert read_targets(["all-linear", "q"]) == ("all-linear", "q")
