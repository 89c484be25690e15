"""The norm of ΔW, against ΔW made whole."""

import pytest
import torch
from torch import nn

import minilora
from minilora.hub.adapter import read_adapter
from minilora.jobs.norms import module_norms, outliers, whole
from minilora.lora.adapter_layer import adapter_layers


@pytest.mark.parametrize(("r", "alpha"), [(1, 1), (3, 16)])
def test_the_norm_is_that_of_the_product(r, alpha, tmp_path):
    torch.manual_seed(r)
    model = nn.Sequential(nn.Linear(7, 5), nn.Linear(5, 6))
    config = minilora.LoraConfig(r=r, lora_alpha=alpha, target_modules=["0", "1"])
    minilora.inject(model, config)
    for _, layer in adapter_layers(model):
        nn.init.normal_(layer.lora_B)
    norms = module_norms(read_adapter(minilora.save_adapter(model, tmp_path)))
    deltas = {path: layer.delta_weight().norm().item() for path, layer in adapter_layers(model)}
    assert norms == pytest.approx(deltas, rel=1e-5)
    assert whole(norms) == pytest.approx(torch.tensor(list(deltas.values())).norm().item())


def test_an_outlier_is_named_above_and_below_and_against_the_median():
    before = [{"q": 1.0, "v": 4.0}, {"q": 1.2, "v": 4.0}, {"q": 90.0, "v": 4.0}]
    assert outliers({"q": 1.1, "v": 4.0}, before, 3.0) == []
    assert outliers({"q": 4.0, "v": 4.0}, before, 3.0) == ["q 4 after 1.2"]
    assert outliers({"q": 1.2, "v": 0.5}, before, 3.0) == [
        "all modules 1.3 after 4.18",
        "v 0.5 after 4",
    ]
    assert outliers({"q": 4.0}, [], 3.0) == []
    assert outliers({"q": 0.9}, [{"q": 0.2}], 3.0) == [
        *("all modules 0.9 after 0.2", "q 0.9 after 0.2")
    ], "small norms are norms"
    for edge in (4.0, 0.25):  # powers of two: the quotients are exact
        assert outliers({"q": edge}, [{"q": 1.0}], 4.0) == []
    assert outliers({"q": 4.0, "new": 1.0}, [{"q": 0.0}], 3.0) == [], "nothing was moved before"
    assert outliers({"q": 4.0, "new": 1.0}, [{"gone": 4.0}], 3.0) == [], "other modules"
