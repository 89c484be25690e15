"""An adapter's folder, read for the rows of one base: its content's identity and its factors.

Only methods that add ``B A`` to a weight go in: LoRA, rsLoRA, and PiSSA once it is converted. DoRA
changes the weight's columns, IA³ the activations, a prompt the text; they are refused by name.

Whether an adapter fits is decided by its config, its shapes and the base that it names, which a
thousand users' adapters often have in common. Each such *kind* is held against the base once, which
takes some 10 ms; reading and hashing the next one of the kind takes 2 ms. Values are looked at each
time.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from torch import nn

from ..formats.base_fingerprint import fingerprint
from ..formats.combined_files import parts_of
from ..formats.mismatches import beyond_linears, check_fit
from ..formats.peft_files import META_BASE, AdapterFiles, lora_config, read_adapter_files
from ..formats.save_and_load import exactly
from ..hub.adapter import Adapter
from ..lora.hyperparameters import STARTS
from ..lora.injection import explain_match
from ..lora.linears import made_beside
from ..lora.twin import twin
from ..text import listed
from .adapter_cache import Resident
from .layer import Factors


class AdapterReader:
    """Reads adapters of one base, strictly."""

    def __init__(self, base: nn.Module):
        self.base = twin(base)  # plain modules, to hold files against
        self.fingerprint = fingerprint(base)
        self.kinds: set[str] = set()  # those that fit

    def read(self, folder: Path, any_base: bool) -> tuple[str, Resident]:
        """The content's identity and the factors of a folder. Raises ``ValueError``."""
        files = read_adapter_files(folder)
        check_additive(files)
        content = content_of(files)  # refuses what is trained besides A and B
        kind = kind_of(files, any_base)
        if kind not in self.kinds:
            self.check_kind(files, any_base)
            self.kinds.add(kind)
        return content, self.resident(files)

    def read_again(self, folder: Path, content: str) -> Resident:
        """The factors of a content that was read before. Raises ``ValueError`` if it changed."""
        files = read_adapter_files(folder)
        if (now := content_of(files)) != content:  # an equal one was checked by ``read``
            raise ValueError(
                f"the files in {folder} are no longer those that were loaded (content "
                f"{content[:12]}, now {now[:12]}): load it again, replace=True"
            )
        return self.resident(files)

    def check_kind(self, files: AdapterFiles, any_base: bool) -> None:
        """Raise ``ValueError`` for an adapter that does not fit this base."""
        fitting = check_fit(self.base, files, base=lambda: self.fingerprint)
        if fitting.other_base and META_BASE in files.metadata and not any_base:
            raise ValueError(
                f"the adapter in {files.folder} {fitting.other_base}: load it with any_base=True "
                "only if that is meant, as for a base in four bits"
            )
        explain_match(self.base, exactly(fitting.names, fitting.config))  # tied weights, and such

    def resident(self, files: AdapterFiles) -> Resident:
        """The factors as rows take them."""
        factors = {}
        for path, part in parts_of(files).items():
            dtype = made_beside(self.base.get_submodule(path))["dtype"]
            B = (part.scaling * part.B.to(dtype)).T.contiguous()
            factors[path] = Factors(part.A.to(dtype).contiguous(), B)
        return Resident(factors, sum(pair.A.nbytes + pair.B.nbytes for pair in factors.values()))


def kind_of(files: AdapterFiles, any_base: bool) -> str:
    """All that decides whether an adapter fits a base, but for its values."""
    shapes = sorted((key, str(t.dtype), tuple(t.shape)) for key, t in files.tensors.items())
    said = json.dumps([files.config, shapes, files.metadata.get(META_BASE), any_base])
    return hashlib.sha256(said.encode()).hexdigest()


def content_of(files: AdapterFiles) -> str:
    """The hub's identity of an adapter: the sha256 of its config and its tensors."""
    config, wrong = lora_config(files.config)
    wrong += [] if config is None else beyond_linears(config, files.tensors)
    if wrong or config is None:
        raise ValueError(f"{files.folder}: {listed(wrong)}")
    return Adapter(files.config, config, files.tensors, None).content_id


def check_additive(files: AdapterFiles) -> None:
    """Raise ``ValueError`` for a method that does more than add ``B A`` to a weight."""
    kind = str(files.config.get("peft_type", "LORA"))
    if kind == "LORA" and files.config.get("use_dora"):
        kind = "DoRA"
    if kind == "LORA" and files.config.get("init_lora_weights") in STARTS:
        kind = "A and B of a changed base (load_adapter, then save_adapter makes it plain LoRA)"
    if kind != "LORA":
        raise ValueError(
            f"{files.folder} holds {kind}: a row adds B A to its weights, as "
            "LoRA and rsLoRA do; merge other methods into a base of their own"
        )
