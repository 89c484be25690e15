"""Plans against published counts, real architectures, real files, a real step's bytes and FLOPs."""

import dataclasses
import json
import sys
import time

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch.utils import flop_counter
from torch.utils.flop_counter import FlopCounterMode

import minilora
from minilora import LoraConfig, ledger
from minilora.ledger.estimate import CATEGORIES, GPUS, plan
from minilora.ledger.shapes import presets
from minilora.training.batches import encode_all, pad
from minilora.training.objective import summed_loss

from .test_families import real

QV, ALL = ("q_proj", "v_proj"), "all-linear"


@pytest.mark.parametrize(
    ("model", "targets", "r", "modules", "trainable", "parameters"),
    [
        ("gpt2", ["c_attn"], 8, 12, 294_912, 124_734_720),
        ("llama-7b", QV, 8, 64, 4_194_304, 6_742_609_920),
        ("llama-3-8b", ALL, 16, 224, 41_943_040, 8_072_204_288),
        ("gpt3-175b", QV, 1, 192, 4_718_592, None),  # 4.7M in the LoRA paper
        ("gpt3-175b", QV, 8, 192, 37_748_736, None),  # 37.7M
        ("roberta-base", ["query", "value"], 8, 24, 294_912, None),  # 0.3M
        ("roberta-large", ["query", "value"], 8, 48, 786_432, None),  # 0.8M
        ("flan-t5-base", ["q", "v"], 8, 72, 884_736, 248_462_592),
        ([(4096, 4096)], ALL, 8, 1, 65_536, 16_777_216 + 65_536),
    ],
)
def test_every_row_of_the_published_table(model, targets, r, modules, trainable, parameters):
    planned = plan(model, LoraConfig(r=r, target_modules=targets))
    assert (planned.adapted, planned.trainable) == (modules, trainable)
    assert parameters is None or planned.parameters == parameters


@pytest.mark.parametrize(
    ("model", "targets", "percent"),
    [
        ("gpt2", ["c_attn"], "0.2364"),
        ("llama-7b", QV, "0.0622"),
        ("flan-t5-base", ["q", "v"], "0.36"),
    ],
)
def test_the_published_shares(model, targets, percent):
    share = 100 * plan(model, LoraConfig(r=8, target_modules=targets)).share
    assert f"{share:.{len(percent) - 2}f}" == percent
    assert f"{100 * plan('llama-3-8b', LoraConfig(r=16, target_modules=ALL)).share:.4f}" == "0.5196"


def test_one_4096_matrix_has_256_times_fewer():
    planned = plan([(4096, 4096)], LoraConfig(r=8, target_modules=ALL))
    assert 4096 * 4096 // planned.trainable == 256
    assert round(100 * planned.trainable / 4096**2, 2) == 0.39


def test_the_qlora_paper_s_65b():
    full = plan("llama-65b", method="full")
    resident = full.bytes["weights"] + full.bytes["gradients"] + full.bytes["optimizer"]
    assert resident == 12 * full.parameters > 780e9
    settings = {"batch": 1, "seq": 512, "checkpointing": True}
    settings |= {"optimizer": "adamw8bit", "adapter_dtype": "bfloat16"}
    config = LoraConfig(r=64, target_modules=ALL)
    lean = plan("llama-65b", config, "qlora", **settings)
    assert lean.total < 48e9
    plain = plan("llama-65b", config, "qlora", double_quant=False)
    assert 2.9e9 < plain.bytes["constants"] - lean.bytes["constants"] < 3.1e9
    codes = sum(x.weights for x in ledger.architecture("llama-65b").linears if x.role != "head")
    assert lean.bytes["constants"] * 8 / codes == pytest.approx(8 / 64 + 32 / (64 * 256), rel=1e-4)


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("gpt2", LoraConfig(r=3, target_modules=["attn.c_proj", "c_fc"])),
        ("llama-3.1-405b", LoraConfig(r=16, target_modules=ALL)),
        (
            "qwen3-0.6b",
            LoraConfig(r=5, target_modules=r".*layers\.[0-9]\..*_proj", exclude_modules=["o_proj"]),
        ),
        (
            "llama-2-7b",
            LoraConfig(
                r=8,
                rank_pattern={"k_proj": 3},
                target_modules=["k_proj", "o_proj"],
                layers_to_transform=[0, 7],
            ),
        ),
        ("flan-t5-small", LoraConfig(r=8, target_modules=["q", "wi_0"])),
        ("roberta-base", LoraConfig(r=2, target_modules=ALL)),
        ("mistral-7b", LoraConfig(r=4, target_modules=["lm_head", "up_proj"])),
        ("llama-2-7b", LoraConfig(modules_to_save=["lm_head", "layers.3.mlp"])),
        ("gpt2", LoraConfig(target_modules=["c_attn"], bias="all")),
        ("roberta-base", LoraConfig(target_modules=["query"], bias="lora_only")),
        (
            "roberta-base",
            LoraConfig(target_modules=["query"], bias="lora_only", layers_to_transform=[0]),
        ),
        (
            "roberta-base",
            LoraConfig(target_modules=ALL, bias="lora_only", exclude_modules=["dense"]),
        ),
        ("roberta-base", LoraConfig(target_modules="All-Linear", bias="lora_only")),
        ("llama-2-7b", LoraConfig(target_modules=ALL, modules_to_save=["layers.3.mlp"])),
        ("qwen3-0.6b", LoraConfig(trainable_token_indices=[3, 5])),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_targets_choose_what_inject_chooses_on_the_real_model(name, config):
    model = real(presets()[name])
    report, planned = minilora.explain_match(model, config), plan(name, config)
    assert (planned.trainable, planned.adapted) == (report.trainable, len(report.chosen))
    if not name.startswith("flan"):  # its published head is not tied; transformers 5 ties it
        assert planned.parameters == report.total


def test_a_405b_plan_takes_milliseconds():
    def timed():
        started = time.process_time()
        plan("llama-3.1-405b", LoraConfig(r=16, target_modules=ALL), "qlora")
        return time.process_time() - started

    # coverage looks at every line
    assert min(timed() for _ in range(5)) < (0.1 if sys.gettrace() is None else 0.5)


def test_the_adapter_file_has_the_planned_size_to_the_byte(base, tmp_path):
    """As PEFT writes it; ours also holds a copy of the config and the base's fingerprint."""
    for r, targets in ((3, QV), (16, ALL)):
        config = LoraConfig(r=r, target_modules=targets)
        minilora.inject(base, config)
        ours = minilora.save_adapter(base, tmp_path / f"r{r}") / "adapter_model.safetensors"
        save_file(load_file(ours), tmp_path / "theirs", metadata={"format": "pt"})
        planned = plan("base", config).adapter_file_bytes
        assert planned == (tmp_path / "theirs").stat().st_size
        assert planned < ours.stat().st_size < planned + 1500
        half = {name: tensor.bfloat16() for name, tensor in load_file(ours).items()}
        save_file(half, tmp_path / "half", metadata={"format": "pt"})
        planned = plan("base", config, adapter_dtype="bfloat16").adapter_file_bytes
        assert planned == (tmp_path / "half").stat().st_size
        minilora.unload(base)


BATCH, SEQ = 2, 96
BF16 = {"dtype": "bfloat16"}
RANKS = LoraConfig(r=4, rank_pattern={"v_proj": 17}, layers_to_transform=[2, 3])
DROPOUT = LoraConfig(target_modules=["k_proj", "up_proj"], lora_dropout=0.1)
CASES = {
    "full": ("full", None, {}),
    "full-bf16": ("full", None, BF16),
    "lora": ("lora", LoraConfig(), {}),
    "lora-all": ("lora", LoraConfig(r=4, target_modules=ALL), {}),
    "lora-ranks": ("lora", RANKS, {}),
    "lora-mlp-bf16": ("lora", LoraConfig(target_modules=["gate_proj", "down_proj"]), BF16),
    "lora-all-bf16": ("lora", LoraConfig(target_modules=ALL), BF16 | {"adapter_dtype": "bfloat16"}),
    "lora-dropout": ("lora", DROPOUT, {}),
    "qlora": ("qlora", LoraConfig(r=4, target_modules=ALL), {}),
    "qlora-plain": ("qlora", LoraConfig(), {"double_quant": False}),
}


def live(method, config, checkpointing, dtype="float32", double_quant=True, adapter_dtype=None):
    """Our base made ready, and a step of it."""
    torch.manual_seed(0)
    model = minilora.load_base(dtype=getattr(torch, dtype)).train()
    if method == "qlora":
        minilora.quantize_base(model, double_quant=double_quant)
    if config:
        minilora.inject(model, config)
    if adapter_dtype:
        model.to(getattr(torch, adapter_dtype))
    model.model.gradient_checkpointing = checkpointing
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    ids = torch.randint(0, 1536, (BATCH, SEQ))

    def step(keep_gradients=False):
        logits = model(ids)
        F.cross_entropy(logits.flatten(0, 1).float(), ids.flatten()).backward()
        optimizer.step()
        if not keep_gradients:
            optimizer.zero_grad()

    return model, optimizer, step


@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
@pytest.mark.parametrize("case", CASES)
def test_a_real_step_of_the_base_costs_what_was_planned_within_5_percent(case, checkpointing):
    method, config, settings = CASES[case]
    model, optimizer, step = live(method, config, checkpointing, **settings)
    settings = {"dtype": "float32", "checkpointing": checkpointing, **settings}
    planned = plan("base", config, method, batch=BATCH, seq=SEQ, **settings)
    step(keep_gradients=True)
    accumulating = ledger.measure(lambda: step(keep_gradients=True), model, optimizer)
    optimizer.zero_grad()
    measured = ledger.measure(step, model, optimizer)
    # where bfloat16 trains, torch keeps AdamW's moments in bfloat16 too; planned are float32's
    moments = 2 if case in ("full-bf16", "lora-all-bf16") else 1
    expected = planned.bytes | {"optimizer": planned.bytes["optimizer"] // moments}
    for name in ("weights", "constants", "adapters", "gradients", "optimizer"):
        assert measured.peaks[name] == pytest.approx(expected[name], rel=0.05), name
    assert measured.peaks["activations"] == pytest.approx(planned.activations_peak, rel=0.05)
    peak = planned.peak - planned.bytes["optimizer"] + expected["optimizer"]
    assert measured.peak == pytest.approx(peak, rel=0.05)
    activations = planned.bytes["activations"]
    assert accumulating.at_peak["activations"] == pytest.approx(activations, rel=0.05)
    assert accumulating.peak == pytest.approx(sum(expected.values()), rel=0.05)
    assert ledger.count(model).total.parameters == planned.parameters
    assert ledger.count(model).total.trainable == planned.trainable


def test_a_step_of_the_training_loop_costs_what_its_labels_say(base):
    """``summed_loss`` computes logits only where there is a label; padding costs as tokens do."""
    rows = encode_all(base.tokenizer, minilora.data.naval_log(8, 2).train[:8], 512)
    batch = pad(rows)
    minilora.inject(base.train())
    measured = ledger.measure(lambda: summed_loss(base, batch).backward(), base)
    rows, time = batch.ids.shape
    settings = {"batch": rows, "seq": time - 1, "labels": batch.answer_tokens}
    planned = plan("base", LoraConfig(), dtype="float32", **settings)
    assert measured.peaks["activations"] == pytest.approx(planned.activations_peak, rel=0.05)


def test_a_bitsandbytes_optimizer_holds_what_was_planned(base):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    config = LoraConfig(r=16, target_modules=ALL)
    minilora.inject(base, config)
    optimizer = bitsandbytes.optim.AdamW8bit([p for p in base.parameters() if p.requires_grad])
    for group, p in ((g, p) for g in optimizer.param_groups for p in g["params"]):
        optimizer.init_state(group, p, 0, 0)
    maps = {id(s[k]) for s in optimizer.state.values() for k in ("qmap1", "qmap2") if k in s}
    tensors = [t for s in optimizer.state.values() for t in s.values() if torch.is_tensor(t)]
    held = sum(t.nbytes for t in tensors if id(t) not in maps)
    assert plan("base", config, optimizer="adamw8bit").bytes["optimizer"] == held


@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
@pytest.mark.parametrize("case", ["full", "lora", "lora-all"])
def test_flops_are_those_that_torch_counts(case, checkpointing):
    method, config, _ = CASES[case]
    model, _, _ = live(method, config, checkpointing)
    ids = torch.randint(0, 1536, (BATCH, SEQ))
    settings = {"checkpointing": checkpointing, "dtype": "float32"}
    planned = plan("base", config, method, batch=BATCH, seq=SEQ, **settings)
    with counted() as forward:
        loss = F.cross_entropy(model(ids).flatten(0, 1), ids.flatten())
    with counted() as backward:
        loss.backward()
    assert planned.flops_forward * BATCH * SEQ == forward.get_total_flops()
    assert planned.flops_backward * BATCH * SEQ == backward.get_total_flops()


def counted():
    """torch's counter, told of two operations that it lacks: in-place addmm, attention on CPUs."""
    aten = torch.ops.aten
    known = {
        aten.addmm_: lambda y, a, b, **_: 2 * a[0] * a[1] * b[1],
        aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: (
            flop_counter.sdpa_flop_count(q, k, v)
        ),
        aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda g, q, k, v, *_, **__: (
            flop_counter.sdpa_backward_flop_count(g, q, k, v)
        ),
    }
    return Counter(display=False, custom_mapping=known)


class Counter(FlopCounterMode):
    """Counts without watching modules, and keeps no tensor: layers compute as they always do."""

    def __enter__(self):
        self.mode = flop_counter._FlopCounterMode(self)
        self.mode.keeps_tensors = False
        self.mode.__enter__()
        return self

    def __exit__(self, *error):
        self.mode.__exit__(*error)


def test_a_lora_step_computes_about_two_thirds_of_a_full_one():
    full, lora = plan("llama-3-8b", method="full"), plan("llama-3-8b", LoraConfig(r=8))
    assert full.flops_backward == pytest.approx(2 * full.flops_forward, rel=0.05)
    ratio = (lora.flops_forward + lora.flops_backward) / (full.flops_forward + full.flops_backward)
    assert 0.64 < ratio < 0.70


@given(
    name=st.sampled_from(sorted(presets())),
    r=st.integers(1, 64),
    batch=st.integers(1, 16),
    seq=st.integers(1, 4096),
)
def test_more_rank_batch_or_length_never_costs_less(name, r, batch, seq):
    o = next(linear for linear in ledger.architecture(name).linears if linear.role == "o")
    target = o.name.rpartition(".")[2]
    small = plan(name, LoraConfig(r=r, target_modules=[target]), batch=batch, seq=seq)
    large = plan(name, LoraConfig(r=r + 1, target_modules=[target]), batch=batch + 1, seq=seq + 1)
    assert all(small.bytes[c] <= large.bytes[c] for c in CATEGORIES)
    assert small.total < large.total
    assert [*small.fits.values()] == sorted(small.fits.values())


def test_a_plan_is_json_and_knows_the_cards():
    planned = plan("llama-3-8b", LoraConfig(r=16, target_modules=ALL), "qlora", checkpointing=True)
    read = json.loads(json.dumps(planned.as_dict()))
    assert read["total"] == sum(read["bytes"].values()) == planned.total
    assert set(read["fits"]) == set(GPUS)
    assert read["fits"]["24 GB"]
    assert not read["fits"]["8 GB"]
    assert read["config"]["r"] == 16


def test_a_card_holds_its_own_size_and_not_a_byte_more():
    planned = plan("base")
    for extra, fits in ((0, True), (1, False)):
        exact = dataclasses.replace(planned, bytes={"weights": 24 * 10**9 + extra})
        assert exact.fits["24 GB"] is fits


def test_plain_sgd_keeps_nothing():
    assert plan("base", optimizer="sgd").bytes["optimizer"] == 0


def test_a_head_that_goes_by_its_name_alone_stays_in_floats():
    config = LoraConfig(target_modules=["lm_head"])
    head = plan([("lm_head", 64, 64)], config, "qlora", dtype="float32")
    assert (head.bytes["weights"], head.bytes["constants"]) == (4 * 64 * 64, 0)


def test_a_rank_above_the_matrix_is_allowed_and_warned_of():
    message = r"r=99 is above min\(in, out\) = 64 of .*k_proj \(and 11 more\)"
    with pytest.warns(UserWarning, match=message):
        planned = plan("base", LoraConfig(r=99, target_modules=["k_proj", "v_proj"]))
    assert planned.trainable == 12 * 99 * (128 + 64)


NO_MATCH = (
    r"no module matches 'q_proj', 'v_proj'; did you mean 'c_proj'\? Linears of this model: c_attn"
)
BY_NAME = r"config must be a LoraConfig or another method's, got a Settings; pass settings by name"
SETTING = r"unknown setting 'r', expected batch, seq, .*go into LoraConfig\(r=…\)"
BAD_SOURCES = [
    ("llama-4-8b", None, "nearest presets: llama-3-8b"),
    ("gpt2", None, NO_MATCH),
    (
        "base",
        LoraConfig(target_modules="nothing.*"),
        r"matches 'nothing.\*'. Linears of this model: q_proj \(×6\)",
    ),
    (
        "base",
        LoraConfig(target_modules=["lm_head"]),
        "lm_head, whose weight is tied to the embedding",
    ),
    ("base", LoraConfig(modules_to_save=["nrm"]), "modules_to_save: no module is named 'nrm'"),
    ("base", LoraConfig(modules_to_save=["embed_tokens"]), "is tied to lm_head, which would train"),
    ("base", LoraConfig(bias="all"), "bias='all': this model has no such biases"),
    ("base", LoraConfig(trainable_token_indices={"nrm": [3]}), "'nrm' must name one module"),
    ("base", LoraConfig(task_type="SEQ_CLS"), "named classifier or score, and the config of base"),
    ([(8, -8)], None, "out must be a whole number of at least 1, got -8"),
]
BAD_SETTINGS = [
    ({"config": ledger.Settings()}, TypeError, BY_NAME),
    ({"r": 16}, TypeError, SETTING),
    ({"method": "dorra"}, ValueError, "method must be one of .*, got 'dorra'"),
    ({"batch": -1}, ValueError, "batch must be at least 1, got -1"),
    ({"seq": 2.5}, TypeError, "seq must be a whole number, got 2.5"),
    ({"labels": 9, "seq": 4}, ValueError, r"labels=9 is more than batch · seq = 4"),
    ({"dtype": "int8"}, ValueError, "dtype must be one of float32, bfloat16, float16, got 'int8'"),
    ({"optimizer": "a"}, ValueError, "optimizer must be one of adamw, adamw8bit, sgd, got 'a'"),
]


@pytest.mark.parametrize(("source", "config", "message"), BAD_SOURCES)
def test_a_bad_source_or_target_says_what_to_do(source, config, message):
    with pytest.raises(ValueError, match=message):
        plan(source, config)


@pytest.mark.parametrize(("settings", "error", "message"), BAD_SETTINGS)
def test_a_bad_setting_says_what_to_do(settings, error, message):
    with pytest.raises(error, match=message):
        plan("base", **settings)


NO_ADAPTER = "no module that gets an adapter matches"


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("rank_pattern", {"qproj": 64}, f"rank_pattern: {NO_ADAPTER} 'qproj'"),
        ("alpha_pattern", {"k_proj": 3}, f"alpha_pattern: {NO_ADAPTER} 'k_proj'"),
        ("exclude_modules", ["q_porj"], "exclude_modules: no module matches 'q_porj'"),
    ],
)
def test_a_pattern_that_changes_nothing_is_refused_as_inject_refuses_it(
    base, field, value, message
):
    config = LoraConfig(target_modules=["q_proj"], **{field: value})
    for action in (lambda: plan("base", config), lambda: minilora.inject(base, config)):
        with pytest.raises(ValueError, match=message):
            action()
    # "mlp" is a module, but no Linear
    narrower = LoraConfig(target_modules="all-linear", exclude_modules=["mlp", "k_proj"])
    assert plan("base", narrower).trainable == minilora.inject(base, narrower).trainable
