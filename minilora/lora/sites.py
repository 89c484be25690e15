"""The sites of a live model: every module, as ``select`` wants to see it."""

from __future__ import annotations

from torch import nn

from ..nf4.shared_weights import reads_weights, tied_weights
from .linears import embedding_shape, is_linear, is_norm, linear_shape
from .paths import plain_path, wrapped_name
from .selection import Site, not_a_linear, tied_to


def sites_of(model: nn.Module, norms: bool = False, embeddings: bool = False) -> list[Site]:
    """A ``Site`` for each module of a model, under its path.

    ``norms``: for a method of norms; ``embeddings``: for one of Linears that takes these too.

    >>> [(site.path, site.in_features) for site in sites_of(nn.Sequential(nn.Linear(4, 2)))]
    [('0', 4)]
    """
    head, tied = output_head(model), tied_weights(model)
    modules = dict(model.named_modules())
    sites = []
    for written, module in modules.items():
        path = plain_path(model, written)
        if path and wrapped_name(module) is None:
            if norms:
                sites.append(norm_site(path, module))
                continue
            parent = modules[written.rpartition(".")[0]]
            refused = why_refused(module, parent, tied.get(written, []), embeddings)
            sizes = (0, 0) if is_table(module) and not embeddings else linear_sizes(module)
            sites.append(Site(path, *sizes, refused, is_linear(module), module is head))
    return sites


def norm_site(path: str, module: nn.Module) -> Site:
    """A module as a site of a method that takes norms."""
    if not is_norm(module):
        refused = not_a_linear(type(module).__name__, taken="norms")
        return Site(path, refused=refused, is_linear=False)
    size = len(module.weight)  # type: ignore[arg-type]
    return Site(path, size, size, bias=getattr(module, "bias", None) is not None)


def linear_sizes(module: nn.Module) -> tuple[int, int]:
    """(in, out) of a Linear or Embedding that can be adapted, (0, 0) of anything else."""
    try:
        return embedding_shape(module) if is_table(module) else linear_shape(module)
    except TypeError:
        return 0, 0


def is_table(module: nn.Module) -> bool:
    """Whether this is an Embedding."""
    return isinstance(module, nn.Embedding)


def why_refused(
    module: nn.Module, parent: nn.Module | None, tied: list[str], embeddings: bool = False
) -> str:
    """Why a module cannot have an adapter, to follow its name in a sentence; empty if it can."""
    if not is_linear(module) and not (embeddings and is_table(module)):
        taken = "Linears and Embeddings" if embeddings else "Linears"
        return not_a_linear(type(module).__name__, taken)
    try:
        embedding_shape(module) if is_table(module) else linear_shape(module)
    except TypeError as error:
        return f"but {error}"
    if reads_weights(parent):
        return (
            f"but {type(parent).__name__} reads its weight without calling it, so an adapter there "
            "would be passed by; leave it out with exclude_modules"
        )
    if tied:
        return tied_to(tied)
    return ""


def output_head(model: nn.Module) -> nn.Module | None:
    """The module that turns the last hidden state into logits."""
    # transformers' models are asked in their own way; a tied head of theirs may have any name
    if callable(own := getattr(model, "get_output_embeddings", None)) and own() is not None:
        return own()
    return getattr(model, "lm_head", None)
