"""The hub: adapters by name and version in one folder, each with where it comes from; nothing that
was given ever changes.

    hub.sqlite                 versions, aliases, quotas, events        (database.py, registry.py)
    blobs/2c/2cf24dba…         files by their hash                      (blobs.py)
    adapters/naval-1.2.0-…/    folders that ``pull`` gives out, made again when needed

Versions are immutable and aliases move: ``naval@1.2.0`` is the same to the bit forever,
``naval@champion`` is whatever was promoted last. What a version *is* stands in its manifest
(manifest.py), whose hash is the version's digest.

Any number of threads and processes may use one folder. A ``Hub`` holds no connection: each call
opens the database, makes one transaction and closes it, so it survives forks and kills, and may be
copied to another thread.

It belongs to one tenant, and every statement asks for that tenant's rows: another's adapters are
not refused but unknown. Bytes that two tenants both have are stored once. ``verify`` and ``gc`` are
about the whole folder.

After MLflow's registry, which gave up stages for aliases (mlflow #10336), lost an alias with its
version (#8459) and raced for the next number (#22635); tests/hub holds all three.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..formats.base_fingerprint import Fingerprint
from . import registry, transport, upkeep
from .adapter import CONFIG, read_adapter
from .blobs import DamageError, digest, write_durably
from .catalog import Catalog
from .compression import compressed, decompressed
from .database import FILE, writing
from .manifest import check_base, described, misgivings, said, suggestion, timestamp
from .registry import Version
from .semver import ALIAS, Semver, check_name, newest
from .stored_files import ROUTES, SMALL, check_arrived, given_out, listed
from .upkeep import Swept


class Hub(Catalog):
    """A folder of named, versioned adapters.

    - ``folder``: made at the first push.
    - ``tenant``: whose adapters; ``creator``: who is named in what is pushed and done (default: the
      user).

    >>> import minilora, tempfile
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Linear(4, 2))
    >>> _ = minilora.inject(model, minilora.LoraConfig(r=1, target_modules=["0"]))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     hub = Hub(Path(folder, "hub"))
    ...     first = hub.push("naval", minilora.save_adapter(model, Path(folder, "mine")))
    ...     _ = hub.alias("naval@1.0.0", "champion")
    ...     hub.pull("naval@champion") == hub.pull("naval@1"), hub.verify()
    (True, [])
    """

    # In

    def push(
        self,
        name: str,
        folder: str | Path,
        *,
        version: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        base: Fingerprint | None = None,
        examples: Iterable[str] = (),
    ) -> Version:
        """Store an adapter's folder as a new version, for good; on the disk, power cut or not, when
        this returns.

        - ``version``: by default the suggested one. A misleading one is stored with a warning, one
          that exists is refused.
        - ``metadata``: ``task``, ``description``, ``tags``, ``metrics``, ``data_sha``
          (``data_hash(examples)``), ``seed``, ``recipe``, ``packages``, ``parent`` (default: the
          newest version).
        - ``base``: the base's fingerprint, for files that do not say it.
        - ``examples``: questions that it should be asked, for the router; only hashed n-grams of
          them are kept.

        Raises ``ValueError`` for a folder without a sound adapter, a version that exists or was
        pruned, a quota that is full; ``OSError`` when the folder cannot be written.
        """
        check_name(name)
        adapter, facts = read_adapter(Path(folder), base), said(metadata)
        chosen = None if version is None else str(Semver.parse(version))
        files = adapter.files()
        if texts := list(examples):
            from .ngrams import save_counts

            files[ROUTES] = save_counts(texts)
        draft = described(name, adapter, listed(files), facts, self.creator)
        with writing(self.folder) as db:
            older = [each.manifest for each in registry.versions(db, self.tenant, name)]
            gone = registry.pruned(db, self.tenant, name)
            suggested, reason = suggestion(draft, older, gone)
            last = newest(each.version for each in older)
            parent = draft.parent or (f"{name}@{last}" if last else "")
            new = replace(draft, version=chosen or suggested, parent=parent)
            told = misgivings(new, older, hint := f"suggested: {suggested}, {reason}")
            if (here := new.version in {each.version for each in older}) or new.version in gone:
                what = f"{name}@{new.version} {'exists' if here else 'was pruned'}"
                raise ValueError(f"{what}, and a version never changes; {hint}")
            registry.insert(db, self.blobs, self.tenant, self.creator, new.text, files)
        for each in told:
            warnings.warn(each, stacklevel=2)
        return self.show(f"{name}@{new.version}")

    def compress(self, spec: str, kind: str = "nf4") -> Version:
        """A smaller copy as a version of its own, ``1.2.0+nf4``; ``prune`` may then take the
        original.

        It is another adapter: it answers a little differently, and the original's scores are not
        its own. Raises ``ValueError`` for an unknown kind, or a copy that exists.
        """
        original = self.show(spec)
        adapter = self.read(original.spec)
        small = compressed(adapter.tensors, kind)
        rounded = replace(adapter, tensors=decompressed(small))
        files = {CONFIG: self._reader(original.manifest)(CONFIG), SMALL[kind]: small}
        if ROUTES in original.manifest.files:
            files[ROUTES] = self._reader(original.manifest)(ROUTES)
        number = Semver.parse(original.version)
        copy = replace(
            original.manifest,
            version=str(replace(number, build=".".join(filter(None, (number.build, kind))))),
            content=rounded.content_id,
            files=listed(files),
            parent=original.spec,
            metrics={},
            created=timestamp(),
        )
        with writing(self.folder) as db:
            registry.insert(db, self.blobs, self.tenant, self.creator, copy.text, files)
        return self.show(f"{copy.name}@{copy.version}")

    # Out

    def pull(self, spec: str, base: Fingerprint | None = None) -> Path:
        """The folder of a version, checked to the bit at this moment; it opens in ``load_adapter``
        and in PEFT.

        - ``spec``: ``"naval"`` (the newest), ``"naval@1.2"`` (the newest 1.2.x), ``"naval@1.2.0"``,
          ``"naval@champion"``, or an address ``https://…/blobs/2c/2cf2…``, whose version is then
          stored here too.
        - ``base``: the fingerprint of the base it is meant for; another architecture is refused,
          other values are named.

        Raises ``ValueError`` for a name that is not here or a base that does not fit,
        ``DamageError`` (a ``ValueError``) when a bit is wrong.
        """
        version = self.fetch(spec) if transport.is_address(spec) else self.show(spec)
        if base is not None:
            check_base(version.manifest, base)
        folder = self._checkout(version)
        self._mark_used(version)
        return folder

    def _checkout(self, version: Version) -> Path:
        """The folder with PEFT's two files, made or repaired from the blobs, which are checked
        first.
        """
        if problem := upkeep.problem_of(self.blobs, version.manifest, version.digest):
            raise DamageError(
                f"{version.spec} is damaged: {problem}. Pull another version, or import it again"
            )
        stem = f"{version.name}-{version.version}-{version.digest[:12]}"
        folder = self.folder / "adapters" / stem
        for path, content in given_out(version.manifest, self._reader(version.manifest)).items():
            file = folder / path
            if not file.is_file() or digest(file.read_bytes()) != digest(content):
                write_durably(file, content)
        return folder

    def _mark_used(self, version: Version) -> None:
        """Note that a version is in use, once an hour at most: ``prune`` counts in days."""
        if time.time() - version.used < 3600:
            return
        try:
            with writing(self.folder) as db:
                db.execute(
                    "update version set used = ? where tenant = ? and name = ? and version = ?",
                    (time.time(), *version.key),
                )
        except OSError:
            pass  # a hub that can only be read still gives out

    # Names that move

    def alias(self, spec: str, alias: str, expected: Any = ...) -> str | None:
        """Let ``name@alias`` mean a version; returns the version that it meant before, which is the
        way back.

        ``expected``: move it only if it has this version now, or None if it is new, so that two who
        promote at once do not undo each other. Raises ``ValueError`` when it has another by now.
        """
        if not ALIAS.fullmatch(alias):
            raise ValueError(
                f"expected an alias that begins with a letter, such as champion, got {alias!r}"
            )
        with writing(self.folder) as db:
            target = registry.find(db, self.tenant, spec)
            return registry.move_alias(db, target, alias, expected, self.creator)

    def drop_alias(self, name: str, alias: str) -> None:
        """Take an alias away. Raises ``ValueError`` where there is none."""
        with writing(self.folder) as db:
            target = registry.find(db, self.tenant, f"{name}@{alias}")
            db.execute(
                "delete from alias where tenant = ? and name = ? and alias = ?",
                (*target.key[:2], alias),
            )
            registry.note(db, self.tenant, self.creator, name, f"{alias} {target.version} -> -")

    # Upkeep

    def gc(self) -> Swept:
        """Remove what no version has, under the lock that a push takes."""
        with writing(self.folder) as db:
            return upkeep.sweep(db, self.blobs, self.folder / "adapters")

    def prune(self, unused_for: float) -> tuple[str, ...]:
        """Delete versions that nobody pushed or pulled for so many seconds and no alias names; then
        ``gc``.
        """
        with writing(self.folder) as db:
            pruned = upkeep.prune_unused(db, self.tenant, unused_for, self.creator)
        self.gc()  # once the rows are gone for good: rolled back, they would have no bytes
        return tuple(pruned)

    def set_quota(self, adapters: int | None = None, bytes: int | None = None) -> None:
        """How many versions, and bytes of files, this tenant may have; None for any number."""
        with writing(self.folder) as db:
            db.execute(
                "insert or replace into quota values (?, ?, ?)", (self.tenant, adapters, bytes)
            )

    # Between hubs

    def import_file(self, file: str | Path) -> Version:
        """Take in an exported version, under its own name and number. Raises ``ValueError`` as
        ``push`` does.
        """
        return self._adopt(transport.read_parcel(Path(file)))

    def fetch(self, address: str) -> Version:
        """Take in a version from a static server: ``https://…/blobs/2c/2cf2…``, checked against the
        hash in the address.
        """
        return self._adopt(transport.fetch_parcel(address))

    def _adopt(self, parcel: transport.Parcel) -> Version:
        """Store what came from outside, read as strictly as a push; once, if it comes twice."""
        manifest = parcel.manifest
        check_arrived(manifest, parcel.files)
        with writing(self.folder) as db:
            known = {
                each.version: each for each in registry.versions(db, self.tenant, manifest.name)
            }
            here = known.get(manifest.version)
            if here is None or here.digest != digest(parcel.text.encode()):
                registry.insert(
                    db, self.blobs, self.tenant, self.creator, parcel.text, parcel.files
                )
        return self.show(f"{manifest.name}@{manifest.version}")


def resolve(name_or_folder: str | Path, hub_folder: str | Path) -> Path:
    """An adapter's folder: one that is there as it is, else what a hub's ``pull`` gives for the
    name.

    So every option that takes a folder takes ``naval@champion`` too. Raises ``ValueError`` when it
    is neither.

    >>> resolve("minilora", "hub").name
    'minilora'
    """
    if Path(name_or_folder).is_dir():
        return Path(name_or_folder)
    if not (Path(hub_folder) / FILE).exists() and not transport.is_address(str(name_or_folder)):
        if Path(name_or_folder).is_file():
            raise ValueError(
                f"{name_or_folder} is a file: expected an adapter's folder, or its name"
            )
        raise ValueError(
            f"{name_or_folder} is not a folder, and there is no hub in {hub_folder} to look the "
            "name up in: check the path, or name the hub's folder with --hub"
        )
    return Hub(hub_folder).pull(str(name_or_folder))
