"""What a fine-tune costs: estimated from shapes, measured on the model.

In reading order:

    dimensions.py      a model as dimensions: its Linears, and what else has parameters
    families.py        what a ``config.json`` of each family means
    mixtures.py        the same of mixtures of experts
    shapes.py          the dimensions of a preset, a file, a folder or a list
    storage.py         bytes of weights, scales, adapters and files
    planned_sites.py   the sites of a planned model
    method_costs.py    what each method keeps, trains and stores
    attached_costs.py  the same of soft prompts, prefixes, bottlenecks
    extra_costs.py     what trains beside adapters: heads, biases, rows of the vocabulary
    activations.py     what autograd keeps for the backward pass
    flops.py           floating-point operations a token
    estimate.py        ``plan``: all of that for one fine-tune, nothing allocated
    serving_costs.py   ``plan_serving``: a base, its adapters, keys and values of texts in flight
    cards.py           ``plan_cards``: how many cards a fine-tune needs
    money.py           hours, spot instances, storage
    claims.py          a table that is often repeated, and what the plan says of it
    tensor_tracker.py  which tensors live while a step runs
    measurement.py     ``measure`` and ``count``: the same on a live model

Imports ``methods``, ``lora``, ``nf4`` and the ground.
"""

from typing import TYPE_CHECKING

from ..lazy import lazy_imports

if TYPE_CHECKING:
    from .cards import Cards, plan_cards
    from .claims import Claim, check_claims
    from .estimate import CATEGORIES, GPUS, METHODS, OPTIMIZERS, Plan, Settings, plan
    from .measurement import Count, Measured, Tally, count, measure
    from .money import Spot, Storage, best_interval, hours, plan_storage
    from .serving_costs import ServingPlan, plan_serving
    from .shapes import architecture, presets

__all__ = [
    "CATEGORIES",
    "GPUS",
    "METHODS",
    "OPTIMIZERS",
    "Cards",
    "Claim",
    "Count",
    "Measured",
    "Plan",
    "ServingPlan",
    "Settings",
    "Spot",
    "Storage",
    "Tally",
    "architecture",
    "best_interval",
    "check_claims",
    "count",
    "hours",
    "measure",
    "plan",
    "plan_cards",
    "plan_serving",
    "plan_storage",
    "presets",
]
if not TYPE_CHECKING:  # or a type checker would take every name for there
    __getattr__, __dir__ = lazy_imports(__name__)
