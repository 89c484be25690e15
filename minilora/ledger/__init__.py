"""What it costs: estimated from shapes, measured on the model."""

from .estimate import CATEGORIES, GPUS, METHODS, OPTIMIZERS, Plan, Settings, plan
from .measurement import Count, Measured, Tally, count, measure
from .shapes import architecture, presets

__all__ = [
    "CATEGORIES",
    "GPUS",
    "METHODS",
    "OPTIMIZERS",
    "Count",
    "Measured",
    "Plan",
    "Settings",
    "Tally",
]
__all__ += ["architecture", "count", "measure", "plan", "presets"]
