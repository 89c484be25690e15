"""The contestants of a training step: one Llama, adapted by us and the peers, with equal A and B.

    full         everything trains: the yardstick
    floor        everything frozen, gradients flowing through: the least that an adapter can cost
    LoRA, QLoRA  ours, PEFT's, and PEFT's on bitsandbytes' Linear4bit

Before a model is handed out, its gradients are compared with its peer's.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import peft
import torch
import torch.nn.functional as F
from bitsandbytes.nn import Linear4bit, Params4bit
from torch import Tensor, nn

import minilora
from minilora.lora.layer import lora_layers

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
FULL, FLOOR, LORA, QLORA = "full", "floor", "LoRA, minilora", "QLoRA, minilora"
PEFT, PEFT4 = "LoRA, PEFT", "QLoRA, PEFT + bitsandbytes"
METHODS = (FULL, FLOOR, LORA, PEFT, QLORA, PEFT4)
PEERS = {PEFT: LORA, PEFT4: QLORA}
NF4: dict[str, Any] = {"quant_type": "nf4", "compress_statistics": True}


def llama(width: int, layers: int, device: str = "cpu") -> nn.Module:
    """A random Llama with heads of 64 and our base's vocabulary."""
    torch.manual_seed(0)
    config = minilora.LlamaConfig(1536, width, 4 * width, layers, width // 64)
    return minilora.Llama(config).to(device)


def build(method: str, base: nn.Module, r: int = 8) -> nn.Module:
    """Turn ``base``, in place, into the model that the method trains."""
    if method in (QLORA, PEFT4):
        base = minilora.quantize_base(base) if method == QLORA else quantized_by_bitsandbytes(base)
    if method in (LORA, QLORA):
        minilora.inject(base, minilora.LoraConfig(r=r, lora_alpha=2 * r, target_modules=TARGETS))
    if method in (PEFT, PEFT4):
        config = peft.LoraConfig(r=r, lora_alpha=2 * r, target_modules=TARGETS)
        base = peft.inject_adapter_in_model(config, base)
        for name, parameter in base.named_parameters():
            parameter.requires_grad_("lora_" in name)
    return (frozen(base) if method == FLOOR else base).train()


def contestants(base: nn.Module, ids: Tensor, r: int = 8) -> dict[str, nn.Module]:
    """Each method's model, from copies of ``base``; gradients on ``ids`` agree with the peers'.

    ``ids`` is (rows, time + 1).
    """
    methods = [method for method in METHODS if method != PEFT4 or can_bitsandbytes(base)]
    by_method = {method: build(method, copy.deepcopy(base), r) for method in methods}
    peers = by_method.keys() & PEERS.keys()
    for name, layer in lora_layers(by_method[LORA]):
        nn.init.normal_(layer.lora_B, std=0.01)
        for factor in ("lora_A", "lora_B"):
            value = getattr(layer, factor).data
            getattr(by_method[QLORA].get_submodule(name), factor).data = value.clone()
            for peer in peers:
                theirs = getattr(by_method[peer].get_submodule(name), factor)["default"]
                theirs.weight.data = value.clone()
    for peer in peers:
        compare_gradients(by_method[PEERS[peer]], by_method[peer], ids)
    return by_method


def frozen(model: nn.Module) -> nn.Module:
    """Freeze all, but let gradients flow to the embedding, as the first layer's adapter needs."""
    minilora.enable_input_grads(model.requires_grad_(False))
    return model


def can_bitsandbytes(model: nn.Module) -> bool:
    """Whether bitsandbytes computes this model right: on a GPU, or with rows of whole blocks.

    The AVX-512 kernel of 0.50.2 misreads rows that are not a multiple of a block
    (tests/nf4/test_tensor.py), as our base's are not.
    """
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    on_gpu = next(model.parameters()).is_cuda
    return on_gpu or all(linear.in_features % 64 == 0 for linear in linears)


def quantized_by_bitsandbytes(model: nn.Module) -> nn.Module:
    """Its Linears replaced by Linear4bit, except the head."""
    linears = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear)]
    for name, linear in linears:
        if name == "lm_head":
            continue
        sizes, weight = (linear.in_features, linear.out_features), linear.weight
        packed = Linear4bit(*sizes, bias=False, compute_dtype=torch.float32, **NF4)
        packed.weight = Params4bit(weight.data, requires_grad=False, **NF4)
        model.set_submodule(name, packed.to(weight.device))
    return model


def loss_of(model: nn.Module, ids: Tensor) -> Tensor:
    """Cross-entropy of the next token."""
    return F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())


def compare_gradients(ours: nn.Module, theirs: nn.Module, ids: Tensor) -> None:
    """Raise unless both give every A and B the same gradient, within 1%."""
    for model in (ours, theirs):
        loss_of(model, ids).backward()
    for name, layer in lora_layers(ours):
        for factor in ("lora_A", "lora_B"):
            expected = getattr(theirs.get_submodule(name), factor)["default"].weight.grad
            torch.testing.assert_close(getattr(layer, factor).grad, expected, rtol=1e-2, atol=1e-6)
    for model in (ours, theirs):
        model.zero_grad()


def step_of(model: nn.Module, ids: Tensor) -> tuple[Callable[[], Any], Any]:
    """A training step (forward, backward, AdamW) and its optimizer, None where nothing trains."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True) if trained else None

    def step() -> None:
        loss_of(model, ids).backward()
        if optimizer is not None:
            optimizer.step()
            optimizer.zero_grad()

    return step, optimizer
