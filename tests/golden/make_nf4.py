"""Write nf4.safetensors: what bitsandbytes makes of a few tensors, for machines without it.

    python tests/golden/make_nf4.py          (bitsandbytes 0.50.2, CPU)

For each case: ``<case>.weight``, and under nf4, fp4 and the block size, what came out: packed
bytes, scales, values.
"""

from pathlib import Path

import bitsandbytes
import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from safetensors.torch import save_file


def cases() -> dict[str, torch.Tensor]:
    """Small tensors, each with one difficulty."""
    torch.manual_seed(20240522)
    normal = torch.randn(20, 64)
    outlier = normal.clone()
    outlier[3, 5] = 100.0
    levels = torch.tensor(
        [
            -1.0,
            -0.6961928,
            -0.52507305,
            -0.39491749,
            -0.28444138,
            -0.18477343,
            -0.09105004,
            0.0,
            0.0795803,
            1.0,
        ]
    )
    return {
        "normal": normal,
        "uniform": torch.rand(64, 5) - 0.5,
        "outlier": outlier,
        "zero_block": torch.cat([torch.zeros(64), torch.randn(64)]),
        "constant": torch.full((130,), -0.3),
        "one": torch.tensor([2.5]),
        "odd": torch.randn(33, 3),
        "ties": torch.cat([(levels[:-1] + levels[1:]) / 2, torch.ones(1)]).repeat(13),
        "small": torch.randn(300) * 1e-30,
        "large": torch.randn(300) * 1e30,
        "bf16": torch.randn(4, 96).bfloat16(),
        "many_scales": (torch.randn(260, 64) * torch.rand(260, 1)).half().flatten(),
    }


def main() -> None:
    """Quantize every case every way and save."""
    tensors = {}
    for name, weight in cases().items():
        tensors[f"{name}.weight"] = weight
        for kind, block_size in (("nf4", 64), ("fp4", 64), ("nf4", 128)):
            for double_quant in (False, True):
                packed, state = quantize_4bit(
                    weight, blocksize=block_size, quant_type=kind, compress_statistics=double_quant
                )
                key = f"{name}.{kind}.{block_size}.{'double' if double_quant else 'single'}"
                tensors[f"{key}.packed"] = packed.flatten()
                tensors[f"{key}.absmax"] = state.absmax
                if double_quant:
                    tensors[f"{key}.absmax2"] = state.state2.absmax
                    tensors[f"{key}.offset"] = state.offset
                # where every CPU kernel is right
                if weight.dim() == 1 and len(weight) < 1000 and kind == "nf4":
                    tensors[f"{key}.values"] = dequantize_4bit(packed, state).flatten()
    about = {"bitsandbytes": bitsandbytes.__version__, "torch": torch.__version__}
    save_file(
        {k: v.contiguous() for k, v in tensors.items()},
        Path(__file__).with_name("nf4.safetensors"),
        about,
    )


if __name__ == "__main__":
    main()
