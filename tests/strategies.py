"""What the property tests draw from: layers of every shape, rank, scale and dtype, and inputs for them."""

from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

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
