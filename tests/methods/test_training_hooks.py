"""What the loop asks of a method: rates by group, decay, extra loss, and resuming to the same bits.

PEFT's own loop (ten AdamW steps on the same batches) and its ``create_loraplus_optimizer`` are the
oracles.
"""

import copy
from dataclasses import replace
from functools import cache

import peft
import peft.optimizers
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import minilora
from minilora import (
    AdaLoraConfig,
    BitFitConfig,
    IA3Config,
    LNTuningConfig,
    LoraConfig,
    LoRALayer,
    PrefixTuningConfig,
    PromptTuningConfig,
    TrainConfig,
    VeraConfig,
    inject,
)
from minilora.lora.adapter_layer import adapter_layers
from minilora.methods.adalora import AdaLoRALayer
from minilora.methods.training_hooks import (
    best_from,
    extra_loss,
    param_groups,
    training_state,
    with_extra_loss,
)
from minilora.training import observers
from minilora.training.loss_scaling import LossScaler
from minilora.training.objective import mean_over_answers
from minilora.training.optimizer import build_optimizer
from minilora.training.run import set_up

from ..training.runs import QUICK, TASK
from .peer import file_name, give, theirs_of

CONFIGS = {
    "lora": LoraConfig(r=2),
    "dora": LoraConfig(r=2, target_modules=["v_proj"], use_dora=True),
    "pissa": LoraConfig(r=2, init_lora_weights="pissa"),
    "olora": LoraConfig(r=2, init_lora_weights="olora"),
    "vera": VeraConfig(r=4),
    "ia3": IA3Config(),
    "bitfit": BitFitConfig(),
    "norms": LNTuningConfig(),
    "adalora": AdaLoraConfig(init_r=3, target_r=2, total_step=6, tinit=1, tfinal=1, deltaT=2),
}
every_method = pytest.mark.parametrize("name", CONFIGS)


@cache
def base():
    """The shipped base, read once."""
    return minilora.load_base()


def fresh(name):
    """The shipped base with a method, the same every time."""
    torch.manual_seed(0)
    model = copy.deepcopy(base())
    inject(model, CONFIGS[name])
    return model


def parameters_of(model):
    """Copies of what trains and of what the method keeps."""
    trained = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    return trained | {n: t.clone() for n, t in training_state(model).items()}


def same(one, other):
    """Equal names and bits."""
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


@every_method
def test_a_resumed_run_continues_to_the_same_bits(tmp_path, name):
    settings = {"steps": 6, "lr": 1e-3, "out": tmp_path, "checkpoint_every": 3, **QUICK}
    settings |= {"weight_decay": 0.1}
    through, interrupted = fresh(name), fresh(name)
    minilora.train(through, TASK, **settings)
    expected = parameters_of(through)
    with pytest.raises(KeyboardInterrupt):
        minilora.train(interrupted, TASK, **settings, callbacks=[stop_after(4)])
    resumed = fresh(name)
    minilora.train(resumed, TASK, **settings, resume=True)
    assert same(parameters_of(resumed), expected)
    assert not same(expected, parameters_of(fresh(name)))


def stop_after(step):
    """A callback that ends the run as a crash would."""

    def callback(record):
        if record.get("step") == step:
            raise KeyboardInterrupt

    return callback


def test_the_loop_prunes_adalora_to_its_budget():
    """huggingface/peft #1801: where nobody calls the step that prunes, all ranks stay."""
    model = fresh("adalora")
    minilora.train(model, TASK, steps=6, **QUICK)
    layers = [layer for _, layer in adapter_layers(model)]
    assert sum(int(layer.alive.sum()) for layer in layers) == 2 * len(layers)
    assert all(not layer.lora_E[~layer.alive].any() for layer in layers)


def test_the_best_state_is_one_that_has_been_pruned(monkeypatch):
    """Before the last allocation, in step 5, a low loss is that of too many triplets."""
    rising = iter(range(100))
    monkeypatch.setattr(observers, "summed_loss", lambda *_: torch.tensor(float(next(rising))))
    model = fresh("adalora")
    with pytest.warns(UserWarning, match="from .* at step 0 to"):
        history = minilora.train(model, TASK, steps=6, **QUICK | {"validate_every": 1})
    assert history.best_step == 5
    layers = [layer for _, layer in adapter_layers(model)]
    assert sum(int(layer.alive.sum()) for layer in layers) == 2 * len(layers)


@pytest.mark.parametrize("skipped", [5, 6])
def test_an_allocation_is_made_though_the_optimizer_skips_its_step(skipped):
    """float16: a gradient overflowed in the step of the last allocation."""
    model = fresh("adalora")
    inner = next(adapter_layers(model))[1].config
    for _, layer in adapter_layers(model):
        layer.config = replace(inner, tfinal=6 - skipped, deltaT=9)  # no other allocation
    run = set_up(model, TASK, TrainConfig(**QUICK | {"steps": 6}))
    run.state.scaler = LossScaler()
    taken = iter(range(1, 7))

    def objective(model, parts):
        loss = mean_over_answers(model, parts)
        if next(taken) == skipped:
            for p in run.parameters.values():
                p.grad = torch.full_like(p, torch.inf)
        return loss

    run.objective = objective
    norms = []
    for record in run.steps(model, run.config):
        run.state.step = record["step"]
        norms.append(record["grad_norm"])
    assert [norm is None for norm in norms] == [step == skipped for step in range(1, 7)]
    layers = [layer for _, layer in adapter_layers(model)]
    assert sum(int(layer.alive.sum()) for layer in layers) == 2 * len(layers)


def test_another_method_cannot_resume_a_run(tmp_path):
    settings = {"steps": 2, "out": tmp_path, "checkpoint_every": 1, **QUICK}
    minilora.train(fresh("ia3"), TASK, **settings)
    model = fresh("vera")
    before = parameters_of(model)
    with pytest.raises(ValueError, match=r"adapters: IA3Layer \w+ there, VeraLayer \w+ here"):
        minilora.train(model, TASK, **settings, resume=True)
    assert same(parameters_of(model), before)


@every_method
def test_the_base_stays_as_it_was_to_the_bit_and_only_the_method_learns(name):
    model = fresh(name)
    own = {id(p) for _, layer in adapter_layers(model) for p in layer._parameters.values()}
    assert {id(p) for p in model.parameters() if p.requires_grad} == own
    minilora.train(model, TASK, steps=6, **QUICK)
    assert same(dict(minilora.unload(model).state_dict()), dict(base().state_dict()))


class Ten:
    """Ten batches of random numbers through one Linear, to fit ten targets."""

    def __init__(self, width=6, out=4, norm=False):
        torch.manual_seed(0)
        self.base = nn.Sequential(nn.Linear(width, out), *[nn.LayerNorm(out)] * norm)
        self.x, self.y = torch.randn(10, 8, width), torch.randn(10, 8, out)

    def losses(self, model, optimizer, extra=lambda model: 0.0, after=lambda step: None):
        """The losses of ten steps of the plain loop."""
        losses = []
        for step, (x, y) in enumerate(zip(self.x, self.y, strict=True)):
            optimizer.zero_grad()
            loss = F.mse_loss(model(x), y) + extra(model)
            loss.backward()
            optimizer.step()
            after(step + 1)
            losses.append(loss.item())
        return losses


PLAIN = {"r": 2, "lora_alpha": 4, "target_modules": ["0"]}
ALIKE = {
    "lora": (LoraConfig(**PLAIN), peft.LoraConfig(**PLAIN)),
    "rslora": (LoraConfig(**PLAIN, use_rslora=True), peft.LoraConfig(**PLAIN, use_rslora=True)),
    "norms": (LNTuningConfig(target_modules=["1"]), peft.LNTuningConfig(target_modules=["1"])),
    "dora": (
        LoraConfig(r=2, lora_alpha=4, target_modules=["0"], use_dora=True),
        peft.LoraConfig(r=2, lora_alpha=4, target_modules=["0"], use_dora=True),
    ),
    "pissa": (
        LoraConfig(r=2, lora_alpha=4, target_modules=["0"], init_lora_weights="pissa"),
        peft.LoraConfig(r=2, lora_alpha=4, target_modules=["0"], init_lora_weights="pissa"),
    ),
    "olora": (
        LoraConfig(r=2, lora_alpha=4, target_modules=["0"], init_lora_weights="olora"),
        peft.LoraConfig(r=2, lora_alpha=4, target_modules=["0"], init_lora_weights="olora"),
    ),
    "vera": (VeraConfig(r=3, target_modules=["0"]), peft.VeraConfig(r=3, target_modules=["0"])),
    "ia3": (
        IA3Config(target_modules=["0"], feedforward_modules=["0"]),
        peft.IA3Config(target_modules=["0"], feedforward_modules=["0"]),
    ),
    "adalora": (
        AdaLoraConfig(init_r=4, target_r=2, lora_alpha=4, target_modules=["0"], total_step=10),
        peft.AdaLoraConfig(init_r=4, target_r=2, lora_alpha=4, target_modules=["0"], total_step=10),
    ),
}


@pytest.mark.parametrize("name", ALIKE)
def test_ten_steps_beside_peft_have_the_same_losses(name):
    task, (config, peft_config) = Ten(norm=name == "norms"), ALIKE[name]
    theirs, ours = theirs_of(task.base, peft_config), copy.deepcopy(task.base)
    inject(ours, config)
    give(theirs, ours)
    mine = torch.optim.AdamW([p for p in ours.parameters() if p.requires_grad], lr=0.05)
    peers = torch.optim.AdamW([p for p in theirs.parameters() if p.requires_grad], lr=0.05)
    layers = [layer for _, layer in adapter_layers(ours)]
    kind, hooks = type(layers[0]), {}
    if name == "adalora":  # PEFT adds its loss to a transformers model's only; here by hand
        hooks = {"extra": lambda _: orthogonality(theirs, 0.5)}
        hooks["after"] = theirs.base_model.update_and_allocate
    losses = task.losses(theirs, peers, **hooks)
    allocate = lambda step: kind.update_and_allocate(layers, step)  # noqa: E731
    ours_losses = task.losses(ours, mine, lambda model: extra_loss(model) or 0.0, allocate)
    assert losses == pytest.approx(ours_losses, rel=2e-4, abs=1e-6)
    assert losses[-1] != losses[0]
    if name == "adalora":
        pattern = theirs.peft_config["default"].rank_pattern
        assert layers[0].alive_of_all() == next(iter(pattern.values()))
        assert sum(layers[0].alive_of_all()) == 2


def test_ten_steps_of_bitfit_are_those_of_a_bias_that_torch_trains():
    """A BERT's own way: the Linear has a bias, and nothing else trains."""
    task = Ten()
    ours, plain = copy.deepcopy(task.base), copy.deepcopy(task.base)
    inject(ours, BitFitConfig(target_modules=["0"]))
    plain[0].weight.requires_grad_(False)
    mine = torch.optim.AdamW([ours[0].bias_delta], lr=0.05, weight_decay=0)
    peers = torch.optim.AdamW([plain[0].bias], lr=0.05, weight_decay=0)
    assert task.losses(plain, peers) == pytest.approx(task.losses(ours, mine), rel=1e-5)


def orthogonality(model, weight):
    """PEFT's regularization, as its ``AdaLoraModel.forward`` has it."""
    terms = []
    for name, p in model.named_parameters():
        if "lora_A" in name or "lora_B" in name:
            product = p @ p.T if "lora_A" in name else p.T @ p
            terms.append(torch.norm(product - torch.eye(len(product)), p="fro"))
    return weight * sum(terms) / len(terms)


def test_ten_steps_of_lora_plus_beside_pefts_optimizer():
    task = Ten()
    plain = {"r": 2, "lora_alpha": 4, "target_modules": ["0"]}
    theirs, ours = theirs_of(task.base, peft.LoraConfig(**plain)), copy.deepcopy(task.base)
    inject(ours, LoraConfig(**plain))
    give(theirs, ours)
    peers = peft.optimizers.create_loraplus_optimizer(
        theirs, torch.optim.AdamW, lr=0.01, loraplus_lr_ratio=16, loraplus_weight_decay=0.1
    )
    trained = {n: p for n, p in ours.named_parameters() if p.requires_grad}
    mine = build_optimizer(trained, 0.01, 0.1, model=ours, loraplus_ratio=16)
    for group in mine.param_groups:
        group["lr"] = group["initial_lr"]
    assert sorted(group["lr"] for group in mine.param_groups) == [0.01, 0.16]
    assert task.losses(theirs, peers) == pytest.approx(task.losses(ours, mine), rel=1e-5)


def test_the_loop_gives_b_its_own_rate():
    model = fresh("lora")
    seen = []
    minilora.train(model, TASK, steps=1, lr=1e-3, warmup=0, loraplus_ratio=4, **QUICK)
    moved = {n: p.detach() for n, p in model.named_parameters() if n.endswith("lora_B")}
    # AdamW's first step moves each number by its rate
    seen = [p.abs().max().item() for p in moved.values()]
    assert seen == pytest.approx([4e-3] * len(seen), rel=0.01)


def test_lora_plus_needs_a_b():
    with pytest.raises(ValueError, match="nothing that trains here is a lora_B"):
        minilora.train(fresh("ia3"), TASK, steps=1, loraplus_ratio=2, **QUICK)
    with pytest.raises(ValueError, match="loraplus_ratio must be positive"):
        TrainConfig(loraplus_ratio=0)


def test_decay_pulls_ia3_towards_one_and_lora_towards_zero():
    model = nn.Sequential(nn.Linear(3, 2))
    inject(model, IA3Config(target_modules=["0"], feedforward_modules=[]))
    l = model[0].ia3_l  # noqa: E741
    nn.init.constant_(l, 3.0)
    optimizer = build_optimizer({"0.ia3_l": l}, 0.1, 0.5, model=model)
    l.grad = torch.zeros_like(l)
    optimizer.step()
    assert l.flatten().tolist() == pytest.approx([3 - 0.1 * 0.5 * 2] * 2)
    l.grad = None
    optimizer.step()  # as AdamW, which leaves what has no gradient alone
    assert l.flatten().tolist() == pytest.approx([3 - 0.1 * 0.5 * 2] * 2)
    layer = LoRALayer(nn.Linear(3, 2), r=1)
    before = layer.lora_A.detach().clone()
    optimizer = build_optimizer({"lora_A": layer.lora_A}, 0.1, 0.5, model=layer)
    layer.lora_A.grad = torch.zeros_like(before)
    optimizer.step()
    torch.testing.assert_close(layer.lora_A.detach(), before * 0.95)


def test_vectors_are_not_pulled_anywhere():
    model = fresh("dora")
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    groups = param_groups(model, trained, 1e-3, 0.5)
    decays = {(g["weight_decay"], g["pull"], p.dim()) for g in groups for p in g["params"]}
    assert decays == {(0.5, 0.0, 2), (0.0, 0.0, 1)}


def test_rows_of_tokens_and_prompts_are_not_pulled():
    """An embedding's row at 0 is no token, so 0 is not neutral."""
    for config, pulled in (
        (LoraConfig(r=2, trainable_token_indices=[3]), {"lora_A", "lora_B"}),
        (PromptTuningConfig(4), set()),
        (PrefixTuningConfig(4), set()),
    ):
        model = copy.deepcopy(base())
        inject(model, config)
        trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
        names = {id(p): n.rpartition(".")[2] for n, p in trained.items()}
        groups = param_groups(model, trained, 1e-3, 0.5)
        found = {names[id(p)] for g in groups if g["weight_decay"] for p in g["params"]}
        assert found == pulled
        assert sum(len(g["params"]) for g in groups) == len(trained)


def test_loras_run_asks_for_nothing():
    model = fresh("lora")
    assert extra_loss(model) is None
    assert training_state(model) == {}
    assert best_from(model) == best_from(nn.Linear(2, 2)) == 0


class Cousin(AdaLoRALayer):
    """Another method that adds to the loss."""


def two_with_extra_loss():
    torch.manual_seed(0)
    config = AdaLoraConfig(init_r=2, target_r=1, total_step=9)
    return nn.Sequential(AdaLoRALayer(nn.Linear(3, 4), config), Cousin(nn.Linear(4, 2), config))


def test_the_extra_losses_of_two_methods_add_up():
    model = two_with_extra_loss()
    total, eye = 0.0, torch.eye(2)
    for layer in model:
        A, B = layer.lora_A.detach(), layer.lora_B.detach()
        total += 0.5 * ((A @ A.T - eye).norm() + (B.T @ B - eye).norm()) / 2
    assert extra_loss(model).item() == pytest.approx(total.item())


def test_a_scaled_loss_has_its_extra_scaled_alike():
    """float16: the optimizer divides all gradients by the scale."""
    grads, losses = [], []
    for scaler in (None, LossScaler(scale=8.0)):
        model = two_with_extra_loss()
        losses.append(with_extra_loss(lambda *_: 1.5, scaler)(model, None))
        grads.append(
            torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        )
    torch.testing.assert_close(grads[1], 8 * grads[0])
    assert losses[0] == losses[1] == pytest.approx(1.5 + extra_loss(model).item())


def test_the_orthogonality_is_in_the_loss_whatever_the_task_type():
    """huggingface/peft #432: without one PEFT adds nothing."""
    plain = peft.AdaLoraConfig(init_r=3, target_r=2, total_step=9, target_modules=["0"])
    assert plain.task_type is None
    model = fresh("adalora")
    start = minilora.train(model, TASK, steps=6, **QUICK).losses[0]
    without = copy.deepcopy(base())
    torch.manual_seed(0)
    inject(without, AdaLoraConfig(init_r=3, target_r=2, total_step=6, orth_reg_weight=0.0))
    difference = start - minilora.train(without, TASK, steps=6, **QUICK).losses[0]
    assert difference == pytest.approx(0.5 * 1.7, rel=0.1)  # ‖0 − I‖ of three rows is √3


def test_a_run_of_another_length_is_refused():
    model = fresh("adalora")
    with pytest.raises(ValueError, match=r"total_step=6, this run has steps=5"):
        minilora.train(model, TASK, steps=5, **QUICK)


def test_the_best_state_has_the_triplets_that_it_had(tmp_path):
    from minilora.training.checkpoint import State

    model = fresh("adalora")
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(parameters.values())
    state = State(parameters, optimizer, None, learnt=training_state(model))
    state.remember_best()
    layer = next(adapter_layers(model))[1]
    layer.alive[0] = False
    state.restore_best()
    assert layer.alive.all()


def test_names_are_those_of_the_file():
    assert file_name("base_model.model.0.lora_A.default.weight") == "0.lora_A.weight"
