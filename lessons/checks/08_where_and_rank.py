"""Checkers of lesson 08. Ranks are counted up with real factors; a choice of layers is trained."""

from functools import cache

import torch
from hypothesis import strategies as st

import minilora
from minilora import LoraConfig, data
from minilora.learn import Wrong, cases, close
from minilora.training.batches import encode_all, pad
from minilora.training.objective import summed_loss

STEPS, RATE, MARGIN, LEAST = 14, 2e-2, 0.3, 0.6
SIDE = st.integers(1, 40)


@cases(
    first={"shapes": [(9, 7), (11, 8)], "budget": 120},
    shapes=st.lists(st.tuples(SIDE, SIDE), min_size=1, max_size=6),
    budget=st.integers(0, 3000),
)
def check_largest_rank(answer, shapes, budget):
    """Against factors that are made and counted, rank by rank."""
    best = 0
    for r in range(1, min(min(shape) for shape in shapes) + 1):
        factors = [torch.empty(r, size_in) for size_in, _ in shapes]
        factors += [torch.empty(size_out, r) for _, size_out in shapes]
        best = r if sum(factor.numel() for factor in factors) <= budget else best
    case = f"shapes {shapes} and a budget of {budget:,}"
    close(answer(list(shapes), budget), best, what="the rank", case=case, tolerance=0)


@cases(20, budget=st.integers(3_000, 60_000))
def check_counts(answer, budget):
    """What a choice costs, on the real model."""
    config = answer(budget)
    if not isinstance(config, LoraConfig):
        raise Wrong(f"spend({budget}) is {type(config).__name__}; a right answer is a LoraConfig")
    trainable = minilora.explain_match(base(), config).trainable
    if not LEAST * budget <= trainable <= budget:
        raise Wrong(
            f"spend({budget:,}) trains {trainable:,} parameters, {trainable / budget:.0%} of the "
            f"budget; a right answer trains {LEAST:.0%} to 100%"
        )


def check_spend(answer):
    """The counts for any budget; then the loss of the choice for 5,000."""
    check_counts(answer)
    usual = loss_after_training(LoraConfig(r=1, lora_alpha=2))
    mine = loss_after_training(answer(5000))
    if mine > usual - MARGIN:
        raise Wrong(
            f"after {STEPS} steps your 5,000 parameters reach a held-out loss of {mine:.2f}, q and "
            f"v at r = 1 reach {usual:.2f} with 2,688; a right answer is lower by at least "
            f"{MARGIN}. Which dots of the picture lie left?"
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
    settings = {"steps": STEPS, "batch_size": 8, "lr": RATE, "validate_every": 0}
    minilora.train(model, task, **settings, progress=False)
    rows = pad(encode_all(model.tokenizer, task.valid, 512))
    with torch.no_grad():
        return summed_loss(model.eval(), rows).item() / rows.answer_tokens


def config_of(r, targets):
    """A config with the usual alpha."""
    return LoraConfig(r=r, lora_alpha=2 * r, target_modules=targets)


def cost(shapes):
    """Parameters of rank 1 on all the matrices."""
    return sum(size_in + size_out for size_in, size_out in shapes)


def smallest_side(shapes):
    """The cap of the rank."""
    return min(min(shape) for shape in shapes)


def matrices_size(shapes, budget):
    """Pays for the matrices themselves."""
    return min(budget // sum(i * o for i, o in shapes), smallest_side(shapes))


def no_cap(shapes, budget):
    """Ranks that buy nothing."""
    return budget // cost(shapes)


def rounded_up(shapes, budget):
    """One rank too many."""
    return min(-(-budget // cost(shapes)), smallest_side(shapes))


def capped_by_the_largest(shapes, budget):
    """The wrong matrix sets the cap."""
    return min(budget // cost(shapes), max(min(shape) for shape in shapes))


def at_least_one(shapes, budget):
    """Spends what is not there."""
    return max(1, min(budget // cost(shapes), smallest_side(shapes)))


def one_factor_only(shapes, budget):
    """Forgets B."""
    return min(budget // sum(size_in for size_in, _ in shapes), smallest_side(shapes))


WRONG = {
    "largest_rank": {
        "the matrices' own size": matrices_size,
        "no cap": no_cap,
        "rounded up": rounded_up,
        "capped by the largest": capped_by_the_largest,
        "at least one": at_least_one,
        "one factor only": one_factor_only,
    },
    "spend": {
        "all into q": lambda budget: config_of(budget // 1536, ["q_proj"]),
        "all into k": lambda budget: config_of(min(64, budget // 1152), ["k_proj"]),
        "q and v": lambda budget: config_of(budget // 2688, ["q_proj", "v_proj"]),
        "over the budget": lambda budget: config_of(budget // 1000, ["v_proj"]),
        "one rank for every budget": lambda budget: config_of(4, ["v_proj"]),
    },
}
