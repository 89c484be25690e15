"""Whole modules, biases, token rows and embeddings: as PEFT has them, in files both ways."""

import json
import warnings

import pytest
import torch
import transformers
from peft import LoraConfig as Theirs
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn

from minilora import (
    LoraConfig,
    disable_adapter,
    fingerprint,
    inject,
    load_adapter,
    merge,
    merge_and_unload,
    save_adapter,
    trainable_parameters,
    unload,
    unmerge,
)

from ..tolerance import assert_as_close, exactly

SIZES = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
SIZES |= {"num_attention_heads": 2}
IDS = torch.tensor([[1, 3, 5, 7, 3], [2, 3, 4, 5, 6]])


def bert():
    """A small classifier, the same each time."""
    torch.manual_seed(0)
    return transformers.BertForSequenceClassification(transformers.BertConfig(**SIZES)).eval()


def llama(tied=False):
    """A small Llama of transformers', the same each time."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**SIZES, tie_word_embeddings=tied)
    return transformers.LlamaForCausalLM(config).eval()


CASES = {
    "head": (bert, {"target_modules": ["query"], "task_type": "SEQ_CLS"}),
    "pooler": (bert, {"target_modules": ["query"], "modules_to_save": ["pooler", "classifier"]}),
    "own biases": (bert, {"target_modules": ["query", "key"], "bias": "lora_only"}),
    "all biases": (bert, {"target_modules": ["query"], "bias": "all", "task_type": "SEQ_CLS"}),
    "rows": (llama, {"target_modules": ["q_proj"], "trainable_token_indices": [3, 5]}),
    "rows of a head": (
        llama,
        {"target_modules": ["q_proj"], "trainable_token_indices": {"lm_head": [5, 3]}},
    ),
    "tied rows": (
        lambda: llama(tied=True),
        {"target_modules": ["q_proj"], "trainable_token_indices": [3, 5]},
    ),
    "embedding": (llama, {"target_modules": ["q_proj", "embed_tokens"]}),
    "embedding and head": (
        llama,
        {"target_modules": ["embed_tokens"], "modules_to_save": ["lm_head"]},
    ),
}
case = pytest.mark.parametrize("name", CASES)


def ours_of(name):
    """A base, and the same with everything of the case trained a little."""
    build, fields = CASES[name]
    model = build()
    inject(model, LoraConfig(r=2, lora_alpha=6, **fields))
    return build(), disturb(model)


def theirs_of(name):
    """The same in PEFT."""
    build, fields = CASES[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return disturb(get_peft_model(build(), Theirs(r=2, lora_alpha=6, **fields)))


def disturb(model):
    """Move everything that trains, by the order of its names without a library's own words."""
    torch.manual_seed(1)
    for _, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval()


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


@case
def test_untrained_it_computes_the_base_to_the_bit_and_counts_as_peft(name):
    build, fields = CASES[name]
    model, base = build(), build()
    report = inject(model, LoraConfig(r=2, **fields))
    assert torch.equal(logits(model), logits(base))
    assert fingerprint(model) == fingerprint(base)
    count = trainable_parameters(model)[0]
    assert report.trainable == count == theirs_count(name)
    assert report.total == trainable_parameters(model)[1]


def theirs_count(name):
    """PEFT's trainable parameters, without the wrapped originals' biases, which nothing uses."""
    named = theirs_of(name).named_parameters()
    return sum(p.numel() for n, p in named if p.requires_grad and "original_module" not in n)


@case
def test_our_file_opens_in_peft_with_equal_logits(name, tmp_path):
    base, ours = ours_of(name)
    save_adapter(ours, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", category=FutureWarning)
        peft = PeftModel.from_pretrained(base, tmp_path).eval()
    assert_as_close(logits(ours), logits(peft), exactly(peft, IDS))
    assert not torch.allclose(logits(ours), logits(CASES[name][0]()))


@case
def test_pefts_file_opens_here_and_goes_back_with_the_same_tensors(name, tmp_path):
    peft = theirs_of(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft.save_pretrained(tmp_path / "peft")
    ours = CASES[name][0]()
    load_adapter(ours, tmp_path / "peft")
    assert_as_close(logits(ours.eval()), logits(peft), exactly(peft, IDS))
    save_adapter(ours, tmp_path / "ours")
    before = load_file(tmp_path / "peft" / "adapter_model.safetensors")
    after = load_file(tmp_path / "ours" / "adapter_model.safetensors")
    twice = ("base_layer.weight", "modules_to_save.bias", "original_module.bias")
    assert after.keys() == {key for key in before if not key.endswith(twice)}
    assert all(torch.equal(before[key], after[key]) for key in after)


@case
def test_saved_and_loaded_it_is_equal_to_the_bit(name, tmp_path):
    base, ours = ours_of(name)
    save_adapter(ours, tmp_path)
    fresh = load_adapter(base, tmp_path)
    assert torch.equal(logits(fresh), logits(ours))
    again = CASES[name][0]()
    inject(again, LoraConfig(r=2, lora_alpha=6, **CASES[name][1]))
    assert torch.equal(logits(load_adapter(again, tmp_path).eval()), logits(ours))


@case
def test_the_base_comes_back_to_the_bit(name):
    base, ours = ours_of(name)
    before, truth = logits(ours), exactly(ours, IDS)
    with disable_adapter(ours):
        assert torch.equal(logits(ours), logits(base))
        with disable_adapter(ours):
            assert torch.equal(logits(ours), logits(base))
    assert torch.equal(logits(ours), before)
    assert_as_close(logits(merge(ours)), before, truth)
    with disable_adapter(ours):
        assert torch.equal(logits(ours), logits(base))
    assert torch.equal(logits(unmerge(ours)), before)
    assert fingerprint(ours) == fingerprint(base)
    unload(merge(ours))
    assert torch.equal(logits(ours), logits(base))
    state = base.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in ours.state_dict().items())
    assert {n for n, p in ours.named_parameters() if not p.requires_grad} == set()


@case
def test_merged_and_unloaded_it_is_an_ordinary_model(name):
    base, ours = ours_of(name)
    before, truth = logits(ours), exactly(ours, IDS)
    merged = merge_and_unload(ours)
    assert_as_close(logits(merged), before, truth)
    assert merged.state_dict().keys() == base.state_dict().keys()
    assert all(type(m) is type(n) for m, n in zip(merged.modules(), base.modules(), strict=True))
    assert all(parameter.requires_grad for parameter in merged.parameters())


@case
def test_gradients_equal_pefts(name, tmp_path):
    base, ours = ours_of(name)
    save_adapter(ours, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft = PeftModel.from_pretrained(base, tmp_path, is_trainable=True).eval()
    for model in (ours, peft):
        model(IDS).logits.square().sum().backward()
    mine = sorted(p.grad.norm().item() for p in ours.parameters() if p.grad is not None)
    unused = [p for n, p in peft.named_parameters() if "original_module" in n]
    assert all(p.grad is None for p in unused)
    theirs = sorted(p.grad.norm().item() for p in peft.parameters() if p.grad is not None)
    assert len(mine) == len(theirs)
    torch.testing.assert_close(torch.tensor(mine), torch.tensor(theirs), rtol=1e-4, atol=1e-5)


def test_the_originals_follow_a_change_of_dtype():
    base, ours = ours_of("all biases")
    ours.double()
    with disable_adapter(ours):
        assert torch.equal(logits(ours), logits(base.double()))


WRONG = [
    (bert, {"modules_to_save": ["clasifier"]}, "no module is named 'clasifier'"),
    (llama, {"task_type": "SEQ_CLS"}, "trains the head, a module named classifier or score"),
    (llama, {"bias": "all"}, "bias='all': this model has no biases"),
    (llama, {"modules_to_save": ["q_proj"], "target_modules": "all-linear"}, ""),
    (
        lambda: llama(True),
        {"modules_to_save": ["lm_head"]},
        "lm_head.weight is tied to model.embed",
    ),
    (lambda: llama(True), {"target_modules": ["embed_tokens"]}, "whose weight is tied to lm_head"),
    (lambda: llama(True), {"trainable_token_indices": {"lm_head": [1]}}, "name that one"),
    (llama, {"trainable_token_indices": [40]}, "names token 40, but the table has 40"),
    (llama, {"trainable_token_indices": [1, 1]}, "names token 1 twice"),
    (llama, {"trainable_token_indices": {"embed": [1]}}, "'embed' must name one module, got none"),
    (
        llama,
        {"trainable_token_indices": [1], "modules_to_save": ["embed_tokens"]},
        "embed_tokens trains by target_modules or modules_to_save too",
    ),
]


@pytest.mark.parametrize(("build", "fields", "message"), WRONG, ids=[str(w[1]) for w in WRONG])
def test_what_cannot_train_is_refused_and_nothing_changes(build, fields, message):
    model = build()
    before = [(n, type(m)) for n, m in model.named_modules()]
    defaults = {"target_modules": ["query"] if build is bert else ["v_proj"]}
    if not message:
        inject(model, LoraConfig(**defaults | fields))  # modules inside are no targets
        return
    with pytest.raises(ValueError, match=message):
        inject(model, LoraConfig(**defaults | fields))
    assert [(n, type(m)) for n, m in model.named_modules()] == before
    assert all(p.requires_grad for p in model.parameters())


def test_fields_outside_their_words_are_refused():
    with pytest.raises(ValueError, match="bias must be one of 'none', 'all', 'lora_only'"):
        LoraConfig(bias="lora")
    with pytest.raises(ValueError, match="task_type must be one of"):
        LoraConfig(task_type="CLASSIFY")
    with pytest.raises(TypeError, match=r"must be a list of names, as \['classifier'\]"):
        LoraConfig(modules_to_save="classifier")


def change(folder, tensors=lambda t: t, **fields):
    """Write an adapter's folder anew with other tensors or fields, as PEFT's, without metadata."""
    file, config = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **fields}))
    save_file(tensors(load_file(file)), file, metadata={"format": "pt"})


def without(part):
    return lambda tensors: {key: value for key, value in tensors.items() if part not in key}


FILES = [
    ("head", {"tensors": without("classifier.bias")}, "classifier.bias is missing"),
    ("head", {"modules_to_save": None, "task_type": None}, "unknown tensors .*classifier.weight"),
    ("own biases", {"bias": "none"}, "unknown tensors .*base_layer.bias"),
    ("all biases", {"bias": "lora_only"}, "unknown tensors"),
    ("rows", {"trainable_token_indices": [3, 5, 7]}, r"has shape \(2, 16\), expected \(3, 16\)"),
    ("rows", {"trainable_token_indices": None}, "unknown tensors .*trainable_tokens_delta"),
    ("rows", {"trainable_token_indices": [3, 99]}, "names token 99, but the table has 40"),
    ("embedding", {"tensors": without("embedding_B")}, "lora_embedding_B is missing"),
]


@pytest.mark.parametrize(("name", "changes", "message"), FILES, ids=[f[2] for f in FILES])
def test_a_file_that_does_not_fit_is_refused_in_words(name, changes, message, tmp_path):
    base, ours = ours_of(name)
    save_adapter(ours, tmp_path)
    change(tmp_path, **changes)
    with pytest.raises(ValueError, match=message):
        load_adapter(base, tmp_path)
    assert torch.equal(logits(base), logits(CASES[name][0]()))


def test_another_table_in_the_file_is_refused(tmp_path):
    peft = theirs_of("embedding")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft.save_pretrained(tmp_path)
    other = llama()
    nn.init.normal_(other.model.embed_tokens.weight)
    with pytest.raises(ValueError, match=r"unknown tensors .*embed_tokens.base_layer.weight"):
        load_adapter(other, tmp_path)


def test_a_wrapped_model_is_saved_as_the_model_itself(tmp_path):
    _, ours = ours_of("rows")
    save_adapter(ours, tmp_path / "alone")
    save_adapter(nn.DataParallel(ours), tmp_path / "wrapped")
    read = [(tmp_path / n / "adapter_config.json").read_text() for n in ("alone", "wrapped")]
    assert read[0] == read[1]
    assert json.loads(read[0])["task_type"] == "CAUSAL_LM"


def test_a_second_adapter_in_one_model_is_refused_and_the_bank_named():
    _, ours = ours_of("head")
    with pytest.raises(ValueError, match=r"One layer holds one adapter; several .*AdapterBank"):
        inject(ours, LoraConfig(target_modules=["key"]))


def test_a_module_is_named_by_whole_names_only():
    model = llama()
    report = inject(model, LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["norm"]))
    assert [name for name, _, _ in report.beside] == ["model.norm.weight"]


def test_another_random_head_is_the_same_base(tmp_path):
    """A head starts at random, so it is another one in every process; the file brings its own."""
    base, ours = ours_of("head")
    save_adapter(ours, tmp_path)
    nn.init.normal_(base.classifier.weight)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_adapter(base, tmp_path, strict=True)
    assert torch.equal(logits(base), logits(ours))
    other = bert()
    nn.init.normal_(other.bert.pooler.dense.weight)
    with pytest.raises(ValueError, match="made for a base with other values"):
        load_adapter(other, tmp_path, strict=True)


def test_two_configs_that_train_other_things_beside_are_not_saved_as_one(tmp_path):
    parts = {"one": nn.Sequential(nn.Linear(4, 4)), "two": nn.Sequential(nn.Linear(4, 4))}
    model = nn.ModuleDict(parts)
    inject(model["one"], LoraConfig(r=1, target_modules=["0"]))
    inject(model["two"], LoraConfig(r=1, target_modules=["0"], bias="all"))
    with pytest.raises(ValueError, match="injected with configs that differ in bias"):
        save_adapter(model, tmp_path)
    assert not list(tmp_path.iterdir())
    unload(model["two"])
    inject(model["two"], LoraConfig(r=2, target_modules=["0"]))
    save_adapter(model, tmp_path)


def test_a_part_s_config_names_no_module_of_the_rest(tmp_path):
    def model():
        torch.manual_seed(0)
        parts = {name: nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)) for name in ("one", "two")}
        return nn.ModuleDict(parts)

    ours = model()
    inject(ours["two"], LoraConfig(r=1, target_modules=["0"], modules_to_save=["1"]))
    nn.init.normal_(ours["two"][1].weight)
    again = load_adapter(model(), save_adapter(ours, tmp_path), strict=True)
    assert torch.equal(again["two"][1].weight, ours["two"][1].weight)
    assert torch.equal(again["one"][1].weight, ours["one"][1].weight)


@pytest.mark.parametrize("tied", [False, True])
def test_token_rows_beside_bfloat16_are_float32_as_pefts(tied):
    fields = {"target_modules": ["q_proj"], "trainable_token_indices": [3, 5]}
    base, theirs, model = (llama(tied).bfloat16() for _ in range(3))
    theirs = get_peft_model(theirs, Theirs(**fields))
    dtypes = {p.dtype for n, p in theirs.named_parameters() if "trainable_tokens_delta" in n}
    inject(model, LoraConfig(**fields))
    table = model.model.embed_tokens
    assert {table.rows.dtype} == dtypes == {torch.float32}
    assert torch.equal(logits(model), logits(base))
    before = table.rows.detach().clone()
    for _ in range(64):  # each step is far below what bfloat16 can add
        table.rows.data += before.abs() / 4096
    assert (logits(model) - logits(base)).abs().max() > 0
    expected = before + before.abs() / 64
    torch.testing.assert_close(table(torch.tensor([3, 5])).float(), expected, rtol=1e-2, atol=0)
    assert table(torch.tensor([3])).dtype == torch.bfloat16
    merge_and_unload(model)
    assert model.model.embed_tokens.weight.dtype == torch.bfloat16
