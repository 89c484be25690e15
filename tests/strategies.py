"""What the property tests draw from: layers of every shape, rank, scale and dtype, and inputs for them."""

from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from minilora import level0
from minilora.lora import LoRALayer

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
sizes = st.integers(1, 40)
ranks = st.integers(1, 12)
alphas = st.floats(0.25, 64, width=32)
seeds = st.integers(0, 2**31 - 1)


@dataclass
class Case:
    """A layer whose A and B are both filled, as after training, and an input for it."""

    layer: LoRALayer
    x: Tensor

    @property
    def parts(self):
        """x, W, A, B, scaling, bias: the arguments of the tolerances."""
        layer = self.layer
        return self.x, layer.weight, layer.lora_A, layer.lora_B, layer.scaling, layer.bias


@st.composite
def cases(draw, dtypes=DTYPES, dropout=False, fresh=False):
    """Linears with bias or none, batched inputs or single rows, α ≠ r, rsLoRA or not; ``fresh`` leaves B zero."""
    torch.manual_seed(draw(seeds))
    dtype = draw(st.sampled_from(dtypes))
    base = nn.Linear(draw(sizes), draw(sizes), bias=draw(st.booleans())).to(dtype)
    layer = LoRALayer(
        base,
        r=draw(ranks),
        lora_alpha=draw(alphas),
        lora_dropout=draw(st.sampled_from([0.0, 0.3])) if dropout else 0.0,
        use_rslora=draw(st.booleans()),
    )
    if not fresh:
        nn.init.normal_(layer.lora_B, std=0.3)
    batch = draw(st.sampled_from([(), (1,), (3,), (2, 5), (2, 1, 3)]))
    return Case(layer, torch.randn(*batch, base.in_features).to(dtype))


@st.composite
def models(draw):
    """Small nested models: a few named Linears in blocks, with norms and an embedding between them."""
    torch.manual_seed(draw(seeds))
    width, depth = draw(st.integers(2, 12)), draw(st.integers(1, 3))

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.LayerNorm(width)
            self.q_proj = nn.Linear(width, width)
            self.up_proj = nn.Linear(width, 2 * width, bias=False)
            self.down_proj = nn.Linear(2 * width, width)

        def forward(self, x):
            x = x + self.q_proj(self.norm(x))
            return x + self.down_proj(torch.relu(self.up_proj(x)))

    return nn.Sequential(nn.Linear(width, width), *(Block() for _ in range(depth)), nn.Linear(width, 3))


targets = st.lists(st.sampled_from(["q_proj", "up_proj", "down_proj"]), min_size=1, max_size=3, unique=True)


@st.composite
def weights(draw, dtypes=DTYPES, scales=(1e-30, 1e-10, 1e-3, 1.0, 1e3, 1e30), most=700):
    """What a quantizer may meet: normal, heavy-tailed, uniform, constant, with zero blocks, an outlier, or ties."""
    generator = torch.Generator().manual_seed(draw(seeds))
    n = draw(st.one_of(st.integers(1, 140), st.integers(1, most)))
    weight = torch.randn(n, generator=generator)
    kind = draw(st.sampled_from(["normal", "heavy", "uniform", "constant", "zero blocks", "outlier", "ties", "zero"]))
    if kind == "heavy":
        weight = weight / torch.randn(n, generator=generator)
    if kind == "uniform":
        weight = torch.rand(n, generator=generator) - 0.5
    if kind == "constant":
        weight = torch.full((n,), draw(st.floats(-1, 1, width=32)))
    if kind == "zero blocks":
        weight[: draw(st.integers(0, n))] = 0
    if kind == "outlier":
        weight[draw(st.integers(0, n - 1))] = 1000.0
    if kind == "ties":
        levels = torch.from_numpy(level0.nf4_levels())
        weight = ((levels[:-1] + levels[1:]) / 2)[torch.randint(15, (n,), generator=generator)]
        weight[::32] = 1.0  # so that every block's scale is one, and the ties stay ties
    if kind == "zero":
        weight = torch.zeros(n)
    dtype = draw(st.sampled_from(dtypes))
    scale = 1.0 if kind == "ties" or dtype == torch.float16 else draw(st.sampled_from(scales))
    return (weight * scale).nan_to_num(0, 0, 0).clamp(-6e4, 6e4).to(dtype) if scale == 1.0 else (weight * scale).to(dtype)
