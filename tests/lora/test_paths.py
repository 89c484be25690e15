"""A wrapped model is adapted, saved, loaded, merged and unloaded as the model inside it.

Each wrapper of training puts a name of its own into the paths. None of these names may reach a
report, a file or a fingerprint: PEFT would load nothing from such a file, and warn once.
"""

import warnings

import pytest
import torch
import torch.distributed as dist
from peft import PeftModel
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn.parallel import DataParallel, DistributedDataParallel

import minilora
from minilora import LoraConfig, explain_match, inject
from minilora.formats.base_fingerprint import fingerprint
from minilora.lora.adapter_layer import adapter_layers
from minilora.lora.layer import lora_layers
from minilora.lora.paths import named_modules, plain_path, replace_modules, wrapped_name

from ..test_foreign import IDS, make
from ..tolerance import assert_as_close, exactly
from .test_injection import fill

CONFIG = LoraConfig(r=3, lora_alpha=8, target_modules=["q_proj", "down_proj"])


@pytest.fixture(scope="module", autouse=True)
def one_process(tmp_path_factory):
    """DistributedDataParallel wants a group of processes; one is enough."""
    meeting_point = tmp_path_factory.mktemp("group") / "file"
    dist.init_process_group("gloo", init_method=f"file://{meeting_point}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def compiled(model):
    """``torch.compile`` without a compiler: what it does to the paths, and its tracing."""
    return torch.compile(model, backend="eager")


def with_compiled_blocks(model):
    """Each block is compiled by itself, as for long models."""
    for index, block in enumerate(model.model.layers):
        model.model.layers[index] = compiled(block)
    return model


def with_checkpointed_blocks(model):
    """torch's own activation checkpointing, block by block."""
    for index, block in enumerate(model.model.layers):
        model.model.layers[index] = checkpoint_wrapper(block)
    return model


def twice(model):
    """Compiled blocks in a model that is itself wrapped."""
    return DataParallel(with_compiled_blocks(model))


WRAPPERS = [compiled, DataParallel, DistributedDataParallel]
WRAPPERS += [with_compiled_blocks, with_checkpointed_blocks, twice]
wrappers = pytest.mark.parametrize("wrap", WRAPPERS, ids=lambda wrap: wrap.__name__)


def plain():
    """A tiny Llama of transformers, the same every time."""
    return make("Llama")[0]


@torch.no_grad()
def logits(model):
    """Without a graph, which DistributedDataParallel would want to reduce."""
    return model(input_ids=IDS).logits


def adapted(wrap):
    """A wrapped model and a plain one with the same trained adapter."""
    models = wrap(plain()), plain()
    for model in models:
        torch.manual_seed(1)
        inject(model, CONFIG)
        fill(model)
    return models


@wrappers
def test_paths_are_those_of_the_plain_model(wrap):
    wrapped, model = wrap(plain()), plain()
    assert [path for path, _ in named_modules(wrapped)] == [
        path for path, _ in named_modules(model)
    ]
    assert all(wrapped_name(module) is None for _, module in named_modules(wrapped))
    tensors = [plain_path(wrapped, name) for name, _ in wrapped.named_parameters()]
    assert tensors == [name for name, _ in model.named_parameters()]


@wrappers
def test_the_report_and_the_layers_have_plain_names(wrap):
    wrapped, model = wrap(plain()), plain()
    expected = explain_match(model, CONFIG)
    assert explain_match(wrapped, CONFIG) == expected
    assert inject(wrapped, CONFIG) == expected
    paths = [match.name for match in expected.chosen]
    assert [path for path, _ in lora_layers(wrapped)] == paths
    assert [path for path, _ in adapter_layers(wrapped)] == paths


@wrappers
def test_injected_it_computes_what_the_plain_model_does(wrap):
    wrapped, model = adapted(wrap)
    assert_as_close(logits(wrapped), logits(model), exactly(model, input_ids=IDS))


@wrappers
def test_saved_from_a_wrapped_model_it_opens_in_peft(wrap, tmp_path):
    wrapped, model = adapted(wrap)
    minilora.save_adapter(wrapped, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # as of missing keys
        peft = PeftModel.from_pretrained(plain(), tmp_path).eval()
    assert_as_close(logits(peft), logits(model), exactly(model, input_ids=IDS))


@wrappers
def test_an_adapter_of_a_plain_model_loads_into_a_wrapped_one(wrap, tmp_path):
    model = adapted(lambda model: model)[0]
    minilora.save_adapter(model, tmp_path)
    wrapped = minilora.load_adapter(wrap(plain()), tmp_path, strict=True)
    pairs = zip(lora_layers(wrapped), lora_layers(model), strict=True)
    for (path, ours), (name, theirs) in pairs:
        assert path == name
        assert torch.equal(ours.delta_weight(), theirs.delta_weight())


@wrappers
def test_the_fingerprint_is_that_of_the_plain_model(wrap):
    expected = fingerprint(plain())
    assert fingerprint(wrap(plain())) == expected
    assert fingerprint(adapted(wrap)[0]) == expected


@wrappers
@pytest.mark.parametrize("action", [minilora.unload, minilora.merge_and_unload])
def test_it_comes_out_of_a_wrapped_model_as_out_of_the_plain_one(wrap, action):
    wrapped, model = adapted(wrap)
    action(wrapped), action(model)
    assert not list(adapter_layers(wrapped))
    state = {plain_path(wrapped, name): tensor for name, tensor in wrapped.state_dict().items()}
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    assert_as_close(logits(wrapped), logits(model), exactly(model, input_ids=IDS))


def test_a_module_that_happens_to_be_named_module_keeps_its_name():
    """Only DataParallel and its like hold their model under ``module``; others may use the word."""
    model = nn.ModuleDict({"module": nn.ModuleDict({"q": nn.Linear(2, 2)})})
    assert [path for path, _ in named_modules(model)] == ["", "module", "module.q"]
    assert wrapped_name(model) is None


def test_modules_are_replaced_inside_the_wrappers():
    model = DataParallel(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))
    replace_modules(model, {"0": nn.Tanh()})
    assert isinstance(model.module[0], nn.Tanh)
    assert isinstance(model, DataParallel)
