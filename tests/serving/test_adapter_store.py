"""Adapters by name: strict, known by content, in memory or on disk."""

import json
import shutil

import pytest
import torch

import minilora
from minilora.files import read_json, write_json
from minilora.hub.adapter import read_adapter
from minilora.serving.adapter_store import AdapterStore

from .adapters import adapted, make_adapter

SIZE = 6 * 4 * (128 + 128 + 128 + 64) * 4  # bytes of r=4 on q and v of six layers


@pytest.fixture
def store():
    return AdapterStore(minilora.load_base())


def changed(folder, target, **fields):
    """A copy of an adapter with other fields in its config, and no copy of it in the tensors."""
    shutil.copytree(folder, target)
    tensors = minilora.files.read_tensors(target / "adapter_model.safetensors")
    minilora.files.write_tensors(target / "adapter_model.safetensors", tensors)
    write_json(target / "adapter_config.json", read_json(target / "adapter_config.json") | fields)
    return target


def test_names_come_and_go_and_the_content_is_the_hubs(store, folders):
    for name, folder in folders.items():
        assert store.load(name, folder) == read_adapter(folder).content_id
    assert store.names() == ["mlp", "qv", "rs"]
    assert store.load("qv", folders["qv"]) == store.known["qv"].content  # again: no change
    store.unload("mlp")
    assert store.names() == ["qv", "rs"]
    assert len(store.cache.residents) == 2


def test_tgi_2505_an_unknown_name_is_an_error_with_the_nearest_names(store, folders):
    """huggingface/text-generation-inference #2505, peft #2090: the base answered instead."""
    with pytest.raises(ValueError, match="there is no adapter 'qv'; known are: none; bank.load"):
        store.hold("qv")
    store.load("naval", folders["qv"])
    with pytest.raises(ValueError, match="there is no adapter 'navel'; did you mean 'naval'"):
        store.hold("navel")
    with pytest.raises(ValueError, match="there is no adapter 'zzz'; known are: naval"):
        store.unload("zzz")


def test_vllm_42125_other_weights_under_an_old_name_are_another_content(store, folders, tmp_path):
    """vllm-project/vllm #42125, #30931, sgl-project/sglang #8263: a name stood for the weights."""
    folder = make_adapter(tmp_path / "a", seed=7)
    old = store.load("naval", folder)
    held = store.hold("naval")
    with pytest.raises(ValueError, match="'naval' is the name of other weights"):
        store.load("naval", folders["qv"])
    new = store.load("naval", folders["qv"], replace=True)
    assert new != old
    again = store.hold("naval")
    assert (held.key, again.key) == (((old, 1.0),), ((new, 1.0),))
    path = next(iter(held.parts[0][0]))
    assert not torch.equal(held.parts[0][0][path].A, again.parts[0][0][path].A)
    # the same bytes under two names are one content, in memory once
    store.load("copy", folders["qv"])
    assert store.hold("copy").key == again.key


def test_vllm_34186_wrong_keys_and_every_other_misfit_are_errors(store, folders, tmp_path):
    """vllm-project/vllm #34186: keys with another prefix were ignored, and the base was served."""
    folder = tmp_path / "prefix"
    shutil.copytree(folders["qv"], folder)
    file = folder / "adapter_model.safetensors"
    tensors, metadata = minilora.files.read_tensors_and_metadata(file)
    renamed = {key.replace(".layers", ".language_model.layers"): t for key, t in tensors.items()}
    minilora.files.write_tensors(file, renamed, metadata)
    with pytest.raises(ValueError, match="q_proj is a target of its config, but has no tensors"):
        store.load("bad", folder)
    broken = {key: torch.full_like(t, torch.nan) for key, t in tensors.items()}
    minilora.files.write_tensors(file, broken, metadata)
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
    ],
)
def test_methods_that_do_more_than_add_are_refused_by_name(store, folders, tmp_path, fields, kind):
    folder = changed(folders["qv"], tmp_path / "other", **fields)
    with pytest.raises(ValueError, match=f"holds {kind}: a row adds B A to its weights"):
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


def test_sglang_7808_a_rank_above_the_banks_is_refused_whatever_came_first(folders):
    store = AdapterStore(minilora.load_base(), max_rank=4)
    store.load("small", folders["rs"])
    with pytest.raises(ValueError, match=r"mlp: model.layers.\S+ has rank 8, the bank max_rank=4"):
        store.load("mlp", folders["mlp"])
    store.load("qv", folders["qv"])
    assert store.names() == ["qv", "small"]
    with pytest.raises(ValueError, match="qv, small: ranks of 6 together, the bank has max"):
        store.hold([("qv", 1.0), ("small", 0.5)])


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


def test_llama_cpp_19153_a_hundred_adapters_take_the_memory_that_was_given(tmp_path, folders):
    """ggml-org/llama.cpp #19153: memory grew with every adapter."""
    store = AdapterStore(minilora.load_base(), memory=3 * SIZE)
    folder = tmp_path / "one"
    for number in range(8):
        store.load(f"user-{number}", make_adapter(folder / str(number), seed=number))
        assert store.cache.nbytes <= 3 * SIZE
    assert store.cache.nbytes == 3 * SIZE
    assert len(store.names()) == 8
    before = store.known["user-0"].content
    assert before not in store.cache
    assert store.hold("user-0").key == ((before, 1.0),)  # read again


def test_an_adapter_that_is_gone_or_changed_on_disk_is_an_error_for_who_needs_it(tmp_path):
    store = AdapterStore(minilora.load_base(), memory=SIZE)
    one, two = (make_adapter(tmp_path / str(seed), seed=seed) for seed in range(2))
    store.load("one", one)
    held = store.hold("one")
    shutil.rmtree(one)
    assert store.hold("one").key == held.key  # in memory: nothing is read
    store.release(held)
    store.release(held)
    store.load("two", two)
    with pytest.raises(ValueError, match="adapter_model.safetensors does not exist"):
        store.fetch(store.check("one")).result()
    make_adapter(one, seed=5)
    with pytest.raises(ValueError, match="one: the files in .* are no longer those that were load"):
        store.hold("one")
    assert store.hold("two").parts
    store.load("one", one, replace=True)  # two is pinned, so one is not in memory yet
    with pytest.raises(ValueError, match="has no room"):
        store.hold("one")
    assert store.names() == ["one", "two"]
    assert not store.cache.readings


def test_tensorrt_13391_a_pickle_is_never_opened(store, tmp_path, folders):
    """NVIDIA/TensorRT-LLM #13391: adapters were read with torch.load, which runs their code."""
    folder = tmp_path / "pickled"
    shutil.copytree(folders["qv"], folder)
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(ValueError, match="adapter_model.safetensors does not exist"):
        store.load("bad", folder)


def test_bad_banks_and_choices_are_refused(folders):
    with pytest.raises(ValueError, match="expected a base without adapters, got one at model.lay"):
        AdapterStore(adapted(0))
    for memory in (0, -5):
        with pytest.raises(ValueError, match=f"memory must be a positive number .* got {memory}"):
            AdapterStore(minilora.load_base(), memory=memory)
    with pytest.raises(ValueError, match="r must be"):
        AdapterStore(minilora.load_base(), max_rank=0)
    store = AdapterStore(minilora.load_base())
    store.load("qv", folders["qv"])
    for weight in (float("nan"), "1", None):
        with pytest.raises(ValueError, match="qv: expected a finite weight"):
            store.hold([("qv", weight)])
    with pytest.raises(ValueError, match="expected an adapter and its weight, got 'qv'"):
        store.hold(["qv"])
    assert not store.cache.pins


def test_a_tied_head_is_refused(tmp_path):
    """An adapter there would be passed by in one of its two uses."""
    base = minilora.load_base()
    assert base.lm_head.weight is base.model.embed_tokens.weight
    folder = make_adapter(tmp_path / "head", seed=0)
    path = folder / "adapter_model.safetensors"
    tensors, _ = minilora.files.read_tensors_and_metadata(path)
    extra = {
        "base_model.model.lm_head.lora_A.weight": torch.zeros(4, 128),
        "base_model.model.lm_head.lora_B.weight": torch.zeros(base.config.vocab_size, 4),
    }
    config = read_json(folder / "adapter_config.json")
    config["target_modules"] = [*config["target_modules"], "lm_head"]
    write_json(folder / "adapter_config.json", config)
    metadata = {"minilora_config": json.dumps(config)}
    minilora.files.write_tensors(path, tensors | extra, metadata)
    with pytest.raises(ValueError, match="lm_head, whose weight is tied to"):
        AdapterStore(base).load("head", folder)
