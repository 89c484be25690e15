"""Adapters go in where PEFT puts them, do nothing until trained, and come out without a trace."""

import pytest
import torch
import transformers
from hypothesis import given
from peft import LoraConfig as Theirs
from peft import get_peft_model
from torch import nn

import minilora
from minilora import LoraConfig, disable_adapter, explain_match, inject, merge, unload
from minilora.lora.layer import lora_layers

from ..strategies import models, targets
from ..tolerance import assert_as_close, exactly

SIZES = {"vocab_size": 16, "hidden_size": 8, "intermediate_size": 12}
SIZES |= {"num_hidden_layers": 2, "num_attention_heads": 2}


def tiny(**config):
    """A Llama of two small blocks."""
    return minilora.Llama(minilora.LlamaConfig(**SIZES, **config))


def names(model):
    """The paths of the adapters."""
    return [name for name, _ in lora_layers(model)]


def fill(model):
    """Give every B some values, as training would."""
    for _, layer in lora_layers(model):
        nn.init.normal_(layer.lora_B)


PATTERNS = [
    ["q_proj"],
    ["q_proj", "v_proj"],
    ["proj"],
    ["0.self_attn.q_proj"],
    ["model.layers.1.mlp.up_proj"],
    r".*\.[qv]_proj",
    r"model\.layers\.0\..*_proj",
    r"q_proj",
    "all-linear",
    "All-Linear",
]


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_the_same_modules_match_as_in_peft(pattern):
    config = transformers.LlamaConfig(**SIZES, num_key_value_heads=2)
    try:
        peft = get_peft_model(transformers.LlamaForCausalLM(config), Theirs(target_modules=pattern))
        adapted = [name for name, module in peft.named_modules() if hasattr(module, "lora_A")]
        theirs = [name.removeprefix("base_model.model.") for name in adapted]
    except ValueError:
        theirs = "error"
    model = tiny(tie_word_embeddings=False)
    try:
        inject(model, LoraConfig(target_modules=pattern))
        ours = names(model)
    except ValueError:
        ours = "error"
    assert ours == theirs


@given(models(), targets)
def test_explain_match_says_what_inject_does_and_changes_nothing(model, entries):
    config = LoraConfig(r=2, target_modules=entries)
    before = [(name, type(module)) for name, module in model.named_modules()]
    explained = explain_match(model, config)
    assert [(name, type(module)) for name, module in model.named_modules()] == before
    assert all(p.requires_grad for p in model.parameters())
    assert explained == inject(model, config)
    assert [match.name for match in explained.chosen] == names(model)


def test_excluded_modules_stay_as_they_are():
    model = tiny()
    inject(model, LoraConfig(target_modules=["q_proj"], exclude_modules=["1.self_attn.q_proj"]))
    assert names(model) == ["model.layers.0.self_attn.q_proj"]


def test_injecting_twice_is_refused():
    model = tiny()
    inject(model)
    message = r"has adapters already \(at model.layers.0.self_attn.q_proj, 4 in all\)"
    with pytest.raises(ValueError, match=message):
        inject(model)


def test_disable_adapter_shows_the_base_merged_or_not():
    model, ids = tiny().eval(), torch.randint(0, 16, (2, 5))
    plain = model(ids)
    inject(model)
    fill(model)
    adapted, truth = model(ids), exactly(model, ids)
    for merged in (False, True):
        if merged:
            merge(model)
        with disable_adapter(model):
            assert torch.equal(model(ids), plain)
        assert_as_close(model(ids), adapted, truth)
        assert all(layer.merged == merged for _, layer in lora_layers(model))


def test_disable_adapter_comes_back_after_an_error_and_can_be_nested():
    model = tiny()
    inject(model)
    with pytest.raises(RuntimeError, match="mine"), disable_adapter(model), disable_adapter(model):
        raise RuntimeError("mine")
    assert all(layer.enabled for _, layer in lora_layers(model))


def test_a_base_that_is_gone_cannot_be_shown_or_unloaded():
    model = merge(inject_into(tiny()), keep_base=False)
    for action in (lambda: unload(model), lambda: disable_adapter(model).__enter__()):
        with pytest.raises(ValueError, match="W0 is gone"):
            action()


def test_an_unload_that_is_impossible_for_one_layer_changes_none():
    model = inject_into(tiny())
    fill(model)
    layers = [layer for _, layer in lora_layers(model)]
    layers[0].merge()
    layers[-1].merge(keep_base=False)
    before = layers[0].weight.clone()
    with pytest.raises(ValueError, match="W0 is gone"):
        unload(model)
    assert layers[0].merged
    assert torch.equal(layers[0].weight, before)


def test_only_the_embedding_is_asked_for_a_gradient():
    handles = minilora.enable_input_grads(tiny())
    assert len(handles) == 1


def inject_into(model):
    inject(model)
    return model


def test_a_model_without_adapters_says_so():
    actions = [unload, merge, minilora.unmerge, minilora.merge_and_unload]
    for action in (*actions, lambda model: disable_adapter(model).__enter__()):
        with pytest.raises(ValueError, match="has no adapters: inject"):
            action(tiny())


def test_new_adapters_follow_the_mode_of_the_model():
    model = tiny().eval()
    inject(model, LoraConfig(lora_dropout=0.5))
    assert not any(layer.training for _, layer in lora_layers(model))


def test_four_bits_do_not_change_how_many_parameters_there_are():
    model = tiny(num_key_value_heads=1)
    before = minilora.trainable_parameters(model)
    minilora.quantize_base(model)
    assert minilora.trainable_parameters(model)[1] == before[1]


def test_print_trainable_parameters_prints_pefts_line(base, capsys):
    inject(base)
    minilora.print_trainable_parameters(base)
    line = "trainable params: 21,504 || all params: 1,325,696 || trainable%: 1.6221\n"
    assert capsys.readouterr().out == line


def test_an_inject_that_runs_out_of_memory_leaves_everything_trainable(monkeypatch):
    model, calls = tiny(), []
    reset = minilora.LoRALayer.reset_parameters

    def second_fails(layer):
        calls.append(layer)
        if len(calls) == 2:
            raise MemoryError
        reset(layer)

    monkeypatch.setattr(minilora.LoRALayer, "reset_parameters", second_fails)
    with pytest.raises(MemoryError):
        inject(model)
    assert all(p.requires_grad for p in model.parameters())


def test_unload_finds_what_was_injected_into_a_part():
    model = tiny()
    inject(model.model)
    unload(model)
    assert all(p.requires_grad for p in model.parameters())


def test_a_bare_layer_is_not_a_model():
    layer = minilora.LoRALayer(nn.Linear(3, 3))
    for action in (unload, minilora.merge_and_unload):
        with pytest.raises(ValueError, match=r"its base is layer.base"):
            action(layer)


def test_merging_unmerging_and_training_while_switched_off_is_refused():
    model = merge(inject_into(tiny()))
    before = [layer.kept[0].weight.clone() for _, layer in lora_layers(model)]
    with disable_adapter(model):
        for action in (merge, minilora.unmerge):
            with pytest.raises(ValueError, match="switched off by disable_adapter"):
                action(model)
        with pytest.raises(ValueError, match="switched off by disable_adapter"):
            minilora.train(model, minilora.data.naval_log(2, 1))
    minilora.unmerge(model)
    after = [layer.weight for _, layer in lora_layers(model)]
    assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))


def test_what_trained_before_trains_again_even_if_its_parameters_were_replaced():
    """``load_state_dict(assign=True)`` puts new Parameter objects in the places of the old ones."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    model[1].bias.requires_grad_(False)
    inject(model, LoraConfig(r=1, target_modules=["0"]))
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.load_state_dict(state, assign=True)
    unload(model)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {"0.weight", "0.bias", "1.weight"}


@pytest.mark.parametrize("action", [unload, minilora.merge_and_unload])
def test_a_layer_that_was_put_in_two_places_is_taken_out_of_both(action):
    model = nn.ModuleDict({"one": nn.Linear(3, 3), "two": nn.ReLU()})
    inject(model, LoraConfig(r=1, target_modules=["one"]))
    model["two"] = model["one"]
    action(model)
    assert type(model["one"]) is nn.Linear
    assert model["two"] is model["one"]
