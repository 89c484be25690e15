"""What a config trains beside its adapters: whole modules, biases, rows of the vocabulary.

    modules_to_save           whole modules, such as a head that starts at random
    task_type                 "SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS": their heads are such modules
    bias                      "all" biases of the model, or of the adapted modules ("lora_only")
    trainable_token_indices   some tokens' rows of an embedding

``plan_extras`` finds and checks all of it, and changes nothing. The names are PEFT's; two rules are
stricter. An entry of ``modules_to_save`` is a module's name or the end of its path after a dot;
PEFT takes any path that ends in the letters, so ``"norm"`` trains ``input_layernorm`` as well
(huggingface/peft #1917). And ``bias`` on a model without biases (every Llama) is an error; PEFT
trains nothing and says nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import nn

from ..text import listed
from .adapter_layer import adapter_layers
from .linears import is_linear
from .paths import named_modules, unwrapped
from .patterns import fits
from .token_rows import check_tokens, row_shape
from .trained_copies import owners_of

if TYPE_CHECKING:
    from .config import LoraConfig

# the heads of transformers' models, which PEFT trains for these tasks
HEADS = {
    "SEQ_CLS": ("classifier", "score"),
    "TOKEN_CLS": ("classifier", "score"),
    "QUESTION_ANS": ("qa_outputs",),
}
Rule = Callable[[str, str], bool]


@dataclass(frozen=True)
class Extras:
    """What trains beside the adapters.

    ``parameters``: for each Parameter's name, its count and the option that chose it; ``rows``:
    for each table's path, its tokens; ``heads``: for each tied head's path, that of its table.
    """

    parameters: dict[str, tuple[int, str]] = field(default_factory=dict)
    rows: dict[str, tuple[int, ...]] = field(default_factory=dict)
    heads: dict[str, str] = field(default_factory=dict)


def ends_in(path: str, entry: str) -> bool:
    """Whether a path is a name, or ends in it after a dot."""
    return fits(path, [entry]) is not None


def modules_to_train(model: nn.Module, config: LoraConfig, rule: Rule = ends_in) -> list[str]:
    """Paths of the modules that train whole. Raises ``ValueError`` for an entry without one."""
    paths = [path for path, _ in named_modules(model) if path]
    heads = HEADS.get(config.task_type or "", ())
    matches = {e: [p for p in paths if rule(p, e)] for e in (*config.modules_to_save, *heads)}
    if idle := [
        entry for entry in config.modules_to_save if not matches[entry] and entry not in heads
    ]:
        raise ValueError(f"modules_to_save: no module is named {', '.join(map(repr, idle))}")
    if heads and not any(matches[head] for head in heads):
        raise ValueError(
            f"task_type={config.task_type!r} trains the head, a module named {' or '.join(heads)}, "
            "and this model has none: name it in modules_to_save, and leave task_type out"
        )
    return list(dict.fromkeys(path for found in matches.values() for path in found))


def plan_extras(model: nn.Module, config: LoraConfig, adapted: Collection[str]) -> Extras:
    """Everything that a config trains beside the adapters at ``adapted``.

    Raises ``ValueError`` for a name without a module, a tied or quantized module, a module that is
    named twice over, biases that the model does not have.
    """
    owners = owners_of(model)
    chosen: dict[str, str] = {}
    modules = dict(named_modules(model))
    for path in modules_to_train(model, config):
        check_trains_whole(path, modules[path], owners, adapted)
        chosen |= {name: "modules_to_save" for name in owners if name.startswith(f"{path}.")}
    if config.bias != "none":
        every = [name for name in owners if name.rpartition(".")[2] == "bias"]
        biases = [n for n in every if config.bias == "all" or n.removesuffix(".bias") in adapted]
        if not biases:
            who = "no adapted module has" if every else "this model has no"
            raise ValueError(
                f"bias={config.bias!r}: {who} biases, so nothing would train; leave it at 'none'"
            )
        chosen = {name: "bias" for name in biases} | chosen
    check_ties(owners, chosen)
    counts = {n: (getattr(*owners[n]).numel(), option) for n, option in chosen.items()}
    return Extras(counts, *plan_rows(model, config, {*adapted, *modules_to_train(model, config)}))


def check_trains_whole(
    path: str, module: nn.Module, owners: Mapping[str, object], adapted: Collection[str]
) -> None:
    """Raise ``ValueError`` for a module that cannot train as it is."""
    if inside := [name for name in adapted if name == path or name.startswith(f"{path}.")]:
        raise ValueError(f"modules_to_save: {path} trains whole, but {inside[0]} is a target too")
    if buffers := [
        name for name in module.state_dict() if name not in dict(module.named_parameters())
    ]:
        raise ValueError(
            f"modules_to_save: {path} holds more than Parameters ({buffers[0]}): it is in four "
            "bits, or keeps statistics that training changes; leave it out"
        )
    if not any(name.startswith(f"{path}.") for name in owners):
        raise ValueError(f"modules_to_save: {path} has no parameters to train")


def check_ties(owners: Mapping[str, tuple[nn.Module, str]], chosen: Collection[str]) -> None:
    """Raise ``ValueError`` when a chosen Parameter is also used where it was not chosen."""
    names: dict[int, list[str]] = {}
    for name, owner in owners.items():
        names.setdefault(id(getattr(*owner)), []).append(name)
    for name in chosen:
        if others := [o for o in names[id(getattr(*owners[name]))] if o not in chosen]:
            raise ValueError(
                f"{name} is tied to {', '.join(others)}, which would train along: name both, untie "
                "them first, or train single rows with trainable_token_indices"
            )


def plan_rows(
    model: nn.Module, config: LoraConfig, taken: Collection[str]
) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
    """The tables and their tokens, and the tied heads that follow them."""
    entries = config.trainable_token_indices
    if not entries:
        return {}, {}
    modules, rows = bases(model), dict[str, tuple[int, ...]]()
    heads: dict[str, str] = {}
    if not isinstance(entries, Mapping):
        entries = {input_embedding(model): entries}
    for entry, tokens in entries.items():
        paths = [path for path in modules if path and ends_in(path, entry)]
        if len(paths) != 1:
            named = listed(paths, 3, ", ") if paths else "none"
            raise ValueError(
                f"trainable_token_indices: {entry!r} must name one module, got {named}"
            )
        path = paths[0]
        if path in taken:
            raise ValueError(
                f"trainable_token_indices: {path} trains by target_modules or modules_to_save too: "
                "choose one"
            )
        try:
            check_tokens(tokens, row_shape(modules[path])[is_linear(modules[path])])
        except TypeError as error:
            raise ValueError(f"trainable_token_indices: {path}: {error}") from error
        rows[path] = tuple(tokens)
        heads |= dict.fromkeys(tied_heads(model, path), path)
    return rows, heads


def bases(model: nn.Module) -> dict[str, nn.Module]:
    """Every module of the base by its path, whether an adapter stands beside it or not."""
    adapted = dict(adapter_layers(model))
    inside = tuple(f"{path}.base" for path in adapted)
    paths = {path: module for path, module in named_modules(model) if path not in inside}
    return paths | {path: layer.base for path, layer in adapted.items()}


def tied_heads(model: nn.Module, path: str) -> list[str]:
    """Paths of the heads tied to an embedding. Raises ``ValueError`` for other ties."""
    modules, owners = bases(model), owners_of(model)
    weight = getattr(*owners[f"{path}.weight"])
    names = [name for name, owner in owners.items() if getattr(*owner) is weight]
    others = [name.removesuffix(".weight") for name in names if name != f"{path}.weight"]
    if others and not isinstance(modules[path], nn.Embedding):
        raise ValueError(
            f"trainable_token_indices: {path} is tied to {others[0]}: name that one, and this "
            "follows"
        )
    if strange := [other for other in others if not is_linear(modules[other])]:
        raise ValueError(f"trainable_token_indices: {path} is tied to {strange[0]}, not to a head")
    return others


def input_embedding(model: nn.Module) -> str:
    """The path of the module that turns token ids into vectors."""
    own = getattr(unwrapped(model), "get_input_embeddings", None)  # transformers' models say it
    paths = {id(module): path for path, module in named_modules(model)}
    if callable(own):
        return paths[id(own())]
    tables = [path for path, module in named_modules(model) if isinstance(module, nn.Embedding)]
    named = [path for path in tables if ends_in(path, "embed_tokens")] or tables
    if len(named) != 1:
        raise ValueError(
            f"trainable_token_indices: this model has {len(named)} embeddings; name one, as "
            '{"embed_tokens": [3, 5]}'
        )
    return named[0]
