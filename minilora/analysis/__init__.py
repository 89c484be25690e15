"""Why it works, and what an adapter changed: small functions, arrays out, each with its source.

In reading order:

    updates.py          ΔW by path; put updates in for a moment: undo a part, cut it, scale it
    spectra.py          singular values, effective rank, cuts, intruder directions, cosines
    representations.py  CKA, what each block writes, additivity, anisotropy
    knobs.py            train a model through d random knobs: the intrinsic dimension
    report.py           all of it for one adapter, as ``minilora analyze`` prints it

An update is a tensor (out, in); updates are a dict from a Linear's path to one. So undoing layer 0,
cutting everything to rank 4 and adding two adapters are three other dicts, and one context,
``with_updates``, measures each.

Imports the library and ``plots``.
"""

from typing import TYPE_CHECKING

from ..lazy import lazy_imports

if TYPE_CHECKING:
    from .knobs import fix_knobs, install_knobs
    from .report import analyze
    from .representations import (
        additivity,
        anisotropy,
        block_changes,
        centered_alignment,
        cumulative_similarity,
        hidden_states,
    )
    from .spectra import (
        cosine,
        cut,
        effective_rank,
        energy,
        intruders,
        random_update,
        singular_values,
        without_top,
    )
    from .updates import (
        adapter_updates,
        by_kind,
        by_layer,
        weight_updates,
        with_updates,
        without_parts,
    )

__all__ = [
    "adapter_updates",
    "additivity",
    "analyze",
    "anisotropy",
    "block_changes",
    "by_kind",
    "by_layer",
    "centered_alignment",
    "cosine",
    "cumulative_similarity",
    "cut",
    "effective_rank",
    "energy",
    "fix_knobs",
    "hidden_states",
    "install_knobs",
    "intruders",
    "random_update",
    "singular_values",
    "weight_updates",
    "with_updates",
    "without_parts",
    "without_top",
]
if not TYPE_CHECKING:  # or a type checker would take every name for there
    __getattr__, __dir__ = lazy_imports(__name__)
