"""Solutions of lesson 06."""

import re


def name_matches(path, targets):
    """The dot keeps "p_proj" from matching "up_proj"."""
    if isinstance(targets, str):
        return re.fullmatch(targets, path) is not None
    return any(path == name or path.endswith("." + name) for name in targets)


def inject_by_name(model, names, wrap):
    """List the paths before the tree changes; freeze before what must stay trainable comes."""
    paths = sorted(path for path, _ in model.named_modules() if path.rpartition(".")[2] in names)
    model.requires_grad_(False)
    for path in paths:
        model.set_submodule(path, wrap(model.get_submodule(path)))
    return paths
