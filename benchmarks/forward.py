"""What does an adapter cost in the forward pass? minilora, PEFT and loralib, in one run.

    python -m benchmarks.forward [--rows 1 512] [--widths 256 768 2048 4096] [--ranks 1 8 64]
                                 [--device cpu]

The yardstick is the plain Linear. One row is a generated token (decode), 512 rows are a prompt
(prefill). All contestants have the same W, A and B, and the adapted ones are asserted equal before
anything is timed. "merged and unloaded" is an ordinary Linear again.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable

import loralib
import peft
import torch
from torch import Tensor, nn

import minilora

from .common import Row, measure, options, rows_of, save

PLAIN = "plain Linear"


def contestants(x: Tensor, width: int, r: int) -> dict[str, Callable[[], Tensor]]:
    """The same Linear with the same A and B, adapted by each; all outputs are compared first."""
    torch.manual_seed(0)
    linear = nn.Linear(width, width, device=x.device)
    ours = minilora.LoRALayer(copy.deepcopy(linear), r=r, lora_alpha=2 * r)
    nn.init.normal_(ours.lora_B, std=0.02)
    layers: dict[str, nn.Module] = {"minilora": ours}
    for name in ("minilora, disabled", "minilora, merged"):
        layers[name] = copy.deepcopy(ours)
    layers["minilora, disabled"].enabled = False  # type: ignore[assignment]
    layers["minilora, merged"].merge()  # type: ignore[operator]
    merged = minilora.merge_and_unload(nn.Sequential(copy.deepcopy(ours)))
    layers["minilora, merged and unloaded"] = merged[0]
    for name in ("PEFT", "PEFT, merged"):
        config = peft.LoraConfig(r=r, lora_alpha=2 * r, target_modules=["0"])
        model = peft.get_peft_model(nn.Sequential(copy.deepcopy(linear)), config)
        theirs = model.base_model.model[0]
        theirs.lora_A["default"].weight.data = ours.lora_A.data.clone()
        theirs.lora_B["default"].weight.data = ours.lora_B.data.clone()
        layers[name] = theirs
    layers["PEFT, merged"].merge()  # type: ignore[operator]
    by_loralib = loralib.Linear(width, width, r=r, lora_alpha=2 * r, merge_weights=False)
    values = {"weight": linear.weight, "bias": linear.bias}
    values |= {"lora_A": ours.lora_A, "lora_B": ours.lora_B}
    by_loralib.load_state_dict({name: value.detach() for name, value in values.items()})
    layers["loralib"] = by_loralib.to(x.device)
    with torch.no_grad():
        for name, layer in layers.items():
            expected = linear(x) if "disabled" in name else ours(x)
            torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-4)
    assert type(layers["minilora, merged and unloaded"]) is nn.Linear
    return {
        PLAIN: lambda: linear(x),
        **{name: lambda layer=layer: layer(x) for name, layer in layers.items()},
    }


def main() -> None:
    """Every setting, in inference and as the forward of a training step."""
    sizes = {"rows": [1, 512], "widths": [256, 768, 2048, 4096], "ranks": [1, 8, 64]}
    settings = options(__doc__, **sizes, seconds=1.0)
    results: list[Row] = []
    print(f"{'ratio to the plain Linear':<46}{'minilora':>9}{'merged':>8}{'PEFT':>7}{'loralib':>9}")
    for rows, width, r in itertools.product(settings.rows, settings.widths, settings.ranks):
        runs = contestants(torch.randn(rows, width, device=settings.device), width, r)
        for mode, context in (("inference", torch.inference_mode), ("training", torch.enable_grad)):
            with context():
                times = measure(runs, settings.seconds, 7, settings.device)
            measured = rows_of(times, PLAIN, mode=mode, rows=rows, width=width, r=r)
            results += measured
            ratio = {row["contestant"]: f"{row['ratio']['median']:.2f}" for row in measured}
            name = f"{mode}, {rows} rows, {width} -> {width}, r={r}"
            ours = f"{ratio['minilora']:>9}{ratio['minilora, merged']:>8}"
            print(f"{name:<46}{ours}{ratio['PEFT']:>7}{ratio['loralib']:>9}", flush=True)
    save("forward", results, settings, "peft", "loralib")


if __name__ == "__main__":
    main()
