"""More than one machine, on engines that exist: torchrun, Flower, Ray Serve.

Ours is what they cannot know: that only A and B travel, that the loss is counted in answer tokens,
and that averaging A and B separately is wrong.

In reading order:

    federated.py     many clients' A and B as one adapter: what is exact, and what is not
    privacy.py       clipping, noise, and how much privacy they come to

Imports the library's wings, the hub and serving. Their own libraries are the extra ``[scale]``.
"""

from typing import TYPE_CHECKING

from ..lazy import lazy_imports

if TYPE_CHECKING:
    from .federated import Update, aggregate, relative_error
    from .privacy import clip, epsilon

__all__ = ["Update", "aggregate", "clip", "epsilon", "relative_error"]
if not TYPE_CHECKING:  # or a type checker would take every name for there
    __getattr__, __dir__ = lazy_imports(__name__)
