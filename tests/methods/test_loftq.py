"""LoftQ: PEFT's own function on this processor, an oracle in NumPy, files both ways."""

import copy
import inspect
import warnings

import numpy as np
import peft
import peft.tuners.lora.layer
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from peft.utils import loftq_utils
from torch import nn

import minilora
from minilora import (
    Llama,
    LlamaConfig,
    LoraConfig,
    disable_adapter,
    inject,
    level0,
    load_adapter,
    merge,
    quantize_base,
    save_adapter,
    unload,
)
from minilora.lora.adapter_layer import adapter_layers
from minilora.methods.loftq import replace_lora_weights_loftq

from ..formats.test_save_and_load import IDS, SIZES
from ..formats.test_variant_files import changed
from ..strategies import alphas, seeds
from ..tolerance import assert_as_close, exactly
from .peer import Holder


def pefts_on_the_cpu():
    """PEFT's ``loftq_init``, which sends everything to a GPU, with the processor for that."""
    source = inspect.getsource(loftq_utils.loftq_init).replace('else "cuda"', 'else "cpu"')
    names = dict(vars(loftq_utils)) | {"clear_device_cache": lambda: None}  # it collects garbage
    exec(source, names)
    return names["loftq_init"]


def pair():
    """The same random Llama twice, ours and transformers', with rows of whole blocks."""
    torch.manual_seed(0)
    sizes = {**SIZES, "hidden_size": 64}
    config = transformers.LlamaConfig(**sizes, rms_norm_eps=1e-5)
    theirs = transformers.LlamaForCausalLM(config).eval()
    ours = Llama(LlamaConfig(**sizes, tie_word_embeddings=False)).eval()
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def in_four_bits(base, r, alpha, **settings):
    """A quantized copy with LoRA on it, and the float one."""
    model = quantize_base(copy.deepcopy(base), **{"double_quant": False, **settings})
    inject(model, LoraConfig(r, alpha, ["lin"]))
    return model


whole_blocks = st.sampled_from([64, 128])  # bitsandbytes misreads others (test_tensor.py)


@given(seeds, whole_blocks, st.integers(1, 70), st.integers(1, 8), alphas, st.integers(1, 3))
def test_it_is_pefts_with_the_scale_divided_out(seed, width, out, r, alpha, iterations):
    """PEFT's s B A is s times ours, #1982; so ours is held against it with s = 1."""
    torch.manual_seed(seed)
    base, r = Holder(nn.Linear(width, out)), min(r, width, out)
    weight = base.lin.weight.detach()
    Q, A, B = pefts_on_the_cpu()(weight, 4, r, iterations)
    model = in_four_bits(base, r, r)
    layer = replace_lora_weights_loftq(model, base, iterations).lin
    size = weight.abs().max().item()
    torch.testing.assert_close(layer.weight, Q, rtol=0, atol=1e-6 * size)
    torch.testing.assert_close(layer.delta_weight(), B @ A, rtol=0, atol=1e-5 * size)
    scaled = in_four_bits(base, r, alpha)
    layer = replace_lora_weights_loftq(scaled, base, 1).lin
    _, A, B = pefts_on_the_cpu()(weight, 4, r, 1)
    torch.testing.assert_close(layer.delta_weight(), B @ A, rtol=0, atol=1e-5 * size)


@given(seeds, st.integers(3, 40), st.integers(3, 40), alphas, st.integers(1, 3))
def test_it_is_the_papers_algorithm_in_numpy(seed, width, out, alpha, iterations):
    torch.manual_seed(seed)
    base, r = Holder(nn.Linear(width, out, bias=False)), 2
    W, BA = base.lin.weight.detach().numpy(), 0
    for _ in range(iterations):
        Q = level0.nf4_dequantize(level0.nf4_quantize(W - BA))
        U, S, Vh = np.linalg.svd((W - Q).astype(np.float64), full_matrices=False)
        BA = ((U[:, :r] * S[:r]) @ Vh[:r]).astype(np.float32)
    layer = replace_lora_weights_loftq(in_four_bits(base, r, alpha), base, iterations).lin
    near = {"rtol": 0, "atol": 1e-5 * np.abs(W).max()}
    np.testing.assert_allclose(layer.weight.numpy(), Q, **near)
    np.testing.assert_allclose(layer.delta_weight().numpy(), BA, **near)


def test_one_round_leaves_the_base_and_more_rounds_come_nearer():
    torch.manual_seed(0)
    base = Holder(nn.Linear(96, 64))
    weight, lost = base.lin.weight.detach(), []
    for iterations in (0, 1, 5):
        model = in_four_bits(base, 8, 16, double_quant=True)
        codes = model.lin.base.packed.clone()
        if iterations:
            assert replace_lora_weights_loftq(model, base, iterations) is model
        lost.append(torch.dist(weight, model.lin.weight + model.lin.delta_weight()).item())
        assert torch.equal(codes, model.lin.base.packed) == (iterations < 2)
        assert model.lin.base.absmax2 is not None
        assert [n for n, p in model.named_parameters() if p.requires_grad] == [
            "lin.lora_A",
            "lin.lora_B",
        ]
    assert lost[2] < lost[1] < lost[0]


def test_the_first_round_leaves_the_codes_though_the_original_differs_a_little():
    torch.manual_seed(0)
    base = Holder(nn.Linear(64, 64))
    model = in_four_bits(base, 4, 4)
    base.lin.weight.data += 1e-3 * torch.randn(64, 64)  # a checkpoint of another precision
    codes = model.lin.base.packed.clone()
    assert not torch.equal(codes, in_four_bits(base, 4, 4).lin.base.packed)
    replace_lora_weights_loftq(model, base)
    assert torch.equal(model.lin.base.packed, codes)
    lost = base.lin.weight.detach() - model.lin.weight
    rest = torch.linalg.svdvals(lost - model.lin.delta_weight())
    torch.testing.assert_close(rest[:60], torch.linalg.svdvals(lost)[4:], rtol=1e-3, atol=1e-6)


def test_an_original_that_is_too_far_away_is_named_with_its_distance():
    torch.manual_seed(0)
    base = Holder(nn.Linear(64, 64))
    model, other = in_four_bits(base, 4, 4), copy.deepcopy(base)
    other.lin.weight.data *= 3
    with pytest.raises(ValueError, match=r"^lin: the base is 0\.6\d of ‖W‖ away"):
        replace_lora_weights_loftq(model, other)
    other.lin.weight.data *= 0.5
    replace_lora_weights_loftq(model, other)  # a third of it: odd, but four bits may be as coarse


def test_on_the_shipped_base_a_tenth_of_what_was_lost_comes_back():
    base = minilora.load_base()
    model = quantize_base(copy.deepcopy(base))
    inject(model, LoraConfig(r=8, target_modules="all-linear"))
    replace_lora_weights_loftq(model, base)
    plain, started = [], []
    for path, layer in adapter_layers(model):
        weight = base.get_submodule(path).weight
        plain.append(torch.dist(weight, layer.weight))
        started.append(torch.dist(weight, layer.weight + layer.delta_weight()))
    share = torch.stack(started).norm() / torch.stack(plain).norm()
    assert share.item() == pytest.approx(0.90, abs=0.005)


def test_a_rank_above_the_weights_gets_rows_of_zeros():
    base = Holder(nn.Linear(6, 3))
    layer = replace_lora_weights_loftq(in_four_bits(base, 5, 5), base).lin
    assert (layer.lora_A.shape, layer.lora_B.shape) == ((5, 6), (3, 5))
    assert not layer.lora_A[3:].any()
    assert not layer.lora_B[:, 3:].any()
    torch.testing.assert_close(layer.weight + layer.delta_weight(), base.lin.weight.detach())


def test_it_trains_is_saved_merged_and_taken_out_as_lora(tmp_path):
    ours, _ = pair()
    base = quantize_base(copy.deepcopy(ours), skip=["lm_head"])
    model = copy.deepcopy(base)
    inject(model, LoraConfig(r=3, lora_alpha=6))
    replace_lora_weights_loftq(model, ours)
    before = model(IDS)
    save_adapter(model, tmp_path)
    assert torch.equal(load_adapter(copy.deepcopy(base), tmp_path)(IDS), before)
    with disable_adapter(model):
        assert torch.equal(model(IDS), base(IDS))
    model(IDS).square().sum().backward()
    assert all(p.grad.any() for p in model.parameters() if p.requires_grad)
    truth = exactly(model, IDS)
    assert_as_close(merge(copy.deepcopy(model), onto="dequantized")(IDS), before, truth)
    assert torch.equal(unload(model)(IDS), base(IDS))


def test_a_file_of_more_rounds_is_warned_of_on_the_plain_base(tmp_path):
    ours, _ = pair()
    model = quantize_base(copy.deepcopy(ours))
    plain = copy.deepcopy(model)
    inject(model, LoraConfig(r=3))
    replace_lora_weights_loftq(model, ours, 2)
    save_adapter(model, tmp_path)
    with pytest.warns(UserWarning, match="was made for a base with other values"):
        load_adapter(plain, tmp_path)


def pefts_folder(folder, monkeypatch):
    """PEFT's file of a LoftQ adapter, trained a little, and its model."""
    monkeypatch.setattr(peft.tuners.lora.layer, "loftq_init", pefts_on_the_cpu())
    _, theirs = pair()
    fields = {"r": 3, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj"]}
    config = peft.LoraConfig(**fields)
    # its constructor asks for scipy, which nothing of it needs
    config.init_lora_weights, config.loftq_config = "loftq", {"loftq_bits": 4, "loftq_iter": 1}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(theirs, config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return model


def skipping(model):
    """Only q and v in four bits, with float scales, as PEFT's base is here."""
    names = [n for n, m in model.named_modules() if isinstance(m, nn.Linear)]
    rest = [n for n in names if not n.endswith(("q_proj", "v_proj"))]
    return quantize_base(model, double_quant=False, skip=rest)


def test_pefts_file_opens_on_its_base_in_four_bits(tmp_path, monkeypatch):
    theirs = pefts_folder(tmp_path, monkeypatch)
    loaded = load_adapter(skipping(pair()[0]), tmp_path)
    assert_as_close(loaded(IDS), theirs(input_ids=IDS).logits, exactly(theirs, IDS))
    again = load_adapter(loaded, tmp_path)  # into the adapters that are there
    assert torch.equal(again(IDS), loaded(IDS))


def test_pefts_file_is_refused_by_name_on_any_other_base(tmp_path, monkeypatch):
    pefts_folder(tmp_path, monkeypatch)
    others = [pair()[0], quantize_base(pair()[0])]
    others.append(quantize_base(pair()[0], double_quant=False, kind="fp4"))
    others.append(quantize_base(pair()[0], double_quant=False, block_size=128))
    for other in others:
        before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
        with pytest.raises(ValueError, match="'loftq' is for a base in NF4 with float scales"):
            load_adapter(other, tmp_path)
        assert all(torch.equal(before[n], t) for n, t in other.state_dict().items())
    with pytest.raises(ValueError, match="'loftq' changes the base"):
        minilora.hub.Hub(tmp_path / "hub").push("q", tmp_path, version="1.0.0")
    changed(tmp_path, {"loftq_config": {"loftq_bits": 4, "loftq_iter": 2}})
    with pytest.raises(ValueError, match="'loftq' changes the base"):
        load_adapter(skipping(pair()[0]), tmp_path)
    changed(tmp_path, {"loftq_config": "four"})
    with pytest.raises(ValueError, match="'loftq' changes the base"):
        load_adapter(skipping(pair()[0]), tmp_path)


def merged_one(base):
    """A merged model."""
    return merge(in_four_bits(base, 2, 2), onto="dequantized")


def floats(base):
    """LoRA on floats."""
    model = copy.deepcopy(base)
    inject(model, LoraConfig(2, 2, ["lin"]))
    return model


def dora(base):
    """DoRA on four bits."""
    model = quantize_base(copy.deepcopy(base))
    inject(model, LoraConfig(2, 2, ["lin"], use_dora=True))
    return model


@pytest.mark.parametrize(
    ("build", "original", "iterations", "message"),
    [
        (lambda base: in_four_bits(base, 2, 2), Holder(nn.Linear(8, 9)), 1, "has shape"),
        (lambda base: in_four_bits(base, 2, 2), Holder(nn.Linear(8, 8)), 1, r"away from the orig"),
        (lambda base: in_four_bits(base, 2, 2), None, 0, "iterations must be at least 1"),
        (floats, None, 1, "lin: LoftQ starts an unmerged LoRA on a base in four bits, got LoRA"),
        (dora, None, 1, "got DoRALayer"),
        (merged_one, None, 1, "unmerged LoRA on a base in four bits"),
        (lambda base: quantize_base(copy.deepcopy(base)), None, 1, "no adapters: inject"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_changes(build, original, iterations, message):
    torch.manual_seed(0)
    base = Holder(nn.Linear(8, 8))
    model = build(base)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        replace_lora_weights_loftq(model, original or base, iterations)
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())


def test_a_configs_word_points_to_the_function():
    with pytest.raises(ValueError, match="replace_lora_weights_loftq"):
        LoraConfig(init_lora_weights="loftq")


def test_a_second_layer_that_does_not_fit_leaves_the_first():
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    model = quantize_base(copy.deepcopy(base))
    inject(model, LoraConfig(2, 2, ["0", "1"]))
    base[1].weight.data *= 3
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match="^1: the base is"):
        replace_lora_weights_loftq(model, base, 2)
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())


def test_a_bias_that_trains_goes_on_training():
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(64, 64))
    model = quantize_base(copy.deepcopy(base))
    inject(model, LoraConfig(2, 2, ["0"], bias="lora_only"))
    before = {name for name, p in model.named_parameters() if p.requires_grad}
    kept, codes = model[0].base, model[0].base.packed.clone()
    replace_lora_weights_loftq(model, base, 2)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == before
    assert len(before) == 3
    assert model[0].base is kept
    assert not torch.equal(codes, model[0].base.packed)
