"""Soft prompts and prefixes: PEFT's numbers and files, positions from the mask, no trace left."""

import copy
import json
import os
import warnings

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from peft import PeftModel, get_peft_model
from peft import PrefixTuningConfig as TheirPrefix
from peft import PromptTuningConfig as TheirPrompt

import minilora
from minilora import (
    BottleneckConfig,
    Llama,
    LlamaConfig,
    LoraConfig,
    PrefixTuningConfig,
    PromptTuningConfig,
    disable_adapter,
    explain_match,
    fingerprint,
    inject,
    load_adapter,
    merge,
    save_adapter,
    trainable_parameters,
    unload,
)
from minilora.lora.attached import attached_modules

from ..strategies import seeds
from ..tolerance import AS_CLOSE, assert_as_close, exactly, unit_roundoff

SIZES = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 2}
IDS = torch.arange(12).reshape(2, 6)
CONFIGS = {
    "prompt": (PromptTuningConfig(5), TheirPrompt(task_type="CAUSAL_LM", num_virtual_tokens=5)),
    "prefix": (PrefixTuningConfig(5), TheirPrefix(task_type="CAUSAL_LM", num_virtual_tokens=5)),
    "projected": (
        PrefixTuningConfig(5, prefix_projection=True, encoder_hidden_size=6),
        TheirPrefix(
            task_type="CAUSAL_LM", num_virtual_tokens=5, prefix_projection=True,
            encoder_hidden_size=6,
        ),
    ),
}  # fmt: skip
kinds = pytest.mark.parametrize("name", CONFIGS)
ATTACHED = [config for config, _ in CONFIGS.values()]
ATTACHED += [BottleneckConfig(kind, size=3) for kind in ("houlsby", "pfeiffer", "parallel")]
every = pytest.mark.parametrize("config", ATTACHED, ids=lambda c: f"{c.peft_type} {vars(c)}"[:40])


def pair():
    """The same random Llama twice: ours and transformers'."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**SIZES, rms_norm_eps=1e-5)
    theirs = transformers.LlamaForCausalLM(config).eval()
    ours = Llama(LlamaConfig(**SIZES, tie_word_embeddings=False)).eval()
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def both(name, tmp_path):
    """Ours and PEFT's with the same trained numbers, through PEFT's file."""
    ours, theirs = pair()
    torch.manual_seed(1)
    peft = get_peft_model(theirs, copy.deepcopy(CONFIGS[name][1])).eval()
    peft.save_pretrained(tmp_path / "peft")
    load_adapter(ours, tmp_path / "peft")
    return ours, peft


def logits_of(peft, name, ids, **named):
    """PEFT's logits of the text; a soft prompt's own come before them."""
    logits = peft(ids, **named).logits
    return logits[:, 5:] if name == "prompt" else logits


@kinds
def test_forward_and_gradients_equal_pefts(name, tmp_path):
    ours, peft = both(name, tmp_path)
    mine, theirs = ours(IDS), logits_of(peft, name, IDS)
    torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)
    if name == "projected":
        return  # the file holds the product, so the parameters differ
    for logits in (mine, theirs):
        logits.square().sum().backward()
    (part,) = [part for _, part in attached_modules(ours)]
    grad = next(iter(part.parameters())).grad
    torch.testing.assert_close(
        grad, peft.prompt_encoder.default.embedding.weight.grad, rtol=1e-3, atol=1e-4
    )


@st.composite
def shapes(draw):
    """A small Llama's sizes, k rows, ids, a dtype."""
    groups = draw(st.sampled_from([(1, 1), (2, 1), (4, 2)]))
    sizes = {"vocab_size": 16, "intermediate_size": draw(st.integers(3, 20))}
    sizes |= {"hidden_size": groups[0] * draw(st.sampled_from([2, 4, 8]))}
    sizes |= {"num_hidden_layers": draw(st.integers(1, 2))}
    sizes |= {"num_attention_heads": groups[0], "num_key_value_heads": groups[1]}
    shape = draw(st.integers(1, 3)), draw(st.integers(1, 6))
    torch.manual_seed(draw(seeds))
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16]))
    return sizes, draw(st.integers(1, 6)), torch.randint(0, 16, shape), dtype


@given(shapes(), st.sampled_from(["prompt", "prefix"]))
def test_forward_and_gradients_are_pefts_in_every_shape_and_dtype(case, name):
    """PEFT in float64 is the truth; ours may err as much as PEFT in the dtype, times AS_CLOSE."""
    sizes, k, ids, dtype = case
    config = transformers.LlamaConfig(**sizes, rms_norm_eps=1e-5)
    theirs = transformers.LlamaForCausalLM(config).to(dtype).eval()
    ours = Llama(LlamaConfig(**sizes, tie_word_embeddings=False)).to(dtype).eval()
    ours.load_state_dict(theirs.state_dict())
    kinds = {"prompt": (PromptTuningConfig, TheirPrompt)}
    kinds["prefix"] = (PrefixTuningConfig, TheirPrefix)
    inject(ours, kinds[name][0](k))
    peft = get_peft_model(theirs, kinds[name][1](task_type="CAUSAL_LM", num_virtual_tokens=k))
    ((_, part),) = attached_modules(ours)
    (mine,) = part.parameters()
    peer = peft.prompt_encoder.default.embedding.weight
    with torch.no_grad():
        peer.copy_(torch.randn_like(mine))
        mine.copy_(peer)
    wide, skipped, results = copy.deepcopy(peft).double(), k if name == "prompt" else 0, []
    true = wide.prompt_encoder.default.embedding.weight
    for model, parameter in ((ours, mine), (peft, peer), (wide, true)):
        logits = model(ids) if model is ours else model(ids).logits[:, skipped:]
        c = torch.linspace(-1, 1, logits.numel()).view(logits.shape).to(logits)
        (logits * c).sum().backward()
        results.append((logits.detach().double(), parameter.grad.double()))
    for value, other, truth in zip(*results, strict=True):
        floor = 8 * AS_CLOSE * unit_roundoff(dtype) * (truth.abs().max() + 1)
        allowed = AS_CLOSE * (other - truth).abs().max() + floor
        assert (value - truth).abs().max() <= allowed


@kinds
def test_ours_opens_in_peft_and_a_file_comes_back_to_the_bit(name, tmp_path):
    ours, theirs = pair()
    inject(ours, CONFIGS[name][0])
    save_adapter(ours, tmp_path / "ours")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft = PeftModel.from_pretrained(theirs, tmp_path / "ours").eval()
    torch.testing.assert_close(ours(IDS), logits_of(peft, name, IDS), rtol=1e-5, atol=1e-5)
    again = load_adapter(pair()[0], tmp_path / "ours")
    assert torch.equal(again(IDS), ours(IDS))


@kinds
def test_the_fields_about_the_model_are_pefts(name, tmp_path):
    ours, theirs = pair()
    inject(ours, CONFIGS[name][0])
    save_adapter(ours, tmp_path / "ours")
    peft = get_peft_model(theirs, copy.deepcopy(CONFIGS[name][1]))
    peft.save_pretrained(tmp_path / "peft")
    mine, peers = (
        json.loads((tmp_path / each / "adapter_config.json").read_text())
        for each in ("ours", "peft")
    )
    fields = ("token_dim", "num_layers", "num_attention_heads", "num_transformer_submodules")
    fields += ("num_virtual_tokens", "peft_type", "task_type")
    assert {field: mine[field] for field in fields} == {field: peers[field] for field in fields}


@pytest.mark.parametrize("start", ["RANDOM", "SAMPLE_VOCAB"])
def test_the_start_is_pefts_to_the_bit(start):
    ours, theirs = pair()
    torch.manual_seed(3)
    inject(ours, PromptTuningConfig(4, start))
    torch.manual_seed(3)
    config = TheirPrompt(task_type="CAUSAL_LM", num_virtual_tokens=4, prompt_tuning_init=start)
    peft = get_peft_model(theirs, config)
    assert torch.equal(ours.model.soft_prompt.rows, peft.prompt_encoder.default.embedding.weight)


def test_a_text_is_repeated_or_cut_to_the_rows():
    model = minilora.load_base()
    ids = model.tokenizer.encode("Report: hull 90%.")
    table = model.model.embed_tokens.weight
    for k in (2, len(ids) + 3):
        inject(model, PromptTuningConfig(k, "TEXT", "Report: hull 90%."))
        expected = table[torch.tensor((ids + ids)[:k])]
        assert torch.equal(model.model.soft_prompt.rows, expected)
        unload(model)


@every
def test_a_row_of_a_padded_batch_gets_what_it_gets_alone(config):
    """Left or right: padding stands between the soft rows and the text, and counts for nothing."""
    model, _ = pair()
    inject(model, config)
    disturb(model)
    short = torch.tensor([[7, 8, 9]])
    alone = model(short)
    left = torch.tensor([[0, 0, 0, 7, 8, 9], [1, 2, 3, 4, 5, 6]])
    mask = torch.tensor([[0, 0, 0, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    truth = exactly(model, short)[0]
    assert_as_close(model(left, mask)[0, 3:], alone[0], truth)
    right = torch.tensor([[7, 8, 9, 0, 0, 0], [1, 2, 3, 4, 5, 6]])
    assert_as_close(model(right, mask.flip(1))[0, :3], alone[0], truth)


@every
def test_generation_with_its_cache_is_generation_without(config):
    model, _ = pair()
    inject(model, config)
    disturb(model)
    ids = torch.tensor([[0, 0, 7, 8, 9], [1, 2, 3, 4, 5]])
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    cached = model.generate(ids, 8, attention_mask=mask)
    assert torch.equal(cached, model.generate(ids, 8, attention_mask=mask, use_cache=False))
    alone = model.generate(torch.tensor([[7, 8, 9]]), 8)
    assert torch.equal(cached[0, 2:], alone[0])


def disturb(model):
    """Values as after training."""
    torch.manual_seed(2)
    for _, part in attached_modules(model):
        for parameter in part.parameters():
            parameter.data += 0.3 * torch.randn_like(parameter)


@every
def test_only_it_trains_and_it_leaves_no_trace(config, tmp_path):
    model, _ = pair()
    base = copy.deepcopy(model)
    explained = explain_match(model, config)
    report = inject(model, config)
    assert (explained.trainable, explained.total) == (report.trainable, report.total)
    assert trainable_parameters(model) == (report.trainable, report.total)
    assert fingerprint(model) == fingerprint(base)
    disturb(model)
    before = model(IDS)
    before.square().sum().backward()
    trained = {name for name, p in model.named_parameters() if p.grad is not None}
    assert trained == {name for name, p in model.named_parameters() if p.requires_grad}
    with disable_adapter(model):
        assert torch.equal(model(IDS), base(IDS))
    assert torch.equal(model(IDS), before)
    twin = copy.deepcopy(model)
    assert torch.equal(twin(IDS), before)
    save_adapter(model, tmp_path)
    unload(model)
    assert torch.equal(model(IDS), base(IDS))
    assert torch.equal(twin(IDS), before)
    assert [n for n, _ in model.named_modules()] == [n for n, _ in base.named_modules()]
    assert all(p.requires_grad for p in model.parameters())
    assert torch.equal(load_adapter(model, tmp_path)(IDS), before)


@every
def test_merging_says_why_not_and_changes_nothing(config):
    model, _ = pair()
    inject(model, config)
    before = model(IDS)
    with pytest.raises(ValueError, match=r"not a weight|no weight does what it does"):
        merge(model)
    with pytest.raises(ValueError, match="has adapters already"):
        inject(model, LoraConfig())
    assert torch.equal(model(IDS), before)


@every
def test_it_learns_and_a_resumed_run_gives_the_same_bits(config, tmp_path):
    def run(**settings):
        torch.manual_seed(0)
        model = minilora.load_base()
        inject(model, config)
        settings = {"batch_size": 4, "lr": 1e-2, "progress": False, "validate_every": 0} | settings
        history = minilora.train(model, TASK, **settings)
        trained = [p.detach() for p in model.parameters() if p.requires_grad]
        return history.losses, trained

    losses, whole = run(steps=8)
    assert min(losses[4:]) < losses[0]
    run(steps=8, out=tmp_path, checkpoint_every=4, callbacks=[stop_after(4)])
    _, resumed = run(steps=8, out=tmp_path, checkpoint_every=4, resume=True)
    assert all(torch.equal(a, b) for a, b in zip(whole, resumed, strict=True))


TASK = minilora.data.naval_log(8, 1)


def stop_after(step):
    """A callback that interrupts a run, as Ctrl-C does."""
    import os
    import signal

    def callback(record):
        if record.get("step") == step:
            os.kill(os.getpid(), signal.SIGINT)

    return callback


WRONG = [
    (lambda: PromptTuningConfig(0), "num_virtual_tokens must be"),
    (lambda: PromptTuningConfig(4, "WORDS"), "prompt_tuning_init must be one of 'RANDOM'"),
    (lambda: PromptTuningConfig(4, "TEXT"), "'TEXT' needs a text, and only it takes one"),
    (lambda: PromptTuningConfig(4, "RANDOM", "a"), "'RANDOM' with prompt_tuning_init_text='a'"),
    (lambda: PrefixTuningConfig(0), "num_virtual_tokens must be at least 1"),
    (lambda: PrefixTuningConfig(4, encoder_hidden_size=0), "encoder_hidden_size must be at least"),
    (lambda: BottleneckConfig("wide"), "kind must be one of houlsby, pfeiffer, parallel"),
    (lambda: BottleneckConfig(size=0), "size must be"),
]


@pytest.mark.parametrize(("make", "message"), WRONG, ids=[w[1][:20] for w in WRONG])
def test_a_config_that_means_nothing_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_model_without_room_or_of_another_library_is_refused():
    model = Llama(LlamaConfig(**SIZES, max_position_embeddings=8)).eval()
    with pytest.raises(ValueError, match="of 8 rows leaves nothing of the model's 8 positions"):
        inject(model, PromptTuningConfig(8))
    assert all(p.requires_grad for p in model.parameters())
    inject(model, PrefixTuningConfig(4))
    with pytest.raises(ValueError, match="a text of 6 tokens are more than the model's 8 posi"):
        model(IDS)
    with pytest.raises(ValueError, match="forward pass of a minilora Llama, got LlamaForCausalLM"):
        inject(pair()[1], PrefixTuningConfig(4))


@pytest.mark.parametrize("config", [PromptTuningConfig, PrefixTuningConfig])
def test_the_last_position_is_used_and_none_beyond(config):
    model = Llama(LlamaConfig(**SIZES, max_position_embeddings=8)).eval()
    with pytest.raises(ValueError, match="of 8 rows leaves nothing"):
        inject(model, config(8))
    inject(model, config(7))
    assert model(IDS[:, :1]).shape[1] == 1
    with pytest.raises(ValueError, match="of 7 rows and a text of 2 tokens .* the text to 1$"):
        model(IDS[:, :2])
    with pytest.raises(ValueError, match="of 7 rows and a text of 8 tokens are more"):
        model(torch.zeros(1, 8, dtype=torch.long))
    unload(model)
    inject(model, config(2))
    assert model(IDS).shape[1] == 6
    # a text that is too long by itself is warned of elsewhere, with rows or without
    assert model(torch.zeros(1, 9, dtype=torch.long)).shape[1] == 9


@pytest.mark.parametrize("config", [PromptTuningConfig(2), PrefixTuningConfig(2)])
def test_rows_that_have_begun_and_rows_that_have_not_do_not_mix(config):
    model, _ = pair()
    inject(model, config)
    cache = model.model.new_cache()
    model.model(IDS, None, cache)
    cache.lengths[0] = 0
    with pytest.raises(ValueError, match="some of these rows have begun and others have not"):
        model.model(IDS[:, :1], None, cache)


def test_a_projection_is_as_wide_as_a_layers_keys_unless_told_and_a_file_replaces_it(tmp_path):
    model, _ = pair()
    inject(model, PrefixTuningConfig(3, prefix_projection=True))
    part = model.model.prefix
    assert [(m.in_features, m.out_features) for m in part.transform[::2]] == [(8, 8), (8, 32)]
    assert repr(part) == "Prefix(3 x 8, projected)"
    before = model(IDS)
    save_adapter(model, tmp_path)
    load_adapter(model, tmp_path)
    assert torch.equal(model(IDS), before)
    assert repr(part) == "Prefix(3 x 32)"
    assert part.embedding.weight.requires_grad
    part.embedding.weight.requires_grad_(False)
    load_adapter(model, tmp_path)
    assert not part.embedding.weight.requires_grad
    with pytest.raises(TypeError, match="prefix_projection must be True or False, got 1"):
        PrefixTuningConfig(3, prefix_projection=1)


def test_a_soft_prompt_tells_its_size_and_starts_in_float32():
    model, _ = pair()
    for start in ("RANDOM", "SAMPLE_VOCAB"):
        inject(model.bfloat16(), PromptTuningConfig(3, start))
        assert repr(model.model.soft_prompt) == "SoftPrompt(3 x 16)"
        assert model.model.soft_prompt.rows.dtype == torch.float32
        assert model(IDS).dtype == torch.bfloat16
        unload(model)


def test_a_prefix_and_gradient_checkpointing_exclude_each_other():
    model, _ = pair()
    model.model.gradient_checkpointing = True
    with pytest.raises(ValueError, match="gradient checkpointing computes each block a second"):
        inject(model, PrefixTuningConfig(4))
    model.model.gradient_checkpointing = False
    inject(model, PrefixTuningConfig(4))
    model.train().model.gradient_checkpointing = True
    with pytest.raises(ValueError, match="gradient checkpointing computes each block a second"):
        model(IDS)


def test_a_file_that_this_model_cannot_take_changes_nothing(tmp_path):
    """More rows than positions; a prefix in a model that computes its blocks twice."""
    for name, config in (("prompt", PromptTuningConfig(9)), ("prefix", PrefixTuningConfig(4))):
        model, _ = pair()
        inject(model, config)
        save_adapter(model, tmp_path / name)
    small = Llama(LlamaConfig(**SIZES, max_position_embeddings=8))
    with pytest.raises(ValueError, match="of 9 rows leaves nothing of the model's 8 positions"):
        load_adapter(small, tmp_path / "prompt")
    twice, _ = pair()
    twice.model.gradient_checkpointing = True
    with pytest.raises(ValueError, match="gradient checkpointing computes each block a second"):
        load_adapter(twice, tmp_path / "prefix")
    for model in (small, twice):
        assert not list(attached_modules(model))
        assert all(p.requires_grad for p in model.parameters())


def test_a_run_with_checkpointing_refuses_a_prefix_before_its_first_step():
    model = minilora.load_base()
    inject(model, PrefixTuningConfig(3))
    before = model.model.prefix.embedding.weight.detach().clone()
    with pytest.raises(ValueError, match="gradient checkpointing computes each block a second"):
        minilora.train(model, TASK, steps=2, checkpointing=True, progress=False)
    assert torch.equal(model.model.prefix.embedding.weight, before)
    assert not model.model.gradient_checkpointing


@pytest.mark.parametrize(
    "other",
    [PrefixTuningConfig(3), PromptTuningConfig(4), BottleneckConfig("parallel", 3), LoraConfig()],
    ids=lambda config: config.peft_type,
)
def test_another_method_cannot_resume_a_run(other, tmp_path):
    first = PromptTuningConfig(3)
    if isinstance(other, BottleneckConfig):
        first = BottleneckConfig("pfeiffer", 3)  # the same names and shapes
    settings = {"batch_size": 2, "progress": False, "validate_every": 0, "steps": 2}
    settings |= {"out": tmp_path, "checkpoint_every": 1}
    for config in (first, other):
        model = minilora.load_base()
        inject(model, config)
        if config is first:
            minilora.train(model, TASK, **settings)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"other settings \(adapters: \w+ \w+ there, \w+ \w+ here"):
        minilora.train(model, TASK, **settings, resume=True)
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())


def test_an_answer_beyond_the_positions_counts_the_rows_before_it():
    model = minilora.load_base()
    inject(model, PromptTuningConfig(500, "SAMPLE_VOCAB"))
    with pytest.warns(UserWarning, match=r"\d+ tokens and 500 rows before it, .* 512 positions"):
        model.generate_text("A?", "", max_new_tokens=9)


@pytest.mark.parametrize("config", ATTACHED[:2], ids=lambda c: c.peft_type)
def test_an_answer_beyond_the_positions_is_the_same_without_a_cache(config):
    """It goes over the end, 12 positions, between its first token and its last."""
    roomy, _ = pair()
    inject(roomy, config)
    disturb(roomy)
    tight = Llama(LlamaConfig(**SIZES, tie_word_embeddings=False, max_position_embeddings=12))
    tight.load_state_dict(pair()[0].state_dict())
    inject(tight.eval(), config)
    tight.load_state_dict(roomy.state_dict())
    expected = roomy.generate(IDS, 9)
    assert torch.equal(tight.generate(IDS, 9), expected)
    assert torch.equal(tight.generate(IDS, 9, use_cache=False), expected)
    for without_gradients in (torch.no_grad, torch.inference_mode):
        message = "more than the model's 12 positions"
        with without_gradients(), pytest.raises(ValueError, match=message):
            tight(expected[:, :10])


@pytest.mark.parametrize("config", ATTACHED[:2] + ATTACHED[3:], ids=lambda c: c.peft_type)
def test_on_a_base_in_four_bits_it_is_what_it_is_on_the_rounded_one(config):
    model, _ = pair()
    minilora.quantize_base(model)
    floats = minilora.dequantize_base(copy.deepcopy(model))
    for each in (model, floats):
        torch.manual_seed(5)
        inject(each, config)
        disturb(each)
        each(IDS).square().sum().backward()
    torch.testing.assert_close(model(IDS), floats(IDS), rtol=1e-5, atol=1e-5)
    pairs = zip(attached_modules(model), attached_modules(floats), strict=True)
    for (_, part), (_, other) in pairs:
        for mine, theirs in zip(part.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-3, atol=1e-4)


def test_packed_rows_are_refused_by_the_pass_and_by_training():
    model = minilora.load_base()
    inject(model, PromptTuningConfig(4))
    with pytest.raises(ValueError, match="these rows hold several: pack=False"):
        model(IDS, torch.tensor([[1, 1, 1, 2, 2, 2]] * 2))
    with pytest.raises(ValueError, match="pack=True lays .* stands before a row once"):
        minilora.train(model, TASK, steps=1, pack=True, progress=False)


def test_a_file_that_does_not_fit_is_refused_in_words(tmp_path):
    model, _ = pair()
    inject(model, PromptTuningConfig(4))
    save_adapter(model, tmp_path)
    other = Llama(LlamaConfig(**{**SIZES, "hidden_size": 8}))
    with pytest.raises(ValueError, match=r"prompt_embeddings has shape \(4, 16\), expected \(4, 8"):
        load_adapter(other, tmp_path)
    prefixed, _ = pair()
    inject(prefixed, PrefixTuningConfig(4))
    with pytest.raises(ValueError, match="this model has PREFIX_TUNING: unload"):
        load_adapter(prefixed, tmp_path)
    injected, _ = pair()
    inject(injected, LoraConfig())
    with pytest.raises(ValueError, match="this model has LORA: unload"):
        load_adapter(injected, tmp_path)


def test_a_prefix_of_zeros_is_no_identity():
    """A key of zeros takes its share of the softmax."""
    model, _ = pair()
    base = model(IDS)
    inject(model, PrefixTuningConfig(8))
    torch.nn.init.zeros_(model.model.prefix.embedding.weight)
    assert (model(IDS) - base).abs().max() > 1e-3


def losses_of(model, logits_of, ids, steps, lr):
    """Cross-entropy of the next token in every step of AdamW on what trains."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        logits = logits_of(ids)[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def same_training(ours, theirs, name, ids, steps, lr):
    """Ours and PEFT's, trained side by side from the same start."""
    torch.manual_seed(4)
    inject(ours, CONFIGS[name][0])
    torch.manual_seed(4)
    peft = get_peft_model(theirs, copy.deepcopy(CONFIGS[name][1]))
    (part,) = [part for _, part in attached_modules(ours)]
    state = dict(
        zip(part.state_dict(), peft.prompt_encoder.default.state_dict().values(), strict=True)
    )
    part.load_state_dict(state)
    mine = losses_of(ours, ours, ids, steps, lr)
    return mine, losses_of(peft, lambda ids: logits_of(peft, name, ids), ids, steps, lr)


@kinds
def test_ten_steps_of_training_are_pefts(name):
    mine, theirs = same_training(*pair(), name, IDS, steps=10, lr=1e-2)
    assert mine[-1] < mine[0]
    torch.testing.assert_close(torch.tensor(mine), torch.tensor(theirs), rtol=1e-4, atol=0)


@pytest.mark.llm
def test_prompt_tuning_on_smollm2_follows_pefts_curve():
    folder = os.environ.get("MINILORA_SMOLLM2", "smollm2")
    if not os.path.isdir(folder):
        pytest.skip("python -m minilora.recipes.smollm2 smollm2 makes the folder")
    ours = minilora.load_base(folder)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    texts = ["The plot is thin and the ending is worse. Answer: negative", "Good case. Answer: po"]
    rows = [ours.tokenizer.encode(text)[:12] for text in texts]
    ids = torch.tensor([row[: min(map(len, rows))] for row in rows])
    mine, peft = same_training(ours, theirs, "prompt", ids, steps=12, lr=3e-2)
    assert mine[-1] < mine[0] - 1
    torch.testing.assert_close(torch.tensor(mine), torch.tensor(peft), rtol=1e-2, atol=0)


@every
def test_audit_names_it_outside_the_weights(config):
    model, _ = pair()
    base = copy.deepcopy(model)
    inject(model, config)
    found = minilora.audit(base, model)
    assert not found.changes
    own = {name for name, p in model.named_parameters() if p.requires_grad}
    assert set(found.elsewhere) == own
