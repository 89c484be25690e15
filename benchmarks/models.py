"""The contestants of a training step: one Llama, adapted by us and by the peers, with the same A and B in all of them.

    full         everything trains: the yardstick
    floor        everything frozen, gradients flowing through: what no adapter method can go below
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
from minilora.lora.injection import lora_layers

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
FULL, FLOOR, LORA, QLORA = "full", "floor", "LoRA, minilora", "QLoRA, minilora"
PEFT, PEFT4 = "LoRA, PEFT", "QLoRA, PEFT + bitsandbytes"
METHODS = (FULL, FLOOR, LORA, PEFT, QLORA, PEFT4)
PEERS = {PEFT: LORA, PEFT4: QLORA}


def llama(width: int, layers: int, device: str = "cpu") -> nn.Module:
    """A random Llama with heads of 64 and our base's vocabulary."""
    torch.manual_seed(0)
    return minilora.Llama(minilora.LlamaConfig(1536, width, 4 * width, layers, width // 64)).to(
        device
    )


def build(method: str, base: nn.Module, r: int = 8) -> nn.Module:
    """Turn ``base``, in place, into what the method trains."""
    if method in (QLORA, PEFT4):
        base = minilora.quantize_base(base) if method == QLORA else quantized_by_bitsandbytes(base)
    if method in (LORA, QLORA):
        minilora.inject(base, minilora.LoraConfig(r=r, lora_alpha=2 * r, target_modules=TARGETS))
    if method in (PEFT, PEFT4):
        base = peft.inject_adapter_in_model(
            peft.LoraConfig(r=r, lora_alpha=2 * r, target_modules=TARGETS), base
        )
        for name, parameter in base.named_parameters():
            parameter.requires_grad_("lora_" in name)
    return (frozen(base) if method == FLOOR else base).train()


def contestants(base: nn.Module, ids: Tensor, r: int = 8) -> dict[str, nn.Module]:
    """Each method's model, made from copies of ``base``; gradients on ``ids`` (rows, time + 1) agree with the peer's."""
    methods = [method for method in METHODS if method != PEFT4 or can_bitsandbytes(base)]
    found = {method: build(method, copy.deepcopy(base), r) for method in methods}
    for name, layer in lora_layers(found[LORA]):
        nn.init.normal_(layer.lora_B, std=0.01)
        for factor in ("lora_A", "lora_B"):
            value = getattr(layer, factor).data
            getattr(found[QLORA].get_submodule(name), factor).data = value.clone()
            for peer in found.keys() & PEERS.keys():
                getattr(found[peer].get_submodule(name), factor)[
                    "default"
                ].weight.data = value.clone()
    for peer in found.keys() & PEERS.keys():
        compare_gradients(found[PEERS[peer]], found[peer], ids)
    return found


def frozen(model: nn.Module) -> nn.Module:
    """Nothing trains, but gradients flow from the head to the embedding, as they must under an adapter in the first layer."""
    minilora.enable_input_grads(model.requires_grad_(False))
    return model


def can_bitsandbytes(model: nn.Module) -> bool:
    """Its AVX-512 kernel, 0.50.2, reads rows that are no multiple of a block wrongly (tests/nf4/test_tensor.py): our base's are not."""
    first = next(model.parameters())
    return first.is_cuda or all(
        m.in_features % 64 == 0 for m in model.modules() if isinstance(m, nn.Linear)
    )


def quantized_by_bitsandbytes(model: nn.Module) -> nn.Module:
    """Its Linears replaced by Linear4bit, the head aside."""
    for name, linear in [
        (n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear) and n != "lm_head"
    ]:
        packed = Linear4bit(
            linear.in_features,
            linear.out_features,
            bias=False,
            compute_dtype=torch.float32,
            quant_type="nf4",
        )
        packed.weight = Params4bit(
            linear.weight.data, requires_grad=False, quant_type="nf4", compress_statistics=True
        )
        model.set_submodule(name, packed.to(linear.weight.device))
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
            wanted = getattr(theirs.get_submodule(name), factor)["default"].weight.grad
            torch.testing.assert_close(getattr(layer, factor).grad, wanted, rtol=1e-2, atol=1e-6)
    for model in (ours, theirs):
        model.zero_grad()


def step_of(model: nn.Module, ids: Tensor) -> tuple[Callable[[], Any], Any]:
    """One training step, forward, backward and AdamW, and the optimizer (None where nothing trains)."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4) if trained else None

    def step() -> None:
        loss_of(model, ids).backward()
        if optimizer is not None:
            optimizer.step()
            optimizer.zero_grad()

    return step, optimizer
