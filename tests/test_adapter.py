"""Our folders open in PEFT, PEFT's open here, and what does not fit is named in one error."""

import json
import shutil

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from minilora import Llama, LlamaConfig, LoraConfig, inject, load_adapter, merge, save_adapter
from minilora.inject import lora_layers
from minilora.lora import LoRALayer

from .test_inject import fill

SIZES = {"vocab_size": 32, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4}


def pair():
    """The same random Llama twice: transformers' and ours."""
    torch.manual_seed(0)
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, num_key_value_heads=2, rms_norm_eps=1e-5)).eval()
    ours = Llama(LlamaConfig(**SIZES, num_key_value_heads=2, tie_word_embeddings=False)).eval()
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


CONFIGS = [
    {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj"]},
    {"r": 3, "lora_alpha": 10, "target_modules": "all-linear", "use_rslora": True},
    {"r": 1, "lora_alpha": 2, "target_modules": r".*layers\.1\.mlp\.(up|down)_proj"},
]
IDS = torch.arange(18).reshape(2, 9)


@pytest.mark.parametrize("config", CONFIGS, ids=["qv", "all-linear rslora", "regex"])
def test_our_adapter_opens_in_peft_with_equal_logits(tmp_path, config):
    from peft import PeftModel

    ours, theirs = pair()
    inject(ours, LoraConfig(**config))
    fill(ours)
    save_adapter(ours, tmp_path)
    peft = PeftModel.from_pretrained(theirs, tmp_path)
    wanted = ours(IDS)
    torch.testing.assert_close(peft(IDS).logits, wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(peft.merge_and_unload()(IDS).logits, merge(ours)(IDS), rtol=1e-4, atol=1e-4)


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
    torch.testing.assert_close(ours(IDS), peft(IDS).logits, rtol=1e-4, atol=1e-4)
    save_adapter(ours, tmp_path / "ours")
    one, two = (load_file(tmp_path / side / "adapter_model.safetensors") for side in ("peft", "ours"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def saved(tmp_path, **config):
    ours, _ = pair()
    inject(ours, LoraConfig(r=2, **config))
    fill(ours)
    return ours, save_adapter(ours, tmp_path / "adapter")


def test_the_folder_holds_the_adapter_and_nothing_else(tmp_path):
    ours, folder = saved(tmp_path)
    assert sorted(f.name for f in folder.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    tensors = load_file(folder / "adapter_model.safetensors")
    assert sum(t.numel() for t in tensors.values()) == sum(la.lora_A.numel() + la.lora_B.numel() for _, la in lora_layers(ours))
    assert json.loads((folder / "adapter_config.json").read_text())["target_modules"] == ["q_proj", "v_proj"]


def test_targets_that_are_not_all_of_a_name_are_written_out_in_full(tmp_path):
    _, folder = saved(tmp_path, target_modules=["0.self_attn.q_proj"])
    targets = json.loads((folder / "adapter_config.json").read_text())["target_modules"]
    assert targets == ["model.layers.0.self_attn.q_proj"]


def test_loading_into_a_model_with_adapters_replaces_their_values(tmp_path):
    ours, folder = saved(tmp_path)
    other, _ = pair()
    inject(other, LoraConfig(r=2))
    load_adapter(other, folder)
    assert torch.equal(other(IDS), ours(IDS))


def change_tensors(folder, change):
    tensors = load_file(folder / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, folder / "adapter_model.safetensors")


Q = "base_model.model.model.layers.0.self_attn.q_proj.lora_"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(Q + "B.weight"), "layers.0.self_attn.q_proj.lora_B is missing"),
        (lambda t: t.update({Q + "A.weight": torch.ones(3, 24)}), r"q_proj.lora_A has shape \(3, 24\), needed \(2, 24\)"),
        (lambda t: t[Q + "A.weight"].fill_(float("nan")), "q_proj.lora_A holds values that are not finite"),
        (lambda t: t.update({"extra": torch.ones(1)}), "unknown tensors extra"),
        (lambda t: t.update({Q + "magnitude_vector": torch.ones(24)}), "unknown tensors .*magnitude_vector"),
        (
            lambda t: [t.update({k.removeprefix("base_model.model."): t.pop(k)}) for k in list(t)],
            "needed base_model.model.<module>",
        ),
        (
            lambda t: [t.update({k.replace("layers.1", "layers.9"): t.pop(k)}) for k in list(t)],
            "the base has no module model.layers.9",
        ),
        (
            lambda t: [t.update({k.replace("self_attn.q_proj", "input_layernorm"): t.pop(k)}) for k in list(t)],
            "is a RMSNorm here, no Linear",
        ),
        (lambda t: t.clear(), "holds no tensors"),
    ],
)
@pytest.mark.parametrize("injected", [False, True])
def test_tensors_that_do_not_fit_are_named_and_the_model_stays_as_it_was(tmp_path, change, message, injected):
    _, folder = saved(tmp_path)
    change_tensors(folder, change)
    other, _ = pair()
    if injected:
        inject(other, LoraConfig(r=2))
        message = message.replace("the base has no module", "(is in the file, but has no adapter here|has no module)").replace(
            "is a RMSNorm here, no Linear", "is in the file, but has no adapter here"
        )
    before = {n: t.clone() for n, t in other.state_dict().items()}
    with pytest.raises(
        ValueError,
        match=message.replace(
            "(is in the file, but has no adapter here|has no module) model.layers.9", "is in the file, but has no adapter here"
        ),
    ):
        load_adapter(other, folder)
    assert all(torch.equal(t, before[n]) for n, t in other.state_dict().items())
    assert any(isinstance(m, LoRALayer) for m in other.modules()) == injected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3', needed 'LORA'"),
        ({"use_dora": True}, "use_dora=True is not supported"),
        ({"bias": "all"}, "bias='all' is not supported"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save=\['lm_head'\] is not supported"),
        ({"rank_pattern": {"q_proj": 4}}, "rank_pattern=.* is not supported"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa' changes the base"),
        ({"init_lora_weights": "pissa_niter_4"}, "changes the base"),
        ({"init_lora_weights": "olora"}, "changes the base"),
        ({"init_lora_weights": "lora_ga"}, "changes the base"),
        ({"use_rslora": "false"}, "use_rslora must be True or False"),
        ({"lora_alpha": 10**400}, "lora_alpha must be positive and finite"),
        ({"r": 0}, "r must be at least 1"),
        ({"r": "8"}, "r must be a whole number"),
        ({"r": 3}, r"lora_A has shape \(2, 24\), needed \(3, 24\)"),
        ({"lora_alpha": None}, "lora_alpha must be a number"),
    ],
)
def test_configs_that_mean_something_else_are_refused(tmp_path, change, message):
    _, folder = saved(tmp_path)
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
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
    with pytest.raises(ValueError, match=r"q_proj has r=2, scaling=1.5 here; the file r=2, scaling=8"):
        load_adapter(other, folder)
    merged, _ = pair()
    inject(merged, LoraConfig(r=2))
    merge(merged)
    with pytest.raises(ValueError, match="merged here"):
        load_adapter(merged, folder)


def test_a_folder_without_one_of_the_files_is_refused(tmp_path):
    _, folder = saved(tmp_path)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        copy = shutil.copytree(folder, tmp_path / f"without {name}")
        (copy / name).unlink()
        with pytest.raises(ValueError, match=name):
            load_adapter(pair()[0], copy)


def test_adapters_of_different_rank_in_one_model_cannot_be_saved_as_one(tmp_path):
    ours, _ = saved(tmp_path)
    _name, layer = next(lora_layers(ours))
    layer.r = 3
    with pytest.raises(ValueError, match="different settings in one model"):
        save_adapter(ours, tmp_path / "x")


def test_settings_that_do_not_change_the_tensors_are_no_reason_to_refuse(tmp_path):
    ours, folder = saved(tmp_path)
    file = folder / "adapter_config.json"
    file.write_text(
        json.dumps({**json.loads(file.read_text()), "exclude_modules": ["down_proj"], "layers_to_transform": [0, 1]})
    )
    assert torch.equal(load_adapter(pair()[0], folder)(IDS), ours(IDS))


def test_an_adapter_of_a_model_that_is_no_language_model_opens_in_peft(tmp_path):
    from peft import PeftModel
    from torch import nn

    torch.manual_seed(0)
    ours, theirs = (nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2)) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    inject(ours, LoraConfig(r=2, target_modules=["0"]))
    fill(ours)
    save_adapter(ours, tmp_path)
    x = torch.randn(3, 6)
    torch.testing.assert_close(PeftModel.from_pretrained(theirs, tmp_path)(x), ours(x))
