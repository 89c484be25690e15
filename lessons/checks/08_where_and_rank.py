"""Checkers of lesson 08. Ranks are found by counting up with real factors; a choice of layers is trained."""

from functools import cache

import torch
from hypothesis import strategies as st

import minilora
from minilora import LoraConfig, data
from minilora.learn import Wrong, cases, close
from minilora.training.batches import encode_all, pad
from minilora.training.loop import summed_loss

STEPS, RATE, MARGIN, LEAST = 14, 2e-2, 0.3, 0.6
SIDE = st.integers(1, 40)


@cases(shapes=st.lists(st.tuples(SIDE, SIDE), min_size=1, max_size=6), budget=st.integers(0, 3000))
def check_largest_rank(answer, shapes, budget):
    """Against factors that are made and counted, rank by rank."""
    best = 0
    for r in range(1, min(min(shape) for shape in shapes) + 1):
        made = [
            torch.empty(r, size_in).numel() + torch.empty(size_out, r).numel()
            for size_in, size_out in shapes
        ]
        best = r if sum(made) <= budget else best
    close(
        answer(list(shapes), budget),
        best,
        what="the rank",
        case=f"shapes {shapes} and a budget of {budget:,}",
        tolerance=0,
    )


@cases(20, budget=st.integers(3_000, 60_000))
def check_counts(answer, budget):
    """What a choice costs, on the real model."""
    config = answer(budget)
    if not isinstance(config, LoraConfig):
        raise Wrong(f"spend({budget}) is {type(config).__name__}; a right answer is a LoraConfig")
    trainable = minilora.explain_match(base(), config).trainable
    if not LEAST * budget <= trainable <= budget:
        raise Wrong(
            f"spend({budget:,}) trains {trainable:,} parameters, {trainable / budget:.0%} of the budget; a right answer trains "
            f"{LEAST:.0%} to 100%"
        )


def check_spend(answer):
    """The counts for any budget; then the loss of the choice for 5,000."""
    check_counts(answer)
    usual, mine = (
        loss_after_training(LoraConfig(r=1, lora_alpha=2)),
        loss_after_training(answer(5000)),
    )
    if mine > usual - MARGIN:
        raise Wrong(
            f"after {STEPS} steps your 5,000 parameters reach a held-out loss of {mine:.2f}, q and v at r = 1 reach "
            f"{usual:.2f} with 2,688; a right answer is lower by at least {MARGIN}. Which rows of the heat map are light?"
        )


@cache
def base():
    """The shipped base, for counting only."""
    return minilora.load_base()


def loss_after_training(config):
    """Held-out loss, nats an answer token, after a short run."""
    torch.manual_seed(0)
    model, task = minilora.load_base(), data.naval_log(400, 40)
    minilora.inject(model, config)
    minilora.train(
        model, task, steps=STEPS, batch_size=8, lr=RATE, validate_every=0, progress=False
    )
    rows = pad(encode_all(model.tokenizer, task.valid, 512))
    with torch.no_grad():
        return summed_loss(model.eval(), rows).item() / rows.answer_tokens


def config_of(r, targets):
    """A config with the usual alpha."""
    return LoraConfig(r=r, lora_alpha=2 * r, target_modules=targets)


WRONG = {
    "largest_rank": {
        "the matrices' own size": lambda shapes, budget: min(
            budget // sum(i * o for i, o in shapes), min(min(shape) for shape in shapes)
        ),
        "no cap": lambda shapes, budget: budget // sum(i + o for i, o in shapes),
        "rounded up": lambda shapes, budget: min(
            -(-budget // sum(i + o for i, o in shapes)), min(min(s) for s in shapes)
        ),
        "capped by the largest": lambda shapes, budget: min(
            budget // sum(i + o for i, o in shapes), max(min(shape) for shape in shapes)
        ),
        "at least one": lambda shapes, budget: max(
            1, min(budget // sum(i + o for i, o in shapes), min(min(shape) for shape in shapes))
        ),
        "one factor only": lambda shapes, budget: min(
            budget // sum(i for i, _ in shapes), min(min(s) for s in shapes)
        ),
    },
    "spend": {
        "all into q": lambda budget: config_of(budget // 1536, ["q_proj"]),
        "all into k": lambda budget: config_of(min(64, budget // 1152), ["k_proj"]),
        "q and v": lambda budget: config_of(budget // 2688, ["q_proj", "v_proj"]),
        "over the budget": lambda budget: config_of(budget // 1000, ["v_proj"]),
        "one rank for every budget": lambda budget: config_of(4, ["v_proj"]),
    },
}
