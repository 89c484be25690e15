"""A model's life in any order of operations, with mistakes in between.

A state machine injects, trains, merges, unmerges, saves, loads, disables, unloads and quantizes one
small model, and keeps its own books: the weights that the base must have, and the parts of the
adapter. After every step three things must hold, whatever led there:

    the base       is what the books say, to the bit: in place, or kept aside while a merged weight
                   is in its place
    the outputs    of every Linear are level 0's, in float64, from the books' parts, within the
                   rounding of tolerance.py
    A and B        are what trains while there is an adapter; without one, what trained before

A mistake (merge twice, quantize under adapters, load what does not fit) must be refused and change
nothing of this. Most bugs of real adapter libraries need two operations in an unlucky order; nobody
writes down every order, so hypothesis does.
"""

import contextlib
import copy
import tempfile
import warnings

import numpy as np
import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from torch import nn

import minilora
from minilora import LoraConfig, NF4Linear, level0
from minilora.lora.layer import lora_layers

from . import profiles
from .strategies import DTYPES, alphas, models, ranks, targets
from .tolerance import forward_bound, gamma, merged_bound

with_adapters = precondition(lambda self: self.config is not None)
without_adapters = precondition(lambda self: self.config is None)


def bits(tensor):
    """A copy that can be compared to the bit."""
    return tensor.detach().clone()


def buffers(module):
    """Copies of a module's codes and scales, by name."""
    return {name: bits(buffer) for name, buffer in module.named_buffers()}


class Life(RuleBasedStateMachine):
    """The model, and beside it what it must be."""

    @initialize(model=models(), dtype=st.sampled_from(DTYPES), frozen=st.booleans())
    def a_model(self, model, dtype, frozen):
        self.model = model.to(dtype).eval()
        self.model[0].requires_grad_(not frozen)
        self.x = torch.randn(3, model[0].in_features).to(dtype)
        self.trains = [p.requires_grad for p in model.parameters()]
        self.config, self.merged, self.quantized, self.saved = None, False, False, []
        self.books()

    def teardown(self):
        for folder, *_ in getattr(self, "saved", []):
            folder.cleanup()

    def books(self):
        """Write down the base anew, after something that is meant to change it."""
        modules = self.model.named_modules()
        linears = {name: m for name, m in modules if isinstance(m, nn.Linear | NF4Linear)}
        self.weights = {name: bits(module.weight) for name, module in linears.items()}
        self.codes = {name: buffers(module) for name, module in linears.items()}
        parts = ("weight", "packed", "absmax", "absmax2", "offset")
        inside = {f"{name}.{part}" for name in linears for part in parts}
        state = self.model.state_dict()
        self.others = {name: bits(tensor) for name, tensor in state.items() if name not in inside}

    # ---- What one can do ----

    @without_adapters
    @rule(names=targets, r=ranks, alpha=alphas, rslora=st.booleans())
    def inject(self, names, r, alpha, rslora):
        before = self.model(self.x)
        self.config = LoraConfig(r=r, lora_alpha=alpha, target_modules=names, use_rslora=rslora)
        minilora.inject(self.model, self.config)
        assert torch.equal(self.model(self.x), before), "a new adapter changes nothing"

    @with_adapters
    @precondition(lambda self: not self.merged)
    @rule(seed=st.integers(0, 99))
    def train(self, seed):
        """Two steps; taken back when they overflow float16, as a gradient scaler would do."""
        torch.manual_seed(seed)
        before = self.parts()
        trained = [p for p in self.model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=0.05, weight_decay=0.1)
        for _ in range(2):
            self.model.train()(torch.randn_like(self.x)).float().square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        self.model.eval()
        if not all(torch.isfinite(y).all() for _, y in self.inputs_and_outputs().values()):
            for name, layer in lora_layers(self.model):
                layer.lora_A.data, layer.lora_B.data = before[name][:2]

    @with_adapters
    @precondition(lambda self: not self.merged)
    @rule()
    def merge(self):
        minilora.merge(self.model, onto="dequantized" if self.any_packed() else None)
        self.merged = True

    @with_adapters
    @precondition(lambda self: self.merged)
    @rule()
    def unmerge(self):
        minilora.unmerge(self.model)
        self.merged = False

    @with_adapters
    @rule()
    def unload(self):
        minilora.unload(self.model)
        self.config, self.merged = None, False

    @with_adapters
    @rule()
    def merge_and_unload(self):
        """The base becomes W0 + ΔW: checked against level 0 first, then it is the new base."""
        onto = "dequantized" if self.any_packed() and not self.merged else None
        expected = {name: self.sum_of_parts(name, layer) for name, layer in lora_layers(self.model)}
        minilora.merge_and_unload(self.model, onto=onto)
        for name, (total, bound) in expected.items():
            weight = as_numpy(self.model.get_submodule(name).weight)
            assert (np.abs(weight - total) <= bound).all()
        self.config, self.merged = None, False
        if self.quantized:  # with the floats come parameters, frozen ones
            self.quantized = any(isinstance(module, NF4Linear) for module in self.model.modules())
            self.trains = [False for _ in self.model.parameters()]
        self.books()

    @with_adapters
    @rule()
    def save(self):
        folder = tempfile.TemporaryDirectory()
        minilora.save_adapter(self.model, folder.name)
        self.saved.append((folder, self.config, self.parts()))

    @precondition(lambda self: self.saved)
    @rule(data=st.data())
    def load(self, data):
        """A saved adapter comes back to the bit, or is refused if another is in the way."""
        folder, config, parts = data.draw(st.sampled_from(self.saved))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the base may be another by now, and this says so
            if self.config is not None and (self.merged or not self.fits(parts)):
                with pytest.raises(ValueError, match="does not fit"):
                    minilora.load_adapter(self.model, folder.name)
                return
            minilora.load_adapter(self.model, folder.name)
        self.config = config
        for name, (A, B, scaling) in self.parts().items():
            assert torch.equal(A, parts[name][0])
            assert torch.equal(B, parts[name][1])
            assert scaling == parts[name][2]

    @with_adapters
    @rule()
    def disable(self):
        """Inside the context the model is its base, to the bit; the invariants look afterwards."""
        plain = copy.deepcopy(self.model)
        minilora.unload(plain)
        with minilora.disable_adapter(self.model):
            assert torch.equal(self.model(self.x), plain(self.x))

    @without_adapters
    @precondition(lambda self: not self.quantized)
    @rule(block_size=st.sampled_from([32, 64]))
    def quantize(self, block_size):
        """Ŵ is level 0's, from the weights in the books; nothing trains afterwards."""
        minilora.quantize_base(self.model, double_quant=False, skip=(), block_size=block_size)
        for name, weight in self.weights.items():
            codes = level0.nf4_quantize(weight.float().numpy(), block_size)
            expected = torch.from_numpy(level0.nf4_dequantize(codes))
            dequantized = self.model.get_submodule(name).weight
            assert torch.equal(dequantized, expected.to(dequantized.dtype))
        self.quantized = True
        self.trains = [p.requires_grad for p in self.model.parameters()]
        assert not any(self.trains)
        self.books()

    # ---- What one should not do: refused, and nothing changes ----

    @with_adapters
    @rule(mistake=st.sampled_from(["inject", "quantize", "unmerge", "merge a diverged one"]))
    def a_mistake(self, mistake):
        onto = "dequantized" if self.any_packed() else None
        if self.merged and mistake not in ("inject", "quantize"):
            mistake = "merge twice"
        action = {
            "inject": lambda: minilora.inject(self.model, self.config),
            "quantize": lambda: minilora.quantize_base(self.model, skip=()),
            "merge twice": lambda: minilora.merge(self.model, onto=onto),
            "unmerge": lambda: minilora.unmerge(self.model),
            "merge a diverged one": lambda: minilora.merge(self.model, onto=onto),
        }[mistake]
        with self.diverged() if mistake == "merge a diverged one" else contextlib.nullcontext():
            refused(action)

    @contextlib.contextmanager
    def diverged(self):
        """One number of the last adapter is NaN for a while."""
        B = list(lora_layers(self.model))[-1][1].lora_B
        before = B.data.clone()
        B.data[0, 0] = float("nan")
        try:
            yield
        finally:
            B.data = before

    # ---- What must hold after every step ----

    @invariant()
    def the_base_is_unchanged_to_the_bit(self):
        if not hasattr(self, "model"):
            return
        layers = dict(lora_layers(self.model))
        for name, weight in self.weights.items():
            layer = layers.get(name)
            base = layer.original_base() if layer else self.model.get_submodule(name)
            assert torch.equal(base.weight, weight), name
            codes = buffers(base)
            assert codes.keys() == self.codes[name].keys()
            assert all(torch.equal(code, self.codes[name][part]) for part, code in codes.items())
        state = {n.replace(".base.", "."): tensor for n, tensor in self.model.state_dict().items()}
        assert all(torch.equal(state[name], tensor) for name, tensor in self.others.items())

    @invariant()
    def every_output_is_what_the_parts_say(self):
        if not hasattr(self, "model"):
            return
        layers, seen = dict(lora_layers(self.model)), self.inputs_and_outputs()
        assert seen.keys() == self.weights.keys()
        for name, (x, y) in seen.items():
            W, layer = self.weights[name], layers.get(name)
            A, B, scaling = self.parts()[name] if layer else (W[:1] * 0, W[:, :1] * 0, 1.0)
            bias = self.model.get_submodule(name).bias
            bias_array = None if bias is None else as_numpy(bias)
            truth = level0.lora_forward(*map(as_numpy, (x, W, A, B)), scaling * len(A), bias_array)
            bound_of = merged_bound if self.merged else forward_bound
            bound = bound_of(x, W, A, B, scaling, bias, y.dtype).numpy()
            assert (np.abs(as_numpy(y) - truth) <= bound).all(), name

    @invariant()
    def what_trains_is_the_adapter_alone_or_what_trained_before(self):
        if not hasattr(self, "model"):
            return
        if self.config is None:
            assert [p.requires_grad for p in self.model.parameters()] == self.trains
        else:
            trains = [name for name, p in self.model.named_parameters() if p.requires_grad]
            assert {name.rpartition(".")[2] for name in trains} == {"lora_A", "lora_B"}

    # ---- Helpers ----

    def inputs_and_outputs(self):
        """The input of every Linear of the base, and its output with the adapter on it, by path."""
        seen, hooks = {}, []
        for name in self.weights:

            def hook(module, inputs, output, name=name):
                return seen.update({name: (inputs[0].clone(), output.clone())})

            hooks.append(self.model.get_submodule(name).register_forward_hook(hook))
        with torch.no_grad():
            self.model(self.x)
        for hook in hooks:
            hook.remove()
        return seen

    def any_packed(self):
        return any(isinstance(layer.base, NF4Linear) for _, layer in lora_layers(self.model))

    def parts(self):
        """A, B and scaling by path."""
        layers = lora_layers(self.model)
        return {name: (bits(m.lora_A), bits(m.lora_B), m.scaling) for name, m in layers}

    def fits(self, parts):
        """Whether saved parts are those of the adapter that is there: names, ranks and scales."""
        ours = {name: (len(A), scaling) for name, (A, _, scaling) in self.parts().items()}
        return ours == {name: (len(A), scaling) for name, (A, _, scaling) in parts.items()}

    def sum_of_parts(self, name, layer):
        """W0 + ΔW in float64, and the bound for a sum in float32 that is rounded once."""
        W, A, B = map(as_numpy, (self.weights[name], layer.lora_A, layer.lora_B))
        delta = level0.delta_weight(A, B, layer.scaling * layer.r)  # its alpha
        size = np.abs(W) + layer.scaling * np.abs(B) @ np.abs(A)
        rounding = 2 * gamma(1, layer.weight.dtype) + gamma(layer.r + 3, torch.float32)
        return W + delta, rounding * size


def refused(action):
    """The action must raise a ``ValueError``; the modules' own tests read its message."""
    with pytest.raises(ValueError, match="."):
        action()


def as_numpy(tensor):
    return tensor.detach().double().numpy()


TestLife = Life.TestCase
TestLife.settings = settings(
    max_examples=profiles.of(dev=10, ci=40, thorough=3000), stateful_step_count=15, deadline=None
)
