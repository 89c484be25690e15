"""transformers' models, small and random: what was injected here or in PEFT computes the same, file for file."""

import copy
import re
import warnings

import pytest
import torch
import transformers
from peft import LoraConfig as Theirs
from peft import PeftModel, get_peft_model
from torch import nn

from minilora import (
    LoraConfig,
    enable_input_grads,
    inject,
    load_adapter,
    load_base,
    merge,
    merge_and_unload,
    save_adapter,
    save_model,
)
from minilora.lora.injection import lora_layers, trainable_parameters
from minilora.model.transformer import Llama, LlamaConfig

from .lora.test_injection import fill
from .tolerance import Wider, assert_as_close, exactly, in_float64

LLAMA = {
    **{"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0},
}
GPT2 = {
    "vocab_size": 40,
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 32,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
OPT = {
    **{
        "vocab_size": 40,
        "hidden_size": 16,
        "ffn_dim": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "pad_token_id": 0,
    },
    **{
        "max_position_embeddings": 32,
        "word_embed_proj_dim": 16,
        "bos_token_id": 0,
        "eos_token_id": 1,
    },
}
BERT = {k: v for k, v in LLAMA.items() if k != "num_key_value_heads"}
T5 = {
    "vocab_size": 40,
    "d_model": 16,
    "d_kv": 4,
    "d_ff": 24,
    "num_layers": 2,
    "num_heads": 4,
    "decoder_start_token_id": 0,
}
VIT = {
    **{k: v for k, v in BERT.items() if k not in ("vocab_size", "pad_token_id")},
    "image_size": 8,
    "patch_size": 4,
}
IDS = torch.arange(18).reshape(2, 9) + 1
TEXT, BOTH = {"input_ids": IDS}, {"input_ids": IDS, "decoder_input_ids": IDS[:, :5]}
PICTURE = {"pixel_values": torch.linspace(-1, 1, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8)}
# name: (model class, config class, its fields, input, targets, and the same as one regular expression for something else)
FAMILIES = {
    "Llama": ("LlamaForCausalLM", "LlamaConfig", LLAMA, TEXT, ["q_proj", "v_proj"]),
    "Qwen2": (
        "Qwen2ForCausalLM",
        "Qwen2Config",
        LLAMA,
        TEXT,
        r".*layers\.\d+\.(self_attn\.[qkvo]|mlp\.\w+)_proj",
    ),
    "Qwen3": ("Qwen3ForCausalLM", "Qwen3Config", {**LLAMA, "head_dim": 8}, TEXT, "all-linear"),
    "Mistral": (
        "MistralForCausalLM",
        "MistralConfig",
        {**LLAMA, "sliding_window": 4},
        TEXT,
        ["q_proj", "down_proj"],
    ),
    "GPT-2": ("GPT2LMHeadModel", "GPT2Config", GPT2, TEXT, ["c_attn", "c_proj"]),
    "GPT-2, all": ("GPT2LMHeadModel", "GPT2Config", GPT2, TEXT, "all-linear"),
    "OPT": ("OPTForCausalLM", "OPTConfig", OPT, TEXT, ["q_proj", "v_proj", "fc1"]),
    "BERT": (
        "BertForSequenceClassification",
        "BertConfig",
        BERT,
        TEXT,
        ["query", "value", "attention.output.dense"],
    ),
    "T5": ("T5ForConditionalGeneration", "T5Config", T5, BOTH, ["q", "v", "wi"]),
    "T5, all": ("T5ForConditionalGeneration", "T5Config", T5, BOTH, "all-linear"),
    "ViT": ("ViTForImageClassification", "ViTConfig", VIT, PICTURE, ["q_proj", "v_proj", "fc1"]),
}
SCALES = [{"r": 3, "lora_alpha": 8}, {"r": 2, "lora_alpha": 5, "use_rslora": True}]


def make(family):
    """The model, its input and its targets; the same weights every time."""
    model_class, config_class, fields, inputs, targets = FAMILIES[family]
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = getattr(transformers, config_class)(**fields)
        return getattr(transformers, model_class)(config).eval(), inputs, targets


@pytest.mark.parametrize("family", FAMILIES)
def test_injected_it_computes_what_it_did_with_as_many_parameters_as_in_peft(family):
    model, inputs, targets = make(family)
    # T5's attention takes another kernel where nothing trains
    before = model.requires_grad_(False)(**inputs).logits
    model.requires_grad_(True)
    config = {"r": 3, "lora_alpha": 8, "target_modules": targets}
    peft = get_peft_model(make(family)[0], Theirs(**config))
    inject(model, LoraConfig(**config))
    assert torch.equal(model(**inputs).logits, before)
    assert trainable_parameters(model) == peft.get_nb_trainable_parameters()
    there = {
        n.removeprefix("base_model.model.") for n, m in peft.named_modules() if hasattr(m, "lora_A")
    }
    assert {name for name, _ in lora_layers(model)} == there


def check_all_close(model, peft, inputs):
    """Ours, adapted and merged and unloaded, is as near to PEFT's in float64 as PEFT's own is; and the other way round."""
    truth = exactly(peft, **inputs)
    ours, theirs = [model(**inputs).logits], [peft(**inputs).logits]
    ours += [merge(model)(**inputs).logits, merge_and_unload(model)(**inputs).logits]
    theirs += 2 * [peft.merge_and_unload()(**inputs).logits]
    for mine, peers in zip(ours, theirs, strict=True):
        assert_as_close(mine, peers, truth)
        assert_as_close(peers, mine, truth)


@pytest.mark.parametrize("scale", SCALES, ids=["alpha 8, r 3", "rslora"])
@pytest.mark.parametrize("family", FAMILIES)
def test_ours_opens_in_peft_with_equal_logits_merged_too(family, scale, tmp_path):
    model, inputs, targets = make(family)
    inject(model, LoraConfig(**scale, target_modules=targets))
    fill(model)
    save_adapter(model, tmp_path)
    peft = PeftModel.from_pretrained(make(family)[0], tmp_path).eval()
    check_all_close(model, peft, inputs)


@pytest.mark.parametrize("scale", SCALES, ids=["alpha 8, r 3", "rslora"])
@pytest.mark.parametrize("family", FAMILIES)
def test_pefts_opens_here_with_equal_logits_merged_too(family, scale, tmp_path):
    model, inputs, targets = make(family)
    peft = get_peft_model(make(family)[0], Theirs(**scale, target_modules=targets)).eval()
    for name, p in peft.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(p)
    peft.save_pretrained(tmp_path)
    load_adapter(model, tmp_path)
    check_all_close(model, peft, inputs)


CHECKPOINTED = [family for family in FAMILIES if "," not in family]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", CHECKPOINTED)
def test_with_enable_input_grads_checkpointing_gives_every_b_its_gradient(family):
    """Without it the reentrant form trains nothing (huggingface/peft #137); with it the gradients are those without."""

    def gradients(checkpointing, enabled, double=False):
        model, inputs, targets = make(family)
        torch.manual_seed(1)
        inject(model.train(), LoraConfig(r=2, target_modules=targets))
        fill(model)
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        if double:
            model = in_float64(model)
            inputs = {
                name: x.double() if x.is_floating_point() else x for name, x in inputs.items()
            }
        if checkpointing:
            model.gradient_checkpointing_enable(
                gradient_checkpointing_kwargs={"use_reentrant": True}
            )
            if model.main_input_name == "input_ids":
                # transformers 5 enables them by itself, for text; older ones do not
                model.disable_input_require_grads()
        handles = enable_input_grads(model) if enabled else []
        loss = model(**inputs).logits.square().sum()
        if loss.requires_grad:
            loss.backward()
        for handle in handles:
            handle.remove()
        return {name: (layer.lora_A.grad, layer.lora_B.grad) for name, layer in lora_layers(model)}

    found, wanted, without = gradients(True, True), gradients(False, False), gradients(True, False)
    with Wider():
        truth = gradients(False, False, double=True)
    for name, pair in wanted.items():
        for mine, theirs, true in zip(found[name], pair, truth[name], strict=True):
            assert mine is not None, name
            assert_as_close(mine, theirs, true)
    assert any(grad is None for pair in without.values() for grad in pair), (
        "else there would be nothing to enable"
    )


def test_our_own_blocks_can_be_checkpointed_too():
    from torch.utils.checkpoint import checkpoint

    torch.manual_seed(0)
    model = Llama(
        LlamaConfig(vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2)
    )
    inject(model, LoraConfig(r=2, target_modules="all-linear"))
    fill(model)
    for layer in model.model.layers:
        layer.forward = lambda *a, forward=layer.forward: checkpoint(
            forward, *a, use_reentrant=True
        )
    enable_input_grads(model)
    model(IDS).square().sum().backward()
    assert all(
        la.lora_B.grad is not None and la.lora_B.grad.abs().sum() > 0
        for _, la in lora_layers(model)
    )


def test_a_model_without_embeddings_says_so():
    with pytest.raises(ValueError, match="no embedding whose output could carry a gradient"):
        enable_input_grads(nn.Sequential(nn.Linear(2, 2)))


def test_a_merged_foreign_llama_and_its_adapter_meet_ours(tmp_path):
    """transformers' Llama saved by transformers, adapted there by PEFT: our load_base and load_adapter give the same."""
    model, inputs, _ = make("Llama")
    peft = get_peft_model(
        copy.deepcopy(model), Theirs(**SCALES[0], target_modules=["k_proj", "up_proj"])
    ).eval()
    for name, p in peft.named_parameters():
        if re.search("lora_B", name):
            nn.init.normal_(p)
    model.save_pretrained(tmp_path / "base")
    peft.save_pretrained(tmp_path / "adapter")
    ours = load_adapter(load_base(tmp_path / "base"), tmp_path / "adapter")
    assert_as_close(ours(IDS), peft(**inputs).logits, exactly(peft, **inputs))


@pytest.mark.parametrize("tied", [True, False])
def test_a_merged_model_saved_here_opens_in_transformers_with_equal_logits(tied, tmp_path):
    torch.manual_seed(0)
    ours = Llama(
        LlamaConfig(
            vocab_size=40,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            tie_word_embeddings=tied,
        )
    )
    inject(ours, LoraConfig(**SCALES[0], target_modules="all-linear", rank_pattern={"k_proj": 1}))
    fill(ours)
    adapted, truth = ours(IDS), exactly(ours, IDS)
    save_model(merge_and_unload(ours), tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert_as_close(ours(IDS), theirs(IDS).logits, truth)
    assert_as_close(ours(IDS), theirs(IDS).logits, exactly(theirs, IDS))
    assert_as_close(theirs(IDS).logits, [ours(IDS), adapted], truth)
