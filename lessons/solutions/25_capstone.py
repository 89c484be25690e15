"""Solutions of lesson 25: the pieces of eight lessons, and what joins them."""

import json

import torch
from safetensors.torch import save_file
from torch import nn

from minilora.learn.pieces import solution_of
from minilora.level0 import nf4_levels

init_factors, lora_gradients = solution_of("init_factors"), solution_of("lora_gradients")
inject_by_name, train_steps = solution_of("inject_by_name"), solution_of("train_steps")
pack_nibbles, unpack_nibbles = solution_of("pack_nibbles"), solution_of("unpack_nibbles")
quantize_scales, lean_product = solution_of("quantize_scales"), solution_of("lean_product")
merge_once = solution_of("merge_once")
LEVELS = torch.tensor(nf4_levels())


class LowRank(torch.autograd.Function):
    """s (x Aᵀ) Bᵀ, with the gradients of lesson 03 and that of x."""

    @staticmethod
    def forward(ctx, x, A, B, s):
        ctx.save_for_backward(x, A, B)
        ctx.s = s
        return s * (x @ A.T) @ B.T

    @staticmethod
    def backward(ctx, g):
        x, A, B = ctx.saved_tensors
        return ctx.s * (g @ B) @ A, *lora_gradients(g, x, A, B, ctx.s), None


class FourBits:
    """A weight as packed NF4 codes with scales in 8 bits; ``lean_product`` asks for its floats."""

    def __init__(self, weight):
        blocks = weight.reshape(-1, 64)
        absmax = blocks.abs().amax(1)
        middles = (LEVELS[1:] + LEVELS[:-1]) / 2
        codes = torch.bucketize(blocks / absmax.clamp(min=1e-30)[:, None], middles)
        self.packed, self.shape = pack_nibbles(codes.flatten()), weight.shape
        self.scales = quantize_scales(absmax)

    def dequantize(self):
        codes, absmax2, offset = self.scales
        absmax = offset + codes * absmax2.repeat_interleave(256)[: len(codes)] / 127
        levels = LEVELS[unpack_nibbles(self.packed, self.shape.numel())]
        return (levels.view(-1, 64) * absmax[:, None]).view(self.shape)


class Adapted(nn.Module):
    """A frozen Linear, or its codes, with two factors beside it."""

    def __init__(self, linear, r, alpha, four_bits):
        super().__init__()
        A, B = init_factors(linear.in_features, linear.out_features, r)
        self.lora_A, self.lora_B, self.s = nn.Parameter(A), nn.Parameter(B), alpha / r
        self.codes = FourBits(linear.weight.detach()) if four_bits else None
        self.base = None if four_bits else linear.requires_grad_(False)

    def forward(self, x):
        x = x.view_as(x)  # so that this layer's two ∂x are added up before the next layer's
        y = self.base(x) if self.codes is None else lean_product(x, self.codes)
        return y + LowRank.apply(x, self.lora_A, self.lora_B, self.s)


def adapted_layer(linear, r, alpha, four_bits=False):
    """The base's product, and the adapter's beside it."""
    return Adapted(linear, r, alpha, four_bits)


def fine_tune(model, names, r, alpha, loss_of, batches, folder, four_bits=False):
    """Inject, train, and write PEFT's two files."""
    paths = inject_by_name(model, names, lambda one: adapted_layer(one, r, alpha, four_bits))
    trained = [p for p in model.parameters() if p.requires_grad]
    losses = train_steps(loss_of, batches, torch.optim.AdamW(trained, lr=5e-3, weight_decay=0))
    tensors = {}
    for path in paths:
        layer = model.get_submodule(path)
        for name in ("lora_A", "lora_B"):
            factor = getattr(layer, name).detach().contiguous()
            tensors[f"base_model.model.{path}.{name}.weight"] = factor
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": r, "lora_alpha": alpha}
    text = json.dumps({**config, "target_modules": sorted(names)})
    (folder / "adapter_config.json").write_text(text, encoding="utf-8")
    return losses
