"""Every method's folder opens in PEFT, PEFT's opens here, and what does not fit is named."""

import copy
import json
import shutil

import peft
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import minilora
from minilora import (
    AdaLoraConfig,
    BitFitConfig,
    BottleneckConfig,
    IA3Config,
    LNTuningConfig,
    LoraConfig,
    PrefixTuningConfig,
    PromptTuningConfig,
    VeraConfig,
    inject,
    load_adapter,
    save_adapter,
)
from minilora.lora.adapter_layer import adapter_layers
from minilora.lora.attached import adapters_of

from .. import profiles
from ..methods.peer import disturb, give, theirs_of
from ..strategies import damaged
from ..tolerance import assert_as_close, exactly
from .test_save_and_load import IDS, llama, pair

QV = ["q_proj", "v_proj"]
CASES = {
    "vera": (VeraConfig(r=5, target_modules=QV), peft.VeraConfig(r=5, target_modules=QV)),
    "vera, all shapes": (
        VeraConfig(r=5, target_modules=[*QV, "down_proj"], projection_prng_key=7),
        peft.VeraConfig(r=5, target_modules=[*QV, "down_proj"], projection_prng_key=7),
    ),
    "vera, by its seed": (
        VeraConfig(r=5, target_modules=QV, save_projection=False),
        peft.VeraConfig(r=5, target_modules=QV, save_projection=False),
    ),
    "ia3": (
        IA3Config(),
        peft.IA3Config(
            target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]
        ),
    ),
    "adalora": (
        AdaLoraConfig(init_r=3, target_r=2, lora_alpha=6, total_step=9, target_modules=QV),
        peft.AdaLoraConfig(init_r=3, target_r=2, lora_alpha=6, total_step=9, target_modules=QV),
    ),
    "norms": (
        LNTuningConfig(),
        peft.LNTuningConfig(target_modules=["input_layernorm", "post_attention_layernorm", "norm"]),
    ),
}
OURS = {"bitfit": BitFitConfig()}  # what PEFT does not have
case = pytest.mark.parametrize("name", [*CASES, *OURS])
pefts = pytest.mark.parametrize("name", CASES)


def trained(name):
    """A small Llama with the method, as after training, and its base twice, ours and PEFT's."""
    ours, theirs = pair()
    config = OURS[name] if name in OURS else CASES[name][0]
    base = copy.deepcopy(ours)
    inject(ours, config)
    disturb(ours, 0.2)
    return ours, base, theirs


def prune(model):
    """Triplets of AdaLoRA pruned, all of one module's among them."""
    layers = [layer for _, layer in adapter_layers(model)]
    layers[0].alive[:] = False
    layers[1].alive[1] = False
    for layer in layers:
        layer.lora_E.data[~layer.alive] = 0


@pytest.mark.parametrize("name", [*CASES, "adalora, pruned"])
def test_our_folder_opens_in_peft_with_equal_logits(tmp_path, name):
    ours, _, theirs = trained(name.partition(", pruned")[0])
    if "pruned" in name:
        prune(ours)
    save_adapter(ours, tmp_path)
    loaded = peft.PeftModel.from_pretrained(theirs, tmp_path).eval()
    truth = exactly(loaded, IDS)
    assert_as_close(ours(IDS), loaded(input_ids=IDS).logits, truth)


@pefts
def test_pefts_folder_opens_here_with_equal_logits(tmp_path, name):
    ours, base, theirs = trained(name)
    theirs = theirs_of(theirs, CASES[name][1]).eval()
    give(theirs, ours)
    theirs.save_pretrained(tmp_path)
    load_adapter(base, tmp_path)
    assert_as_close(base.eval()(IDS), theirs(input_ids=IDS).logits, exactly(theirs, IDS))
    assert type(next(adapter_layers(base))[1]) is type(next(adapter_layers(ours))[1])


def test_a_pruned_adalora_of_pefts_opens_here(tmp_path):
    ours, base, theirs = trained("adalora")
    theirs = theirs_of(theirs, CASES["adalora"][1]).eval()
    give(theirs, ours)
    with torch.no_grad():  # as at the end of a run
        pattern = {}
        for n, p in theirs.base_model.model.named_parameters():
            if "lora_E" in n:
                alive = [True, "v_proj" in n, False]
                p.masked_fill_(~torch.tensor(alive)[:, None], 0)
                pattern[n] = alive
        theirs.peft_config["default"].rank_pattern = pattern
    theirs.save_pretrained(tmp_path)
    load_adapter(base, tmp_path)
    assert {layer.r for _, layer in adapter_layers(base)} == {1, 2}
    assert_as_close(base.eval()(IDS), theirs(input_ids=IDS).logits, exactly(theirs, IDS))
    # and back: the pattern is still that of all three triplets
    save_adapter(base, tmp_path / "again")
    pattern = json.loads((tmp_path / "again/adapter_config.json").read_text())["rank_pattern"]
    assert set(map(tuple, pattern.values())) == {(True, False, False), (True, True, False)}


@case
def test_saved_and_loaded_is_the_same_to_the_bit(tmp_path, name):
    ours, base, _ = trained(name)
    save_adapter(ours, tmp_path)
    again = load_adapter(copy.deepcopy(base), tmp_path)
    assert torch.equal(again(IDS), ours(IDS))
    assert not torch.equal(again(IDS), base(IDS))
    # into the adapters that are there already
    inject(base, OURS[name] if name in OURS else CASES[name][0])
    assert torch.equal(load_adapter(base, tmp_path)(IDS), ours(IDS))
    assert torch.equal(minilora.unload(base)(IDS), minilora.unload(again)(IDS))


@pytest.mark.parametrize("name", OURS)
def test_a_type_that_peft_does_not_know_is_refused_there_by_name(tmp_path, name):
    ours, _, theirs = trained(name)
    save_adapter(ours, tmp_path)
    with pytest.raises((KeyError, ValueError), match=OURS[name].peft_type):
        peft.PeftModel.from_pretrained(theirs, tmp_path)


def rewrite(folder, change=None, tensors=None):
    """The folder with other fields or other tensors."""
    file = folder / "adapter_config.json"
    config = json.loads(file.read_text()) | (change or {})
    file.write_text(json.dumps(config))
    if tensors is not None:
        file = folder / "adapter_model.safetensors"
        save_file(tensors({k: v.clone() for k, v in load_file(file).items()}), file)


def without(end):
    """Without the first tensor that ends so."""

    def change(tensors):
        del tensors[next(key for key in sorted(tensors) if key.endswith(end))]
        return tensors

    return change


def changed(end, value):
    """Another value of the first tensor that ends so."""

    def change(tensors):
        key = next(key for key in sorted(tensors) if key.endswith(end))
        return tensors | {key: value(tensors[key])}

    return change


BAD = {
    "mixed fields": ("vera", {"lora_alpha": 16}, None, "lora_alpha=16 is not a setting of VERA"),
    "another feature": ("ia3", {"modules_to_save": ["norm"]}, None, "modules_to_save="),
    "no targets": ("ia3", {"target_modules": None}, None, "names no target_modules"),
    "no steps": ("adalora", {"total_step": None}, None, "needs total_step"),
    "a hostile pattern": ("ia3", {"target_modules": "(a+)+"}, None, "take forever to match"),
    "a feed-forward that is none": (
        "ia3", {"feedforward_modules": ["up_proj"]}, None, "'up_proj' is no target"),
    "other ranks": ("vera", {"r": 6}, None, r"vera_lambda_d has shape \(5,\), expected \(6,\)"),
    "a missing tensor": ("vera", {}, without("lambda_d"), "vera_lambda_d is missing"),
    "an unknown tensor": (
        "ia3", {}, lambda t: t | {"base_model.model.lm_head.extra": torch.ones(1)},
        "unknown tensors base_model.model.lm_head.extra"),
    "a shape": ("ia3", {}, changed("ia3_l", lambda t: t.T.contiguous()), "has shape"),
    "a dtype": ("ia3", {}, changed("ia3_l", lambda t: t.long()), "holds torch.int64"),
    "a nan": ("ia3", {}, changed("ia3_l", lambda t: t * float("nan")), "not finite"),
    "a module that is not there": (
        "norms", {}, lambda t: {k.replace("layers.1", "layers.9"): v for k, v in t.items()},
        "the base has no module"),
    "no target of its config": (
        "vera", {"target_modules": ["q_proj"]}, None, "is not a target of its config"),
    "a projection of another shape": (
        "vera", {}, changed("vera_A", lambda t: t[:, :-1].contiguous()), "vera_A has shape"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_does_not_fit_is_named_and_nothing_is_changed(tmp_path, name):
    method, change, tensors, words = BAD[name]
    ours, base, _ = trained(method)
    save_adapter(ours, tmp_path)
    rewrite(tmp_path, change, tensors)
    before = {name: t.clone() for name, t in base.state_dict().items()}
    with pytest.raises(ValueError, match=words) as error:
        load_adapter(base, tmp_path)
    assert "Nothing was changed" in str(error.value)
    after = base.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(p.requires_grad for p in base.parameters())


ATTACHED = {
    "prompt": PromptTuningConfig(3),
    "prefix": PrefixTuningConfig(2),
    "bottleneck": BottleneckConfig("houlsby", 3),
}
EVERY = {**{name: config for name, (config, _) in CASES.items()}, **ATTACHED}
EVERY |= {"bitfit": BitFitConfig(), "dora": LoraConfig(2, 4, QV, use_dora=True)}


def folders(tmp_path):
    """Of each method a folder's two files, by name."""
    files = {}
    for name, config in EVERY.items():
        model = llama()
        inject(model, config)
        disturb(model, 0.2)
        save_adapter(model, tmp_path / name)
        files[name] = {file: (tmp_path / name / file).read_bytes() for file in FILES}
    return files


FILES = ("adapter_config.json", "adapter_model.safetensors")


@pytest.mark.filterwarnings("ignore:the adapter in")
def test_a_damaged_folder_of_any_method_is_refused_in_words_or_read_finite(tmp_path):
    whole, base = folders(tmp_path), llama()

    @settings(max_examples=profiles.of(dev=60, ci=200, thorough=5_000))
    @given(st.sampled_from(sorted(EVERY)).flatmap(lambda name: damaged(whole[name])))
    def load_damaged(files):
        for name, content in files.items():
            (tmp_path / name).write_bytes(content)
        model = copy.deepcopy(base)
        try:
            load_adapter(model, tmp_path)
        except ValueError:
            assert model.state_dict().keys() == base.state_dict().keys()
            assert unchanged(model, base.state_dict())
        assert all(tensor.isfinite().all() for tensor in model.state_dict().values())

    load_damaged()


@pytest.mark.parametrize("theirs", EVERY)
def test_a_config_of_another_methods_file_is_refused_and_nothing_changes(tmp_path, theirs):
    """The tensors of one method beside the config of each other one."""
    whole, base = folders(tmp_path), llama()
    same = {"vera", "vera, all shapes", "vera, by its seed"}
    for ours in EVERY:
        if ours == theirs or {ours, theirs} <= same:
            continue
        (tmp_path / FILES[0]).write_bytes(whole[theirs][FILES[0]])
        (tmp_path / FILES[1]).write_bytes(whole[ours][FILES[1]])
        with pytest.raises(ValueError, match=r"does not fit this model|Nothing was changed"):
            load_adapter(base, tmp_path)
        assert not list(adapters_of(base))


def test_a_file_of_another_method_does_not_go_into_adapters_that_are_there(tmp_path):
    ours, base, _ = trained("vera")
    save_adapter(ours, tmp_path / "vera")
    inject(base, LoraConfig())
    with pytest.raises(ValueError, match=r"has a LoRALayer, the file is VERA's: unload\(model\)"):
        load_adapter(base, tmp_path / "vera")
    save_adapter(base, tmp_path / "lora")
    with pytest.raises(ValueError, match="is a VeraLayer in this model"):
        load_adapter(ours, tmp_path / "lora")


def test_another_seed_of_vera_does_not_go_into_this_one(tmp_path):
    ours, base, _ = trained("vera")
    save_adapter(ours, tmp_path)
    inject(base, VeraConfig(r=5, target_modules=QV, projection_prng_key=1))
    with pytest.raises(ValueError, match="projection_prng_key=1 in this model"):
        load_adapter(base, tmp_path)
    minilora.unload(base)
    inject(base, CASES["vera"][0])
    minilora.merge(base)
    with pytest.raises(ValueError, match="is merged in this model"):
        load_adapter(base, tmp_path)


def test_plain_lora_is_not_for_other_methods(tmp_path):
    attached = llama()
    inject(attached, PromptTuningConfig(3))
    for model in (trained("ia3")[0], attached):
        with pytest.raises(ValueError, match="plain=True writes plain LoRA"):
            save_adapter(model, tmp_path, plain=True)
    assert not list(tmp_path.iterdir())


def test_one_folder_holds_one_method(tmp_path):
    model = llama()
    inject(model.model.layers[0], IA3Config())
    inject(model.model.layers[1], BitFitConfig())
    with pytest.raises(ValueError, match="this model has several: BitFitLayer, IA3"):
        save_adapter(model, tmp_path)


def test_values_that_are_not_finite_are_not_saved(tmp_path):
    ours, _, _ = trained("ia3")
    next(adapter_layers(ours))[1].ia3_l.data[0] = float("inf")
    with pytest.raises(ValueError, match=r"ia3_l holds values that are not finite"):
        save_adapter(ours, tmp_path)


def test_a_feed_forward_module_that_is_one_of_several_of_its_name(tmp_path):
    model, theirs = pair()
    names = ["model.layers.0.mlp.down_proj"]
    inject(model, IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=names))
    disturb(model)
    save_adapter(model, tmp_path)
    loaded = peft.PeftModel.from_pretrained(theirs, tmp_path).eval()
    assert_as_close(model(IDS), loaded(input_ids=IDS).logits, exactly(loaded, IDS))
    again = load_adapter(llama(), shutil.copytree(tmp_path, tmp_path / "copy"))
    assert again.model.layers[0].mlp.down_proj.is_feedforward
    assert not again.model.layers[1].mlp.down_proj.is_feedforward


def test_another_base_is_warned_of_and_refused_when_strict(tmp_path):
    ours, _, _ = trained("vera")
    save_adapter(ours, tmp_path)
    with pytest.warns(UserWarning, match="was made for a base with other values"):
        load_adapter(llama(), tmp_path)
    with pytest.raises(ValueError, match="was made for a base with other values"):
        load_adapter(llama(), tmp_path, strict=True)


def values(model):
    """All tensors of a model."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def unchanged(model, before):
    """Whether no tensor of a model has changed."""
    return all(torch.equal(before[name], t) for name, t in model.state_dict().items())


def test_a_pruned_adalora_takes_a_file_of_the_same_triplets_whole(tmp_path):
    ours, base, _ = trained("adalora")
    prune(ours)
    save_adapter(ours, tmp_path)
    inject(base, CASES["adalora"][0])
    disturb(base, 0.3)
    prune(base)
    load_adapter(base, tmp_path)
    assert torch.equal(base(IDS), ours(IDS))


@pytest.mark.parametrize("in_the_file", [True, False])
def test_an_adalora_with_other_triplets_left_is_refused(tmp_path, in_the_file):
    ours, base, _ = trained("adalora")
    inject(base, CASES["adalora"][0])
    prune(ours if in_the_file else base)
    save_adapter(ours, tmp_path)
    before = values(base)
    with pytest.raises(ValueError, match=r"other triplets left than in the file: unload\(model\)"):
        load_adapter(base, tmp_path)
    assert unchanged(base, before)


def test_other_feed_forward_modules_of_ia3_change_nothing(tmp_path):
    ours, base, _ = trained("ia3")
    save_adapter(ours, tmp_path)
    inject(base, IA3Config(["k_proj", "v_proj", "down_proj"], feedforward_modules=["v_proj"]))
    before = values(base)
    with pytest.raises(
        ValueError, match=r"in this model, \(.*\) in the file: unload\(model\) first"
    ):
        load_adapter(base, tmp_path)
    assert unchanged(base, before)


class Homeless(BitFitConfig):
    """A method whose config is not in ``CONFIGS``."""


def test_a_method_without_a_file_format_says_where_to_put_it(tmp_path):
    model = llama()
    inject(model, Homeless())
    with pytest.raises(ValueError, match="BitFitLayer, which formats/method_files.py does not"):
        save_adapter(model, tmp_path / "new")
    assert not (tmp_path / "new").exists()
