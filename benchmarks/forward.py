"""What does an adapter cost in the forward pass? Ours, PEFT's and loralib's against the plain Linear, in one run.

    python -m benchmarks.forward [--rows 1 512] [--widths 256 768 2048 4096] [--ranks 1 8 64] [--device cpu]

One row is a generated token (decode), 512 rows are a prompt (prefill). All have the same W, A and B, and the adapted ones are
asserted equal before anything is timed. "merged and unloaded" is an ordinary Linear again.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import loralib
import peft
import torch
from torch import Tensor, nn

import minilora

from .common import Row, measure, options, rows_of, save

PLAIN = "plain Linear"


def contestants(x: Tensor, width: int, r: int) -> dict[str, Callable[[], Tensor]]:
    """The same Linear and the same A and B, adapted by each; those that adapt agree, and so do those that do not."""
    torch.manual_seed(0)
    linear = nn.Linear(width, width, device=x.device)
    ours = minilora.LoRALayer(copy.deepcopy(linear), r=r, lora_alpha=2 * r)
    nn.init.normal_(ours.lora_B, std=0.02)
    layers: dict[str, nn.Module] = {"minilora": ours}
    for name in ("minilora, disabled", "minilora, merged"):
        layers[name] = copy.deepcopy(ours)
    layers["minilora, disabled"].enabled = False  # type: ignore[assignment]
    layers["minilora, merged"].merge()  # type: ignore[operator]
    layers["minilora, merged and unloaded"] = minilora.merge_and_unload(
        nn.Sequential(copy.deepcopy(ours))
    )[0]
    for name in ("PEFT", "PEFT, merged"):
        config = peft.LoraConfig(r=r, lora_alpha=2 * r, target_modules=["0"])
        theirs = peft.get_peft_model(nn.Sequential(copy.deepcopy(linear)), config).base_model.model[
            0
        ]
        theirs.lora_A["default"].weight.data = ours.lora_A.data.clone()
        theirs.lora_B["default"].weight.data = ours.lora_B.data.clone()
        layers[name] = theirs
    layers["PEFT, merged"].merge()  # type: ignore[operator]
    layers["loralib"] = loralib.Linear(width, width, r=r, lora_alpha=2 * r, merge_weights=False).to(
        x.device
    )
    values = {
        "weight": linear.weight,
        "bias": linear.bias,
        "lora_A": ours.lora_A,
        "lora_B": ours.lora_B,
    }
    layers["loralib"].load_state_dict({name: value.detach() for name, value in values.items()})
    with torch.no_grad():
        for name, layer in layers.items():
            wanted = linear(x) if "disabled" in name else ours(x)
            torch.testing.assert_close(layer(x), wanted, rtol=1e-4, atol=1e-4)
    assert type(layers["minilora, merged and unloaded"]) is nn.Linear
    return {
        PLAIN: lambda: linear(x),
        **{name: lambda layer=layer: layer(x) for name, layer in layers.items()},
    }


def main() -> None:
    """Every setting, in inference and as the forward of a training step."""
    given = options(
        __doc__, rows=[1, 512], widths=[256, 768, 2048, 4096], ranks=[1, 8, 64], seconds=1.0
    )
    found: list[Row] = []
    print(f"{'ratio to the plain Linear':<46}{'minilora':>9}{'merged':>8}{'PEFT':>7}{'loralib':>9}")
    for rows, width, r in (
        (rows, width, r) for rows in given.rows for width in given.widths for r in given.ranks
    ):
        runs = contestants(torch.randn(rows, width, device=given.device), width, r)
        for mode, context in (("inference", torch.inference_mode), ("training", torch.enable_grad)):
            with context():
                times = measure(runs, given.seconds, 7, given.device)
            new = rows_of(times, PLAIN, mode=mode, rows=rows, width=width, r=r)
            found += new
            shown = {row["contestant"]: f"{row['ratio']['median']:.2f}" for row in new}
            name = f"{mode}, {rows} rows, {width} -> {width}, r={r}"
            columns = (shown[who] for who in ("minilora", "minilora, merged", "PEFT", "loralib"))
            print(
                f"{name:<46}{next(columns):>9}{next(columns):>8}{next(columns):>7}{next(columns):>9}",
                flush=True,
            )
    save("forward", found, given, "peft", "loralib")


if __name__ == "__main__":
    main()
