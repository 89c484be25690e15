"""One new token in few calls has the modules' logits; what is unusual is left to the modules."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from minilora import LoraConfig, inject, merge, merge_and_unload, quantize_base
from minilora.lora.layer import lora_layers
from minilora.methods import BitFitConfig, BottleneckConfig
from minilora.model import decoding
from minilora.model.cache import KVCache

from ..tolerance import assert_as_close, exactly
from .test_transformer import SIZES, tiny

WINDOWED = {**SIZES[1], "model_type": "mistral", "sliding_window": 4}
LAST = 3  # tokens that are computed one by one


def stepped(model, ids, mask=None):
    """The logits of the last tokens, (rows, LAST, vocab): one by one, by ``Step``."""
    cache, past = KVCache(), ids.shape[1] - LAST
    with torch.inference_mode():
        model.next_logits(ids[:, :past], mask, cache)
        step = model.stepper(cache, LAST)
        return torch.stack([step(ids[:, [at]]) for at in range(past, past + LAST)], dim=1)


def compare(model, ids):
    """Against the modules without a cache, both measured by float64."""
    whole, truth = model(ids)[:, -LAST:], exactly(model, ids)[:, -LAST:]
    assert_as_close(stepped(model, ids), whole, truth)


def adapted(model, targets):
    inject(model, LoraConfig(r=4, target_modules=targets))
    for _, layer in lora_layers(model):
        nn.init.normal_(layer.lora_B, std=0.5)
    return model


@given(
    st.sampled_from([*SIZES, WINDOWED]),
    st.sampled_from([0, 1 << 18]),
    *(st.integers(1, 3), st.integers(LAST + 1, 12), st.integers(0, 1000)),
)
def test_a_token_has_the_logits_of_the_modules(sizes, copied, rows, time, seed):
    model, ids = tiny(seed, **sizes), torch.randint(0, 97, (rows, time))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoding, "COPIED", copied)
        compare(model, ids)


def test_rows_of_different_lengths():
    model, ids = tiny(**SIZES[1]), torch.randint(0, 97, (2, 9))
    mask = torch.tensor([[1] * 6, [0, 0, 1, 1, 1, 1]])
    logits = stepped(model, ids, mask)
    for row, start in enumerate((0, 2)):
        alone = ids[[row], start:]
        assert_as_close(logits[row], model(alone)[0, -LAST:], exactly(model, alone)[0, -LAST:])


@pytest.mark.parametrize("targets", [["q_proj", "down_proj"], "all-linear", ["lm_head"]])
@pytest.mark.parametrize("merged", [False, True])
def test_adapters_are_asked(targets, merged):
    model, ids = adapted(tiny(**SIZES[1]), targets), torch.randint(0, 97, (2, 8))
    compare(merge(model) if merged else model, ids)


def test_four_bits_are_asked():
    model, ids = quantize_base(tiny(**SIZES[1])), torch.randint(0, 97, (2, 8))
    floats = copy.deepcopy(model)
    for name, layer in list(floats.named_modules()):
        if hasattr(layer, "quantized"):
            linear = nn.Linear(layer.in_features, layer.out_features, bias=False)
            linear.weight.data = layer.weight
            floats.set_submodule(name, linear)
    truth = exactly(floats, ids)[:, -LAST:]
    assert_as_close(stepped(model, ids), model(ids)[:, -LAST:], truth)


@pytest.mark.parametrize("targets", [["q_proj"], ["v_proj"], ["k_proj", "up_proj"], ["gate_proj"]])
def test_a_bias_of_some_of_the_joined_linears_counts(targets):
    """A merged BitFit leaves one; what is joined with it has none."""
    model, ids = tiny(**SIZES[1]), torch.randint(0, 97, (2, 8))
    inject(model, BitFitConfig(target_modules=targets))
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter)
    model = merge_and_unload(model)
    compare(model, ids)
    assert torch.equal(model.generate(ids, 8), model.generate(ids, 8, use_cache=False))


@pytest.mark.parametrize(
    "name", ["layers.1.self_attn.k_proj", "layers.0.input_layernorm", "embed_tokens", "norm"]
)
def test_a_hook_sees_every_token(name):
    model, ids, seen = tiny(**SIZES[1]), torch.randint(0, 97, (2, 8)), []

    def double(module, given, output):
        seen.append(output.shape[:2])
        return 2 * output

    model.model.get_submodule(name).register_forward_hook(double)
    logits = stepped(model, ids)
    assert [tuple(shape) for shape in seen] == [(2, 8 - LAST)] + [(2, 1)] * LAST
    assert_as_close(logits, model(ids)[:, -LAST:], exactly(model, ids)[:, -LAST:])


@pytest.mark.parametrize("copied", [0, 1 << 18])
def test_a_hook_on_the_head_sees_rows_without_a_time(copied, monkeypatch):
    """It bans a token by ``output[:, token]``, for the prompt's logits as for each token's."""
    monkeypatch.setattr(decoding, "COPIED", copied)
    model, ids = tiny(**SIZES[1]), torch.randint(0, 97, (2, 8))
    free = model.generate(ids, 6)
    banned = free[0, -3].item()

    def ban(module, given, output):
        output[..., banned] = -torch.inf
        seen.append(output.shape)
        return output

    seen = []
    model.lm_head.register_forward_hook(ban)
    out = model.generate(ids, 6)
    assert set(seen) == {(2, 97)}
    assert not (out[:, 8:] == banned).any()
    assert torch.equal(out, model.generate(ids, 6, use_cache=False))


def test_angles_are_computed_as_a_text_grows(monkeypatch):
    """Not for all of ``max_new_tokens``: many ask for millions, and leave the end to a token."""
    monkeypatch.setattr(decoding, "AHEAD", 3)
    model, ids = tiny(**SIZES[1]), torch.randint(0, 97, (2, 5))
    cache = filled(model, ids)
    step = decoding.Step(model.model, model.lm_head, cache, 10**6)
    assert len(step.angles) == 5 + 3
    assert torch.equal(model.generate(ids, 20), model.generate(ids, 20, use_cache=False))


class Twice(nn.Module):
    """Someone's module in the place of an MLP."""

    def __init__(self, mlp):
        super().__init__()
        self.mlp = mlp

    def forward(self, x):
        """As the MLP, twice."""
        return self.mlp(x) * 2


def hook_on(name):
    def change(model):
        model.get_submodule(name).register_forward_hook(lambda module, given, output: output)

    return change


def replace_an_mlp(model):
    model.model.layers[1].mlp = Twice(model.model.layers[1].mlp)


def replace_a_forward(model):
    attention = model.model.layers[0].self_attn
    attention.forward = type(attention).forward.__get__(attention)


UNUSUAL = {
    "a hook on a layer": hook_on("model.layers.0"),
    "a hook on the attention": hook_on("model.layers.0.self_attn"),
    "a hook on the decoder": hook_on("model"),
    "someone's MLP": replace_an_mlp,
    "someone's forward": replace_a_forward,
    "bottlenecks": lambda model: inject(model, BottleneckConfig()),
    "half precision": lambda model: model.bfloat16(),
    "float64": lambda model: model.double(),
}


@pytest.mark.parametrize("change", UNUSUAL.values(), ids=UNUSUAL)
def test_the_modules_compute_what_is_unusual(change):
    model, ids = tiny(**SIZES[1]), torch.randint(0, 97, (1, 5))
    assert model.stepper(filled(model, ids), 1) is not None
    change(model)
    assert model.stepper(filled(model, ids), 1) is None
    assert torch.equal(model.generate(ids, 8), model.generate(ids, 8, use_cache=False))


def filled(model, ids):
    cache = KVCache()
    with torch.inference_mode():
        model.next_logits(ids, None, cache)
    return cache


def test_norms_on_the_heads_are_the_modules():
    sizes = {"num_attention_heads": 4, "num_key_value_heads": 2, "model_type": "qwen3"}
    model, ids = tiny(**sizes), torch.randint(0, 97, (1, 5))
    assert model.stepper(filled(model, ids), 1) is None


@pytest.mark.parametrize(("owner", "name"), [(nn.Linear, "forward"), (nn.functional, "linear")])
def test_a_linear_that_someone_replaced_for_all_is_asked(owner, name, monkeypatch):
    model, ids = tiny(**SIZES[1]), torch.randint(0, 97, (1, 5))
    before = model.generate(ids, 8)
    compute = getattr(owner, name)

    def negated(*arguments):
        return -compute(*arguments)

    monkeypatch.setattr(owner, name, negated)
    out = model.generate(ids, 8)
    assert not torch.equal(out, before)
    assert torch.equal(out, model.generate(ids, 8, use_cache=False))


def test_a_step_stays_on_its_models_device():
    """Whatever torch's default is: ``meta`` stands for a GPU here."""
    model, ids = tiny(**SIZES[1]), torch.randint(0, 97, (1, 5))
    cache = filled(model, ids)
    with torch.inference_mode(), torch.device("meta"):
        logits = model.stepper(cache, 1)(ids[:, :1])
    assert logits.device.type == "cpu"


@pytest.mark.parametrize("watch", ["autocast", "a global hook", "another next_logits"])
def test_the_modules_compute_while_somebody_watches(watch, monkeypatch):
    model, ids = tiny(**SIZES[1]), torch.randint(0, 97, (1, 5))
    cache = filled(model, ids)
    if watch == "autocast":
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert model.stepper(cache, 1) is None
    elif watch == "a global hook":
        handle = nn.modules.module.register_module_forward_hook(lambda *given: None)
        assert model.stepper(cache, 1) is None
        handle.remove()
    else:
        monkeypatch.setattr(model, "next_logits", model.next_logits)
        assert model.stepper(cache, 1) is None
    monkeypatch.undo()
    assert model.stepper(cache, 1) is not None


def test_a_changed_weight_counts_from_the_next_call_and_in_a_stream_at_once(base):
    """The copies live for one call, in which nobody can change anything; a stream makes none."""
    asked = ("Status?", "Log: Hull 90%, Fuel 12%.")
    whole, stream = base.generate_text(*asked), base.stream_text(*asked)
    start = next(stream)
    for parameter in base.parameters():
        parameter.data.mul_(-1)
    assert whole.startswith(start)
    assert start + "".join(stream) != whole
    ids = torch.randint(3, 1500, (1, 6))
    assert torch.equal(base.generate(ids, 12), base.generate(ids, 12, use_cache=False))


def test_generate_uses_it(monkeypatch):
    model, ids, seen = tiny(**SIZES[1]), torch.randint(0, 97, (2, 5)), []
    called = decoding.Step.__call__

    def note(step, ids):
        seen.append(tuple(ids.shape))
        return called(step, ids)

    monkeypatch.setattr(decoding.Step, "__call__", note)
    out = model.generate(ids, 6)
    assert seen == [(2, 1)] * 5
    assert torch.equal(out, model.generate(ids, 6, use_cache=False))
