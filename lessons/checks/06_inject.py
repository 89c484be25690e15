"""Checkers of lesson 06: names part by part; random trees, every parameter of which is asked."""

import re

import torch
from hypothesis.strategies import booleans, integers, lists, sampled_from, tuples
from torch import nn

from minilora.learn import Wrong, cases

NAMES = ["q_proj", "up_proj", "p_proj", "mlp", "3"]
PATTERNS = [
    r".*\.[qv]_proj",
    r"q_proj",
    r".*proj",
    r".*\.3\..*",
    r"mlp",
    r"q_proj|mlp",
    r".*_proj|head",
    r".*\.13",
]


@cases(
    150,
    parts=lists(sampled_from(NAMES), min_size=1, max_size=4),
    entries=lists(lists(sampled_from(NAMES), min_size=1, max_size=2), max_size=3),
    pattern=sampled_from(PATTERNS),
    as_pattern=booleans(),
    cut=integers(0, 9),
)
def check_name_matches(answer, parts, entries, pattern, as_pattern, cut):
    """A list entry's parts are the last of the path; a string is anchored at both ends."""
    path = ".".join(parts)
    if cut < len(path):  # an end of the path that may begin in the middle of a name
        entries = [*entries, path[cut:].strip(".").split(".")]
    targets = pattern if as_pattern else [".".join(entry) for entry in entries]
    if as_pattern:
        right = re.compile(rf"\A(?:{pattern})\Z").match(path) is not None
    else:
        right = any(parts[-len(entry) :] == entry for entry in entries)
    fits = answer(path, targets)
    if not isinstance(fits, bool) or fits != right:
        case = f"path {path!r} ({len(parts)} parts), targets {targets!r}"
        raise Wrong(f"{case}: got {fits!r}, a right answer is {right}")


def last_name(path):
    """ "proj" of "mlp.proj"."""
    return path.rpartition(".")[2]


class Marked(nn.Module):
    """A wrapper with a parameter of its own."""

    def __init__(self, base):
        super().__init__()
        self.base = base
        self.extra = nn.Parameter(torch.zeros(base.out_features))

    def forward(self, x):
        return self.base(x) + self.extra


class Tree(nn.Module):
    """Linears and deeper trees by name."""

    def __init__(self, children, depth):
        super().__init__()
        for name, deeper in children:
            child = Tree(children, depth - 1) if deeper and depth else nn.Linear(3, 3)
            self.add_module(name, child)

    def forward(self, x):
        for child in self.children():
            x = torch.tanh(child(x))
        return x


@cases(
    children=lists(
        tuples(sampled_from(["q", "k", "v", "qv", "out"]), booleans()),
        min_size=2,
        max_size=4,
        unique_by=lambda c: c[0],
    ),
    depth=integers(0, 2),
    chosen=lists(sampled_from(["q", "k", "v", "qv", "out"]), min_size=1, max_size=3),
    seed=integers(0, 99),
)
def check_inject_by_name(answer, children, depth, chosen, seed):
    """Which modules were wrapped, what trains, the outputs, the returned paths: from the tree."""
    torch.manual_seed(seed)
    model, x = Tree(children, depth), torch.randn(5, 3)
    leaves = [path for path, module in model.named_modules() if isinstance(module, nn.Linear)]
    trees = [path for path, module in model.named_modules() if isinstance(module, Tree)]
    only_linears = {last_name(path) for path in leaves} - {last_name(path) for path in trees}
    names = {name for name in chosen if name in only_linears}  # what wrap can hold
    right = [path for path in sorted(leaves) if last_name(path) in names]
    expected = model(x).detach()
    returned = answer(model, set(names), Marked)
    case = f"Linears at {leaves}, names {sorted(names)}"
    wrapped = sorted(path for path, module in model.named_modules() if isinstance(module, Marked))
    if wrapped != right:
        raise Wrong(
            f"{case}: {len(wrapped)} are wrapped, {wrapped}; a right answer wraps {len(right)}, "
            f"{right}"
        )
    if returned is None or list(returned) != right:
        raise Wrong(
            f"{case}: returned {returned!r}, a right answer returns the {len(right)} paths {right}"
        )
    trains = sorted(name for name, p in model.named_parameters() if p.requires_grad)
    extras = sorted(f"{path}.extra" for path in right)
    if trains != extras:
        raise Wrong(
            f"{case}: {len(trains)} parameters train, {trains[:4]}; a right answer trains "
            f"{len(extras)}, {extras[:4]}"
        )
    if not torch.equal(model(x), expected):
        raise Wrong(
            f"{case}: the outputs of shape {tuple(expected.shape)} changed; the wrapped module "
            "must be the one that was there"
        )


def substring(path, targets):
    """Anywhere in the path."""
    if isinstance(targets, str):
        return re.search(targets, path) is not None
    return any(name in path for name in targets)


def no_dot(path, targets):
    """The end, but without the dot."""
    if isinstance(targets, str):
        return re.fullmatch(targets, path) is not None
    return path.endswith(tuple(targets))


def prefix_of_pattern(path, targets):
    """re.match stops when it has matched enough."""
    if isinstance(targets, str):
        return re.match(targets, path) is not None
    return any(path == name or path.endswith("." + name) for name in targets)


def half_anchored(path, targets):
    """In "q_proj|mlp$" the dollar belongs to mlp alone, so q_proj may be a beginning."""
    if isinstance(targets, str):
        return re.match(targets + "$", path) is not None
    return any(path == name or path.endswith("." + name) for name in targets)


def last_part(path, targets):
    """Looks at the last part only."""
    if isinstance(targets, str):
        return re.fullmatch(targets, path) is not None
    return last_name(path) in targets


def needs_a_dot(path, targets):
    """Forgets the module at the top."""
    if isinstance(targets, str):
        return re.fullmatch(targets, path) is not None
    return any(path.endswith("." + name) for name in targets)


def letters(path, targets):
    """Takes a string for a list of names."""
    return any(path == name or path.endswith("." + name) for name in targets)


def paths_of(model, names):
    """What should be wrapped."""
    return sorted(path for path, _ in model.named_modules() if path.rpartition(".")[2] in names)


def freezes_late(model, names, wrap):
    """A and B are frozen too."""
    paths = paths_of(model, names)
    for path in paths:
        model.set_submodule(path, wrap(model.get_submodule(path)))
    model.requires_grad_(False)
    return paths


def never_freezes(model, names, wrap):
    """The base trains along."""
    paths = paths_of(model, names)
    for path in paths:
        model.set_submodule(path, wrap(model.get_submodule(path)))
    return paths


def top_only(model, names, wrap):
    """Does not go down."""
    model.requires_grad_(False)
    paths = sorted(name for name, _ in model.named_children() if name in names)
    for path in paths:
        setattr(model, path, wrap(getattr(model, path)))
    return paths


def fresh_layer(model, names, wrap):
    """Wraps a new Linear: the trained weight is lost."""
    paths = paths_of(model, names)
    model.requires_grad_(False)
    for path in paths:
        old = model.get_submodule(path)
        fresh = nn.Linear(old.in_features, old.out_features).requires_grad_(False)
        model.set_submodule(path, wrap(fresh))
    return paths


def keeps_the_count(model, names, wrap):
    """Returns a number."""
    paths = paths_of(model, names)
    model.requires_grad_(False)
    for path in paths:
        model.set_submodule(path, wrap(model.get_submodule(path)))
    return [len(paths)]


WRONG = {
    "name_matches": {
        "substring": substring,
        "no dot": no_dot,
        "re.match": prefix_of_pattern,
        "half anchored": half_anchored,
        "last part": last_part,
        "needs a dot": needs_a_dot,
        "letters": letters,
    },
    "inject_by_name": {
        "freezes late": freezes_late,
        "never freezes": never_freezes,
        "top only": top_only,
        "a fresh layer": fresh_layer,
        "a count": keeps_the_count,
    },
}
