"""The life of an adapter on another device: on the CPU always, on a GPU where there is one.

``make test-gpu`` runs what is marked ``gpu`` and says which card it ran on. The same functions run
on the CPU in every suite, so that they are known to be right before a card is paid for.
"""

import copy

import pytest
import torch

import minilora
from minilora import (
    BitFitConfig,
    IA3Config,
    LoraConfig,
    VeraConfig,
    data,
    inject,
    load_adapter,
    merge,
    nf4,
    quantize_base,
    save_adapter,
    unmerge,
)
from minilora.serving import AdapterBank
from minilora.training.config import TrainConfig

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
DEVICES = ["cpu", pytest.param("cuda", marks=[GPU, pytest.mark.gpu])]
CONFIGS = {
    "lora": LoraConfig(r=4),
    "all": LoraConfig(r=2, target_modules="all-linear"),
    "dora": LoraConfig(r=4, use_dora=True),
    "vera": VeraConfig(r=16),
    "ia3": IA3Config(),
    "bitfit": BitFitConfig(),
}
QUIET = {"steps": 2, "batch_size": 4, "validate_every": 0, "progress": False}
PROMPT = torch.arange(5, 29).view(2, 12)


def trained(device, config, **more):
    """The shipped base on a device, adapted for two steps; and the run's losses."""
    torch.manual_seed(0)
    model = minilora.load_base(device=device)
    inject(model, config)
    history = minilora.train(model, data.naval_log(40, 8), TrainConfig(**QUIET | more))
    return model, [record["loss"] for record in history.steps]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", CONFIGS)
def test_it_trains_merges_and_gives_the_base_back(device, name):
    """Losses are the CPU's but for rounding; merged equals unmerged; the base comes back."""
    model, losses = trained(device, CONFIGS[name])
    _, expected = trained("cpu", CONFIGS[name])
    assert losses == pytest.approx(expected, rel=1e-3)
    assert {p.device.type for p in model.parameters()} == {device}
    before = {key: value.clone() for key, value in model.state_dict().items()}
    prompt = PROMPT.to(device)
    with torch.no_grad():
        apart = model.eval()(prompt)
        merge(model)
        together = model(prompt)
    # a card multiplies in another order, and in TF32 where that is switched on
    torch.testing.assert_close(together, apart, rtol=1e-3, atol=1e-3)
    unmerge(model)
    after = model.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("device", DEVICES)
def test_an_adapter_travels_between_devices(device, tmp_path):
    """Saved on one device, loaded on the CPU: the same bits, and the same answer."""
    model, _ = trained(device, LoraConfig(r=4))
    save_adapter(model, tmp_path / "adapter")
    here = load_adapter(minilora.load_base(), tmp_path / "adapter")
    there = {name: value.cpu() for name, value in model.state_dict().items() if "lora_" in name}
    assert all(torch.equal(here.state_dict()[name], value) for name, value in there.items())
    with torch.no_grad():
        answer = model.eval()(PROMPT.to(device)).cpu()
        torch.testing.assert_close(here.eval()(PROMPT), answer, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("device", DEVICES)
def test_four_bits_are_the_same_bytes_and_learn(device):
    """Quantized there as here; a QLoRA step leaves them alone and moves A and B."""
    torch.manual_seed(1)
    weight = torch.randn(96, 128)
    there = nf4.quantize(weight.to(device))
    assert torch.equal(there.packed.cpu(), nf4.quantize(weight).packed)
    model = quantize_base(minilora.load_base(device=device))
    inject(model)
    packed = copy.deepcopy({k: v for k, v in model.state_dict().items() if "lora_" not in k})
    minilora.train(model, data.naval_log(40, 8), TrainConfig(**QUIET))
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in packed.items())
    assert any(value.any() for name, value in after.items() if "lora_B" in name)


@pytest.mark.parametrize("device", DEVICES)
def test_a_bank_answers_as_the_model_alone(device, tmp_path):
    """Greedy text is the same, with the base in the same batch."""
    model, _ = trained(device, LoraConfig(r=4), steps=8)
    alone = model.eval().generate_text("Status?", "Log: Hull 90%, Fuel 12%.", max_new_tokens=8)
    bank = AdapterBank(minilora.load_base(device=device), max_rank=4)
    save_adapter(model, tmp_path / "naval")
    bank.load("naval", tmp_path / "naval")
    rows = [("naval", "Status?", "Log: Hull 90%, Fuel 12%."), (None, "Status?", "Hello")]
    assert bank.generate(rows, max_new_tokens=8)[0] == alone


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("settings", [{"bf16": True}, {"checkpointing": True}, {"accumulate": 2}])
def test_the_loops_settings_run_there(device, settings):
    """Autocast, checkpointing and accumulation end in finite losses."""
    _, losses = trained(device, LoraConfig(r=4), **settings)
    assert all(torch.isfinite(torch.tensor(losses)))
