"""Folders combined: what opens here opens in PEFT, of one base only, with the right strength."""

import re

import pytest
import torch
from peft import LoraConfig as PeftConfig
from peft import PeftModel, get_peft_model
from torch import nn

from minilora import LoraConfig, combine, inject, load_adapter, lora_layers, save_adapter
from minilora.commands.cli import main
from minilora.formats.combined_files import combine_folders, load_low_rank


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4))


def adapter(folder, seed, targets=("0", "2"), base_seed=0, **config):
    """A folder with a random adapter of the net, and the model that has it."""
    model = net(base_seed)
    inject(model, LoraConfig(target_modules=list(targets), **config))
    torch.manual_seed(seed)
    for _, layer in lora_layers(model):
        nn.init.normal_(layer.lora_A)
        nn.init.normal_(layer.lora_B)
    return save_adapter(model, folder), model


@pytest.fixture
def two(tmp_path):
    """Two adapters that share one of their modules and differ in rank."""
    one, _ = adapter(tmp_path / "one", 1, r=2, lora_alpha=6)
    other, _ = adapter(tmp_path / "other", 2, targets=["2"], r=3, lora_alpha=3)
    return [one, other]


def test_factors_come_without_the_base_and_are_the_layers(tmp_path):
    folder, model = adapter(tmp_path / "one", 1, r=2, lora_alpha=6, rank_pattern={"2": 3})
    parts = load_low_rank(folder)
    assert list(parts) == [name for name, _ in lora_layers(model)]
    for name, layer in lora_layers(model):
        part = parts[name]
        assert torch.equal(part.scaling * (part.B @ part.A), layer.delta_weight())


def test_a_combined_folder_opens_here_and_in_peft(two, tmp_path):
    out = combine_folders(two, tmp_path / "both", weights=[0.5, -2.0])
    parts = combine([load_low_rank(folder) for folder in two], [0.5, -2.0])
    ours = load_adapter(net(), out, strict=True)
    x = torch.randn(3, 6)
    for name, layer in lora_layers(ours):
        assert torch.equal(layer.lora_A, parts[name].A)
        assert torch.equal(layer.delta_weight(), parts[name].B @ parts[name].A)
    theirs = PeftModel.from_pretrained(net(), str(out))
    torch.testing.assert_close(theirs(x), ours(x))


def test_rslora_adapters_keep_their_strength_where_peft_overscales(tmp_path):
    """One adapter with the weight 1 is itself; in PEFT 0.21.2 it is √r times that (#3761)."""
    folder, model = adapter(tmp_path / "one", 1, r=4, lora_alpha=2, use_rslora=True)
    out = combine_folders([folder], tmp_path / "same")
    x = torch.randn(3, 6)
    again = load_adapter(net(), out, strict=True)
    torch.testing.assert_close(again(x), model(x))
    peft = get_peft_model(net(), PeftConfig(r=4, lora_alpha=2, use_rslora=True, target_modules="0"))
    nn.init.normal_(peft.base_model.model[0].lora_B["default"].weight)
    peft.add_weighted_adapter(["default"], [1.0], "same", combination_type="linear")
    layer = peft.base_model.model[0]
    same, default = layer.get_delta_weight("same"), layer.get_delta_weight("default")
    torch.testing.assert_close(same, 2 * default)


def test_adapters_of_two_bases_are_refused_and_nothing_is_written(two, tmp_path):
    foreign, _ = adapter(tmp_path / "foreign", 3, base_seed=9)
    with pytest.raises(ValueError, match="were made on different bases"):
        combine_folders([two[0], foreign], tmp_path / "both")
    with pytest.raises(ValueError, match="is one of the adapters to combine"):
        combine_folders(two, two[0])
    assert not (tmp_path / "both").exists()


def wrong_rank(tensors, key):
    tensors[key] = tensors[key][:1].clone()


def not_finite(tensors, key):
    tensors[key][0, 0] = float("nan")


def in_integers(tensors, key):
    tensors[key] = tensors[key].int()


def missing(tensors, key):
    del tensors[key]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (wrong_rank, "A (1, 6) and B (5, 2), expected (2, in) and (out, 2)"),
        (not_finite, "0 holds values that are not finite"),
        (in_integers, "0 holds torch.int32"),
        (missing, "0 has only one of its two factors"),
    ],
)
def test_damaged_factors_are_named(tmp_path, damage, message):
    from safetensors.torch import load_file, save_file

    folder, _ = adapter(tmp_path / "one", 1, r=2)
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    damage(tensors, "base_model.model.0.lora_A.weight")
    save_file(tensors, file)
    with pytest.raises(ValueError, match=re.escape(message)):
        load_low_rank(folder)


def test_the_command_combines_and_says_what_it_made(two, tmp_path, capsys):
    out = tmp_path / "both"
    words = ["combine", *map(str, two), "--weights", "1", "-0.5", "--out", str(out)]
    assert main(words) == 0
    assert "2 adapters as one: 2 modules, ranks 2 to 5." in capsys.readouterr().out
    assert load_low_rank(out)["2"].A.shape == (5, 5)
    assert main([*words, "--how", "ties_svd"]) == 2
    assert "needs a density in (0, 1]" in capsys.readouterr().err
    assert main([*words, "--how", "ties_svd", "--density", "0.5"]) == 0
    assert "not the sum of the adapters" in capsys.readouterr().out


class Blocks(nn.Module):
    """Three blocks of one Linear, under a name as transformers' models have it."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        blocks = (nn.ModuleDict({"q_proj": nn.Linear(4, 4)}) for _ in range(3))
        self.model = nn.ModuleDict({"layers": nn.ModuleList(blocks)})

    def forward(self, x):
        for block in self.model["layers"]:
            x = block["q_proj"](x)
        return x


@pytest.mark.parametrize(
    "narrowed", [{"layers_to_transform": [1]}, {"exclude_modules": ["model.layers.0.q_proj"]}]
)
def test_what_narrows_pefts_targets_is_not_lost(narrowed, tmp_path, recwarn):
    theirs = get_peft_model(Blocks(), PeftConfig(r=2, target_modules=["q_proj"], **narrowed))
    for name, parameter in theirs.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    theirs.save_pretrained(tmp_path / "one")
    folders = [tmp_path / "one", tmp_path / "one"]
    recwarn.clear()
    both = load_adapter(Blocks(), combine_folders(folders, tmp_path / "both", [0.5, 0.5]))
    assert not [w for w in recwarn if "another architecture" in str(w.message)]
    x = torch.randn(3, 4)
    torch.testing.assert_close(both(x), theirs(x), rtol=1e-5, atol=1e-6)
    in_peft = PeftModel.from_pretrained(Blocks(), tmp_path / "both")
    torch.testing.assert_close(in_peft(x), theirs(x), rtol=1e-5, atol=1e-6)
