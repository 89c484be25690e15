"""Module paths as the model's author wrote them, without the wrappers that training puts around it.

    torch.compile          blocks.0._orig_mod.q_proj             ->  blocks.0.q_proj
    DataParallel, DDP …    module.blocks.0.q_proj                ->  blocks.0.q_proj
    FSDP, checkpointing    blocks.0._fsdp_wrapped_module.q_proj  ->  blocks.0.q_proj

An adapter whose file carries a wrapper's name fits no other model: PEFT loads nothing of it, with
one warning, and the bare base is served. Matching, reports, files and fingerprints all use these
paths.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

WRAPPED = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")


def wrapped_name(module: nn.Module) -> str | None:
    """The name under which a wrapper holds its model; None for any other module."""
    if isinstance(module, DataParallel | DistributedDataParallel | AveragedModel):
        return "module"
    # the classes of the others are private to torch; these names are used by nothing else
    return next((name for name in WRAPPED if name in module._modules), None)


def unwrapped(model: nn.Module) -> nn.Module:
    """The model itself, without the wrappers around the whole of it."""
    while (name := wrapped_name(model)) is not None:
        model = model._modules[name]  # type: ignore[assignment]
    return model


def named_modules(
    model: nn.Module, remove_duplicate: bool = True
) -> Iterator[tuple[str, nn.Module]]:
    """``model.named_modules()`` with plain paths; the wrappers themselves are passed over.

    >>> [path for path, _ in named_modules(DataParallel(nn.Sequential(nn.Linear(2, 2))))]
    ['', '0']
    """
    known: set[nn.Module] = set()

    def walk(path: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        if remove_duplicate and module in known:
            return
        known.add(module)
        wrapped = wrapped_name(module)
        if wrapped is None:
            yield path, module
        for name, child in module._modules.items():
            if child is not None:
                yield from walk(path if name == wrapped else f"{path}.{name}".lstrip("."), child)

    return walk("", model)


def plain_path(model: nn.Module, path: str) -> str:
    """A path of this model, to a module or a tensor, without the names of wrappers."""
    parts, module = [], model
    for part in path.split("."):
        if part != wrapped_name(module):
            parts.append(part)
        child = module._modules.get(part)
        module = module if child is None else child  # the last part may name a tensor
    return ".".join(parts)


def replace_modules(model: nn.Module, replacements: Mapping[str, nn.Module]) -> None:
    """Put other modules at these plain paths."""
    named = model.named_modules(remove_duplicate=False)
    paths = [path for path, module in named if wrapped_name(module) is None]
    written = {plain_path(model, path): path for path in paths}
    for path, module in replacements.items():
        model.set_submodule(written[path], module)
