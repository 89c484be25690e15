"""``spec.toml``: what a job is to do, read strictly; a bad one is refused whole, line by line.

    name = "naval"                      # the adapter's name in the hub

    [base]
    folder = "SmolLM2"                  # default: the shipped base
    four_bits = true                    # QLoRA

    [data]
    train = "naval.jsonl"               # beside the spec; whatever ``read_examples`` reads
    valid = "held-out.jsonl"            # default: a tenth of train

    [method]                            # kind: lora by default; the rest as in its config
    kind = "dora"
    r = 16
    target_modules = "all-linear"

    [train]                             # fields of TrainConfig; steps and lr go by the base
    steps = 200

    [replay]
    share = 0.25
    source = "self"                     # what the base writes itself; or a file of old examples

    [evaluation]
    examples = 100                      # held-out examples answered in full
    regression = "regression.jsonl"     # answers that must stay right

Every problem is found before any is reported, each with its line. What was read is kept as JSON
with whole paths, so a queue needs the file no longer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..files import parse_toml, read_text
from .sections import (
    FILES,
    Base,
    Data,
    Evaluation,
    Replayed,
    config_of,
    line_of,
    missing_files,
    problems_of,
)


@dataclass(frozen=True)
class Spec:
    """What a job is to do. ``method``, ``train``: arguments of its config and of ``TrainConfig``.

    >>> spec = Spec.parse({"name": "naval", "data": {"train": "my.jsonl"}, "method": {"r": 4}})
    >>> spec.config.r, Spec.parse(spec.as_dict()) == spec
    (4, True)
    """

    name: str
    data: Data
    base: Base = field(default_factory=Base)
    method: Mapping[str, Any] = field(default_factory=dict)
    train: Mapping[str, Any] = field(default_factory=dict)
    replay: Replayed | None = None
    evaluation: Evaluation = field(default_factory=Evaluation)

    @classmethod
    def parse(
        cls, values: Mapping[str, Any], where: str = "the spec", text: str = "", files: bool = False
    ) -> Spec:
        """A spec from its tables; ``text`` is the file's, for the lines of what is wrong; with
        ``files`` those that it names must be there.

        Raises one ``ValueError`` that names every problem.
        """
        problems = [*problems_of(values)]
        problems += missing_files(values) if files and not problems else []
        if problems:
            told = [f"{line_of(text, *place)}{message}" for place, message in problems]
            raise ValueError(f"{where}: {'; '.join(told)}; nothing was started")
        return cls(
            name=values["name"],
            data=Data(**values["data"]),
            base=Base(**values.get("base", {})),
            method=dict(values.get("method", {})),
            train=dict(values.get("train", {})),
            replay=Replayed(**values["replay"]) if values.get("replay") else None,
            evaluation=Evaluation(**values.get("evaluation", {})),
        )

    def as_dict(self) -> dict[str, Any]:
        """The same as plain values, which ``parse`` reads; None is left out."""
        tables = {name: value for name, value in asdict(self).items() if value is not None}
        return {
            name: {k: v for k, v in value.items() if v is not None}
            if isinstance(value, dict)
            else value
            for name, value in tables.items()
        }

    @property
    def config(self) -> Any:
        """The method's config, as ``inject`` takes it."""
        return config_of(self.method)


def read_spec(file: str | Path) -> Spec:
    """Read ``spec.toml``; paths in it are meant from its folder, and become whole ones.

    Raises ``ValueError`` that names the file and every line that is wrong.

    >>> read_spec("nowhere.toml")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ValueError: ...
    """
    file = Path(file)
    text = read_text(file, "a spec.toml")
    try:
        values = parse_toml(text)
    except ValueError as error:  # which says its line
        raise ValueError(f"{file} is not TOML: {error}; nothing was started") from error
    folder = file.absolute().parent
    for section, names in FILES.items():
        table: Any = values.get(section)
        for name in names if isinstance(table, dict) else ():
            path = table.get(name)
            if isinstance(path, str) and (section, path) != ("replay", "self"):
                table[name] = str(folder / path)
    return Spec.parse(values, str(file), text, files=True)
