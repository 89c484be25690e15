"""Checkers of lesson 25: a layer against autograd; the machine against this package, end to end."""

import contextlib
import importlib.util
import io
import tempfile
from pathlib import Path
from types import FunctionType

import torch
from hypothesis.strategies import booleans, integers, lists, sampled_from
from safetensors.torch import load_file, save_file
from torch import nn

import minilora
from minilora import data, nf4
from minilora.files import read_json, write_json
from minilora.learn import Wrong, cases, close
from minilora.learn.course import load_solutions
from minilora.learn.peers import quiet_peers
from minilora.learn.pieces import lesson_of
from minilora.lora.layer import lora_layers
from minilora.model.pretrained import SHIPPED
from minilora.training.batches import encode_all, pad
from minilora.training.objective import summed_loss

TENSORS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
STEPS = 3


def weight_of(layer, size_in):
    """What a layer multiplies by while B is zero: its outputs for the identity."""
    with torch.no_grad():
        return layer(torch.eye(size_in)).T.contiguous()


@cases(
    25,
    first={
        "front": [3, 2],
        "size_in": 64,
        "size_out": 7,
        "r": 3,
        "alpha": 16.0,
        "four_bits": False,
        "seed": 0,
    },
    front=lists(integers(1, 4), min_size=1, max_size=3),
    size_in=sampled_from([64, 128]),
    size_out=integers(5, 20),
    r=integers(1, 4),
    alpha=sampled_from([1.0, 3.0, 16.0]),
    four_bits=booleans(),
    seed=integers(0, 999),
)
def check_adapted_layer(answer, front, size_in, size_out, r, alpha, four_bits, seed):
    """Parameters, start, codes; then gradients against autograd with a B that is not zero."""
    torch.manual_seed(seed)
    linear = nn.Linear(size_in, size_out, bias=False)
    W = linear.weight.detach().clone()
    case = f"W {(size_out, size_in)}, r = {r}, alpha = {alpha:g}, four_bits = {four_bits}"
    layer = answer(linear, r, alpha, four_bits)
    if not isinstance(layer, nn.Module):
        raise Wrong(f"for {case}: expected an nn.Module, got {type(layer).__name__}")
    trains = {name: tuple(p.shape) for name, p in layer.named_parameters() if p.requires_grad}
    right = {"lora_A": (r, size_in), "lora_B": (size_out, r)}
    if trains != right:
        raise Wrong(f"for {case}: {trains} train; a right answer trains {right}")
    x = torch.randn(*front, size_in, requires_grad=True)
    if not four_bits and not torch.equal(layer(x), linear(x)):
        far = (layer(x) - linear(x)).abs().max()
        raise Wrong(f"for {case}: with B = 0 the output is {far:.2g} off the base's; expected 0")
    known = weight_of(layer, size_in) if four_bits else W
    if four_bits:
        check_codes(layer, known, W, case)
    with torch.no_grad():
        layer.lora_B.normal_()
    A, B = (p.detach().clone().requires_grad_() for p in (layer.lora_A, layer.lora_B))
    mine = x.detach().clone().requires_grad_()
    g = torch.randn(*front, size_out)
    y = x @ known.T + alpha / r * (x @ A.T) @ B.T
    y.backward(g)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        out = layer(mine)
    out.backward(g)
    close(out, y.detach(), what="y", case=case)
    for name, got, want in (
        ("∂A", layer.lora_A.grad, A.grad),
        ("∂B", layer.lora_B.grad, B.grad),
        ("∂x", mine.grad, x.grad),
    ):
        close(got, want, what=name, case=f"{case}, x {tuple(x.shape)}", tolerance=1e-4)
    if not four_bits and not torch.equal(linear.weight, W):
        change = (linear.weight - W).abs().max()
        raise Wrong(f"for {case}: the base's weight changed by {change:.2g}; it is frozen")
    whole = [t for t in kept if t.is_floating_point() and sorted(t.shape) == sorted(W.shape)]
    if four_bits and whole and r != size_out:
        shape = tuple(whole[0].shape)
        raise Wrong(
            f"for {case}: a float tensor of shape {shape}, the whole Ŵ, is kept for the backward; "
            "lean_product keeps the codes only"
        )


def check_codes(layer, known, W, case):
    """Ŵ is NF4's, up to the rounding of the scales; no float weight stays."""
    right = nf4.quantize(W, double_quant=False).dequantize()
    step = 0.02 * W.abs().max().item()
    far = (known - right).abs()
    if far.max() > step:
        place = tuple(int(i) for i in torch.nonzero(far == far.max())[0])
        raise Wrong(
            f"for {case}: Ŵ at {place} is {known[place].item():.4f}, NF4 has "
            f"{right[place].item():.4f} for the weight {W[place].item():.4f}"
        )
    tensors = {**dict(layer.named_parameters()), **dict(layer.named_buffers())}
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and tensor.shape == W.shape and not name.startswith("lora_"):
            raise Wrong(f"for {case}: {name} holds all {W.numel()} weights as floats")


def check_fine_tune(answer):
    """The machine; a pass says how many of its factors have this package's bits."""
    counted = []
    check_machine(answer, counted)
    same, total = (sum(each) for each in zip(*counted, strict=True))
    return f"{same} of {total} factors are equal to this package's to the bit"


@cases(2, r=sampled_from([2, 4]), factor=sampled_from([2, 4]), names=sampled_from(["qv", "vo"]))
def check_machine(answer, counted, r, factor, names):
    """The shipped base, float and four bits: start, losses, files, factors, and PEFT's reader."""
    names = {f"{letter}_proj" for letter in names}
    for four_bits in (False, True):
        with tempfile.TemporaryDirectory() as folder:
            same = check_end_to_end(answer, names, r, factor * r, four_bits, Path(folder))
            counted.append(same)


def run(answer, names, r, alpha, batches, folder, four_bits):
    """The answer on a fresh base; its losses and its model."""
    torch.manual_seed(r)
    model = minilora.load_base()

    def loss_of(batch):
        return summed_loss(model, batch) / batch.answer_tokens

    losses = answer(model, set(names), r, alpha, loss_of, batches, folder, four_bits)
    return losses, model


def check_end_to_end(answer, names, r, alpha, four_bits, folder):
    """One case; how many factors are equal to the bit, and of how many."""
    case = f"{sorted(names)}, r = {r}, alpha = {alpha}, four_bits = {four_bits}"
    rows = encode_all(minilora.load_base().tokenizer, data.naval_log(4 * STEPS, 2).train, 256)
    batches = [pad(rows[4 * i : 4 * i + 4]) for i in range(STEPS)]
    start, end = folder / "start" / "adapter", folder / "end" / "adapter"
    _, fresh = run(answer, names, r, alpha, [], start, four_bits)
    losses, model = run(answer, names, r, alpha, batches, end, four_bits)
    ours = library_of(fresh, start, case, four_bits)
    check_config(start, names, r, alpha, case)
    right = train_library(ours, batches)
    close(losses, right, what=f"the losses of {STEPS} steps", case=case, tolerance=1e-4)
    open_adapter(end, case)
    written, equal = load_file(end / TENSORS), []
    for path, layer in lora_layers(ours):
        for name in ("lora_A", "lora_B"):
            key = f"base_model.model.{path}.{name}.weight"
            what = f"{key} after {STEPS} steps"
            close(written[key], getattr(layer, name), what=what, case=case, tolerance=1e-2)
            equal.append(torch.equal(written[key], getattr(layer, name)))
    outputs = model.eval()(batches[0].ids)
    close(outputs, ours.eval()(batches[0].ids), what="the logits", case=case, tolerance=1e-3)
    if not four_bits:
        check_peft(end, batches[0].ids, outputs, case)
        check_merge(answer, ours, alpha, case)
    return sum(equal), len(equal)


def check_merge(answer, ours, alpha, case):
    """The merge_once beside the answer, in its file, against this package's."""
    merge_once = getattr(answer, "__globals__", {}).get("merge_once")
    if merge_once is None:
        raise Wrong(
            f"for {case}: merge_once is missing in the file; the end of the lesson needs it"
        )
    path, layer = next(lora_layers(ours))
    W = layer.base.weight.detach().clone()
    own = merge_once(W, layer.lora_A.detach(), layer.lora_B.detach(), alpha)
    close(own, minilora.merge(ours).get_submodule(path).weight, what="merge_once's W", case=case)


def open_adapter(folder, case):
    """The folder, opened by this package's strict reader on a fresh base."""
    for file in (TENSORS, CONFIG):
        if not (folder / file).is_file():
            raise Wrong(f"for {case}: {file} is missing in the folder; expected 2 files")
    try:
        return minilora.load_adapter(minilora.load_base(), folder)
    except (ValueError, OSError) as error:
        raise Wrong(f"for {case}: a strict reader refuses the folder: {error}") from None


def check_config(folder, names, r, alpha, case):
    """What the JSON says, before a wrong number in it is blamed on the losses."""
    right = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": r, "lora_alpha": alpha}
    config = read_json(folder / CONFIG)
    targets = config.get("target_modules")
    config["target_modules"] = sorted(targets) if isinstance(targets, list) else targets
    for name, value in {**right, "target_modules": sorted(names)}.items():
        if config.get(name) != value:
            got = repr(config[name]) if name in config else "missing"
            raise Wrong(f"for {case}: {name} in {CONFIG} is {got}; expected {value!r}")


def library_of(fresh, start, case, four_bits):
    """This package's layers with the answer's start, on the answer's weights."""
    ours = open_adapter(start, case)
    for path, layer in lora_layers(ours):
        if layer.lora_B.any():
            raise Wrong(f"for {case}: untrained, the B of {path} reaches {layer.lora_B.max():.2g}")
        if four_bits:
            weight = weight_of(fresh.get_submodule(path), layer.in_features)
            if torch.equal(weight, layer.base.weight):
                raise Wrong(f"for {case}: the weight of {path} has its 32 bits still")
            layer.base.weight.data = weight
    return ours


def train_library(model, batches):
    """A plain loop of AdamW."""
    factors = [f for _, layer in lora_layers(model) for f in (layer.lora_A, layer.lora_B)]
    for factor in factors:
        factor.requires_grad_(True)
    optimizer = torch.optim.AdamW(factors, lr=5e-3, weight_decay=0)
    losses = []
    for batch in batches:
        loss = summed_loss(model, batch) / batch.answer_tokens
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def check_peft(folder, ids, outputs, case):
    """PEFT, where it is installed."""
    if not (importlib.util.find_spec("peft") and importlib.util.find_spec("transformers")):
        return
    with contextlib.redirect_stderr(io.StringIO()), quiet_peers():
        from peft import PeftModel
        from transformers import AutoModelForCausalLM
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()
        foreign = AutoModelForCausalLM.from_pretrained(SHIPPED, dtype=torch.float32)
        try:
            opened = PeftModel.from_pretrained(foreign, folder).eval()
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise Wrong(f"for {case}: PEFT refuses the folder's 2 files: {error}") from None
    close(opened(ids).logits, outputs, what="PEFT's logits", case=case, tolerance=1e-3)


BUILD = load_solutions(lesson_of("fine_tune"))


def layer_with(**changes):
    """The course's layer with another Function or module."""

    def adapted_layer(linear, r, alpha, four_bits=False):
        layer = BUILD.Adapted(linear, r, alpha, four_bits)
        for name, change in changes.items():
            setattr(layer, name, change(layer, linear))
        return layer

    return adapted_layer


class NothingBelow(BUILD.LowRank):
    """Hands no gradient down."""

    @staticmethod
    def backward(ctx, g):
        return None, *BUILD.LowRank.backward(ctx, g)[1:]


class NothingBelowLayer(BUILD.Adapted):
    """Only the base's ∂x."""

    def forward(self, x):
        y = self.base(x) if self.codes is None else BUILD.lean_product(x, self.codes)
        return y + NothingBelow.apply(x, self.lora_A, self.lora_B, self.s)


class FatLayer(BUILD.Adapted):
    """Autograd keeps Ŵ."""

    def forward(self, x):
        y = self.base(x) if self.codes is None else x @ self.codes.dequantize().T
        return y + BUILD.LowRank.apply(x, self.lora_A, self.lora_B, self.s)


def trains_the_base(linear, r, alpha, four_bits=False):
    """Not frozen."""
    layer = BUILD.Adapted(linear, r, alpha, four_bits)
    linear.requires_grad_(True)
    layer.base = linear
    return layer


def never_in_four_bits(linear, r, alpha, four_bits=False):
    """Ignores the switch."""
    return BUILD.Adapted(linear, r, alpha, False)


def changed_files(change):
    """The course's machine, whose files are changed afterwards."""

    def fine_tune(model, names, r, alpha, loss_of, batches, folder, four_bits=False):
        losses = BUILD.fine_tune(model, names, r, alpha, loss_of, batches, folder, four_bits)
        tensors, config = change(load_file(folder / TENSORS), read_json(folder / CONFIG))
        save_file(tensors, folder / TENSORS)
        write_json(folder / CONFIG, config)
        return losses

    return fine_tune


def no_alpha(tensors, config):
    """α = r."""
    return tensors, {**config, "lora_alpha": config["r"]}


def short_names(tensors, config):
    """Paths without PEFT's prefix."""
    return {key.removeprefix("base_model.model."): t for key, t in tensors.items()}, config


def transposed(tensors, config):
    """A as (in, r)."""
    return {key: t.T.contiguous() for key, t in tensors.items()}, config


def only_A(tensors, config):
    """Half of it."""
    return {key: t for key, t in tensors.items() if "lora_A" in key}, config


def saves_first(model, names, r, alpha, loss_of, batches, folder, four_bits=False):
    """The start, not the end."""
    BUILD.fine_tune(model, names, r, alpha, loss_of, [], folder, four_bits)
    trained = [p for p in model.parameters() if p.requires_grad]
    return BUILD.train_steps(loss_of, batches, torch.optim.AdamW(trained, 5e-3, weight_decay=0))


def beside(**names):
    """The course's machine in a file with other pieces; None leaves one out."""
    pieces = {key: piece for key, piece in {**vars(BUILD), **names}.items() if piece is not None}
    return FunctionType(BUILD.fine_tune.__code__, pieces, argdefs=BUILD.fine_tune.__defaults__)


def returns_nothing(*arguments, **named):
    """No losses."""
    BUILD.fine_tune(*arguments, **named)


WRONG = {
    "adapted_layer": {
        "nothing below": lambda *a: NothingBelowLayer(*a),
        "keeps Ŵ": lambda *a: FatLayer(*a),
        "unscaled": layer_with(s=lambda layer, linear: 1.0),
        "trains the base": trains_the_base,
        "never in four bits": never_in_four_bits,
    },
    "fine_tune": {
        "no alpha": changed_files(no_alpha),
        "short names": changed_files(short_names),
        "transposed": changed_files(transposed),
        "only A": changed_files(only_A),
        "saves first": saves_first,
        "returns nothing": returns_nothing,
        "a merge without s": beside(merge_once=lambda W, A, B, alpha: W + B @ A),
        "no merge": beside(merge_once=None),
    },
}
