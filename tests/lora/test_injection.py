"""Finding modules by name as PEFT does, saying what was found, and refusing what cannot be meant."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import minilora
from minilora import LoraConfig, disable_adapter, explain_match, inject, merge, unload
from minilora.lora.layer import lora_layers
from minilora.lora.selection import fits

from ..strategies import models, targets
from ..tolerance import assert_as_close, exactly


def tiny(**config):
    return minilora.Llama(
        minilora.LlamaConfig(
            vocab_size=16,
            hidden_size=8,
            intermediate_size=12,
            num_hidden_layers=2,
            num_attention_heads=2,
            **config,
        )
    )


def names(model):
    return [name for name, _ in lora_layers(model)]


def fill(model):
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
    import transformers
    from peft import LoraConfig as Theirs
    from peft import get_peft_model

    config = transformers.LlamaConfig(
        vocab_size=16,
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    try:
        peft = get_peft_model(transformers.LlamaForCausalLM(config), Theirs(target_modules=pattern))
        wanted = [
            n.removeprefix("base_model.model.")
            for n, m in peft.named_modules()
            if hasattr(m, "lora_A")
        ]
    except ValueError:
        wanted = "error"
    model = tiny(tie_word_embeddings=False)
    try:
        inject(model, LoraConfig(target_modules=pattern))
        found = names(model)
    except ValueError:
        found = "error"
    assert found == wanted


@given(st.text("ab.", max_size=6), st.text("ab", min_size=1, max_size=3))
def test_a_name_fits_when_it_is_equal_or_ends_in_dot_name(path, entry):
    assert (fits(path, [entry]) is not None) == (path == entry or path.endswith("." + entry))


def test_the_report_names_shapes_counts_and_patterns_with_alike_modules_on_one_line(base):
    report = inject(base, LoraConfig(r=8, target_modules=["q_proj", r"v_proj"]))
    text = str(report)
    q = next(
        line for line in text.splitlines() if line.startswith("model.layers.*.self_attn.q_proj")
    )
    assert q.split() == [
        "model.layers.*.self_attn.q_proj",
        "6",
        "128",
        "→",
        "128",
        "8",
        "12,288",
        "'q_proj'",
    ]
    assert next(line for line in text.splitlines() if "k_proj" in line).split()[-2:] == ["0", "–"]
    assert text.splitlines()[-1].startswith("21,504 of 1,325,696 parameters train (1.62%)")
    assert len(report.chosen) == 12


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


def test_a_typo_is_an_error_that_lists_the_candidates_and_suggests_the_nearest():
    with pytest.raises(
        ValueError,
        match=r"no module matches 'q_porj'; did you mean 'q_proj'\? Linears of this model: q_proj \(×2\)",
    ):
        inject(tiny(), LoraConfig(target_modules=["q_porj", "v_proj"]))


def test_one_pattern_of_several_that_matches_nothing_is_an_error():
    with pytest.raises(ValueError, match="no module matches 'c_attn'"):
        inject(tiny(), LoraConfig(target_modules=["q_proj", "c_attn"]))


def test_a_regular_expression_must_match_the_whole_path():
    with pytest.raises(ValueError, match="no module matches '_proj'"):
        inject(tiny(), LoraConfig(target_modules="_proj"))


def test_a_model_without_linears_says_so():
    with pytest.raises(ValueError, match="this model has no Linear"):
        inject(nn.Sequential(nn.LayerNorm(3)), LoraConfig(target_modules=["q_proj"]))


@pytest.mark.parametrize("target", ["self_attn", "embed_tokens", "norm"])
def test_a_target_that_is_no_linear_is_refused(target):
    with pytest.raises(ValueError, match="only Linears can be adapted"):
        inject(tiny(), LoraConfig(target_modules=[target]))


def test_a_tied_head_is_refused_and_an_untied_one_is_not():
    with pytest.raises(
        ValueError,
        match=r"lm_head, whose weight is tied to model.embed_tokens.weight.*untie it first",
    ):
        inject(tiny(tie_word_embeddings=True), LoraConfig(target_modules=["lm_head"]))
    inject(model := tiny(tie_word_embeddings=False), LoraConfig(target_modules=["lm_head"]))
    assert names(model) == ["lm_head"]


def test_a_module_that_stands_in_two_places_is_refused():
    linear = nn.Linear(64, 3)
    for shared, stored in ((linear, "weight"), (minilora.NF4Linear.from_linear(linear), "packed")):
        model = nn.ModuleDict({"one": shared, "two": shared})
        with pytest.raises(ValueError, match=f"matches one, whose weight is tied to two.{stored}"):
            inject(model, LoraConfig(target_modules=["one"]))


def test_injecting_twice_is_refused():
    model = tiny()
    inject(model)
    with pytest.raises(
        ValueError, match=r"has adapters already \(at model.layers.0.self_attn.q_proj, 4 in all\)"
    ):
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
    for action in (
        unload,
        merge,
        minilora.unmerge,
        minilora.merge_and_unload,
        lambda m: disable_adapter(m).__enter__(),
    ):
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
    assert (
        capsys.readouterr().out
        == "trainable params: 21,504 || all params: 1,325,696 || trainable%: 1.6221\n"
    )


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


def test_a_bare_layer_is_no_model():
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
    assert all(
        torch.equal(w, layer.weight)
        for w, (_, layer) in zip(before, lora_layers(model), strict=True)
    )


def test_a_kept_weight_moves_and_copies_with_its_model():
    import copy

    model = merge(inject_into(tiny()))
    twin = copy.deepcopy(model).to(torch.float64)
    assert all(layer.kept[0].weight.dtype == torch.float64 for _, layer in lora_layers(twin))
    assert "kept" not in " ".join(model.state_dict())


def test_what_trained_before_trains_again_even_if_its_parameters_were_replaced():
    """``load_state_dict(assign=True)`` puts other Parameter objects in the places of the old ones."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    model[1].bias.requires_grad_(False)
    inject(model, LoraConfig(r=1, target_modules=["0"]))
    model.load_state_dict(
        {name: tensor.clone() for name, tensor in model.state_dict().items()}, assign=True
    )
    unload(model)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {
        "0.weight",
        "0.bias",
        "1.weight",
    }


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        ("q_proj", r'a bare string is a regular expression for the whole path; write \["q_proj"\]'),
        ("q_proj,v_proj", r'for the whole path; write \["q_proj", "v_proj"\]'),
        ("q_proj|v_proj", r'for the whole path; write r"\.\*\(q_proj\|v_proj\)\.\*"'),
    ],
)
def test_a_bare_string_is_told_to_be_a_pattern_for_the_whole_path(base, given, hint):
    with pytest.raises(ValueError, match=hint) as error:
        inject(base, LoraConfig(target_modules=given))
    assert "did you mean" not in str(error.value)
