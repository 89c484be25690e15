"""What is read is strictly an adapter of this base, and exactly what was saved."""

import json
import shutil

import pytest
import torch

import minilora
from minilora.files import read_json, write_json
from minilora.serving.adapter_store import AdapterStore
from minilora.tensor_files import read_tensors, read_tensors_and_metadata, write_tensors

from .adapters import adapted, make_adapter


@pytest.fixture
def store():
    return AdapterStore(minilora.load_base())


def changed(folder, target, **fields):
    """A copy of an adapter with other fields in its config, and no copy of it in the tensors."""
    shutil.copytree(folder, target)
    tensors = read_tensors(target / "adapter_model.safetensors")
    write_tensors(target / "adapter_model.safetensors", tensors)
    write_json(target / "adapter_config.json", read_json(target / "adapter_config.json") | fields)
    return target


def test_vllm_34186_wrong_keys_and_every_other_misfit_are_errors(store, folders, tmp_path):
    """vllm-project/vllm #34186: keys with another prefix were ignored, and the base was served."""
    folder = tmp_path / "prefix"
    shutil.copytree(folders["qv"], folder)
    file = folder / "adapter_model.safetensors"
    tensors, metadata = read_tensors_and_metadata(file)
    renamed = {key.replace(".layers", ".language_model.layers"): t for key, t in tensors.items()}
    write_tensors(file, renamed, metadata)
    with pytest.raises(ValueError, match="q_proj is a target of its config, but has no tensors"):
        store.load("bad", folder)
    broken = {key: torch.full_like(t, torch.nan) for key, t in tensors.items()}
    write_tensors(file, broken, metadata)
    with pytest.raises(ValueError, match="holds values that are not finite"):
        store.load("bad", folder)
    with pytest.raises(ValueError, match="is missing|no such|does not exist|expected"):
        store.load("bad", tmp_path / "nowhere")
    assert store.names() == []
    for name in ("", "  ", None):
        with pytest.raises(ValueError, match="expected a name for the adapter"):
            store.load(name, folders["qv"])


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"peft_type": "VERA"}, "VERA"),
        ({"peft_type": "IA3"}, "IA3"),
        ({"peft_type": "PROMPT_TUNING"}, "PROMPT_TUNING"),
        ({"use_dora": True}, "DoRA"),
        ({"init_lora_weights": "pissa"}, "A and B of a changed base"),
    ],
)
def test_methods_that_do_more_than_add_are_refused_by_name(store, folders, tmp_path, fields, kind):
    folder = changed(folders["qv"], tmp_path / "other", **fields)
    with pytest.raises(ValueError, match=f"holds {kind}.*: a row adds B A to its weights"):
        store.load("other", folder)


@pytest.mark.parametrize(
    ("extra", "name"),
    [
        ({"modules_to_save": ["norm"]}, "modules_to_save"),
        ({"trainable_token_indices": [3, 5]}, "trainable_token_indices"),
    ],
)
def test_what_is_trained_besides_a_and_b_is_refused_by_name(store, tmp_path, extra, name):
    model = minilora.load_base()
    minilora.inject(model, minilora.LoraConfig(**extra))
    folder = minilora.save_adapter(model, tmp_path)
    with pytest.raises(ValueError, match=f"it has {name}: only A and B of Linears"):
        store.load("more", folder)
    assert store.names() == []


def test_vllm_10798_the_scale_is_that_of_rslora_and_of_every_module(store, tmp_path):
    """vllm-project/vllm #10798, predibase/lorax #700 ignored rsLoRA; sglang #7808 knew one rank."""
    config = {"use_rslora": True, "rank_pattern": {"v_proj": 9}, "alpha_pattern": {"q_proj": 5.0}}
    model = adapted(3, **config)
    store.load("rs", minilora.save_adapter(model, tmp_path / "rs"))
    [(factors, weight)] = store.hold("rs").parts
    assert weight == 1.0
    layers = dict(minilora.lora.lora_layers(model))
    assert factors.keys() == layers.keys()
    for path, layer in layers.items():
        torch.testing.assert_close(factors[path].A, layer.lora_A.detach(), rtol=0, atol=0)
        torch.testing.assert_close(factors[path].B, layer.scaling * layer.lora_B.detach().T)
    trained = [p for layer in layers.values() for p in (layer.lora_A, layer.lora_B)]
    assert store.cache.nbytes == sum(4 * p.numel() for p in trained)


def test_another_base_is_refused_unless_that_is_meant(folders, tmp_path):
    other = minilora.load_base()
    with torch.no_grad():
        other.model.norm.weight.add_(0.1)
    store = AdapterStore(other)
    with pytest.raises(ValueError, match="was made for a base with other values"):
        store.load("qv", folders["qv"])
    store.load("qv", folders["qv"], any_base=True)
    silent = changed(folders["qv"], tmp_path / "peft")  # PEFT's files do not say
    store.load("peft", silent)
    tall = minilora.Llama(minilora.LlamaConfig(vocab_size=9, hidden_size=8))
    with pytest.raises(ValueError, match="was made for a base of another architecture"):
        AdapterStore(tall).load("qv", folders["qv"], any_base=True)


def test_a_kind_is_checked_once_and_its_values_and_base_each_time(store, tmp_path, monkeypatch):
    checked, check = [], store.reader.check_kind
    monkeypatch.setattr(
        store.reader,
        "check_kind",
        lambda files, any_base: checked.append(files) or check(files, any_base),
    )
    for seed in range(3):
        store.load(f"user-{seed}", make_adapter(tmp_path / str(seed), seed=seed))
    assert len(checked) == 1
    file = tmp_path / "1" / "adapter_model.safetensors"
    tensors, metadata = read_tensors_and_metadata(file)
    broken = {key: torch.full_like(t, torch.inf) for key, t in tensors.items()}
    write_tensors(file, broken, metadata)
    with pytest.raises(ValueError, match="holds values that are not finite"):
        store.load("broken", tmp_path / "1")
    base = json.loads(metadata["minilora_base"]) | {"tensors": "0"}
    other = metadata | {"minilora_base": json.dumps(base)}
    write_tensors(file, tensors, other)
    for any_base in (False, True, False):  # what one call means to take, the next does not
        if any_base:
            store.load("other", tmp_path / "1", any_base=True)
        else:
            with pytest.raises(ValueError, match="was made for a base with other values"):
                store.load("other", tmp_path / "1")
    cut = {key: t[:1] if "lora_A" in key else t[:, :1] for key, t in tensors.items()}
    write_tensors(file, cut, metadata)
    with pytest.raises(ValueError, match="expected"):
        store.load("cut", tmp_path / "1")


def test_tensorrt_13391_a_pickle_is_never_opened(store, tmp_path, folders):
    """NVIDIA/TensorRT-LLM #13391: adapters were read with torch.load, which runs their code."""
    folder = tmp_path / "pickled"
    shutil.copytree(folders["qv"], folder)
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(ValueError, match="adapter_model.safetensors does not exist"):
        store.load("bad", folder)


def test_a_tied_head_is_refused(tmp_path):
    """An adapter there would be passed by in one of its two uses."""
    base = minilora.load_base()
    assert base.lm_head.weight is base.model.embed_tokens.weight
    folder = make_adapter(tmp_path / "head", seed=0)
    path = folder / "adapter_model.safetensors"
    tensors, _ = read_tensors_and_metadata(path)
    extra = {
        "base_model.model.lm_head.lora_A.weight": torch.zeros(4, 128),
        "base_model.model.lm_head.lora_B.weight": torch.zeros(base.config.vocab_size, 4),
    }
    config = read_json(folder / "adapter_config.json")
    config["target_modules"] = [*config["target_modules"], "lm_head"]
    write_json(folder / "adapter_config.json", config)
    metadata = {"minilora_config": json.dumps(config)}
    write_tensors(path, tensors | extra, metadata)
    with pytest.raises(ValueError, match="lm_head, whose weight is tied to"):
        AdapterStore(base).load("head", folder)
