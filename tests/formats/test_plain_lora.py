"""An adapter of one rank and one alpha computes what the one with patterns does, in PEFT too."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig as Theirs
from peft import PeftModel, get_peft_model
from torch import nn

from minilora import LoraConfig, inject, load_adapter, save_adapter
from minilora.formats.plain_lora import plain_lora
from minilora.lora.layer import LoRALayer

from ..lora.test_injection import fill
from ..tolerance import assert_as_close, exactly
from .test_save_and_load import IDS, pair

MIXED = {"rank_pattern": {"k_proj": 5, "layers.1.mlp.up_proj": 1}, "alpha_pattern": {"v_proj": 3}}
CONFIGS = {
    "one rank": {"r": 3, "lora_alpha": 7},
    "patterns": {"r": 4, "lora_alpha": 6, **MIXED},
    "rslora": {"r": 3, "lora_alpha": 10, "use_rslora": True},
    "rslora, patterns": {"r": 3, "lora_alpha": 10, "use_rslora": True, **MIXED},
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_plain_opens_in_peft_with_the_logits_of_the_one_with_patterns(tmp_path, config):
    ours, theirs = pair()
    inject(ours, LoraConfig(**config, target_modules="all-linear"))
    fill(ours)
    save_adapter(ours, tmp_path, plain=True)
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    assert not saved["rank_pattern"]
    assert not saved["alpha_pattern"]
    assert saved["use_rslora"] is False
    assert saved["r"] == max(config["r"], *config.get("rank_pattern", {"": 0}).values())
    peft = PeftModel.from_pretrained(theirs, tmp_path).eval()
    assert_as_close(peft(IDS).logits, ours(IDS), exactly(ours, IDS))


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_pefts_own_adapter_becomes_plain_and_computes_the_same_there(tmp_path, config):
    ours, theirs = pair()
    targets = ["q_proj", "k_proj", "v_proj", "up_proj"]
    peft = get_peft_model(theirs, Theirs(**config, target_modules=targets)).eval()
    for name, p in peft.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(p)
    peft.save_pretrained(tmp_path / "peft")
    load_adapter(ours, tmp_path / "peft")
    save_adapter(ours, tmp_path / "plain", plain=True)
    again = PeftModel.from_pretrained(pair()[1], tmp_path / "plain").eval()
    assert_as_close(again(IDS).logits, peft(IDS).logits, exactly(peft, IDS))


@given(
    st.lists(
        st.tuples(st.integers(1, 9), st.floats(0.01, 100), st.booleans()), min_size=1, max_size=5
    )
)
def test_every_delta_weight_is_kept_and_the_commonest_to_the_bit(sizes):
    torch.manual_seed(0)
    layers = [
        (str(n), LoRALayer(nn.Linear(4, 3), r, lora_alpha, use_rslora=rslora))
        for n, (r, lora_alpha, rslora) in enumerate(sizes)
    ]
    for _, layer in layers:
        nn.init.normal_(layer.lora_B)
    rank, lora_alpha, factors = plain_lora(layers)
    for name, layer in layers:
        A, B = factors[name]
        assert A.shape == (rank, 4)
        assert B.shape == (3, rank)
        delta = lora_alpha / rank * (B.double() @ A.double())
        truth = layer.scaling * (layer.lora_B.detach().double() @ layer.lora_A.detach().double())
        torch.testing.assert_close(delta, truth, rtol=1e-6, atol=1e-6 * float(truth.abs().max()))
        if layer.scaling == lora_alpha / rank:
            assert torch.equal(B[:, : layer.r], layer.lora_B)
    assert all(not any(p.requires_grad for p in pair) for pair in factors.values())
