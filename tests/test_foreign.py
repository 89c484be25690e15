"""transformers' models, small and random, compute the same with our adapters and with PEFT's."""

import copy
import re
import warnings
from functools import partial

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
from minilora.lora.injection import trainable_parameters
from minilora.lora.layer import lora_layers
from minilora.model.transformer import Llama, LlamaConfig

from .lora.test_injection import fill
from .tolerance import Wider, assert_as_close, exactly, in_float64

TOKENS = {"vocab_size": 40, "pad_token_id": 0}
WIDTHS = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
BERT = {**TOKENS, **WIDTHS, "num_attention_heads": 4}
LLAMA = {**BERT, "num_key_value_heads": 2}
MISTRAL = {**LLAMA, "sliding_window": 4}
OURS = {"vocab_size": 40, **WIDTHS}
ENDS = {"bos_token_id": 0, "eos_token_id": 1}
GPT2 = {"vocab_size": 40, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 32, **ENDS}
OPT = {
    **TOKENS,
    **ENDS,
    "hidden_size": 16,
    "word_embed_proj_dim": 16,
    "ffn_dim": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 32,
}
T5 = {
    **TOKENS,
    "d_model": 16,
    "d_kv": 4,
    "d_ff": 24,
    "num_layers": 2,
    "num_heads": 4,
    "decoder_start_token_id": 0,
}
VIT = {**WIDTHS, "num_attention_heads": 4, "image_size": 8, "patch_size": 4}
IDS = torch.arange(18).reshape(2, 9) + 1
TEXT, BOTH = {"input_ids": IDS}, {"input_ids": IDS, "decoder_input_ids": IDS[:, :5]}
PICTURE = {"pixel_values": torch.linspace(-1, 1, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8)}
QKVO_AND_MLP = r".*layers\.\d+\.(self_attn\.[qkvo]|mlp\.\w+)_proj"  # a regular expression
DENSE = ["query", "value", "attention.output.dense"]
# name: (what its classes' names begin with, what the model is for, its fields, input, targets)
FAMILIES = {
    "Llama": ("Llama", "ForCausalLM", LLAMA, TEXT, ["q_proj", "v_proj"]),
    "Qwen2": ("Qwen2", "ForCausalLM", LLAMA, TEXT, QKVO_AND_MLP),
    "Qwen3": ("Qwen3", "ForCausalLM", {**LLAMA, "head_dim": 8}, TEXT, "all-linear"),
    "Mistral": ("Mistral", "ForCausalLM", MISTRAL, TEXT, ["q_proj", "down_proj"]),
    "GPT-2": ("GPT2", "LMHeadModel", GPT2, TEXT, ["c_attn", "c_proj"]),
    "GPT-2, all": ("GPT2", "LMHeadModel", GPT2, TEXT, "all-linear"),
    "OPT": ("OPT", "ForCausalLM", OPT, TEXT, ["q_proj", "v_proj", "fc1"]),
    "BERT": ("Bert", "ForSequenceClassification", BERT, TEXT, DENSE),
    "T5": ("T5", "ForConditionalGeneration", T5, BOTH, ["q", "v", "wi"]),
    "T5, all": ("T5", "ForConditionalGeneration", T5, BOTH, "all-linear"),
    "ViT": ("ViT", "ForImageClassification", VIT, PICTURE, ["q_proj", "v_proj", "fc1"]),
}
SCALES = [{"r": 3, "lora_alpha": 8}, {"r": 2, "lora_alpha": 5, "use_rslora": True}]


def make(family):
    """The model, its input and its targets; the same weights every time."""
    name, purpose, fields, inputs, targets = FAMILIES[family]
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = getattr(transformers, f"{name}Config")(**fields)
        return getattr(transformers, name + purpose)(config).eval(), inputs, targets


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
    theirs = [name for name, module in peft.named_modules() if hasattr(module, "lora_A")]
    ours = {f"base_model.model.{name}" for name, _ in lora_layers(model)}
    assert ours == set(theirs)


def check_all_close(model, peft, inputs):
    """Ours, adapted, merged and unloaded, is as near to float64 as PEFT's, and the other way."""
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
    """Without it the reentrant form trains nothing (huggingface/peft #137).

    With it the gradients are those of a model without checkpointing.
    """

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
            floats = {name: x.double() for name, x in inputs.items() if x.is_floating_point()}
            inputs = {**inputs, **floats}
        if checkpointing:
            reentrant = {"use_reentrant": True}
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=reentrant)
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

    plain, enabled = gradients(False, False), gradients(True, True)
    with Wider():
        truth = gradients(False, False, double=True)
    for name, pair in plain.items():
        for mine, theirs, true in zip(enabled[name], pair, truth[name], strict=True):
            assert mine is not None, name
            assert_as_close(mine, theirs, true)
    not_enabled = [grad for pair in gradients(True, False).values() for grad in pair]
    assert any(grad is None for grad in not_enabled), "else there would be nothing to enable"


def test_our_own_blocks_can_be_checkpointed_too():
    from torch.utils.checkpoint import checkpoint

    torch.manual_seed(0)
    model = Llama(LlamaConfig(**OURS))
    inject(model, LoraConfig(r=2, target_modules="all-linear"))
    fill(model)
    for layer in model.model.layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=True)
    enable_input_grads(model)
    model(IDS).square().sum().backward()
    for name, layer in lora_layers(model):
        assert layer.lora_B.grad is not None, name
        assert layer.lora_B.grad.any(), name


def test_a_model_without_embeddings_says_so():
    with pytest.raises(ValueError, match="no embedding whose output could carry a gradient"):
        enable_input_grads(nn.Sequential(nn.Linear(2, 2)))


def test_a_merged_foreign_llama_and_its_adapter_meet_ours(tmp_path):
    """A Llama of transformers that PEFT adapted: load_base and load_adapter give the same."""
    model, inputs, _ = make("Llama")
    config = Theirs(**SCALES[0], target_modules=["k_proj", "up_proj"])
    peft = get_peft_model(copy.deepcopy(model), config).eval()
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
    ours = Llama(LlamaConfig(**OURS, tie_word_embeddings=tied))
    inject(ours, LoraConfig(**SCALES[0], target_modules="all-linear", rank_pattern={"k_proj": 1}))
    fill(ours)
    adapted, truth = ours(IDS), exactly(ours, IDS)
    save_model(merge_and_unload(ours), tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert_as_close(ours(IDS), theirs(IDS).logits, truth)
    assert_as_close(ours(IDS), theirs(IDS).logits, exactly(theirs, IDS))
    assert_as_close(theirs(IDS).logits, [ours(IDS), adapted], truth)
