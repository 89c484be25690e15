# %% [markdown]
# The quiz: twenty questions from lessons that lie behind, asked again between new ones.
#
# A cell of code computes, the question after it asks; its answer comes from that code, and no
# number is typed. The name begins with the lesson. `minilora/learn/quiz.py` asks them.

# %%
import torch
from torch import nn

import minilora
from minilora.learn.pieces import solution_of


def trainable(model):
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


# %%
layer = minilora.LoRALayer(nn.Linear(64, 32), r=4)

# %% [predict] l00_size
# A Linear has 64 inputs and 32 outputs. LoRA of rank 4 stands beside it. How many numbers train?
# answer: trainable(layer)

# %%
linear = nn.Linear(5, 3, bias=False)
linear(torch.randn(10, 5)).sum().backward()
gradient = linear.weight.grad

# %% [predict] l01_gradient
# Ten rows of 5 numbers go through a Linear with 3 outputs. How many numbers has ∂W?
# answer: gradient.numel()

# %%
product = torch.randn(6, 2, generator=torch.manual_seed(0)) @ torch.randn(2, 5)

# %% [predict] l02_rank
# B is (6, 2) and A is (2, 5), both random. What is the rank of B A?
# answer: int(torch.linalg.matrix_rank(product))

# %%
layer = minilora.LoRALayer(nn.Linear(6, 4), r=2)
layer(torch.randn(8, 6)).square().sum().backward()
moves = {"a": layer.lora_A.grad.any(), "b": layer.lora_B.grad.any()}

# %% [predict] l04_first_step
# A starts random and B zero. Which of them moves in the very first step?
# - a) only A
# - b) only B
# - c) both
# answer: "c" if all(moves.values()) else next(letter for letter in moves if moves[letter])

# %%
wide = minilora.LoRALayer(nn.Linear(64, 64), r=32, lora_alpha=64)
thin = minilora.LoRALayer(nn.Linear(64, 64), r=8, lora_alpha=64)

# %% [predict] l05_scale
# α is 64 and stays. The rank falls from 32 to 8. By what factor does the scale α / r grow?
# answer: thin.scaling / wide.scaling

# %%
names = ["q_proj", "v_proj", "up_proj"]
fitting = [name for name in names if solution_of("name_matches")(f"layers.0.{name}", ["p_proj"])]

# %% [predict] l06_names
# The model's Linears end in q_proj, v_proj and up_proj. You write target_modules=["p_proj"]. How
# many of the three does it fit?
# answer: len(fitting)

# %%
model = nn.Sequential(nn.Linear(6, 6))
before = model[0].weight.clone()
minilora.inject(model, minilora.LoraConfig(r=2, target_modules=["0"]))
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
for _ in range(5):
    loss = model(torch.randn(8, 6)).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
same = torch.equal(minilora.unload(model)[0].weight, before)

# %% [predict] l07_way_back
# An adapter was trained, and then it is taken out. What is the base then?
# - a) what it was, to the bit
# - b) what it was, up to rounding
# - c) somewhere between the old and the trained model
# answer: "a" if same else "b"

# %%
rank = solution_of("largest_rank")([(100, 100)], 5000)

# %% [predict] l08_budget
# You may train 5,000 numbers beside one matrix of 100 × 100. What is the largest rank?
# answer: rank

# %%
number = nn.Parameter(torch.zeros(1))
optimizer = torch.optim.AdamW([number])
number.sum().backward()
optimizer.step()
moments = [t for t in optimizer.state[number].values() if t.shape == number.shape]
size = sum(t.nbytes for t in (number, number.grad, *moments))

# %% [predict] l09_bytes
# One trained number in float32, its gradient, and what AdamW remembers of it: how many bytes?
# answer: size

# %%
packed = solution_of("pack_nibbles")(torch.arange(7))

# %% [predict] l10_nibbles
# Seven four-bit codes are packed, two to a byte. How many bytes do they take?
# answer: packed.nbytes

# %%
levels = minilora.level0.nf4_levels()

# %% [predict] l11_levels
# NF4 has 16 levels, and one of them is exactly zero. How many are below zero?
# answer: int((levels < 0).sum())

# %%
four = minilora.nf4.NF4Linear.from_linear(nn.Linear(64, 64, bias=False))
layer = minilora.LoRALayer(four, r=2)
optimizer = torch.optim.SGD([p for p in layer.parameters() if p.requires_grad], lr=1.0)
codes, factor = four.packed.clone(), layer.lora_B.detach().clone()
layer(torch.randn(4, 64)).square().sum().backward()
optimizer.step()
moved = {"a": not torch.equal(codes, four.packed), "b": not torch.equal(factor, layer.lora_B)}

# %% [predict] l12_codes
# A QLoRA layer takes one step of training. What is different afterwards?
# - a) the four-bit codes
# - b) the factor B
# - c) both
# answer: "c" if all(moved.values()) else next(letter for letter in moved if moved[letter])

# %%
one, small = torch.tensor(1.0).bfloat16(), torch.tensor(0.001).bfloat16()

# %% [predict] l13_bf16
# A weight is 1, its ΔW is 0.001, and both are bfloat16. What is the merged weight?
# - a) 1.001
# - b) 1, as if nothing had been learned
# answer: "b" if one + small == one else "a"

# %%
sizes = []
for use_dora in (False, True):
    model = nn.Sequential(nn.Linear(64, 32))
    minilora.inject(model, minilora.LoraConfig(r=4, target_modules=["0"], use_dora=use_dora))
    sizes.append(trainable(model))

# %% [predict] l14_dora
# Beside a Linear of 64 inputs and 32 outputs stands DoRA instead of LoRA, of the same rank. How
# many numbers more does it train?
# answer: sizes[1] - sizes[0]

# %%
tokens, width = 10, minilora.load_base().config.hidden_size
prompt = torch.zeros(tokens, width)

# %% [predict] l15_prompt
# The shipped base is 128 wide. A soft prompt of ten tokens is trained. How many numbers is that?
# answer: prompt.numel()

# %%
linear, x = nn.Linear(8, 8), torch.randn(3, 8)
old, new = linear(x).log_softmax(-1), minilora.LoRALayer(linear, r=2)(x).log_softmax(-1)
divergence = (old.exp() * (old - new)).sum().item()

# %% [predict] l16_replay
# Self-replay punishes KL(base ‖ adapted model) on the base's own text. What is it before the first
# step?
# answer: divergence

# %%
parts = [(torch.randn(r, 6), torch.randn(20, r), 2.0) for r in (2, 3)]
A, B = solution_of("combine_exactly")(parts, [1.0, 0.5])

# %% [predict] l19_sum
# An adapter of rank 2 and one of rank 3 are added exactly, with the weights 1 and 0.5. What rank
# does the file of the sum have?
# answer: len(A)

# %%
import numpy as np

identity = solution_of("content_identity")
tensors = {"a": np.arange(3.0), "b": np.arange(4.0)}
turned = dict(reversed(tensors.items()))

# %% [predict] l20_identity
# Two files hold the same tensors under the same names, written in another order. Their content
# identities are
# - a) the same
# - b) different
# answer: "a" if identity(tensors) == identity(turned) else "b"

# %%
merged, adapters = 1000 * 128 * 128, 1000 * trainable(minilora.LoRALayer(nn.Linear(128, 128), r=8))

# %% [predict] l21_thousand
# A thousand tunings of one matrix of 128 × 128: as merged copies, or as rank-8 adapters on one
# base. The copies hold how many times as many numbers as the adapters?
# answer: merged / adapters

# %%
old, new = [False] * 5, [True] * 5
decision, _ = solution_of("gate")(old, new, solution_of("paired_e_value"), bar=20)

# %% [predict] l22_gate
# Five questions, and the new adapter is right in all where the old one is wrong in all. The gate
# asks for an E-value of 20. What does it say?
# - a) promote
# - b) wait for more
# answer: "a" if decision == "promote" else "b"
