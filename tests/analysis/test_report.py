"""The report of one adapter: numbers of the parts it is made of, a picture, the command."""

import json

import pytest
import torch
from torch import nn

import minilora
from minilora import LoraConfig, inject, lora_layers, merge, save_adapter
from minilora.analysis import adapter_updates
from minilora.analysis.report import analyze
from minilora.analysis.representations import block_changes, cumulative_similarity
from minilora.analysis.spectra import singular_values
from minilora.commands.cli import main
from minilora.lora.adapter_layer import adapter_layers

from ..lora.test_injection import fill, tiny

IDS = torch.randint(0, 16, (2, 6), generator=torch.Generator().manual_seed(0))


def adapted(targets=("v_proj",), **config):
    torch.manual_seed(0)
    model = tiny().eval()
    base = tiny().eval()
    base.load_state_dict(model.state_dict())
    inject(model, LoraConfig(r=2, target_modules=targets, **config))
    fill(model)
    return base, model


def test_the_numbers_are_those_of_the_parts():
    base, model = adapted()
    found = analyze(model, IDS, count_intruders=True)
    for change, (path, layer) in zip(found.modules, lora_layers(model), strict=True):
        delta = layer.delta_weight()
        assert change.path == path
        size = (delta.norm() / layer.base.weight.norm()).item()
        assert change.relative_norm == pytest.approx(size)
        expected = singular_values(delta)[:2]
        torch.testing.assert_close(change.singular, expected, rtol=1e-5, atol=1e-6)
        assert 0 <= change.intruders <= 10
    assert found.written == pytest.approx(block_changes(base, model, IDS), rel=1e-4)
    similar = cumulative_similarity(base, model, IDS)[1:]
    assert found.similar == pytest.approx(similar, rel=1e-4)


def test_a_measure_is_taken_with_without_and_part_by_part():
    base, model = adapted(targets="all-linear")
    target = torch.randn(2, 6, 16)

    def distance(each):
        return (each(IDS) - target).norm().item()

    measured = analyze(model, IDS, measure=distance).measured
    assert measured["with the adapter"] == distance(model)
    assert measured["the base alone"] == pytest.approx(distance(base))
    for path, layer in lora_layers(model):
        if path.startswith("model.layers.1."):
            layer.lora_B.data.zero_()
    assert measured["without layer 1"] == pytest.approx(distance(model), rel=1e-4)
    assert set(measured) >= {"without layer 0", "without q_proj", "without down_proj"}


def test_an_adapter_that_is_not_there_or_merged_is_told():
    with pytest.raises(ValueError, match="no adapters"):
        analyze(tiny(), IDS)
    _, model = adapted()
    with pytest.raises(ValueError, match="is merged or switched off"):
        analyze(merge(model), IDS)


def test_a_new_adapter_changes_nothing_and_the_picture_is_drawn():
    model = tiny().eval()
    inject(model, LoraConfig(r=2, layers_to_transform=[1], target_modules=["q_proj", "v_proj"]))
    for _, layer in lora_layers(model):
        layer.lora_B.data[0, 0] = 1e-3
    found = analyze(model, IDS)
    assert found.written[0] == 0
    assert found.block_lines()[1].split() == ["0", "–", "0%", "1.00"]
    figure = found.figure()
    assert [axes.get_title(loc="left") for axes in figure.axes[:3]] == [
        "Where: ‖ΔW‖ / ‖W0‖",
        "Along how many directions",
        "What that does",
    ]
    assert figure.again(dark=True).axes


def test_an_untrained_adapter_is_all_zeros():
    model = tiny().eval()
    inject(model)
    found = analyze(model, IDS)
    assert found.kind_lines()[1].split() == ["q_proj", "2", "0.00%", "0.0", "0%"]
    found.figure()


def test_the_command_prints_the_table_and_writes_the_picture(tmp_path, capsys):
    model = minilora.load_base()
    inject(model, LoraConfig(r=2, target_modules=["v_proj"]))
    for _, layer in lora_layers(model):
        nn.init.normal_(layer.lora_B, std=0.01)
    folder = save_adapter(model, tmp_path / "adapter")
    row = {"instruction": "Status?", "input": "Log: Hull 90%.", "output": "Hull 90%."}
    (tmp_path / "data.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    words = ["analyze", str(folder), "--data", str(tmp_path / "data.jsonl")]
    assert main([*words, "--out", str(tmp_path / "a.svg")]) == 0
    out = capsys.readouterr().out
    assert "v_proj  6" in out
    assert "without layer 5" in out
    assert (tmp_path / "a.svg").read_text(encoding="utf-8").startswith("<?xml")
    assert main([*words, "--out", str(tmp_path / "a.gif")]) == 2
    (tmp_path / "short.txt").write_text("", encoding="utf-8")
    assert main([*words, "--text", str(tmp_path / "short.txt")]) == 2
    assert "expected two at least" in capsys.readouterr().err


METHODS = {
    "dora": LoraConfig(r=2, target_modules=["q_proj", "v_proj"], use_dora=True),
    "pissa": LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights="pissa"),
    "ia3": minilora.IA3Config(),
    "bitfit": minilora.BitFitConfig(),
}


def moved(config):
    """A model whose adapters have all moved, and the model that has none."""
    torch.manual_seed(0)
    model, base = tiny().eval(), tiny().eval()
    base.load_state_dict(model.state_dict())
    minilora.inject(model, config)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.3 * torch.randn_like(parameter)
    return base, model


@pytest.mark.parametrize("method", METHODS)
def test_every_method_s_update_is_what_a_merge_changes(method):
    base, model = moved(METHODS[method])
    report, found = analyze(model, IDS), adapter_updates(model)
    merge(model)
    after = {path: layer.weight for path, layer in adapter_layers(model)}
    for change in report.modules:
        W0 = base.get_submodule(change.path).weight
        expected = after[change.path] - W0
        torch.testing.assert_close(found[change.path], expected, rtol=1e-4, atol=1e-5)
        assert change.relative_norm == pytest.approx((expected.norm() / W0.norm()).item(), rel=1e-4)
        kept = singular_values(expected)[: len(change.singular)]
        torch.testing.assert_close(change.singular, kept, rtol=1e-3, atol=1e-5)
    again = adapter_updates(model)  # merged or not, it is the same update
    for path, update in found.items():
        torch.testing.assert_close(again[path], update, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_a_part_that_is_taken_away_leaves_its_base_whatever_the_method(method):
    _, model = moved(METHODS[method])

    def size(each):
        return each(IDS).square().sum().item()

    measured = analyze(model, IDS, measure=size).measured
    for name, module in adapter_layers(model):
        if not name.startswith("model.layers.1."):
            continue
        for parameter in module.parameters(recurse=False):
            parameter.data.fill_(0.0)
        if method == "ia3":
            module.ia3_l.data.fill_(1.0)
        if method == "pissa":
            module.start_A.zero_()
        if method == "dora":
            module.lora_magnitude_vector.data = module.base.weight.norm(dim=1)
    assert measured["without layer 1"] == pytest.approx(size(model), rel=1e-4)
    assert measured["without layer 1"] != measured["with the adapter"]


def test_four_bits_are_measured_part_by_part_too():
    torch.manual_seed(0)
    model = minilora.quantize_base(tiny().eval())
    inject(model, LoraConfig(r=2, target_modules=["v_proj"]))
    fill(model)
    measured = analyze(model, IDS, measure=lambda each: each(IDS).norm().item()).measured
    assert measured["without v_proj"] == measured["the base alone"] != measured["with the adapter"]
