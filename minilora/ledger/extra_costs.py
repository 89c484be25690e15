"""What trains beside the adapters, planned: whole modules, biases, rows of the vocabulary.

A module that trains whole counts as in a full fine-tune: its weights, their gradients and their
moments, and its input for the backward pass. Its original is set aside (lora/trained_copies.py), so
the base's bytes grow by it. The names are found as ``inject`` finds them (lora/extras.py): a module
by its name or the end of its path after a dot.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

from ..lora.config import LoraConfig
from ..lora.patterns import fits
from .dimensions import Architecture
from .planned_sites import HEADS

ROWS = ".token_adapter.trainable_tokens_delta"  # of a table with trained rows, in a file
TABLES = ("embed_tokens", "wte", "wpe", "word_embeddings", "shared")  # of tokens, or positions


@dataclass(frozen=True)
class Extras:
    """What trains besides: Parameters by name with their counts, and what backward needs of them.

    ``linears`` train whole, ``biases`` name Linears whose bias trains, ``norms`` the norms by path;
    ``rows`` are numbers in trained rows of tables, which are new.
    """

    parameters: Mapping[str, int] = field(default_factory=dict)
    linears: frozenset[str] = frozenset()
    biases: frozenset[str] = frozenset()
    norms: frozenset[str] = frozenset()
    trains_embedding: bool = False
    rows: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def numbers(self) -> int:
        """Numbers of the base that train."""
        return sum(self.parameters.values())


NONE = Extras()


def extras(arch: Architecture, config: LoraConfig, adapted: Collection[str] = ()) -> Extras:
    """What a config trains of a planned model beside its adapters, which stand at ``adapted``.

    Raises ``ValueError`` for a name without a module, a tied weight, biases that are not there.

    >>> from .shapes import architecture
    >>> extras(architecture("llama-2-7b"), LoraConfig(modules_to_save=["lm_head"])).numbers
    131072000
    """
    sizes, chosen = dict(parameters_of(arch)), set[str]()
    paths = {name[:end] for name in sizes for end in dots(name)}
    heads = HEADS.get(config.task_type or "", ())
    for entry in (*config.modules_to_save, *heads):
        inside = [path for path in paths if fits(path, [entry]) is not None]
        if not inside and entry not in heads:
            raise ValueError(f"modules_to_save: no module is named {entry!r}")
        chosen |= {name for name in sizes for path in inside if name.startswith(f"{path}.")}
    if heads and not chosen:
        raise ValueError(
            f"task_type={config.task_type!r} trains the head, a module named {' or '.join(heads)}, "
            f"and the config of {arch.name} has none: give its shape with the others, as a list"
        )
    tied = [linear for linear in arch.linears if linear.tied]
    if tied and (both := [n for n in chosen if n.removesuffix(".weight").endswith(TABLES)]):
        raise ValueError(f"{both[0]} is tied to {tied[0].name}, which would train along")
    whole = frozenset(x.name for x in arch.linears if f"{x.name}.weight" in chosen)
    biases = {n for n in sizes if n.endswith(".bias")} if config.bias != "none" else set()
    if config.bias == "lora_only":
        biases = {n for n in biases if n.removesuffix(".bias") in adapted}
    if config.bias != "none" and not biases:
        raise ValueError(f"bias={config.bias!r}: this model has no such biases: leave it at 'none'")
    chosen |= biases
    linears = {x.name for x in arch.linears}
    others = {name.rpartition(".")[0] for name in chosen} - linears
    tables = {path for path in others if path.endswith(TABLES)}
    return Extras(
        {name: sizes[name] for name in chosen},
        whole,
        frozenset(name.removesuffix(".bias") for name in biases) & linears - whole,
        frozenset(others - tables),
        bool(tables) or bool(config.trainable_token_indices),
        rows_of(arch, config),
    )


def rows_of(arch: Architecture, config: LoraConfig) -> dict[str, tuple[int, int]]:
    """(tokens, width) of each table with trained rows by its path; unnamed, the first table's."""
    entries = config.trainable_token_indices
    if not entries:
        return {}
    paths = {name.removesuffix(".weight") for name, _ in parameters_of(arch)}
    if not isinstance(entries, Mapping):
        first = next((path for path in sorted(paths) if path.endswith(TABLES)), "")
        entries = {first: entries}
    rows = {}
    for entry, tokens in entries.items():
        named = [path for path in paths if path and fits(path, [entry]) is not None]
        if len(named) != 1:
            raise ValueError(f"trainable_token_indices: {entry!r} must name one module")
        rows[named[0]] = (len(tokens), arch.hidden)
    return rows


def parameters_of(arch: Architecture) -> Iterator[tuple[str, int]]:
    """Every Parameter of a planned model with its count, tied ones once."""
    for linear in arch.linears:
        if not linear.tied:
            yield f"{linear.name}.weight", linear.weights
        if linear.bias:
            yield f"{linear.name}.bias", linear.out_features
    for name, numbers in arch.others:
        is_named = name.endswith((".weight", ".bias"))
        yield name if is_named else f"{name}.weight", numbers


def dots(name: str) -> Iterator[int]:
    """Where the paths of the modules around a Parameter end."""
    return (i for i, letter in enumerate(name) if letter == ".")
