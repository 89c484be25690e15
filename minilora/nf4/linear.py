"""A Linear whose frozen weight stays in four bits, and what quantizes a model's Linears.

    y = x Ŵᵀ + b          Ŵ = dequantize(codes, scales), made for this product and dropped after it
    ∂L/∂x = ∂L/∂y Ŵ       Ŵ made once more: the weight is frozen, so neither x nor Ŵ need be kept

That is all QLoRA adds to LoRA (arXiv 2305.14314, section 3, equation 5): ``inject`` puts A and B
beside such a layer as beside any Linear. Between forward and backward a training step holds the
activations and 4.13 bits a weight; the price is a second dequantization.

An ordinary autograd product would save Ŵ for its backward, all layers' at once, and 4 bits would
have saved nothing. tests/nf4/test_linear.py counts what is alive.

Without gradients (``torch.no_grad``, as in generation) a few rows go to the compiled kernel, which
multiplies by the codes and never writes Ŵ. A generated token then costs less than with a float
weight, if that lies outside the processor's cache (2048² and above), and more if it does not.

Left out: GPT-2's ``Conv1D``, paged optimizers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad

from .shared_weights import check_replaceable, reads_weights, tied_weights
from .tensor import PARTS, NF4Tensor, check_input, compiled, part_shapes, quantize

COMPUTE_DTYPES = (None, torch.float32, torch.bfloat16, torch.float16)


class NF4Linear(nn.Module):
    """``x Ŵᵀ + b`` with a frozen weight of ``in · out`` codes; ``from_linear`` makes one.

    A new one holds zeros, to be filled by ``put``, or by ``load_state_dict`` from a layer of the
    same ``kind``, which no state dict tells (``save_model`` does). ``compute_dtype`` is the dtype
    of the product (float32, bfloat16 or float16; None: the input's); the output has the input's.
    Raises ``ValueError`` for other dtypes, block sizes and codebooks.

    >>> layer = NF4Linear.from_linear(nn.Linear(64, 32))
    >>> layer
    NF4Linear(64 -> 32, nf4, 4.16 bits a weight)
    >>> layer(torch.ones(5, 64)).shape
    torch.Size([5, 32])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        block_size: int = 64,
        double_quant: bool = True,
        kind: str = "nf4",
        compute_dtype: torch.dtype | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ):
        super().__init__()
        if compute_dtype not in COMPUTE_DTYPES:
            raise ValueError(
                f"compute_dtype must be float32, bfloat16, float16 or None, got {compute_dtype}"
            )
        self.in_features, self.out_features = in_features, out_features
        self.block_size, self.kind = block_size, kind
        self.compute_dtype, self.dtype = compute_dtype, dtype
        for name in PARTS:
            self.register_buffer(name, None)
        shapes = part_shapes((out_features, in_features), block_size, double_quant)
        for name, (shape, part_dtype) in shapes.items():
            setattr(self, name, torch.zeros(shape, dtype=part_dtype, device=device))
        self.register_parameter("bias", None)
        if bias:
            zeros = torch.zeros(out_features, dtype=dtype, device=device)
            self.bias = nn.Parameter(zeros, requires_grad=False)
        _ = self.quantized  # checks block_size and kind

    @classmethod
    def from_linear(
        cls,
        linear: nn.Linear,
        block_size: int = 64,
        double_quant: bool = True,
        kind: str = "nf4",
        compute_dtype: torch.dtype | None = None,
    ) -> NF4Linear:
        """Quantize a Linear's weight; its bias stays, frozen. Raises as ``quantize`` does."""
        weight = linear._parameters.get("weight") if isinstance(linear, nn.Linear) else None
        if weight is None:
            given = type(linear).__name__
            raise TypeError(f"from_linear needs an nn.Linear with a weight of its own, got {given}")
        quantized = quantize(weight, block_size, double_quant, kind)
        return cls.from_quantized(quantized, linear.bias, compute_dtype)

    @classmethod
    def from_quantized(
        cls, weight: NF4Tensor, bias: Tensor | None = None, compute_dtype: torch.dtype | None = None
    ) -> NF4Linear:
        """A layer around a quantized (out, in) weight."""
        rows, columns = weight.shape
        layer = cls(columns, rows, bias=False, compute_dtype=compute_dtype, device="meta")
        layer.put(weight)
        if bias is not None:
            layer.bias = nn.Parameter(bias.detach(), requires_grad=False)
        return layer

    def put(self, weight: NF4Tensor) -> None:
        """Take over a weight's codes and scales. Raises ``ValueError`` for another shape."""
        shape = (self.out_features, self.in_features)
        if tuple(weight.shape) != shape:
            raise ValueError(f"expected a weight of {shape}, got {tuple(weight.shape)}")
        self.block_size, self.kind, self.dtype = weight.block_size, weight.kind, weight.dtype
        for name in PARTS:
            setattr(self, name, getattr(weight, name))

    @property
    def quantized(self) -> NF4Tensor:
        """The weight as it is stored."""
        parts: dict[str, Any] = {name: self._buffers[name] for name in PARTS}
        shape = torch.Size((self.out_features, self.in_features))
        return NF4Tensor(
            **parts, shape=shape, dtype=self.dtype, block_size=self.block_size, kind=self.kind
        )

    @property
    def weight(self) -> Tensor:
        """Ŵ (out, in) in the original's dtype: a copy for this call, which nothing here keeps."""
        return self.quantized.dequantize()

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) to (…, out), in the input's dtype; raises as ``check_input``."""
        check_input(x)
        kind = "cpu" if x.is_cpu else x.device.type
        if torch.is_autocast_enabled(kind):
            computed = x = x.to(torch.get_autocast_dtype(kind))
        else:
            computed = x if self.compute_dtype is None else x.to(self.compute_dtype)
        if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
            weight = self.quantized.dequantize(computed.dtype)
            bias = None if self.bias is None else self.bias.to(computed.dtype)
            return F.linear(computed, weight, bias).to(x.dtype)  # torch.func transforms each step
        if not torch.is_grad_enabled() and (y := self.product_of_few_rows(computed)) is not None:
            return y if y.dtype is x.dtype else y.to(x.dtype)
        return FrozenProduct.apply(computed, self.bias, self.quantized).to(x.dtype)

    def product_of_few_rows(self, x: Tensor) -> Tensor | None:
        """``x Ŵᵀ + b`` by the compiled kernel, without Ŵ; None without one, or for more rows."""
        if x.shape[-1] != self.in_features:
            return None
        kernel, buffers = compiled(), self._buffers
        parts: Any = buffers["packed"], buffers["absmax"], buffers["absmax2"], buffers["offset"]
        weight = kernel.Weight(parts, self.block_size, self.kind)
        return kernel.product(x, self._parameters["bias"], weight, self.out_features)

    def _apply(self, fn: Any, recurse: bool = True) -> NF4Linear:
        """Moves with ``.to``, but ``.half()`` must not round the scales, float32 by format."""
        parts = {name: part for name, part in self._buffers.items() if part is not None}
        super()._apply(fn, recurse)
        for name, part in parts.items():
            moved: Any = self._buffers[name]
            if moved.dtype != part.dtype:
                self._buffers[name] = part.to(moved.device)
        return self

    def __repr__(self) -> str:
        bits, shape = self.quantized.bits_per_weight, f"{self.in_features} -> {self.out_features}"
        return f"NF4Linear({shape}, {self.kind}, {bits:.2f} bits a weight)"


class FrozenProduct(torch.autograd.Function):
    """``x Ŵᵀ + b`` that keeps the codes, not Ŵ and not x, and dequantizes again in its backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, weight: NF4Tensor) -> Tensor:
        ctx.weight = weight
        # no view of anything, so that an adapter may add itself in place
        y = x.new_empty(*x.shape[:-1], weight.shape[0])
        rows, sums = x.reshape(-1, x.shape[-1]), y.view(-1, y.shape[-1])  # (rows, in), (rows, out)
        transposed = weight.dequantize(x.dtype).T
        if bias is None:
            torch.mm(rows, transposed, out=sums)
        else:
            torch.addmm(bias.to(x.dtype), rows, transposed, out=sums)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        dx = grad @ ctx.weight.dequantize(grad.dtype) if ctx.needs_input_grad[0] else None
        db = grad.reshape(-1, grad.shape[-1]).sum(dim=0) if ctx.needs_input_grad[1] else None
        return dx, db, None


def quantize_base(
    model: nn.Module,
    double_quant: bool = True,
    skip: Sequence[str] = ("lm_head",),
    *,
    block_size: int = 64,
    kind: str = "nf4",
    compute_dtype: torch.dtype | None = None,
) -> nn.Module:
    """Replace a model's Linears by ``NF4Linear``, in place, and freeze all: QLoRA's base.

    ``skip``: Linears with such a name, or one that ends in ``.name``, stay as they are (the output
    head is small, and often tied to the embedding). Raises ``ValueError`` and changes nothing when
    there is nothing to quantize, a name in ``skip`` is not in the model, a weight is shared, not
    finite or quantized already, a Linear does more than its product, or the model has adapters.

    >>> model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4))
    >>> model = quantize_base(model, skip=["2"])
    >>> [type(module).__name__ for module in model]
    ['NF4Linear', 'ReLU', 'Linear']
    """
    modules = dict(model.named_modules())
    check_quantizable_model(model, modules, skip)
    layers = {}
    for name, module in modules.items():
        parent = modules.get(name.rpartition(".")[0])
        if not is_quantizable(module, parent) or matches(name, skip):
            continue
        settings = (block_size, double_quant, kind, compute_dtype)
        check_replaceable(name, module)
        try:
            layers[name] = NF4Linear.from_linear(module, *settings).train(module.training)
        except ValueError as error:
            raise ValueError(f"{name}: {error}. Nothing was changed") from error
    if not layers:
        raise ValueError(
            f"nothing to quantize: this {type(model).__name__} holds no Linear outside "
            f"skip={tuple(skip)}"
        )
    for name, layer in layers.items():
        model.set_submodule(name, layer)
    return model.requires_grad_(False)


def dequantize_base(model: nn.Module) -> nn.Module:
    """Put a Linear with the weight Ŵ in the place of every ``NF4Linear``; the rounding stays.

    >>> dequantize_base(quantize_base(nn.Sequential(nn.Linear(64, 2))))[0]
    Linear(in_features=64, out_features=2, bias=True)
    """
    for name, layer in list(model.named_modules()):
        if isinstance(layer, NF4Linear):
            linear = plain_linear(layer.weight, layer.bias).train(layer.training)
            model.set_submodule(name, linear)
    return model


def plain_linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A frozen Linear around an (out, in) weight, without a second one made first."""
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight.detach(), requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return linear


def matches(name: str, names: Sequence[str]) -> bool:
    """Whether a path equals one of the names or ends in ``.name``."""
    return any(name == entry or name.endswith(f".{entry}") for entry in names)


def is_quantizable(module: nn.Module, parent: nn.Module | None) -> bool:
    """Whether this is an ordinary Linear that its parent calls."""
    own_weight = isinstance(module, nn.Linear) and module._parameters.get("weight") is not None
    return own_weight and not reads_weights(parent)


def check_quantizable_model(
    model: nn.Module, modules: dict[str, nn.Module], skip: Sequence[str]
) -> None:
    """Refuse adapters, quantized layers, a bare Linear, idle names to skip, shared weights."""
    if isinstance(model, nn.Linear):
        raise ValueError("expected a model of Linears, got a Linear: NF4Linear.from_linear(linear)")
    if adapted := [
        name for name, module in modules.items() if hasattr(type(module), "merged_base")
    ]:
        raise ValueError(
            f"the model has adapters (at {adapted[0]}): quantize the base first, then inject"
        )
    if done := [name for name, module in modules.items() if isinstance(module, NF4Linear)]:
        raise ValueError(
            f"{done[0]} is quantized already, and {len(done) - 1} more: quantize a float model once"
        )
    idle = [entry for entry in skip if not any(matches(name, [entry]) for name in modules)]
    if idle and tuple(skip) != ("lm_head",):
        raise ValueError(f"skip: no module is named {', '.join(map(repr, idle))}")
    tied = tied_weights(model)
    for name, module in modules.items():
        if isinstance(module, nn.Linear) and name in tied and not matches(name, skip):
            raise ValueError(
                f"{name}.weight is tied to {tied[name][0]}: quantizing would untie them; "
                f"add {name!r} to skip"
            )
