"""Bottlenecks: the numbers of the ``adapters`` library, from committed vectors."""

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import transformers
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

import minilora
from minilora import BottleneckConfig, Llama, LlamaConfig, inject
from minilora.lora.attached import attached_modules
from minilora.methods.bottleneck import Bottleneck

from ..tolerance import AS_CLOSE, unit_roundoff
from .test_prompt_tuning import shapes

SIZES = {"vocab_size": 20, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5}
GOLDEN = load_file(Path(__file__).parents[1] / "golden" / "bottleneck.safetensors")
KINDS = ["houlsby", "pfeiffer", "parallel"]


def base():
    """The Llama of the vectors."""
    model = Llama(LlamaConfig(**SIZES, tie_word_embeddings=False)).eval()
    tensors = {name.removeprefix("base."): t for name, t in GOLDEN.items() if "base." in name}
    model.load_state_dict(tensors)
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_forward_and_gradients_are_those_of_adapters(kind):
    model = base()
    inject(model, BottleneckConfig(kind, size=4))
    own = {name: p for _, part in attached_modules(model) for name, p in part.tensors().items()}
    theirs = {n for n in GOLDEN if n.startswith(f"{kind}.model")}
    assert {f"{kind}.{name}" for name in own} == theirs
    for name, parameter in own.items():
        parameter.data.copy_(GOLDEN[f"{kind}.{name}"])
    logits = model(GOLDEN["ids"])
    torch.testing.assert_close(logits, GOLDEN[f"{kind}.logits"], rtol=1e-5, atol=1e-5)
    logits.square().sum().backward()
    for name, parameter in own.items():
        expected = GOLDEN[f"{kind}.grad.{name}"]
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-3, atol=1e-4)


def with_bottlenecks(model, kind, parts):
    """transformers' Llama with the papers' equations, on its own modules."""

    def up(x, place):
        down_weight, down_bias, up_weight, up_bias = (p.to(x) for p in parts[place])
        inside = F.linear(x, down_weight, down_bias)
        inside = F.silu(inside) if kind == "houlsby" else F.relu(inside)
        return (4 if kind == "parallel" else 1) * F.linear(inside, up_weight, up_bias)

    for i, layer in enumerate(model.model.layers):
        place, seen = f"model.layers.{i}.output_adapter", []
        if kind == "houlsby":
            name = f"model.layers.{i}.attention_adapter"
            layer.self_attn.register_forward_hook(
                lambda module, x, y, name=name: (y[0] + up(y[0], name), *y[1:])
            )
            layer.mlp.register_forward_hook(lambda module, x, y, place=place: y + up(y, place))
        elif kind == "pfeiffer":
            layer.register_forward_hook(lambda module, x, y, place=place: y + up(y, place))
        else:
            norm = layer.post_attention_layernorm
            norm.register_forward_pre_hook(lambda module, x, seen=seen: seen.append(x[0]))
            layer.mlp.register_forward_hook(
                lambda module, x, y, place=place, seen=seen: y + up(seen.pop(), place)
            )
    return model


@given(shapes(), st.sampled_from(KINDS))
def test_forward_and_gradients_are_the_equations_in_every_shape_and_dtype(case, kind):
    sizes, k, ids, dtype = case
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, rms_norm_eps=1e-5))
    theirs = theirs.to(dtype).eval()
    ours = Llama(LlamaConfig(**sizes, tie_word_embeddings=False)).to(dtype).eval()
    ours.load_state_dict(theirs.state_dict())
    inject(ours, BottleneckConfig(kind, size=k))
    results = []
    for part in (part for _, part in attached_modules(ours)):
        for parameter in part.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    for width in (None, dtype, torch.float64):
        own = {".".join(part.place): part for _, part in attached_modules(ours)}
        parts = {
            name: [p.detach().clone().requires_grad_() for p in part.parameters()]
            for name, part in own.items()
        }
        model, trained = ours, [p for part in own.values() for p in part.parameters()]
        if width is not None:
            model = with_bottlenecks(copy.deepcopy(theirs).to(width), kind, parts)
            trained = [p for part in parts.values() for p in part]
        output = model(ids)
        logits = getattr(output, "logits", output)
        c = torch.linspace(-1, 1, logits.numel()).view(logits.shape).to(logits)
        (logits * c).sum().backward()
        results.append([logits.detach().double(), *(p.grad.double() for p in trained)])
    for value, other, truth in zip(*results, strict=True):
        floor = 8 * AS_CLOSE * unit_roundoff(dtype) * (truth.abs().max() + 1)
        assert (value - truth).abs().max() <= AS_CLOSE * (other - truth).abs().max() + floor


@pytest.mark.parametrize("kind", KINDS)
def test_ten_steps_of_training_are_those_of_the_equations(kind):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**SIZES)
    theirs = transformers.LlamaForCausalLM(config).eval().requires_grad_(False)
    ours = Llama(LlamaConfig(**SIZES, tie_word_embeddings=False)).eval()
    ours.load_state_dict(theirs.state_dict())
    inject(ours, BottleneckConfig(kind, size=4))
    own = {".".join(part.place): part for _, part in attached_modules(ours)}
    parts = {
        name: [p.detach().clone().requires_grad_() for p in part.parameters()]
        for name, part in own.items()
    }
    with_bottlenecks(theirs, kind, parts)
    ids, runs = torch.randint(0, 20, (4, 9)), []
    for model, trained in (
        (ours, [p for part in own.values() for p in part.parameters()]),
        (theirs, [p for part in parts.values() for p in part]),
    ):
        optimizer, losses = torch.optim.AdamW(trained, lr=0.02), []
        for _ in range(10):
            optimizer.zero_grad()
            logits = getattr(output := model(ids), "logits", output)[:, :-1]
            loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        runs.append(losses)
    assert runs[0][-1] < runs[0][0]
    assert runs[0] == pytest.approx(runs[1], rel=1e-4)


def test_the_parallel_one_starts_at_the_base_and_the_others_near_it():
    ids, truth = GOLDEN["ids"], base()(GOLDEN["ids"])
    off = {}
    for kind in KINDS:
        model = base()
        inject(model, BottleneckConfig(kind))
        off[kind] = (model(ids) - truth).abs().max().item()
    assert off["parallel"] == 0
    assert 0 < off["houlsby"] < 0.1
    assert 0 < off["pfeiffer"] < 0.1


def test_they_start_as_adapters_starts_them():
    """N(0, 0.02) and Kaiming-uniform with a = √5, whose bound is 1/√in; the biases are zero."""
    for kind in KINDS:
        torch.manual_seed(0)
        part = Bottleneck(torch.nn.Linear(400, 400), 400, 50, kind, "")
        down, up = part.adapter_down, part.adapter_up
        assert not down.bias.any()
        assert not up.bias.any()
        if kind == "parallel":
            assert 0.049 < down.weight.abs().max() <= 0.05
            assert not up.weight.any()
        else:
            stds = [down.weight.std().item(), up.weight.std().item()]
            assert stds == pytest.approx([0.02, 0.02], rel=0.05)
    assert repr(part) == "Bottleneck(parallel, 400 -> 50 -> 400)"


@pytest.mark.parametrize(("width", "inside"), [(128, 8), (48, 3), (8, 1)])
def test_its_width_is_a_sixteenth_of_the_models_unless_told(width, inside):
    model = Llama(LlamaConfig(**{**SIZES, "hidden_size": width}, tie_word_embeddings=False))
    report = inject(model, BottleneckConfig())
    assert report.trainable == 2 * (2 * width * inside + inside + width)


def test_half_precision_trains_it_in_float32_and_leaves_the_stream_as_it_is():
    model = base().bfloat16()
    inject(model, BottleneckConfig("houlsby", 2))
    assert {p.dtype for _, part in attached_modules(model) for p in part.parameters()} == {
        torch.float32
    }
    assert model(GOLDEN["ids"]).dtype == torch.bfloat16


def test_gradient_checkpointing_changes_no_gradient():
    grads = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = base().train()
        model.model.gradient_checkpointing = checkpointing
        inject(model, BottleneckConfig("parallel", size=4))
        torch.manual_seed(1)
        for _, part in attached_modules(model):
            torch.nn.init.normal_(part.adapter_up.weight)
        model(GOLDEN["ids"]).square().sum().backward()
        grads.append([p.grad for _, part in attached_modules(model) for p in part.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_a_file_of_another_kind_is_refused(tmp_path):
    model, other = base(), base()
    inject(model, BottleneckConfig("pfeiffer", size=4))
    inject(other, BottleneckConfig("parallel", size=4))  # the same names and shapes
    minilora.save_adapter(model, tmp_path)
    before = other(GOLDEN["ids"])
    with pytest.raises(ValueError, match="kind='parallel' in this model, 'pfeiffer' in the file"):
        minilora.load_adapter(other, tmp_path)
    assert torch.equal(other(GOLDEN["ids"]), before)
