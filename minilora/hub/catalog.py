"""What can be asked of a hub without changing it: one version, all of them, their lineage, what
differs, what is damaged.
"""

from __future__ import annotations

import getpass
from collections.abc import Callable, Sequence
from pathlib import Path

from . import registry, transport, upkeep
from .adapter import Adapter
from .blobs import Blobs
from .compare import Comparison, compare
from .database import reading
from .manifest import Manifest
from .registry import Event, Version
from .router import Router
from .routing import routed, router_of
from .semver import check_name
from .stored_files import adapter_of, given_out
from .upkeep import Damage


class Catalog:
    """A hub's folder, to read; ``store.Hub`` adds the changes, and says what the arguments are."""

    def __init__(self, folder: str | Path, tenant: str = "default", creator: str | None = None):
        check_name(tenant, "a tenant")
        self.folder, self.tenant = Path(folder), tenant
        if self.folder.is_file():
            raise ValueError(f"{folder} is a file: expected a hub's folder")
        self.creator = getpass.getuser() if creator is None else creator
        self.blobs = Blobs(self.folder / "blobs")
        self.taught: tuple[int, dict[str, str]] | None = None  # for the router, as of an event

    def __repr__(self) -> str:
        return f"Hub({str(self.folder)!r}, tenant={self.tenant!r})"

    def show(self, spec: str) -> Version:
        """What is known of a version. Raises ``ValueError`` that says what there is instead."""
        with reading(self.folder) as db:
            return registry.find(db, self.tenant, spec)

    def list(self, name: str | None = None) -> tuple[Version, ...]:
        """All versions, or those of one name, by name and in the order of the pushes."""
        with reading(self.folder) as db:
            return tuple(registry.versions(db, self.tenant, name))

    def search(
        self,
        *,
        base: str = "",
        task: str = "",
        tag: str = "",
        metric: str = "",
        least: float = -1e308,
    ) -> tuple[Version, ...]:
        """Versions made for a base (either half of its fingerprint), of a task, with a tag, with a
        score of at least so much.
        """
        return tuple(
            each
            for each in self.list()
            if (not base or base in (each.manifest.architecture, each.manifest.tensors))
            and (not task or task == each.manifest.task)
            and (not tag or tag in each.manifest.tags)
            and (not metric or each.manifest.metrics.get(metric, float("-inf")) >= least)
        )

    def compare(self, a: str, b: str) -> Comparison:
        """Settings, data, scores and the two ΔW of two versions, side by side."""
        one, other = self.show(a), self.show(b)
        return compare((one.manifest, self.read(one.spec)), (other.manifest, self.read(other.spec)))

    def lineage(self, spec: str) -> tuple[Version, ...]:
        """A version, its parent, that one's parent, as far as they are still here."""
        with reading(self.folder) as db:
            chain = [registry.find(db, self.tenant, spec)]
            while (parent := chain[-1].manifest.parent) and parent not in {
                each.spec for each in chain
            }:
                try:
                    chain.append(registry.find(db, self.tenant, parent))
                except ValueError:
                    break  # pruned, or it never was here
        return tuple(chain)

    def router(self) -> Router:
        """The router over every name with a version that came with examples; it says ``route`` and
        ``explain``.

        Fitted when that set has changed, else read from ``router/``. The versions are read again
        when something was done to the hub since, by whomever. Raises ``ValueError`` without any
        examples.
        """
        with reading(self.folder) as db:
            last = registry.last_event(db)
            if self.taught is None or self.taught[0] != last:
                self.taught = last, routed(registry.versions(db, self.tenant))
            examples = self.taught[1]
        return router_of(examples, self.blobs.read, self.folder / "router" / self.tenant)

    def events(self, name: str | None = None) -> tuple[Event, ...]:
        """Who pushed, promoted and pruned what, the oldest first."""
        with reading(self.folder) as db:
            return tuple(registry.events(db, self.tenant, name))

    def read(self, spec: str) -> Adapter:
        """A version's tensors and config, checked."""
        manifest = self.show(spec).manifest
        return adapter_of(given_out(manifest, self._reader(manifest)))

    def _reader(self, manifest: Manifest) -> Callable[[str], bytes]:
        """Gives a version's stored files by their path, checked."""
        return lambda path: self.blobs.read(manifest.files[path][0])

    def verify(self) -> Sequence[Damage]:
        """Everything in the folder that is not as it was stored; an empty list means that all is
        whole.
        """
        with reading(self.folder) as db:
            return [*upkeep.damages(db, self.blobs)]

    def export(self, spec: str, file: str | Path) -> Path:
        """Write a version to one file that another hub can import."""
        version = self.show(spec)
        files = {path: self.blobs.read(sha) for path, (sha, _) in version.manifest.files.items()}
        return transport.write_parcel(Path(file), transport.Parcel(version.manifest.text, files))
