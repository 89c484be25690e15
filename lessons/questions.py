# %% [markdown]
# Questions that people ask, each with three sentences, a lesson, a line of code and a number.
#
# A cell of code computes; the prose after it has the question as its heading, the answer with the
# numbers filled in, and a last line that names the lesson, a file and a line in it.
# `minilora/learn/questions.py` makes docs/questions.md and the pages of the site of it.

# %%
import itertools
import tempfile
import warnings
from pathlib import Path

import torch
from torch import nn

import minilora
from minilora import LoraConfig, LoRALayer, data
from minilora.files import read_json
from minilora.jobs.gate import Rules
from minilora.learn.course import lessons_folder
from minilora.learn.pieces import solution_of
from minilora.ledger import plan
from minilora.ledger.estimate import GPUS
from minilora.lora.hyperparameters import scaling_of
from minilora.tensor_files import read_tensors
from minilora.training.batches import IGNORE, encode_all
from minilora.training.evaluation import PROSE

EVERYWHERE = LoraConfig(r=8, target_modules="all-linear")
TOKENS = 2048  # in a step, unless an answer says otherwise


def gb(method, config=EVERYWHERE, model="llama-3-8b", **settings):
    return plan(model, config, method, seq=TOKENS, **settings).total / 1e9


task = data.naval_log(160, 16)
quick = {"batch_size": 8, "validate_every": 0, "progress": False, "seed": 0}


def apart(a, b):
    return float((a - b).norm() / b.norm())


def adapted(config=EVERYWHERE):
    torch.manual_seed(0)
    model = minilora.load_base()
    minilora.inject(model, config)
    return model


# %%
torch.manual_seed(0)
linear = nn.Linear(256, 256, bias=False)
x, target = torch.randn(64, 256), torch.randn(64, 256)
moved = []
for layer in (LoRALayer(linear, r=8, lora_alpha=16), linear.requires_grad_(True)):
    old = layer.delta_weight() if isinstance(layer, LoRALayer) else layer.weight.detach().clone()
    train = [p for p in layer.parameters() if p.requires_grad]
    loss = (layer(x) - target).square().mean()
    loss.backward()
    torch.optim.Adam(train, lr=1e-3).step()
    new = layer.delta_weight() if isinstance(layer, LoRALayer) else layer.weight.detach()
    moved.append(float((new - old).square().mean().sqrt()))

# %% [markdown]
# ## Why does LoRA want about ten times the rate of full fine-tuning?
#
# At one rate LoRA moves the weight less, because B's step acts through the small A. In Adam's first
# step on a 256 × 256 matrix full training moved it {{ moved[1] / moved[0]:.1f}} times as far, in
# root mean square, as LoRA of rank 8 with s = 2; this ratio is √(3 in / r) / s, which is
# {{ (3 * 4096 / 8) ** 0.5 / 2:.0f}} for 4,096 inputs. The part of the step that lies along the
# gradient has another ratio, so ten is a habit and not a law, and the rate wants a search.
#
# Lesson 05, "Full fine-tuning would step −η G"
# · minilora/lora/layer.py · `bound = 1 / math.sqrt(self.in_features)`

# %%
scales = [LoRALayer(nn.Linear(64, 64), r=r, lora_alpha=16).scaling for r in (8, 64)]

# %% [markdown]
# ## Must α be twice the rank?
#
# No: α only sets the scale s = α / r, and Adam's first step moves ΔW by rate times s. Why everyone
# takes 2 r is asked in unslothai/unsloth #1304, and answered there by intuition; with α = 16 the
# scale is {{ scales[0]:g}} at rank 8 and {{ scales[1]:g}} at rank 64. Fix α, search the rate, and
# name both.
#
# Lesson 05, "quote α with the rate, the optimizer and the rule"
# · minilora/lora/layer.py · `self.scaling = scaling_of(r, lora_alpha, use_rslora)`

# %%
tokenizer = minilora.load_base().tokenizer
encoded = encode_all(tokenizer, data.naval_log(100, 2).train, 512)
labels = sum(label != IGNORE for row in encoded for label in row.labels)
model = adapted(LoraConfig(r=1, target_modules="all-linear"))
rank_1 = minilora.trainable_parameters(model)[0]

# %% [markdown]
# ## Which rank for how much data?
#
# Count what trains against what teaches: a hundred naval logs hold {{ labels:,}} answer tokens, and
# rank 1 on all Linears of the shipped base is {{ rank_1:,}} numbers already. So little data does
# not call for a high rank, and a low rank alone does not stop overfitting. Lesson 08 searches the
# rate for each rank, without which a comparison of ranks compares rates.
#
# Lesson 08, "with much of it small ranks are behind" · minilora/lora/config.py · `r: int = 8`

# %%
two, seven = (
    plan("llama-3-8b", LoraConfig(r=8, target_modules=t)).trainable
    for t in (["q_proj", "v_proj"], "all-linear")
)

# %% [markdown]
# ## Which layers should I adapt?
#
# All Linears, unless you have measured something better: where matters more than the rank, and with
# all seven kinds you need not know where. On Llama-3-8B rank 8 on q and v trains {{ two:,}}
# numbers, on all Linears {{ seven:,}}. Both are little beside the base, so memory is no reason to
# leave layers out.
#
# Lesson 08, "With all seven matrices you need not know where"
# · minilora/lora/config.py · `target_modules: str | Sequence[str] = ("q_proj", "v_proj")`

# %%
model = minilora.load_base()
text = "The sea was calm, and the ship lay at anchor. " * 20
before = minilora.bits_per_byte(model, text)
minilora.inject(model, LoraConfig(r=8, target_modules=["q_proj", "v_proj"]))
torch.manual_seed(0)
history = minilora.train(model, task, steps=20, lr=2e-2, **quick)
lost = minilora.bits_per_byte(model, text) - before
base = minilora.load_base()
kept = all(
    torch.equal(p, dict(base.named_parameters())[n])
    for n, p in minilora.unload(model).named_parameters()
)

# %% [markdown]
# ## Does LoRA forget, when the base is frozen?
#
# Yes: every input goes through W + s B A, whatever W is. After 20 quick steps on naval code a plain
# text cost {{ lost:.1f}} bits a byte more, and the base was the same to the bit ({{ kept}}). The
# frozen base gives you a way back, not a model that remembers.
#
# Lesson 07, "not one number of its base has changed"
# · minilora/lora/layer.py · `return self.scaling * (self.lora_B`

# %%
own = minilora.SelfReplay(windows=4, tokens=16)
model = adapted()
short = minilora.train(
    model, data.naval_log(8, 2), replay=own, steps=2, batch_size=8, validate_every=0, progress=False
)

# %% [markdown]
# ## What is replay, and does it need the old data?
#
# Rows of the old kind beside the new ones; with `SelfReplay` the model writes them itself, so no
# old data is needed. By default {{ short.replay[0]["rows"]:.0%}} of a batch's rows are replayed,
# and their loss, the distance to the model as it was, begins at
# {{ short.steps[0]["windows_loss"]:.0f}}. Replay what you want to keep: prose keeps prose, and only
# answers keep answers.
#
# Lesson 16, "It needs to know *what* to keep: prose did not keep answers"
# · minilora/training/replay.py · `share: float = 0.25`

# %%
model = adapted()
few = data.naval_log(12, 40)
seen = minilora.train(model, few, steps=30, lr=5e-3, **{**quick, "validate_every": 30})
held = seen.validations[-1]["valid_loss"]
fitted = seen.losses[-1]

# %% [markdown]
# ## How much data do I need, and does LoRA prevent overfitting?
#
# It does not prevent it: with 12 examples the last batch's loss was {{ fitted:.1f}} and that of
# unseen logs {{ held:.1f}}. Enough is when a second half of your data no longer lowers the held-out
# loss, so measure with half of it first. Keep a held-out set that no training sees.
#
# Lesson 08, "All four learn 30 examples by heart"
# · minilora/training/loop.py · `Validation(model, run.valid_batches, task.valid`

# %%
layer, row = LoRALayer(nn.Linear(64, 64), r=8, lora_dropout=0.5), torch.randn(8, 64)
nn.init.normal_(layer.lora_B)
noise = (layer(row) - layer(row)).abs().max().item()
layer.eval()
quiet = (layer(row) - layer(row)).abs().max().item()

# %% [markdown]
# ## What does lora_dropout do, and is it off when I evaluate?
#
# It drops a part of the adapter's inputs in training mode, and the base still sees all of x. Two
# calls with dropout 0.5 differed by up to {{ noise:.0f}} in training mode and by {{ quiet:.0f}}
# after `eval()`. A model that you forgot to put into `eval()` answers with noise.
#
# Lesson 08, "Dropout and decay move the last loss"
# · minilora/lora/layer.py · `x = F.dropout(x, self.lora_dropout)`

# %%
shrunk = (1 - 2e-4 * 0.1) ** (2 * 1000)

# %% [markdown]
# ## What does weight decay do to an adapter?
#
# It pulls A and B toward zero, so the model toward its base, and not toward a small W. A thousand
# steps at the rate 2e-4 with decay 0.1 leave {{ shrunk:.0%}} of ΔW where nothing else pulls. At
# usual settings it is weak, and the learning rate and the number of steps decide.
#
# Lesson 08, "Dropout and decay move the last loss"
# · minilora/training/optimizer.py · `param_groups(model, parameters, lr, weight_decay`

# %%
share = labels / sum(len(row.ids) for row in encoded)

# %% [markdown]
# ## Why must the loss see the answers only?
#
# Or the model learns to write your prompts. Of the tokens of a naval example {{ share:.0%}} are
# answer; all others get the label {{ IGNORE}}, which the loss leaves out. The loss is divided by
# the answer tokens of the whole batch, not averaged part by part.
#
# Lesson 07, "the loss leaves these tokens out"
# · minilora/training/batches.py · `labels = [token if is_learnt else IGNORE`

# %%
last = tokenizer.decode([encoded[0].ids[encoded[0].labels.index(encoded[0].labels[-1])]])
learnt_end = sum(row.labels[-1] != IGNORE for row in encoded) / len(encoded)

# %% [markdown]
# ## Why does my model never stop answering?
#
# Because nobody taught it the token that ends an answer: it was masked, or the template left it
# out. Here {{ learnt_end:.0%}} of a hundred encoded examples end in a token that the loss sees.
# Train and generate with the same chat template, and look at one encoded example before you train.
#
# Lesson 07, "model that never saw this token never stops"
# · minilora/model/turns.py · `ids, learnt = [*ids, tokenizer.eos_id], [*learnt, True]`

# %%
jumps = {}  # the largest rise from one step to the next
for rate in (5e-3, 2e-1):
    torch.manual_seed(0)
    model = adapted()
    by_step = minilora.train(model, task, steps=12, lr=rate, clip=0.0, **quick).losses
    jumps[rate] = max(after - before for before, after in itertools.pairwise(by_step))

# %% [markdown]
# ## My loss jumps up and stays there: why?
#
# Often it is the rate: in twelve steps the loss rose from one step to the next by at most
# {{ jumps[5e-3]:.1f}} at the rate 5e-3, and by {{ jumps[2e-1]:.1f}} at 0.2. A user of LLaVA who saw
# such a jump reports that a rate ten times lower cured it (haotian-liu/LLaVA #1301). Lower the
# rate, warm up, clip the gradient.
#
# Lesson 08, "three times too high"
# · minilora/training/steps.py · `norm = nn.utils.clip_grad_norm_(parameters`

# %%
largest, step = torch.finfo(torch.float16).max, torch.finfo(torch.bfloat16).eps
small_gradient = torch.tensor(1e-8).half()

# %% [markdown]
# ## fp16 or bf16?
#
# bf16 where the card has it: a gradient of 1e-8 is {{ small_gradient.item():g}} in fp16, so its
# loss is scaled up before the backward pass, but not so far that anything exceeds
# {{ largest:,.0f}}, where fp16 ends. bf16 reaches as far as float32 and keeps few digits, a step of
# {{ step:.4f}} at one. Either way A and B stay in float32, or small steps vanish.
#
# Lesson 09, "adapters in float32, so that small steps are not rounded away"
# · minilora/lora/layer.py · `A and B are float32 when`

# %%
with tempfile.TemporaryDirectory() as folder:
    model = adapted(LoraConfig(target_modules=["q_proj", "v_proj"]))
    files = sorted(minilora.save_adapter(model, folder).iterdir())
    size = sum(file.stat().st_size for file in files)
numbers = minilora.trainable_parameters(model)[0]

# %% [markdown]
# ## Which files is an adapter?
#
# Two, as in PEFT: the tensors and a small JSON with r, α and the targets; and here a model card
# beside them. For the shipped base these {{ len(files)}} files take {{ size / 1000:.0f}} kB, about
# four bytes for each of {{ numbers:,}} numbers. Without the JSON nobody knows the scale.
#
# Lesson 25, "An adapter is two files"
# · minilora/formats/peft_files.py · `CONFIG, TENSORS, PREFIX = "adapter_config.json"`

# %%
other, larger = minilora.load_base(), 1.01
with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    minilora.save_adapter(model, folder)
    with torch.no_grad():
        other.get_parameter("model.layers.0.self_attn.q_proj.weight").mul_(larger)
    minilora.load_adapter(other, folder)

# %% [markdown]
# ## Can I put an adapter on another base?
#
# If the shapes fit, it loads, and it was trained as a difference to other weights. One matrix of
# the base made {{ larger - 1:.0%}} larger gave {{ len(caught)}} warning here, by a fingerprint in
# the adapter's file; PEFT's file names its base and has none. Measure it there, or train it again.
#
# Lesson 13, "the adapter never saw this W₀"
# · minilora/formats/save_and_load.py · `compare its answers before you rely on them`

# %%
eight_b = plan("llama-3-8b", EVERYWHERE)  # 16 bits a weight
copies, adapters = (
    1000 * size / 1e9 for size in (eight_b.bytes["weights"], eight_b.adapter_file_bytes)
)

# %% [markdown]
# ## Can I use several adapters on one base at once?
#
# Yes, each row of a batch with its own: a thousand adapters of Llama-3-8B are {{ adapters:.0f}} GB
# of files, a thousand merged models {{ copies:,.0f}} GB. Each row is answered as it is alone.
# Merging one, answering and unmerging it again is the slow way.
#
# Lesson 21, "A thousand adapters cost what one costs"
# · minilora/serving/bank.py · `class AdapterBank`

# %%
torch.manual_seed(0)
parts = [(torch.randn(4, 64), torch.randn(64, 4), 2.0) for _ in range(2)]
exact = sum(s * B @ A for A, B, s in parts)
A, B = solution_of("combine_exactly")(parts, [1.0, 1.0])
summed = 2.0 * sum(B for _, B, _ in parts) @ sum(A for A, _, _ in parts)
wrong, right = apart(summed, exact), apart(B @ A, exact)

# %% [markdown]
# ## Can I add two adapters?
#
# The weights exactly, by putting the factors side by side: off by {{ right:.0e}}, at the sum of the
# ranks. Summing A with A and B with B is off by {{ wrong:.0%}}, as it multiplies one adapter's B by
# the other's A. Their effects do not add up even then, so measure both tasks.
#
# Lesson 19, "Adding is exact if the factors are put side by side"
# · minilora/lora/combining.py · `A = torch.cat([part.A for _, part in parts])`

# %%
cast = 2 * 128_256 * 4096 * (4 - 2) / 1e9

# %% [markdown]
# ## What does prepare_model_for_kbit_training do?
#
# In PEFT it freezes the base, casts what is still in 16 bits (embedding, head, norms) to float32
# and turns gradient checkpointing on. For Llama-3-8B the embedding and the head alone then take
# {{ cast:.1f}} GB more, and a user measured 81,076 MB with it and 63,082 MB without on Ministral 8B
# with 4,096 tokens, where bf16 LoRA took 72,840 (bitsandbytes #1569; the casts explain a small part
# of that, and the rest is not explained there). Here `inject` after quantizing freezes, and
# `checkpointing` is a switch of its own.
#
# docs/using.md, "one call, `prepare_model_for_kbit_training`"
# · minilora/nf4/linear.py · `return model.requires_grad_(False)`

# %%
whole, moments = gb("qlora"), plan("llama-3-8b", EVERYWHERE, "qlora").bytes["optimizer"] / 1e9

# %% [markdown]
# ## Do I need a paged optimizer?
#
# It moves Adam's moments to the CPU when the card is full, under any method. With LoRA these
# moments are {{ moments:.2f}} GB of {{ whole:.0f}} GB for Llama-3-8B, so there is little to move.
# Gradient checkpointing saves {{ (whole - gb("qlora", checkpointing=True)) / moments:.0f}} times as
# much.
#
# Lesson 09, "What LoRA saves is gradients and moments"
# · minilora/ledger/estimate.py · `optimizer   = trainable · 8`

# %%
lora, qlora = gb("lora"), gb("qlora")
lean_lora, lean_qlora = (gb(m, checkpointing=True) for m in ("lora", "qlora"))

# %% [markdown]
# ## Why does four bits take more memory than I expected, or more than 16?
#
# Four bits shrink the base alone: with {{ TOKENS:,}} tokens Llama-3-8B takes {{ lora:.0f}} GB with
# LoRA and {{ qlora:.0f}} GB with QLoRA, the rest being activations. It takes more than 16 bits
# where autograd keeps every dequantized weight, or a helper casts to float32 (in huggingface/peft
# #785 only four bits ran out of memory with the same batch of 96; why, the thread does not say).
# With checkpointing the two are {{ lean_lora:.0f}} and {{ lean_qlora:.0f}} GB.
#
# Lesson 12, "Written plainly, four bits take *more* memory than floats"
# · minilora/nf4/linear.py · `dx = grad @ ctx.weight.dequantize(grad.dtype)`

# %%
kept_lora, flops = (
    gb("lora", checkpointing=True),
    [plan("llama-3-8b", EVERYWHERE, checkpointing=on).flops_backward for on in (False, True)],
)

# %% [markdown]
# ## What does gradient checkpointing cost, and what does it save?
#
# It computes each block's forward a second time, and keeps only the blocks' inputs. LoRA on
# Llama-3-8B falls from {{ lora:.0f}} to {{ kept_lora:.0f}} GB, and the backward computes
# {{ flops[1] / flops[0]:.1f}} times as much. Where memory is short, try it before fewer bits.
#
# Lesson 09, "Gradient checkpointing, which throws activations away"
# · minilora/training/recomputation.py · `def recomputing(`

# %%
eight = {m: gb(m, checkpointing=True) for m in ("full", "lora", "qlora")}

# %% [markdown]
# ## How much memory does an 8B model take to train?
#
# With {{ TOKENS:,}} tokens and checkpointing {{ eight["full"]:.0f}} GB for everything,
# {{ eight["lora"]:.0f}} GB with LoRA and {{ eight["qlora"]:.0f}} GB with QLoRA. The number of
# tokens counts as much as the model. `minilora plan llama-3-8b` prints it for your settings.
#
# Lesson 09, "Activations grow with the tokens, everything else with the parameters"
# · minilora/ledger/estimate.py · `trainable   = Σ r (in + out)`

# %%
seventy = plan("llama-2-70b", EVERYWHERE, "qlora", seq=512, checkpointing=True)
too_full = min(GPUS.values(), key=lambda size: abs(size - seventy.total / 1e9))
card = min(size for size in GPUS.values() if size > too_full)

# %% [markdown]
# ## Can QLoRA train 70B in 16 or 24 GB?
#
# No: the four-bit codes alone are {{ seventy.bytes["weights"] / 1e9:.1f}} GB. A step with 512
# tokens and checkpointing takes {{ seventy.total / 1e9:.1f}} GB, and the CUDA context and
# fragmentation come on top. That leaves a card of {{ too_full}} GB hardly any room, so take one of
# {{ card}}.
#
# Lesson 09, "The codes alone are" · minilora/ledger/estimate.py · `a 4-bit weight is half a byte`

# %%
work = [plan("llama-3-8b", EVERYWHERE, m).flops_backward for m in ("lora", "full")]
work = [back + plan("llama-3-8b", EVERYWHERE).flops_forward for back in work]

# %% [markdown]
# ## Is a LoRA step faster than a full one?
#
# It computes {{ work[0] / work[1]:.0%}} as much, since a frozen weight needs no gradient of its
# own. On small layers the many little products take that back, so measure the time. The memory that
# it saves is the larger gain.
#
# Lesson 07, "Frozen weights need only the first"
# · minilora/ledger/flops.py · `backward += share * product * (grad + trains)`

# %%
more = 8 * (4096 + 4096) / 4096**2

# %% [markdown]
# ## Is an adapter slow when it is not merged?
#
# On one 4,096 × 4,096 matrix rank 8 adds {{ more:.1%}} to the arithmetic. What it costs in time is
# calls: much for one row in a narrow layer, little in a wide one. Merge if you serve one adapter,
# leave it beside the base if you serve many.
#
# Lesson 13, "Unmerged inference costs" · minilora/lora/layer.py · `def add_few(`

# %%
one, small = torch.ones(1).bfloat16(), torch.full((1,), 0.001).bfloat16()
merged = (one + small).item()
W, D = torch.randn(256, 256) * 0.02, torch.randn(256, 256) * 1e-4
share_of_W = float(D.norm() / W.norm())
rounded = apart((W.bfloat16() + D.bfloat16()).float() - W.bfloat16().float(), D)

# %% [markdown]
# ## Does merging lose anything?
#
# In float32 only rounding; in bf16 1 + 0.001 is {{ merged:g}}, so small changes vanish. Of a ΔW of
# {{ share_of_W:.1%}} of W a bf16 merge was off by {{ rounded:.0%}} of ΔW. Sum in float32, and
# compare the merged model's answers before you ship it.
#
# Lesson 13, "A merge into floats is free"
# · minilora/lora/layer.py · `return weight.to(delta) + delta, bias`

# %%
from minilora import nf4

held_W = nf4.quantize(W).dequantize()
again = apart(nf4.quantize(held_W + D).dequantize() - held_W, D)

# %% [markdown]
# ## Can I merge a QLoRA adapter into the four-bit base?
#
# Best into the dequantized base, in 16 or 32 bits. Rounded to four bits again, that ΔW was off by
# {{ again:.0%}} of itself, as the levels are far apart; PEFT warns of it, and its maintainer says
# that it cannot be avoided (huggingface/peft #2321). Merging onto the original 16-bit base is a
# third thing, for training never saw those weights.
#
# Lesson 13, "A requantized merge lies most about small updates"
# · minilora/lora/merging.py · `def merge_and_requantize(`

# %%
steps_of_it = {  # bytes a weight that a step reads and writes
    "bytes to codes": 0.5 + 1,
    "codes to levels": 1 + 4,
    "levels times scales": 4 + 4,
}
passes = sum(steps_of_it.values())

# %% [markdown]
# ## Why is QLoRA slower than LoRA?
#
# Every product unpacks the codes first, and the backward does so again. With plain tensors that
# takes {{ len(steps_of_it)}} steps ({{ ", ".join(steps_of_it)}}), which read and write
# {{ passes:.1f}} bytes for a weight of half a byte. A user of open-instruct
# reports five times LoRA's time, and a maintainer answers that this "sounds odd", as the two should
# be similar (allenai/open-instruct #109); how much it is depends on the kernel and on the number of
# tokens.
#
# Lesson 24, "bytes to codes, codes to levels, levels times scales"
# · minilora/nf4/linear.py · `transposed = weight.dequantize(x.dtype).T`

# %%
layer = LoRALayer(nn.Linear(16, 16), r=4)
layer(torch.randn(8, 16)).square().sum().backward()
grad_A, grad_B = layer.lora_A.grad.abs().max().item(), layer.lora_B.grad.abs().max().item()

# %% [markdown]
# ## Why does B start at zero, and A not?
#
# So that ΔW is zero and the model starts as its base. One zero is enough: in the first step A's
# gradient is {{ grad_A:.0f}} and B's is not ({{ grad_B > 0}}), so B moves, and then A does. Two
# zeros would never move.
#
# Lesson 04, "One zero factor keeps the base and learns"
# · minilora/lora/layer.py · `nn.init.zeros_(self.lora_B)`

# %%
only_q = LoraConfig(target_modules=["q_proj"])
fitting = len(minilora.explain_match(minilora.load_base(), only_q).chosen)
try:
    refused = ""
    minilora.inject(minilora.load_base(), LoraConfig(target_modules=["q_proj", "query"]))
except ValueError as error:
    refused = str(error)

# %% [markdown]
# ## Nothing seems to train: what do I look at first?
#
# How many layers got an adapter. With a name that fits nothing beside one that fits, `inject` here
# refuses ("query" is named in its message: {{ "query" in refused}}), where PEFT goes on with the
# {{ fitting}} layers that fit. Then count what has `requires_grad`, and look at ‖B‖ after a step.
#
# Lesson 06, "Count what trains, and know the number beforehand"
# · minilora/lora/selection.py · `raise ValueError(nothing_matches(sites`

# %%
torch.manual_seed(0)
unrelated = apart(torch.randn(256, 256), torch.randn(256, 256))

# %% [markdown]
# ## How do I know that the fine-tune worked?
#
# By answers to questions that it has not seen, compared with the base's. A norm of the change
# proves nothing: two random matrices differ by {{ unrelated:.2f}} of their norm. Look at ten
# answers with your own eyes as well.
#
# Lesson 07, "A norm says that something changed"
# · minilora/training/evaluation.py · `def exact_match(`

# %%
error = (0.25 / 100) ** 0.5
evidence = solution_of("paired_e_value")([False] * 5, [True] * 5)
asked_for = Rules().bar

# %% [markdown]
# ## How many questions does it take to say that one adapter is better?
#
# On 100 questions one standard error is up to {{ error:.0%}}, so a few points are noise. Ask
# both the same questions and count those that differ: five of five won is an E-value of
# {{ evidence:.1f}}, and the gate asks for
# {{ asked_for:.0f}}. Do not judge on the set on which you chose.
#
# Lesson 22, "A hundred questions cannot see three points"
# · minilora/jobs/gate.py · `state = PASS if gain >= bar else FAIL if`

# %%
both = [LoraConfig(r=8, target_modules="all-linear", use_dora=on) for on in (False, True)]
dora = plan("llama-3-8b", both[1]).trainable / plan("llama-3-8b", both[0]).trainable - 1

# %% [markdown]
# ## Is DoRA, or another cousin, better than LoRA?
#
# Sometimes, and less than a rate that was not searched makes it look. DoRA trains {{ dora:.0%}}
# more numbers on Llama-3-8B and pays for a norm of each row in every step. Compare at each method's
# best rate, with equal cost.
#
# Lesson 14, "A comparison at one rate compares rates"
# · minilora/methods/dora.py · `return torch.linalg.norm(weight.to(delta) + delta, dim=1)`

# %%
prompt, lora_8 = 20 * 4096, plan("llama-3-8b", EVERYWHERE).trainable

# %% [markdown]
# ## LoRA or prompt tuning?
#
# A soft prompt of 20 rows trains {{ prompt:,}} numbers on Llama-3-8B where LoRA of rank 8 trains
# {{ lora_8:,}}. It acts before the text only, and learned least of all that lesson 15 tried on the
# small base; on one a hundred times as large twenty rows were enough (`docs/soft_tokens.md`). LoRA
# merges, and a prompt costs its rows in every call.
#
# Lesson 15, "A soft prompt needs rows"
# · minilora/methods/prompt_tuning.py · `class SoftPrompt(Attached)`

# %%
rows, all_rows = 2 * 2 * 4096, 2 * 128_256 * 4096

# %% [markdown]
# ## How do I add new tokens, and what about a tied head?
#
# Make the embedding larger before you train or load, then train only the new rows with
# `trainable_token_indices`. These are {{ rows:,}} numbers for two tokens of Llama-3-8B, in the
# embedding and the head, where `modules_to_save` trains and stores {{ all_rows:,}} (full
# fine-tuning of those layers, as a maintainer says in huggingface/peft #334). A tied head must stay
# tied, or the token is read with one row and written with another.
#
# Lesson 06, "`trainable_token_indices` trains the rows that you name"
# · minilora/lora/token_rows.py · `class TokenRows`

# %%
torch.manual_seed(0)
normal = torch.randn(64 * 1024)
errors = {
    kind: apart(nf4.quantize(normal, kind=kind).dequantize(), normal)
    for kind in ("nf4", "fp4", "int4")
}
bits = [nf4.quantize(normal, double_quant=on).bits_per_weight for on in (False, True)]

# %% [markdown]
# ## NF4, FP4 or int4?
#
# On normal weights the error is {{ errors["nf4"]:.1%}} with NF4, {{ errors["int4"]:.1%}} with int4
# and {{ errors["fp4"]:.1%}} with FP4. On uniform weights int4 wins, so "optimal" speaks of a
# distribution. Trained weights look normal.
#
# Lesson 11, "is a statement about a distribution" · minilora/nf4/codebook.py · `if kind == "nf4":`

# %%
gradients = []
for accumulate in (1, 4):
    torch.manual_seed(0)
    model = adapted()
    run = minilora.train(model, task, steps=2, lr=5e-3, accumulate=accumulate, **quick)
    gradients.append(run.losses[-1])

# %% [markdown]
# ## Is accumulating four small batches the same as one large one?
#
# Yes, if the loss is divided by the answer tokens of the whole batch. After two steps of 8
# examples, at once and in four parts, the losses were {{ gradients[0]:.3f}} and
# {{ gradients[1]:.3f}}. Averaging part by part is another objective, whenever the parts differ in
# length.
#
# Lesson 23, "Trainer had it in gradient accumulation"
# · minilora/training/objective.py · `answer tokens of *all* parts`

# %%
with tempfile.TemporaryDirectory() as folder:
    ends = []
    for steps in ((6,), (3, 6)):
        torch.manual_seed(0)
        model = adapted()
        for last_step in steps:
            torch.manual_seed(0)
            settings = {**quick, "out": Path(folder, str(len(steps))), "warmup": 0.0}
            keep = {"checkpoint_every": 3, "resume": last_step == 6 and len(steps) == 2}
            run = minilora.train(model, task, steps=last_step, lr=1e-3, **settings, **keep)
        ends.append(run.losses[-1])
went_on = len(run.losses)

# %% [markdown]
# ## Can I stop a run and go on later?
#
# Yes: `resume` takes factors, optimizer, order of the data and step from the checkpoint. A run
# stopped at step 3 of 6 went on to step {{ went_on}}. The same command with `--resume` continues
# it, and a job that is killed at any moment does so by itself.
#
# docs/using.md, "same command with `--resume` goes on"
# · minilora/training/checkpoint.py · `def load_checkpoint(`

# %%
layer = LoRALayer(nn.Linear(64, 48), r=8)
nn.init.normal_(layer.lora_B)
rank = int(torch.linalg.matrix_rank(layer.delta_weight()))

# %% [markdown]
# ## Why is so thin an update enough?
#
# ΔW has rank {{ rank}} at r = 8, whatever it learns, and one task pulls the weights in few strong
# directions. Lesson 17 cuts the ΔW of full training to rank k and asks for the answers, as energy
# is not function. What is far from what the base knows needs more.
#
# Lesson 17, "Rank 16 of 128 is about as good as all"
# · minilora/analysis/spectra.py · `torch.linalg.svd(update.float(), full_matrices=False)`

# %%
reader, values = minilora.load_base().eval(), [str(n) for n in range(11, 99, 8)]
asked = [
    (data.ASK_ONE[3].format(name="Hull"), data.log_line([("Hull", value)])) for value in values
]
read = sum(
    value in text for value, text in zip(values, reader.generate_texts(asked, 24), strict=True)
)
read_share = read / len(values)

# %% [markdown]
# ## Shall I train facts into it, or put them into the prompt?
#
# Into the prompt, if they may change: the untrained base reads {{ read_share:.0%}} of the values
# that stand in its log. Training on facts teaches the model not to look, and lesson 18 counts how
# often it then follows a new log. Train how to answer, retrieve what to answer.
#
# Lesson 18, "Facts that may change belong into the prompt"
# · lessons/solutions/18_facts.py · `counts[1] += changed[word] in shown`

# %%
from torch.utils.checkpoint import checkpoint

untouched = {}
for reentrant in (True, False):
    layer = LoRALayer(nn.Linear(16, 16), r=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        out = checkpoint(layer, torch.randn(4, 16), use_reentrant=reentrant)
    if out.requires_grad:
        out.sum().backward()
    untouched[reentrant] = layer.lora_B.grad is None

# %% [markdown]
# ## With gradient checkpointing nothing trains: what is enable_input_require_grads for?
#
# PyTorch's older, reentrant checkpointing gives no gradient to a block whose input needs none, and
# the output of a frozen embedding needs none. Of the two kinds {{ sum(untouched.values())}} left B
# without one here. Either make the inputs require a gradient, which is what that call does, or pass
# `use_reentrant=False`.
#
# docs/using.md, "nor is `enable_input_require_grads` needed"
# · minilora/training/recomputation.py · `def recomputing(`

# %%
adams = [plan("llama-3-8b", EVERYWHERE, "qlora", optimizer=o) for o in ("adamw", "adamw8bit")]
wide, narrow = (each.bytes["optimizer"] / 1e9 for each in adams)

# %% [markdown]
# ## Do I need an 8-bit Adam?
#
# Not with LoRA: the moments shrink from {{ wide:.2f}} to {{ narrow:.2f}} GB, of
# {{ adams[0].total / 1e9:.0f}} GB in all for Llama-3-8B. For full fine-tuning they are the largest
# part, and there it counts. Nobody here measured what 8 bits cost in quality, and one user saw the
# loss rise with it and not with 32 (artidoro/qlora #78).
#
# Lesson 09, "A little is then still missing; it is in the moments"
# · minilora/ledger/estimate.py · `OPTIMIZERS = ("adamw", "adamw8bit", "sgd")`

# %%
torch.manual_seed(0)
A, B = torch.randn(8, 64), torch.randn(64, 8)
off = apart(torch.cat([B, torch.zeros(64, 8)], 1) @ torch.cat([A, torch.randn(8, 64)]), B @ A)
smaller_B, smaller_A = solution_of("best_factors")(B @ A, 4)
cut = apart(smaller_B @ smaller_A, B @ A)

# %% [markdown]
# ## Can I change the rank of an adapter that I have?
#
# Up, exactly: put random rows below A and zero columns beside B, and keep α / r, so that ΔW changes
# by rounding only ({{ off:.0e}}). Down, by the best rank-k approximation: random factors of rank 8
# cut to 4 were off by {{ cut:.0%}}, trained ones by less, as their spectrum falls. Look at the
# singular values before you cut.
#
# Lesson 02, "Cutting to rank r loses exactly the discarded tail"
# · lessons/solutions/02_rank.py · `return U[:, :r] * S[:r], Vh[:r]`

# %%
from minilora.training.batches import pad
from minilora.training.objective import summed_loss

model, one_batch = adapted().eval(), []
for start in range(0, 64, 8):
    part = pad(encoded[start : start + 8])
    with torch.no_grad():
        one_batch.append(float(summed_loss(model, part) / part.answer_tokens))

# %% [markdown]
# ## Is a loss that goes up and down normal?
#
# Yes, batches differ: eight batches of 8 examples had losses from {{ min(one_batch):.1f}} to
# {{ max(one_batch):.1f}} with weights that did not move at all. Judge by a held-out loss or a mean
# over many steps. A loss that rises for good is another thing, and mostly the rate.
#
# Lesson 25, "The ups and downs are the batches"
# · minilora/training/objective.py · `F.cross_entropy(logits.float(), labels`

# %%
half_precision = LoRALayer(nn.Linear(64, 64, bias=False).bfloat16(), r=4)
kept_in = half_precision.lora_A.element_size()
comes_out = half_precision(torch.randn(2, 64).bfloat16()).element_size()

# %% [markdown]
# ## Do float32 adapters turn a 16-bit model into a slow float32 one?
#
# Only if nobody rounds the sum back. Here A and B have {{ kept_in}} bytes a number and the layer's
# output {{ comes_out}}, like its input, so the next layer stays in 16 bits. A library that forgets
# this computes in float32 from the first adapter on, as mlx did until a pull request cast the sum
# back (ml-explore/mlx-examples #613).
#
# Lesson 09, "Large models are trained on a base in bfloat16, with adapters in float32"
# · minilora/lora/layer.py · `* scaling).to(y.dtype)`

# %%
scale_as_saved = LoRALayer(nn.Linear(8, 8), r=8, lora_alpha=16).scaling
scale_forgotten = LoRALayer(nn.Linear(8, 8), r=8, lora_alpha=8).scaling

# %% [markdown]
# ## It answers well here and badly in another program: where do I look?
#
# Compare the logits of one prompt first, with ids and not text. If they differ, it is the base's
# weights or the scale: a reader that forgets α = 16 at rank 8 applies {{ scale_forgotten:g}} where
# training had {{ scale_as_saved:g}}. If they agree, it is the chat template, the sampling or the
# token that ends.
#
# Lesson 14, "a reader that ignores it serves the adapter at another scale"
# · minilora/lora/hyperparameters.py · `def scaling_of(`

# %%
model = adapted()
first = minilora.train(model, task, steps=10, lr=5e-3, **quick).losses
further = minilora.train(model, task, steps=10, lr=5e-3, **quick).losses

# %% [markdown]
# ## Can I train a finished adapter further, or align it with DPO?
#
# Further, yes: load it and train; a second run of ten steps began at {{ further[0]:.1f}}, the first
# at {{ first[0]:.1f}}. DPO is not part of this package, so no lesson shows it. In a library that
# has it, either go on with the same adapter or merge it first and begin a new one.
#
# docs/using.md, "`--adapter folder` trains an adapter further"
# · minilora/commands/train_options.py · `add("--adapter", metavar="FOLDER|NAME"`

# %%
coarse = nf4.quantize(W, block_size=256, kind="int4").dequantize()
lost_there = apart(nf4.quantize(coarse + D, block_size=256, kind="int4").dequantize() - coarse, D)

# %% [markdown]
# ## Can I merge into an int8, GPTQ or GGUF base?
#
# The rule is the same for all: make floats of it, add ΔW, and quantize again if you must, which
# loses what is smaller than a step. In a four-bit int4 with blocks of 256 a ΔW of
# {{ share_of_W:.1%}} of W came back off by {{ lost_there:.0%}} of itself. This package has NF4, and
# exports GGUF; for other formats, merge in 16 bits and use their own quantizer.
#
# Lesson 13, "What counts is the size of ΔW against the step of the grid"
# · minilora/lora/merging.py · `def merge_and_requantize(`

# %%
curves = {}
for run in read_json(lessons_folder() / "data" / "cpu" / "overfitting.json")["rows"]:
    if run["sweep"] == "data" and run["r"] == 8 and not run["dropout"] and not run["decay"]:
        curves[run["examples"]] = run["step"], run["held"]
best_step = {n: step[held.index(min(held))] for n, (step, held) in curves.items()}
times_seen = {n: 8 * step / n for n, step in best_step.items()}  # eight examples a step

# %% [markdown]
# ## How many epochs or steps should I train?
#
# As many as the held-out loss falls, and no number of epochs is right for every size. In the
# recorded runs of rank 8 the loss on unseen logs was lowest after step {{ best_step[30]}} with 30
# examples, when each had been seen {{ times_seen[30]:.0f}} times, and after step
# {{ best_step[2000]}} of {{ curves[2000][0][-1]}} with 2,000. Keep the best state by that loss,
# which `keep_best` does, and more steps cost only time.
#
# Lesson 08, "From its lowest point the held-out loss"
# · minilora/training/config.py · `keep_best: bool = True`

# %%
short_runs = {}
for rate in (2.5e-3, 5e-3, 1e-2):
    torch.manual_seed(0)
    short_runs[rate] = minilora.train(adapted(), task, steps=8, lr=rate, **quick).losses[-1]

# %% [markdown]
# ## How do I find a learning rate?
#
# By short runs, each at twice the rate of the one before, with everything else fixed. Eight steps
# at {{ ", ".join(f"{rate:g}" for rate in short_runs)}} came to
# {{ ", ".join(f"{loss:.1f}" for loss in short_runs.values())}}. If the best is at an end of the
# range, go on in that direction, and repeat the search when you change rank, α or optimizer.
#
# Lesson 14, "Where the best is the first or the last of the three, the search was too narrow"
# · minilora/training/config.py · `lr: float = 5e-3`

# %%
rules = {rs: [scaling_of(r, 16, rs) for r in (8, 64)] for rs in (False, True)}
falls = {rs: low / high for rs, (low, high) in rules.items()}
lengths = {}  # of ΔW after Adam's first step, as in the first question
for rs in rules:
    lengths[rs] = []
    for r in (8, 64):
        torch.manual_seed(0)
        layer = LoRALayer(linear, r=r, lora_alpha=16, use_rslora=rs)
        x, target = torch.randn(64, 256), torch.randn(64, 256)
        (layer(x) - target).square().mean().backward()
        torch.optim.Adam([layer.lora_A, layer.lora_B], lr=1e-3).step()
        lengths[rs].append(float(layer.delta_weight().detach().norm()))
longer = {rs: high / low for rs, (low, high) in lengths.items()}
assert longer[False] < 0.5
assert 0.8 < longer[True] < 1.25

# %% [markdown]
# ## When do I want rsLoRA?
#
# When you raise the rank and want to keep α: from rank 8 to 64 the usual scale α / r falls
# {{ falls[False]:.0f}} times, rsLoRA's α / √r {{ falls[True]:.1f}} times. What the first step does
# to the outputs of lesson 05's model is kept by α / √r with gradient descent and by α / r with
# Adam, while the length of Adam's ΔW is kept by α / √r: on the first question's matrix it is
# {{ longer[True]:.1f}} times as long at rank 64 as at rank 8, and {{ longer[False]:.1f}} times with
# α / r. Search the rate at each rank either way.
#
# Lesson 05, "Which power of r keeps what the first step does to the outputs"
# · minilora/lora/hyperparameters.py · `def scaling_of(`

# %%
tied = ""
try:
    minilora.inject(minilora.load_base(), LoraConfig(target_modules=["lm_head"]))
except ValueError as error:
    tied = str(error)
blocks_only = plan("llama-3-8b", EVERYWHERE).adapted
head = 8 * (4096 + 128_256)

# %% [markdown]
# ## Should I adapt the embedding and the head, too?
#
# Seldom: `all-linear` leaves the head out, here as in PEFT, and adapts {{ blocks_only}} Linears of
# Llama-3-8B. Rank 8 on its head would be {{ head:,}} numbers more. Where the head is tied to the
# embedding a merge would change both, so `inject` refuses it ("tied" stands in its message:
# {{ "tied" in tied}}); for new tokens train their rows instead.
#
# Lesson 06, "This base shares one matrix between its embedding and its output head"
# · minilora/lora/selection.py · `never takes an ``lm_head```

# %%
slower = [plan("llama-3-8b", LoraConfig(r=r, target_modules="all-linear")) for r in (8, 64)]
work_of = [each.flops_forward + each.flops_backward for each in slower]
files_of = [each.adapter_file_bytes / 1e6 for each in slower]

# %% [markdown]
# ## Is a higher rank slower?
#
# Hardly on a large model: rank 64 computes {{ work_of[1] / work_of[0] - 1:.0%}} more than rank 8 on
# all Linears of Llama-3-8B. Its file is {{ files_of[1]:,.0f}} MB instead of {{ files_of[0]:.0f}}.
# On a small model the number of calls counts, and it is the same at any rank.
#
# Lesson 07, "On layers this small the many little products cost more time than arithmetic"
# · minilora/ledger/flops.py · `backward += share * product * (grad + trains)`

# %%
eight_b_step = plan("llama-3-8b", EVERYWHERE, seq=TOKENS)
per_token = eight_b_step.flops_forward + eight_b_step.flops_backward
sustained = 100  # TFLOP/s of a card, such as an A100 at a third of its peak
minutes = 1e6 * per_token / (sustained * 1e12) / 60

# %% [markdown]
# ## How long will a fine-tune take?
#
# Count the arithmetic, then measure a few steps, since nobody reaches a card's peak. LoRA on
# Llama-3-8B computes {{ per_token / 1e9:.0f}} billion operations a token, so a million tokens take
# {{ minutes:.1f}} minutes at {{ sustained}} TFLOP/s sustained. `minilora plan` prints this line for
# your model, and `minilora jobs` measures three steps before it promises a time.
#
# docs/planner.md, "Measure the tokens a second on one card"
# · minilora/ledger/flops.py · `def flops_a_token(`

# %%
prose = PROSE.read_text(encoding="utf-8")[:3000]
read_by = [
    minilora.bits_per_byte(minilora.load_base(quantize=kind), prose) for kind in (None, "nf4")
]

# %% [markdown]
# ## What do four bits cost in quality?
#
# A little before any training: the shipped base reads old prose at {{ read_by[0]:.2f}} bits a byte
# in floats and at {{ read_by[1]:.2f}} in NF4. Adapters then learn beside the rounded weights, and
# what is left in lesson 12 after training is less than two seeds and few steps can show. Measure it
# on your model, by its answers too.
#
# Lesson 12, "So is nothing lost? Two seeds"
# · minilora/training/evaluation.py · `def bits_per_byte(`

# %%
lengths = [len(row.ids) for row in encoded]
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    short_enough = encode_all(tokenizer, data.naval_log(100, 2).train, 32)

# %% [markdown]
# ## What happens to examples that are too long?
#
# They are left out whole and counted, since an answer that is cut teaches the model to stop in the
# middle. With a limit of 32 tokens {{ len(short_enough)}} of {{ len(lengths)}} naval logs stayed,
# and {{ len(told)}} warning named the longest, {{ max(lengths)}}. Set the limit to your longest
# example and pay for it in activations, or split the example yourself.
#
# docs/using.md, "an example that is too long is left out"
# · minilora/training/batches.py · `and are left out`

# %%
sent = 4 * numbers  # float32 gradients of A and B, q and v of the shipped base
sent_by_full = 4 * sum(p.numel() for p in minilora.load_base().parameters())

# %% [markdown]
# ## How do I train on several GPUs?
#
# `torchrun --nproc-per-node 2 -m minilora train … --device cuda`, as the default is the CPU: each
# process computes a part of the batch on a card of its own, and only the gradients of A and B
# travel, {{ sent:,}} bytes a step for the shipped base against {{ sent_by_full:,}} with all
# weights. The loss is divided by the answer tokens of all parts, so two ranks end in the bits of
# one process (run here on CPUs only, with gloo; the cards' nccl was never tried). Where one card
# cannot hold the base, shard it (FSDP) or take four bits.
#
# Lesson 23, "each machine divides its sum by the tokens of all"
# · minilora/training/ranks.py · `class Alone`

# %%
a, b, c = (torch.tensor(value) for value in (1e8, -1e8, 1.0))
orders = float((a + b) + c), float(a + (b + c))
same = []
for _ in range(2):
    torch.manual_seed(0)
    same.append(minilora.train(adapted(), task, steps=3, lr=5e-3, **quick).losses)

# %% [markdown]
# ## I fixed the seed, and two runs still differ: why?
#
# A sum of floats depends on its order, and the order on threads, kernels and the batch: three
# numbers added in two orders gave {{ orders[0]:g}} and {{ orders[1]:g}}. On one machine, with one
# number of threads, the same seed gives the same bits here ({{ same[0] == same[1]}}). Across
# machines compare means over seeds, not digits.
#
# Lesson 25, "A sum of floats depends on its order"
# · minilora/training/order.py · `torch.Generator().manual_seed(seed * 1_000_003 + epoch)`

# %%
torch.manual_seed(0)
encoder = nn.ModuleDict({"query": nn.Linear(16, 16), "classifier": nn.Linear(16, 2)})
with_head = LoraConfig(r=2, target_modules=["query"], modules_to_save=["classifier"])
minilora.inject(encoder, with_head)
with tempfile.TemporaryDirectory() as folder:
    minilora.save_adapter(encoder, folder)
    stored = list(read_tensors(Path(folder) / "adapter_model.safetensors"))
of_head = sum("classifier" in name for name in stored)

# %% [markdown]
# ## Is my classification head saved with the adapter?
#
# Only if you name it: a head starts at random, so it must train whole and travel with A and B.
# `modules_to_save` (or `task_type="SEQ_CLS"`) does both; of the {{ len(stored)}} tensors in such a
# file {{ of_head}} are the head's. Without it the file loads, and the answers are those of a random
# head.
#
# docs/encoder.md, "it must train whole, and it must travel with the adapter"
# · minilora/lora/extras.py · `whole modules, such as a head that starts at random`

# %%
with tempfile.TemporaryDirectory() as folder:
    out = Path(folder) / "adapter.gguf"
    minilora.export_adapter_gguf(adapted(LoraConfig(target_modules=["q_proj", "v_proj"])), out)
    gguf_size = out.stat().st_size
merged_size = 2 * sum(p.numel() for p in minilora.load_base().parameters())

# %% [markdown]
# ## How do I use my adapter in llama.cpp, Ollama or vLLM?
#
# vLLM reads PEFT's two files, if every layer has one rank and one α (`export --plain`). For
# llama.cpp and what is built on it, `minilora export` writes GGUF: the merged model,
# {{ merged_size / 1000:,.0f}} kB in f16, or without merging (`--gguf`) the adapter alone, here
# {{ gguf_size / 1000:.0f}} kB beside its base, as llama.cpp's own converter does for any adapter of
# PEFT's (unslothai/unsloth #1546). Compare the logits of one prompt before
# you trust it, as a chat template may differ.
#
# docs/using.md, "your own base needs no --pre"
# · minilora/model/gguf_export.py · `def export_adapter_gguf`

# %%
from minilora.training.batches import pack

pair = sorted(encoded[:2], key=lambda one: -len(one.ids))  # as they lie in the packed row
packed_row, behind, reader = pack(pair, 512), len(pair[1].ids), minilora.load_base().eval()
with torch.no_grad():
    alone = reader(torch.tensor([pair[1].ids]))[0]
    masked = reader(packed_row.ids, packed_row.segments)[0, -behind:]
    mixed = reader(packed_row.ids)[0, -behind:]
padded = pad(encoded)
filling = padded.padding / padded.ids.numel()

# %% [markdown]
# ## What is packing, and do the packed examples see each other?
#
# It lays several short examples in one row, as a padded batch is {{ filling:.0%}} filling here. A
# plain causal mask lets the second example read the first, and moved its logits by
# {{ apart(mixed, alone):.0%}}; a mask by example left {{ apart(masked, alone):.0e}}. A user of
# trl reports worse models from packing without such a mask (huggingface/trl #1230), and
# answers-only labels, which trl once refused in packed rows (#1163), need no mask of their own.
#
# minilora/training/batches.py, "each example is computed as if it"
# · minilora/training/batches.py · `def pack(`

# %%
from minilora.training.batches import encode_document
from minilora.training.examples import Document

report = encode_document(tokenizer, Document("The sea was calm, and the ship lay at anchor."))
read_from = sum(label != IGNORE for label in report.labels) / len(report.labels)

# %% [markdown]
# ## Can LoRA do continued pretraining: raw text, a language, a field's knowledge?
#
# It trains on raw text as on anything: of a document {{ read_from:.0%}} of the tokens are labels,
# of a naval example {{ share:.0%}}. On text as far from what the base knows as Python's manual
# the rank limits it: on the small base each higher rank came nearer to full fine-tuning, and none
# reached it (`docs/benchmarks.md`), while a user's loss that hardly falls (hiyouga/LlamaFactory
# #4225) may be the rank's doing or the rate's, as that user tried several rates for LoRA.
# Search the rate, take all Linears and a high rank, train the rows of new tokens, and measure on
# held-out text.
#
# docs/decide.md, "farther from what the base knows"
# · minilora/training/batches.py · `def encode_document(`

# %%
torch.manual_seed(0)
image, wide = torch.randn(1, 64, 8, 8), nn.Conv2d(64, 64, 3, bias=False)
A, B = torch.randn(8, 64, 3, 3), torch.randn(64, 8)
beside = nn.functional.conv2d(nn.functional.conv2d(image, A), B[:, :, None, None])
in_one = nn.functional.conv2d(image, (B @ A.flatten(1)).view_as(wide.weight))
thin_conv = A.numel() + B.numel()

# %% [markdown]
# ## Can LoRA stand beside a convolution?
#
# Yes, in principle: its weight is a matrix of out × (in · kernel), so A is a convolution with r
# filters and B one of width 1. Beside 64 × 64 channels of 3 × 3 rank 8 has {{ thin_conv:,}}
# numbers for {{ wide.weight.numel():,}}, and the two in a row equal their merge up to
# {{ apart(beside, in_one):.0e}}. This package adapts no convolutions; PEFT does `Conv1d`,
# `Conv2d` and `Conv3d` (asked for in huggingface/peft #1604 and #2241, added by #2333).
#
# README.md, "no convolutions" · minilora/lora/linears.py · `nn.Linear | NF4Linear) or is_conv1d(`

# %%
experts = nn.Module()
experts.router = nn.Linear(64, 8)
experts.up = nn.Parameter(torch.zeros(8, 256, 64))  # eight experts in one tensor
experts.down = nn.Parameter(torch.zeros(8, 64, 256))
a_block = nn.ModuleDict({"q_proj": nn.Linear(64, 64), "mlp": experts})
met = minilora.explain_match(a_block, EVERYWHERE)
unmet = (experts.up.numel() + experts.down.numel()) / sum(p.numel() for p in a_block.parameters())

# %% [markdown]
# ## Does LoRA reach the experts of a mixture-of-experts model?
#
# Not where they are one tensor, as in transformers 5, because nothing there is a Linear
# (huggingface/peft #3009). In a small block of eight such experts "all-linear" fitted
# {{ len(met.chosen)}} modules, q and the router, and {{ unmet:.0%}} of the numbers had no
# adapter. This package cannot adapt them; PEFT has `target_parameters` for it, and without that
# only what lies outside the experts learns.
#
# Lesson 06, "Count what trains, and know the number beforehand"
# · minilora/lora/linears.py · `return isinstance(module, nn.Linear | NF4Linear) or is_conv1d`

# %%
pooled = nn.ModuleDict({"body": nn.Linear(8, 8), "pooler": nn.Linear(8, 8)})
minilora.inject(pooled, LoraConfig(r=2, target_modules=["body", "pooler"]))
pooled["body"](torch.randn(4, 8)).square().sum().backward()  # as a model that never pools
factors = [p for p in pooled.parameters() if p.requires_grad]
idle = sum(p.grad is None for p in factors)

# %% [markdown]
# ## Several GPUs: why "parameters that were not used in producing loss"?
#
# An adapter beside a layer that the loss never uses gets no gradient, and DDP waits for it; in
# huggingface/peft #951 it was the pooler's. Here {{ idle}} of {{ len(factors)}} factors got none.
# Leave that layer out of the targets, or let DDP find unused parameters, which PyTorch does not
# support together with *reentrant* checkpointing (huggingface/trl #480 quotes an older text of its
# documentation; today's says that `use_reentrant=False` works without any limitations).
#
# minilora/scale/distributed.py, "which parameters have a gradient"
# · minilora/scale/distributed.py · `if some:  # else no rank has one`

# %%
end = tokenizer.eos_id
by_token = [IGNORE if label == end else label for label in encoded[0].labels]  # pad is the end
ends_by_token = sum(label == end for label in by_token)
ends_by_place = sum(label == end for label in pad(encoded[:1]).labels[0].tolist())

# %% [markdown]
# ## May the padding token be the token that ends an answer?
#
# Only if labels are masked by place. Where a collator takes the label from every padding *token*,
# the answer's end loses its label too: an example here kept {{ ends_by_token}} labels of the end,
# and {{ ends_by_place}} when masked by place. The result is a model that never stops
# (unslothai/unsloth #416, where another padding token cured it).
#
# Lesson 07, "model that never saw this token never stops"
# · minilora/training/batches.py · `def pad(`

# %%
over = torch.tensor(40_000.0).half() * 2
layer = LoRALayer(nn.Linear(16, 16), r=4)
layer_optimizer = torch.optim.AdamW([layer.lora_A, layer.lora_B])
(layer(torch.randn(4, 16)).sum() * float(over - over)).backward()
layer_optimizer.step()
spoilt = sum(int(factor.isnan().sum()) for factor in (layer.lora_A, layer.lora_B))
nothing_to_learn = nn.functional.cross_entropy(torch.randn(3, 5), torch.full((3,), IGNORE)).item()

# %% [markdown]
# ## The loss is 0 or NaN and the gradient's norm NaN: what happened?
#
# Something left fp16's range (2 × 40,000 is {{ over.item()}} there, and inf − inf is NaN), or a
# batch had no label at all, whose mean is {{ nothing_to_learn}}. One such step with AdamW made
# {{ spoilt}} of {{ layer.lora_A.numel() + layer.lora_B.numel()}} numbers of A and B NaN, so all
# that follows is lost; transformers' Trainer logs the average of the losses before it instead,
# which is 0 where there is none (hiyouga/LlamaFactory #2916 shows such a log, with fp16). Use
# bf16, lower the rate, look for examples without an answer, and stop at the first NaN, as this
# package does.
#
# minilora/training/history.py, "The message about a loss or a gradient that is not finite"
# · minilora/training/history.py · `failed = f"loss is {loss}" if not math.isfinite(loss)`

# %%
import json

from minilora.learn.course import lessons_folder

recorded = json.loads((lessons_folder() / "data" / "cpu" / "overfitting.json").read_text("utf-8"))
of_thirty = next(
    run
    for run in recorded["rows"]
    if (run["sweep"], run["examples"], run["r"]) == ("data", 30, 64)
    and not run["dropout"]
    and not run["decay"]
)

# %% [markdown]
# ## Why does my loss fall in steps, one at each epoch?
#
# Most likely because the model has seen these rows before: at an epoch's end the batches begin
# again, and it remembers part of their answers. Rank 64 on 30 examples came to
# {{ of_thirty["train"][-1]:.2f}} on them, while on unseen ones the loss rose from
# {{ min(of_thirty["held"]):.2f}} to {{ of_thirty["held"][-1]:.2f}}. Stairs are no success by
# themselves (in hiyouga/LlamaFactory #6069 the answers were a muddle, at a rate of 0.003), so
# judge by the held-out loss and stop where it turns.
#
# Lesson 08, "All four learn 30 examples by heart"
# · minilora/training/loop.py · `Validation(model, run.valid_batches, task.valid`

# %%
large = {
    m: plan("llama-3-70b", EVERYWHERE, m, seq=512, checkpointing=True) for m in ("lora", "qlora")
}
base_share = {m: (p.bytes["weights"] + p.bytes["constants"]) / 4e9 for m, p in large.items()}
beside_it = {
    m: (p.total - p.bytes["weights"] - p.bytes["constants"]) / 1e9 for m, p in large.items()
}

# %% [markdown]
# ## Does a 70B model train on four cards of 24 GB?
#
# Not in 16 bits: with the base in four shards each card holds {{ base_share["lora"]:.0f}} GB of
# it. In four bits it is {{ base_share["qlora"]:.0f}} GB, and {{ beside_it["qlora"]:.1f}} GB for
# adapters and one short row, so by the sum it fits, with what the gathered block and the
# communication take still to be added (a user ran out of memory with it: axolotl-ai-cloud/axolotl
# #1717). This package shards a base in 16 bits only, and `minilora plan llama-3-70b --cards`
# counts what that takes.
#
# docs/scale.md, "splits every base weight over the ranks"
# · minilora/scale/fsdp.py · `a base in four bits cannot be sharded`

# %%
in_paper = plan("roberta-base", LoraConfig(r=8, target_modules=["query", "value"])).trainable
rte_error = (0.25 / 277) ** 0.5

# %% [markdown]
# ## I cannot reproduce a paper's LoRA result: what do I check?
#
# Count first: RoBERTa-base with rank 8 on query and value trains {{ in_paper:,}} numbers beside
# its head, the paper's 0.3 million; another count is another method. Then the rate together with
# α, the schedule, the number of epochs and the length, since one of them alone means nothing.
# Last the spread: on the 277 questions of RTE one standard error is up to {{ rte_error:.0%}} (a
# user who took the appendix's settings and stayed below it asks in huggingface/peft #468).
#
# Lesson 14, "A comparison at one rate compares rates"
# · minilora/ledger/estimate.py · `trainable   = Σ r (in + out)`

# %%
fresh = adapted(LoraConfig(target_modules=["q_proj", "v_proj"]))
still_zero = max(layer.lora_B.abs().max().item() for _, layer in minilora.lora_layers(fresh))
renamed = ""
with tempfile.TemporaryDirectory() as folder:
    from safetensors.torch import load_file, save_file

    file = minilora.save_adapter(fresh, folder) / "adapter_model.safetensors"
    save_file({key.replace("q_proj", "query"): t for key, t in load_file(file).items()}, file)
    try:
        minilora.load_adapter(minilora.load_base(), folder)
    except ValueError as error:
        renamed = str(error)
assert "does not fit this model" in renamed

# %% [markdown]
# ## The adapter is loaded, and the answers are the base's: why?
#
# Often because B is still zero: it was never trained, or its tensors have other names than the
# model's layers and were passed over. Look at the largest |B| after loading, which is
# {{ still_zero:g}} for a fresh adapter. The reader here refused a file with renamed layers, where
# PEFT warns of missing keys and goes on (a user asks about equal answers in huggingface/peft
# #515).
#
# Lesson 04, "the base to the bit at the start"
# · minilora/formats/mismatches.py · `does not fit this model: {reasons}. Nothing was changed`

# %%
a_row = 2048 * 128_256 * 4 / 1e9

# %% [markdown]
# ## Training fits, and the evaluation runs out of memory: why?
#
# The logits of one row of 2,048 tokens are {{ a_row:.2f}} GB in float32 with Llama-3's vocabulary,
# and an evaluation that collects them keeps those of every batch: transformers' Trainer leaves them
# on the card where `eval_accumulation_steps` is unset. A loss needs none of them afterwards, so ask
# for the loss alone (`prediction_loss_only`), with a small batch and no gradients. Users report it
# in huggingface/transformers #32282 and axolotl-ai-cloud/axolotl #1813, where it is training after
# the evaluation that fails.
#
# Lesson 09, "what is alive for a moment only: the logits, their softmax"
# · minilora/training/objective.py · `def labelled_logits(`

# %%
towers = nn.ModuleDict(
    {tower: nn.ModuleDict({"q_proj": nn.Linear(8, 8)}) for tower in ("vision", "language")}
)
by_name, by_path = (
    len(minilora.explain_match(towers, LoraConfig(target_modules=names)).chosen)
    for names in (["q_proj"], "language.*q_proj")
)

# %% [markdown]
# ## Which part of a vision-language model gets an adapter?
#
# Every part whose layers have the names: a list of last names fits the vision tower too, and
# "q_proj" fitted {{ by_name}} towers here, the pattern "language.*q_proj" {{ by_path}}. A user of
# LLaVA found adapters in a tower that the paper calls frozen (haotian-liu/LLaVA #1647), and
# LLaMA-Factory leaves the tower out by default (hiyouga/LlamaFactory #5996). Look at the names of
# what trains before the first step; this package itself has no vision model.
#
# Lesson 06, "A list entry fits a module whose path is that entry"
# · minilora/lora/patterns.py · `if name == entry or name.endswith(f".{entry}")`

# %%
by_batch, seen_by_none = {}, pad(encode_all(tokenizer, task.valid, 512))
for batch_size in (4, 16):
    torch.manual_seed(0)
    model, settings = adapted(), {**quick, "batch_size": batch_size}
    run = minilora.train(model, task, steps=64 // batch_size, lr=5e-3, **settings)
    with torch.no_grad():
        loss = summed_loss(model.eval(), seen_by_none) / seen_by_none.answer_tokens
        by_batch[batch_size] = float(loss)

# %% [markdown]
# ## Does the batch size matter, and must the rate change with it?
#
# The gradient is a mean, so a larger batch makes it less noisy and not longer, and an Adam step
# goes about as far with either. So the number of steps counts: 64 examples in batches of 4 came to
# a held-out loss of {{ by_batch[4]:.1f}}, in batches of 16 to {{ by_batch[16]:.1f}}, at one rate.
# Take what fits, keep the number of steps or raise the rate, and search it again.
#
# Lesson 05, "moves every number by about the learning rate"
# · minilora/training/config.py · `batch_size: int = 32`

# %%
full_rank = 64
torch.manual_seed(0)
wanted = torch.randn(full_rank, full_rank)  # the gradient of W, any
A = LoRALayer(nn.Linear(full_rank, full_rank), r=full_rank).lora_A.detach()
lora_step = wanted @ A.T @ A  # where a small step of B moves W, while B is zero
cosine = float((lora_step * wanted).sum() / (lora_step.norm() * wanted.norm()))

# %% [markdown]
# ## Is LoRA at full rank the same as full fine-tuning?
#
# No: it can reach the same matrices, and goes another way. Its first step moves W along ∂W AᵀA,
# which had a cosine of {{ cosine:.2f}} with full fine-tuning's ∂W here, at r = {{ full_rank}}
# beside a matrix of {{ full_rank}} × {{ full_rank}}. It also trains
# {{ 2 * full_rank * full_rank // full_rank**2}} times as many numbers, so there is no reason to.
#
# Lesson 03, "another way to the same places"
# · minilora/lora/layer.py · `bound = 1 / math.sqrt(self.in_features)`

# %%
torch.manual_seed(0)
model = adapted()
minilora.train(model, task, steps=24, lr=5e-3, **quick)
learnt_beside_floats = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
on_base = {}
for bits in (None, "nf4"):
    model = minilora.load_base(quantize=bits)
    minilora.inject(model, EVERYWHERE)
    model.load_state_dict(learnt_beside_floats, strict=False)
    with torch.no_grad():
        loss = summed_loss(model.eval(), seen_by_none) / seen_by_none.answer_tokens
        on_base[bits] = float(loss)

# %% [markdown]
# ## Does an adapter that was trained beside floats work on the base in four bits?
#
# Yes, as the four-bit weights are near those that it was trained beside: after a short run the
# held-out loss was {{ on_base[None]:.2f}} on floats and {{ on_base["nf4"]:.2f}} on codes. Lesson 12
# also moves one the other way. Only merging needs care: fold it into the weights that it was
# trained beside.
#
# Lesson 12, "so a base may be served in four bits"
# · minilora/lora/layer.py · `A and B are float32 when`

# %%
same_rows, new_rows = of_thirty["train"][-1], of_thirty["held"][-1]

# %% [markdown]
# ## What can a stranger read out of an adapter that I publish?
#
# Whoever has the base can ask, row by row, whether you trained on it: rank {{ of_thirty["r"]}} had
# a loss of {{ same_rows:.2f}} on its {{ of_thirty["examples"]}} examples and of
# {{ new_rows:.1f}} on others like them. Fewer epochs and more data narrow that gap, and noise in
# training bounds what it tells, at a price (`minilora.scale.epsilon`, docs/scale.md). What must not
# be known does not belong in the training.
#
# Lesson 08, "All four learn 30 examples by heart"
# · minilora/scale/privacy.py · `def epsilon(`
