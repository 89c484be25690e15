"""The planner as a page: one HTML file with every preset's shapes and ``plan`` in JavaScript.

The page needs no network. ``planner.html`` repeats ``ledger/activations.py``, ``ledger/flops.py``
and ``ledger/estimate.py`` function by function, under the same names, and what
``ledger/serving_costs.py``, ``ledger/cards.py`` and ``ledger/money.py`` answer;
``tests/plots/test_planner_page.py`` runs both on hundreds of random settings, in a real browser,
and expects the same bytes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..files import text_writer, write_atomically
from ..ledger.cards import other_parameters
from ..ledger.claims import TABLE
from ..ledger.estimate import DTYPES, GPUS
from ..ledger.serving_costs import NOT_DECODERS
from ..ledger.shapes import Architecture, LinearShape, Source, architecture, presets

TEMPLATE = Path(__file__).parent / "planner.html"


def write_planner(path: str | Path, source: Source | None = None) -> Path:
    """Write the page, open at the model ``source`` where one is given; returns its path.

    Raises ``OSError`` when it cannot be written, ``ValueError`` on a model that ``architecture``
    does not know.

    >>> write_planner("planner.html", source="gpt2")  # doctest: +SKIP
    PosixPath('planner.html')
    """
    return write_atomically(path, text_writer(planner_page(source=source)))


def planner_page(home: str = "", source: Source | None = None) -> str:
    """The page's text.

    ``home`` is the page of a site to link back to, ``source`` the model to begin with, which need
    not be a preset.

    >>> "llama-3-8b" in planner_page()
    True
    """
    first = architecture("llama-3-8b" if source is None else source)
    models = {name: model_data(architecture(name)) for name in presets()}
    models[first.name] = model_data(first)
    data = {"models": models, "first": first.name, "gpus": GPUS, "dtypes": DTYPES, "claims": TABLE}
    link = f'<nav aria-label="site"><a href="{home}">minilora</a></nav>\n' if home else ""
    text = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    page = TEMPLATE.read_text(encoding="utf-8")
    return page.replace("{{HOME}}", link).replace("{{DATA}}", text)


def model_data(arch: Architecture) -> dict[str, Any]:
    """A model's sizes, and its runs of equal blocks as [count, Linears, other parameters]."""
    runs: list[list[Any]] = []
    others = other_parameters(arch)
    for name, block in arch.blocks.items():
        alike = [[linear_data(linear) for linear in block], others[name]]
        if runs and runs[-1][1:] == alike:
            runs[-1][0] += 1
        else:
            runs.append([1, *alike])
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
        "decodes": arch.family not in NOT_DECODERS,
        "others": [[size, count] for size, count in sizes.items()],
        "blocks": runs,
        "outside": [linear_data(linear) for linear in arch.linears if not linear.block],
        "othersOutside": others[""],
    }


def linear_data(linear: LinearShape) -> list[Any]:
    """A Linear as [role, short name, in, out, bias, tied, plain]; plain is never quantized."""
    plain = linear.role == "head" or "lm_head" in linear.name.split(".")
    name = linear.name.rpartition(".")[2]
    flags = [int(flag) for flag in (linear.bias, linear.tied, plain)]
    return [linear.role, name, linear.in_features, linear.out_features, *flags]
