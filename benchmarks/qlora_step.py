"""What does a QLoRA step cost? Ours against PEFT on bitsandbytes' Linear4bit, and against our own LoRA, in one run.

    python benchmarks/qlora_step.py [--width 768] [--layers 6] [--batch 4] [--time 128] [--repeats 11] [--device cpu]

All three are the same Llama with the same A and B; the gradients of ours and PEFT's are compared before anything is timed.
A step is forward, backward and AdamW.
"""

from __future__ import annotations

import argparse
import copy
import statistics
from collections.abc import Callable
from typing import Any

import bitsandbytes
import peft
import torch
import torch.nn.functional as F
from bitsandbytes.nn import Linear4bit, Params4bit
from torch import nn

import minilora
from minilora.inject import lora_layers

try:
    from .common import machine, measure, ratios
except ImportError:  # run as a script
    from common import machine, measure, ratios  # type: ignore[no-redef]

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def peers_model(model: nn.Module) -> nn.Module:
    """The same model on bitsandbytes' Linear4bit, with PEFT's adapters."""
    for name, linear in [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear) and n != "lm_head"]:
        packed = Linear4bit(linear.in_features, linear.out_features, bias=False, compute_dtype=torch.float32, quant_type="nf4")
        packed.weight = Params4bit(linear.weight.data, requires_grad=False, quant_type="nf4", compress_statistics=True)
        model.set_submodule(name, packed.to(linear.weight.device))
    config = peft.LoraConfig(r=8, lora_alpha=16, target_modules=TARGETS)
    return peft.inject_adapter_in_model(config, model)


def step_of(model: nn.Module, ids: torch.Tensor) -> Callable[[], Any]:
    """One training step of what has requires_grad."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)

    def step() -> None:
        F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def contestants(options: argparse.Namespace) -> dict[str, Callable[[], Any]]:
    """Three models from one, their gradients compared."""
    torch.manual_seed(0)
    width = options.width
    config = minilora.LlamaConfig(1536, width, 4 * width, options.layers, width // 64)
    base = minilora.Llama(config).to(options.device)
    theirs = peers_model(copy.deepcopy(base))
    ours, plain = minilora.quantize_base(copy.deepcopy(base)), base
    for model in (ours, plain):
        minilora.inject(model, minilora.LoraConfig(r=8, lora_alpha=16, target_modules=TARGETS))
    for name, layer in lora_layers(ours):
        peer = theirs.get_submodule(name)
        nn.init.normal_(layer.lora_B, std=0.01)
        for factor in ("A", "B"):
            value = getattr(layer, f"lora_{factor}").data
            getattr(peer, f"lora_{factor}")["default"].weight.data = value.clone()
            getattr(plain.get_submodule(name), f"lora_{factor}").data = value.clone()
    for name, parameter in theirs.named_parameters():
        parameter.requires_grad_("lora_" in name)
    ids = torch.randint(0, 1536, (options.batch, options.time + 1), device=options.device)
    for model in (ours, theirs):
        F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten()).backward()
    for name, layer in lora_layers(ours):
        wanted = theirs.get_submodule(name).lora_A["default"].weight.grad
        torch.testing.assert_close(layer.lora_A.grad, wanted, rtol=1e-2, atol=1e-6)
    for model in (ours, theirs):
        model.zero_grad()
    return {
        "QLoRA, minilora": step_of(ours, ids),
        "QLoRA, PEFT + bitsandbytes": step_of(theirs, ids),
        "LoRA, minilora": step_of(plain, ids),
    }


def main() -> None:
    """Time the three in turns and print the two ratios."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name, default in (("width", 768), ("layers", 6), ("batch", 4), ("time", 128), ("repeats", 11)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(min(2, torch.get_num_threads()))
    print(machine(options.device, peft=peft, bitsandbytes=bitsandbytes))
    print(f"{options.layers} layers, d={options.width}, {options.batch} x {options.time} tokens, r=8 on all Linears, fp32")
    times = measure(contestants(options), options.repeats, 1, options.device)
    for name, seconds in times.items():
        print(f"  {name:<28}{statistics.median(seconds):7.3f} s a step")
    for other in ("QLoRA, PEFT + bitsandbytes", "LoRA, minilora"):
        low, middle, high = ratios(times["QLoRA, minilora"], times[other])
        print(f"ours / {other:<28}{middle:.2f} ({low:.2f} to {high:.2f})", flush=True)


if __name__ == "__main__":
    main()
