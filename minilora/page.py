"""The planner as a page: one HTML file with every preset's shapes and ``plan``'s arithmetic in JavaScript, no network.

``planner.html`` repeats ``activations.py``, ``flops.py`` and ``plan.py`` function by function, under the same names;
``tests/test_page.py`` runs both on hundreds of random settings, in a real browser, and wants the same bytes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .files import text_writer, write_atomically
from .ledger import GPUS, architecture, presets
from .plan import DTYPES
from .shapes import Architecture, LinearShape

TEMPLATE = Path(__file__).parent / "planner.html"


def write_planner(path: str | Path) -> Path:
    """Write the page; returns its path. Raises ``OSError`` when it cannot be written."""
    return write_atomically(path, text_writer(planner_page()))


def planner_page(home: str = "") -> str:
    """The page's text; ``home`` is the page of a site to link back to.

    >>> "llama-3-8b" in planner_page()
    True
    """
    data = {"models": {name: model_data(architecture(name)) for name in presets()}}
    data |= {"gpus": GPUS, "dtypes": DTYPES}  # type: ignore[dict-item]
    link = f'<nav aria-label="site"><a href="{home}">minilora</a></nav>\n' if home else ""
    page = TEMPLATE.read_text(encoding="utf-8").replace("{{HOME}}", link)
    return page.replace("{{DATA}}", json.dumps(data, separators=(",", ":")))


def model_data(arch: Architecture) -> dict[str, Any]:
    """Sizes, and runs of equal blocks as [count, Linears]; a Linear is [role, short name, in, out, bias, tied]."""
    runs: list[list[Any]] = []
    for block in arch.blocks.values():
        linears = [linear_data(linear) for linear in block]
        if runs and runs[-1][1] == linears:
            runs[-1][0] += 1
        else:
            runs.append([1, linears])
    sizes: dict[int, int] = {}
    for _, size in arch.others:
        sizes[size] = sizes.get(size, 0) + 1
    return {
        "hidden": arch.hidden,
        "heads": arch.heads,
        "headDim": arch.head_dim,
        "rms": arch.rms,
        "rotary": arch.rotary,
        "qkNorm": arch.qk_norm,
        "others": [[size, count] for size, count in sizes.items()],
        "blocks": runs,
        "outside": [linear_data(linear) for linear in arch.linears if not linear.block],
    }


def linear_data(linear: LinearShape) -> list[Any]:
    """One Linear as the page has it; ``plain`` Linears are never quantized."""
    plain = linear.role == "head" or "lm_head" in linear.name.split(".")
    name = linear.name.rpartition(".")[2]
    return [linear.role, name, linear.in_features, linear.out_features, int(linear.bias), int(linear.tied), int(plain)]
