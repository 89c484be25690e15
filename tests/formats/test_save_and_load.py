"""Our folders open in PEFT, PEFT's open here, and what does not fit is named in one error."""

import json
import re
import shutil
import warnings

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

from minilora import Llama, LlamaConfig, LoraConfig, inject, load_adapter, merge, save_adapter
from minilora.lora.layer import LoRALayer, lora_layers

from ..lora.test_injection import fill
from ..test_foreign import make
from ..tolerance import assert_as_close, exactly

SIZES = {
    "vocab_size": 32,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def llama(**changes):
    return Llama(LlamaConfig(**{**SIZES, "tie_word_embeddings": False, **changes}))


def pair():
    """The same random Llama twice: transformers' and ours."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**SIZES, rms_norm_eps=1e-5)
    theirs = transformers.LlamaForCausalLM(config).eval()
    ours = llama().eval()
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


CONFIGS = [
    {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj"]},
    {"r": 3, "lora_alpha": 10, "target_modules": "all-linear", "use_rslora": True},
    {"r": 1, "lora_alpha": 2, "target_modules": r".*layers\.1\.mlp\.(up|down)_proj"},
]
IDS = torch.arange(18).reshape(2, 9)
T5 = transformers.T5Config()  # of an encoder and a decoder


@pytest.mark.parametrize("config", CONFIGS, ids=["qv", "all-linear rslora", "regex"])
def test_our_adapter_opens_in_peft_with_equal_logits(tmp_path, config):
    from peft import PeftModel

    ours, theirs = pair()
    inject(ours, LoraConfig(**config))
    fill(ours)
    save_adapter(ours, tmp_path)
    peft = PeftModel.from_pretrained(theirs, tmp_path)
    truth = exactly(peft, IDS)
    assert_as_close(ours(IDS), peft(IDS).logits, truth)
    assert_as_close(merge(ours)(IDS), peft.merge_and_unload()(IDS).logits, truth)


@pytest.mark.parametrize("config", CONFIGS, ids=["qv", "all-linear rslora", "regex"])
def test_pefts_adapter_opens_here_and_goes_back_to_the_bit(tmp_path, config):
    from peft import LoraConfig as Theirs
    from peft import get_peft_model

    ours, theirs = pair()
    peft = get_peft_model(theirs, Theirs(**config)).eval()
    for name, p in peft.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p)
    peft.save_pretrained(tmp_path / "peft")
    load_adapter(ours, tmp_path / "peft")
    assert_as_close(ours(IDS), peft(IDS).logits, exactly(peft, IDS))
    save_adapter(ours, tmp_path / "ours")
    before = load_file(tmp_path / "peft" / "adapter_model.safetensors")
    after = load_file(tmp_path / "ours" / "adapter_model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def saved(tmp_path, **config):
    ours, _ = pair()
    inject(ours, LoraConfig(r=2, **config))
    fill(ours)
    return ours, save_adapter(ours, tmp_path / "adapter")


def test_the_folder_holds_the_adapter_and_nothing_else(tmp_path):
    ours, folder = saved(tmp_path)
    files = {file.name for file in folder.iterdir()}
    assert files == {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    saved_numbers = sum(t.numel() for t in load_file(folder / "adapter_model.safetensors").values())
    layers = [layer for _, layer in lora_layers(ours)]
    assert saved_numbers == sum(la.lora_A.numel() + la.lora_B.numel() for la in layers)
    assert config_in(folder)["target_modules"] == ["q_proj", "v_proj"]


def test_targets_that_are_not_all_of_a_name_are_written_out_in_full(tmp_path):
    _, folder = saved(tmp_path, target_modules=["0.self_attn.q_proj"])
    assert config_in(folder)["target_modules"] == ["model.layers.0.self_attn.q_proj"]


@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], "all-linear", r".*_proj(\.base)?"])
def test_loading_into_a_model_with_adapters_replaces_their_values(tmp_path, targets):
    """However the config puts its targets: a wrapped Linear is not a second module to adapt."""
    ours, folder = saved(tmp_path, target_modules=targets)
    change_config(folder, target_modules=targets)
    other, _ = pair()
    inject(other, LoraConfig(r=2, target_modules=targets))
    load_adapter(other, folder)
    assert torch.equal(other(IDS), ours(IDS))


def config_in(folder):
    return json.loads((folder / "adapter_config.json").read_text())


def change_config(folder, **changes):
    text = json.dumps({**config_in(folder), **changes})
    (folder / "adapter_config.json").write_text(text)


def change_tensors(folder, change):
    tensors = load_file(folder / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, folder / "adapter_model.safetensors")


Q = "base_model.model.model.layers.0.self_attn.q_proj.lora_"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(Q + "B.weight"), "layers.0.self_attn.q_proj.lora_B is missing"),
        (
            lambda t: t.update({Q + "A.weight": torch.ones(3, 24)}),
            r"q_proj.lora_A has shape \(3, 24\), expected \(2, 24\)",
        ),
        (
            lambda t: t[Q + "A.weight"].fill_(float("nan")),
            "q_proj.lora_A holds values that are not finite",
        ),
        (
            lambda t: t.update({Q + "A.weight": t[Q + "A.weight"].double() * 1e300}),
            "q_proj.lora_A holds values that are not",
        ),
        (lambda t: t.update({"extra": torch.ones(1)}), "unknown tensors extra"),
        (
            lambda t: t.update({Q + "magnitude_vector": torch.ones(24)}),
            "its config does not say use_dora",
        ),
        (
            lambda t: [t.update({k.removeprefix("base_model.model."): t.pop(k)}) for k in list(t)],
            "expected base_model.model.<module>",
        ),
        (
            lambda t: [t.update({k.replace("layers.1", "layers.9"): t.pop(k)}) for k in list(t)],
            "the base has no module model.layers.9",
        ),
        (
            lambda t: [
                t.update({k.replace("self_attn.q_proj", "input_layernorm"): t.pop(k)})
                for k in list(t)
            ],
            "is a RMSNorm in this model, not a Linear",
        ),
        (lambda t: t.clear(), "holds no tensors"),
    ],
)
@pytest.mark.parametrize("injected", [False, True])
def test_tensors_that_do_not_fit_are_named_and_the_model_stays_as_it_was(
    tmp_path, change, message, injected
):
    _, folder = saved(tmp_path)
    change_tensors(folder, change)
    other, _ = pair()
    if injected:
        inject(other, LoraConfig(r=2))
        if re.search("has no module|not a Linear", message):  # only its own adapters are looked at
            message = "is in the file, but has no adapter in this model"
    before = {n: t.clone() for n, t in other.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        load_adapter(other, folder)
    assert all(torch.equal(t, before[n]) for n, t in other.state_dict().items())
    assert any(isinstance(m, LoRALayer) for m in other.modules()) == injected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peft_type": "IA3"}, "lora_alpha=16 is not a setting of IA3"),
        ({"use_dora": True}, "q_proj.lora_magnitude_vector is missing"),
        ({"bias": "all"}, "bias='all': this model has no biases|bias='all'"),
        ({"modules_to_save": ["lm_head"]}, "lm_head.weight is missing"),
        (
            {"rank_pattern": {"q_proj": 4}},
            r"0.self_attn.q_proj.lora_A has shape \(2, 24\), expected \(4, 24\)",
        ),
        ({"rank_pattern": {"q_proj": "4"}}, r"rank_pattern\['q_proj'\]: r must be a whole number"),
        ({"alpha_pattern": {"(a+)+": 4}}, r"the pattern '\(a\+\)\+' could take forever to match"),
        ({"alora_invocation_tokens": [1]}, r"alora_invocation_tokens=\[1\] is not supported"),
        ({"use_bdlora": {"nblocks": 2}}, "use_bdlora=.* is not supported"),
        (
            {"target_modules": ["q_proj"]},
            "layers.0.self_attn.v_proj has tensors, but is not a target of its config",
        ),
        (
            {"target_modules": ["q_proj", "k_proj", "v_proj"]},
            "k_proj is a target of its config, but has no tensors",
        ),
        (
            {"exclude_modules": ["1.self_attn.q_proj"]},
            "1.self_attn.q_proj has tensors, but is not a target",
        ),
        ({"layers_to_transform": [0]}, "1.self_attn.q_proj has tensors, but is not a target"),
        (
            {"target_modules": {"q_proj": 1}},
            "target_modules must be a list of names or one regular expression",
        ),
        ({"init_lora_weights": "pissa_niter_4"}, "'pissa_niter_4' changes the base"),
        ({"init_lora_weights": "lora_ga"}, "changes the base"),
        ({"init_lora_weights": "corda"}, "changes the base"),
        ({"init_lora_weights": "LoftQ"}, "changes the base"),
        ({"use_rslora": "false"}, "use_rslora must be True or False"),
        ({"lora_alpha": 10**400}, "lora_alpha must be positive and finite"),
        ({"r": 0}, "r must be at least 1"),
        ({"r": "8"}, "r must be a whole number"),
        ({"r": 3}, r"lora_A has shape \(2, 24\), expected \(3, 24\)"),
        ({"lora_alpha": None}, "lora_alpha must be a number"),
    ],
)
def test_configs_that_mean_something_else_are_refused(tmp_path, change, message):
    _, folder = saved(tmp_path)
    change_config(folder, **change)
    other, _ = pair()
    with pytest.raises(ValueError, match=message):
        load_adapter(other, folder)


def test_the_smallest_config_that_peft_loads_loads_here(tmp_path):
    ours, folder = saved(tmp_path)
    (folder / "adapter_config.json").write_text(
        '{"peft_type": "LORA", "r": 2, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]}'
    )
    other, _ = pair()
    assert torch.equal(load_adapter(other, folder)(IDS), ours(IDS))


def test_an_adapter_of_another_rank_or_a_merged_model_is_refused(tmp_path):
    _, folder = saved(tmp_path)
    other, _ = pair()
    inject(other, LoraConfig(r=2, lora_alpha=3))
    message = "q_proj has r=2, scaling=1.5 in this model, r=2, scaling=8 in the file"
    with pytest.raises(ValueError, match=message):
        load_adapter(other, folder)
    merged, _ = pair()
    inject(merged, LoraConfig(r=2))
    merge(merged)
    with pytest.raises(ValueError, match="merged in this model"):
        load_adapter(merged, folder)


def test_an_adapter_that_lacks_a_module_of_the_model_is_refused_and_nothing_changes(tmp_path):
    _, folder = saved(tmp_path)
    other, _ = pair()
    inject(other, LoraConfig(r=2, target_modules=["q_proj", "k_proj", "v_proj"]))
    before = {name: t.clone() for name, t in other.state_dict().items()}
    message = r"layers\.0\.self_attn\.k_proj has an adapter in this model but not in the file"
    with pytest.raises(ValueError, match=message):
        load_adapter(other, folder)
    assert all(torch.equal(t, before[name]) for name, t in other.state_dict().items())


def test_dropout_and_the_layout_of_weights_are_written_down(tmp_path):
    model, _, targets = make("GPT-2")
    inject(model, LoraConfig(r=2, lora_dropout=0.25, target_modules=targets))
    save_adapter(model, tmp_path)
    config = config_in(tmp_path)
    assert (config["lora_dropout"], config["fan_in_fan_out"]) == (0.25, True)
    again = load_adapter(make("GPT-2")[0], tmp_path)
    assert {layer.lora_dropout for _, layer in lora_layers(again)} == {0.25}


def test_a_folder_without_one_of_the_files_is_refused(tmp_path):
    _, folder = saved(tmp_path)
    # safetensors' own save_file drops the metadata, as PEFT has none of ours
    change_tensors(folder, lambda t: None)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        copy = shutil.copytree(folder, tmp_path / f"without {name}")
        (copy / name).unlink()
        with pytest.raises(ValueError, match=name):
            load_adapter(pair()[0], copy)


def test_everything_that_is_wrong_stands_in_one_error(tmp_path):
    _, folder = saved(tmp_path)
    extra = {Q + "A.weight": torch.ones(3, 24), "extra": torch.ones(1)}
    change_tensors(folder, lambda t: t.update(extra))
    change_config(folder, use_dora=True, bias="all", peft_type="XLORA")
    with pytest.raises(ValueError, match="does not fit this model") as caught:
        load_adapter(pair()[0], folder)
    for part in ("peft_type is 'XLORA'", "lora_magnitude_vector is missing", "bias='all'"):
        assert part in str(caught.value)
    for part in ("unknown tensors extra", "has shape (3, 24)"):
        assert part in str(caught.value)


@pytest.mark.parametrize(("count", "end"), [(8, ""), (9, "; and 1 more"), (12, "; and 4 more")])
def test_an_error_names_eight_things_and_counts_the_rest(tmp_path, count, end):
    _, folder = saved(tmp_path, target_modules="all-linear")
    change_tensors(folder, lambda t: t.update({key: torch.ones(1, 1) for key in list(t)[:count]}))
    message = rf"expected \(\d+, \d+\){end}\. Nothing was changed"
    with pytest.raises(ValueError, match=message) as caught:
        load_adapter(pair()[0], folder)
    assert str(caught.value).count("has shape (1, 1)") == 8


@pytest.mark.parametrize(("count", "end"), [(5, ""), (6, ", and 1 more"), (9, ", and 4 more")])
def test_an_error_shows_five_unknown_tensors_and_that_there_are_more(tmp_path, count, end):
    _, folder = saved(tmp_path)
    change_tensors(folder, lambda t: t.update({f"extra{i}": torch.ones(1) for i in range(count)}))
    with pytest.raises(
        ValueError, match=rf"unknown tensors (extra\d, ){{4}}extra\d{end}, expected"
    ):
        load_adapter(pair()[0], folder)


def test_patterns_of_a_file_for_modules_that_have_no_adapter_are_passed_over(tmp_path):
    """PEFT writes the config as it was given: a rank for a module that was left out stays in it."""
    ours, folder = saved(tmp_path)
    ranks = {"k_proj": 4, "q_proj": 2}
    change_config(folder, rank_pattern=ranks, alpha_pattern={"down_proj": 3})
    assert torch.equal(load_adapter(pair()[0], folder)(IDS), ours(IDS))


def test_peft_is_told_what_the_model_does(tmp_path):
    """With a task type PEFT wraps ``generate``, so only a model that has it may get one."""
    kinds = [
        ("CAUSAL_LM", {"generate": print}),
        ("SEQ_2_SEQ_LM", {"generate": print, "config": T5}),
        (None, {"config": T5}),
    ]
    for task_type, attributes in kinds:
        model = nn.Sequential(nn.Linear(3, 3))
        vars(model).update(attributes)
        inject(model, LoraConfig(r=1, target_modules=["0"]))
        assert config_in(save_adapter(model, tmp_path))["task_type"] == task_type


def test_an_adapter_for_another_depth_is_refused(tmp_path):
    _, folder = saved(tmp_path)
    for depth, message in (
        (1, "the base has no module model.layers.1"),
        (3, "layers.2.self_attn.q_proj is a target .* no tensors"),
    ):
        other = llama(num_hidden_layers=depth)
        # first, as it explains the rest
        first = "does not fit this model: was made for a base of another architecture"
        with pytest.raises(ValueError, match=f"{first}.*{message}"):
            load_adapter(other, folder)


def layer_reprs(model):
    return [repr(layer) for _, layer in lora_layers(model)]


def test_ranks_and_alphas_of_their_own_go_to_peft_and_come_back(tmp_path):
    """Every form of a saved pattern: the end of a name, a whole path, a path that ends another."""
    from peft import PeftModel

    ours, theirs = pair()
    ranks = {"0.mlp.up_proj": 3, "k_proj": 5, "1.*up_proj": 1}
    patterns = {"rank_pattern": ranks, "alpha_pattern": {"down_proj": 7}}
    inject(ours, LoraConfig(r=2, target_modules="all-linear", **patterns))
    fill(ours)
    config = config_in(save_adapter(ours, tmp_path))
    assert config["rank_pattern"] == {
        "k_proj": 5,
        r"^model\.layers\.0\.mlp\.up_proj": 3,
        r"^model\.layers\.1\.mlp\.up_proj": 1,
    }
    assert config["alpha_pattern"] == {"down_proj": 7}
    peft = PeftModel.from_pretrained(theirs, tmp_path)
    assert_as_close(ours(IDS), peft(IDS).logits, exactly(peft, IDS))
    peft.save_pretrained(tmp_path / "theirs")
    for folder in (tmp_path, tmp_path / "theirs"):
        again = load_adapter(pair()[0], folder)
        assert torch.equal(again(IDS), ours(IDS))
        assert layer_reprs(again) == layer_reprs(ours)


def test_a_path_that_ends_another_is_not_taken_for_it(tmp_path):
    from peft import PeftModel

    def model():
        torch.manual_seed(0)
        inner = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        return nn.Sequential(nn.Linear(4, 4), inner, nn.Linear(4, 4))

    for targets in ("^0$", r"0|1\.1|2"):
        ours = model()
        inject(ours, LoraConfig(r=2, target_modules=targets, rank_pattern={"^0": 3}))
        fill(ours)
        save_adapter(ours, tmp_path)
        peft = PeftModel.from_pretrained(model(), tmp_path)
        ranks = {
            name.removeprefix("base_model.model."): module.r["default"]
            for name, module in peft.named_modules()
            if hasattr(module, "lora_A")
        }
        assert ranks == {name: layer.r for name, layer in lora_layers(ours)}
        x = torch.randn(3, 4)
        assert torch.equal(load_adapter(model(), tmp_path)(x), ours(x))


@pytest.mark.filterwarnings("ignore:target_modules")
def test_a_linear_that_is_called_base_is_told_from_the_other(tmp_path):
    """``base`` is also what a LoRALayer calls the Linear inside."""
    from peft import PeftModel

    def model():
        return nn.ModuleDict(
            {side: nn.ModuleDict({"base": nn.Linear(4, 4)}) for side in ("encoder", "decoder")}
        )

    ours = model()
    inject(ours, LoraConfig(r=2, target_modules=["decoder.base"]))
    save_adapter(ours, tmp_path)
    peft = PeftModel.from_pretrained(model(), tmp_path)
    adapted = [name for name, module in peft.named_modules() if hasattr(module, "lora_A")]
    assert adapted == ["base_model.model.decoder.base"]
    with pytest.warns(UserWarning, match="other values"):
        load_adapter(model(), tmp_path)


def test_a_bare_layer_has_no_path_to_be_saved_under(tmp_path):
    message = "expected a model with adapters inside, got a LoRALayer itself"
    with pytest.raises(ValueError, match=message):
        save_adapter(LoRALayer(nn.Linear(4, 2)), tmp_path)
    assert not list(tmp_path.iterdir())


def test_adapters_that_differ_in_dropout_cannot_be_saved_as_one(tmp_path):
    ours, _ = saved(tmp_path)
    _name, layer = next(lora_layers(ours))
    layer.lora_dropout = 0.5
    with pytest.raises(
        ValueError, match=r"cannot save adapters that differ in \(dropout, rslora, dora\)"
    ):
        save_adapter(ours, tmp_path / "x")


def test_a_diverged_adapter_is_not_saved(tmp_path):
    ours, folder = saved(tmp_path)
    before = (folder / "adapter_model.safetensors").read_bytes()
    next(lora_layers(ours))[1].lora_A.data[0, 0] = float("nan")
    message = "q_proj.lora_A.weight holds values that are not finite: the training diverged"
    with pytest.raises(ValueError, match=message):
        save_adapter(ours, folder)
    assert (folder / "adapter_model.safetensors").read_bytes() == before


def test_settings_that_do_not_change_the_tensors_are_no_reason_to_refuse(tmp_path):
    ours, folder = saved(tmp_path)
    change_config(folder, exclude_modules=["down_proj"], layers_to_transform=[0, 1])
    assert torch.equal(load_adapter(pair()[0], folder)(IDS), ours(IDS))


def test_an_adapter_of_a_model_that_is_no_language_model_opens_in_peft(tmp_path):
    from peft import PeftModel

    torch.manual_seed(0)
    ours, theirs = (nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2)) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    inject(ours, LoraConfig(r=2, target_modules=["0"]))
    fill(ours)
    save_adapter(ours, tmp_path)
    x = torch.randn(3, 6)
    peft = PeftModel.from_pretrained(theirs, tmp_path)
    assert_as_close(ours(x), peft(x), exactly(peft, x))


def test_another_base_is_told_of_and_refused_when_strict(tmp_path):
    _, folder = saved(tmp_path)
    same, _ = pair()
    load_adapter(same, folder, strict=True)
    other, _ = pair()
    other.model.norm.weight.data[0] += 1
    with pytest.warns(UserWarning, match="was made for a base with other values") as caught:
        load_adapter(other, folder)
    assert caught[0].filename == __file__, "the warning shows the line that loads"
    wider = llama(vocab_size=40)
    with pytest.warns(UserWarning, match="was made for a base of another architecture"):
        load_adapter(wider, folder)
    for model, message in ((other, "other values"), (wider, "another architecture")):
        with pytest.raises(ValueError, match=message):
            load_adapter(model, folder, strict=True)
    change_tensors(folder, lambda t: None)  # as PEFT writes it: no fingerprint
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_adapter(pair()[0], folder)
    with pytest.raises(ValueError, match="does not say which base it was made for"):
        load_adapter(pair()[0], folder, strict=True)


def test_an_adapter_that_was_saved_when_its_base_was_gone_is_not_said_to_be_of_another(tmp_path):
    ours, _ = saved(tmp_path)
    folder = save_adapter(merge(ours, keep_base=False), tmp_path / "merged")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = dict(lora_layers(load_adapter(pair()[0], folder, strict=True)))
    assert all(torch.equal(loaded[name].lora_B, layer.lora_B) for name, layer in lora_layers(ours))


def test_a_pickle_by_the_right_name_is_refused(tmp_path):
    ours, folder = saved(tmp_path)
    torch.save({Q + "A.weight": torch.ones(2, 24)}, folder / "adapter_model.safetensors")
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        load_adapter(ours, folder)
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(ValueError, match="does not exist: expected a safetensors file there"):
        load_adapter(ours, folder)


@pytest.mark.parametrize(
    "dtype", [torch.int64, torch.int8, torch.bool, torch.float8_e4m3fn, torch.complex64]
)
def test_tensors_of_other_dtypes_are_refused(tmp_path, dtype):
    _, folder = saved(tmp_path)
    change_tensors(folder, lambda t: t.update({Q + "A.weight": t[Q + "A.weight"].to(dtype)}))
    message = r"q_proj.lora_A holds torch\.\w+, expected a floating-point dtype"
    with pytest.raises(ValueError, match=message):
        load_adapter(pair()[0], folder)


def test_a_path_that_climbs_out_is_only_a_name_that_does_not_exist(tmp_path):
    _, folder = saved(tmp_path)
    climbing = {"base_model.model.../../etc/passwd.lora_A.weight": torch.ones(2, 24)}
    change_tensors(folder, lambda t: t.update(climbing))
    with pytest.raises(ValueError, match="the base has no module ../../etc/passwd"):
        load_adapter(pair()[0], folder)
