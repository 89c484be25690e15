"""Who asks, with which adapters, and how much: keys, rights and quotas in one SQLite file.

    key       ml-<12 hex>-<secret>; the file has its sha256, useless to whoever reads it
    rights    adapters by name, or all of them; the base is everybody's
    quotas    requests and tokens a minute, and requests at once; None: any number (quotas.py)

A secret of 256 random bits needs no slow hash, which is for passwords that can be guessed. Hashes
are compared in constant time, also for a key that does not exist.

Until the first key is added, everybody is the tenant ``local`` and may do everything. Revoking the
last key does not open the server again. Left out: accounts, invoices, keys with rights of their own
within a tenant.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from ..database import Database, Session
from ..hub.semver import check_name
from ..text import did_you_mean
from .quotas import Admission, let_in
from .refusals import Refused

EVERY = "*"  # a right to all adapters
KEY = re.compile(r"ml-([0-9a-f]{12})-([A-Za-z0-9_-]{43})")
logger = logging.getLogger("minilora.serving")
DATABASE = Database(
    "keys.sqlite",
    "list of keys",
    "add a key (minilora serve keys add)",
    (
        """
    create table tenant (
        name text primary key, admin integer not null,
        requests real, tokens real, concurrent integer,
        request_level real, token_level real, at real not null
    ) without rowid;
    create table key (
        id text primary key, tenant text not null references tenant, hash blob not null,
        made real not null, expires real, revoked real
    ) without rowid;
    create table permission (
        tenant text not null references tenant, adapter text not null,
        primary key (tenant, adapter)
    ) without rowid;
    create table charge (
        tenant text not null, request text not null, body text not null, at real not null,
        taken integer not null, used integer not null, tries integer not null,
        primary key (tenant, request)
    ) without rowid;
    create index charge_by_age on charge (at);
    create table running (
        id integer primary key, tenant text not null, request text not null,
        pid integer not null, birth text not null
    );
    create index running_by_tenant on running (tenant, request)
    """,
    ),
    private=True,
)


@dataclass(frozen=True)
class Limits:
    """A tenant's quotas: requests and tokens a minute, requests at once. Raises ``ValueError``."""

    requests: float | None = None
    tokens: float | None = None
    concurrent: int | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and not 0 < value < 1e12:
                raise ValueError(f"{name}: expected a positive number, or None, got {value!r}")


@dataclass(frozen=True)
class Tenant:
    """Who a key belongs to, as it was when the request came."""

    name: str
    admin: bool = False
    adapters: frozenset[str] = frozenset()
    limited: bool = False


LOCAL = Tenant("local", admin=True)
# who asks before the first key; whose feedback that is; who reserves a loop's questions
TAKEN = LOCAL.name, "default", "owner"


class KeyRow(NamedTuple):
    """A key as ``minilora serve keys list`` shows it; times in seconds since 1970."""

    id: str
    tenant: str
    admin: bool
    adapters: tuple[str, ...]
    limits: Limits
    made: float
    expires: float | None
    revoked: float | None


class Tenants:
    """The keys in a file; without a file, or before its first key, everybody is ``local``.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder, Tenants(Path(folder) / "keys") as tenants:
    ...     print(tenants.who(None).name)
    ...     key = tenants.add("acme", ["naval"], Limits(requests=60, tokens=10_000))
    ...     acme = tenants.who(key)
    ...     print(acme.name, tenants.may_use(acme, "naval"), tenants.may_use(acme, "legal"))
    ...     with tenants.begin(acme, "request-1", tokens=100) as admission:
    ...         admission.settle(40)
    local
    acme True False
    """

    def __init__(self, path: Path | None, clock: Callable[[], float] = time.time):
        self.path, self.clock = path, clock
        self.session: Session | None = None
        self.opening = threading.Lock()

    def opened(self, make: bool = False) -> Session | None:
        """The file's session; None where there is no file and none is to be made."""
        with self.opening:
            if self.session is None and self.path is not None and (make or self.path.exists()):
                self.session = Session(replace(DATABASE, file=self.path.name), self.path.parent)
            return self.session

    def close(self) -> None:
        """Close the file."""
        with self.opening:
            if self.session is not None:
                self.session.close()
            self.session = None

    def __enter__(self) -> Tenants:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def who(self, token: str | None) -> Tenant:
        """The tenant of a key. Raises ``Refused`` (401) for one that is unknown, revoked or
        expired, all alike."""
        session = self.opened()
        if session is None:
            return LOCAL
        shape = KEY.fullmatch(token or "")
        with session.reading() as db:
            if db.execute("select 1 from key limit 1").fetchone() is None:
                return LOCAL
            row = db.execute(
                "select hash, revoked, expires, name, admin, requests, tokens, concurrent from key"
                " join tenant on name = tenant where id = ?",
                [shape[1] if shape else ""],
            ).fetchone()
            hashed, revoked, expires, name, admin, *limits = row or (bytes(32), 0, 0, "", 0)
            rights = db.execute("select adapter from permission where tenant = ?", [name])
            adapters = frozenset(adapter for (adapter,) in rights)
        right = hmac.compare_digest(hash_of(token if shape else ""), hashed)
        if not right or revoked is not None or (expires is not None and expires <= self.clock()):
            needed = "a key is needed: Authorization: Bearer ml-…"
            message = "this key is unknown, revoked or expired" if token else needed
            challenge = {"www-authenticate": "Bearer"}
            raise Refused(401, message, code="invalid_api_key", headers=challenge)
        return Tenant(name, bool(admin), adapters, any(each is not None for each in limits))

    def may_use(self, tenant: Tenant, adapter_name: str) -> bool:
        """Whether a tenant may use an adapter, in any of its versions."""
        name = adapter_name.partition("@")[0]
        return tenant.admin or name in tenant.adapters or EVERY in tenant.adapters

    def add(
        self,
        tenant: str,
        adapters: Sequence[str] | None = None,
        limits: Limits | Mapping[str, Any] | None = None,
        *,
        admin: bool = False,
        days: float | None = None,
    ) -> str:
        """A new key, which is shown this once; a new tenant if need be.

        For a tenant that exists, ``adapters`` and ``limits`` replace what it had, None keeps it,
        a mapping replaces the limits that it names, and ``admin=True`` makes it one. ``days``:
        until the key expires. Raises ``ValueError``.
        """
        check_name(tenant, "a tenant")
        if tenant in TAKEN:
            raise ValueError(f"{tenant!r} is a name of the server's own: expected another")
        for name in adapters or ():
            if name != EVERY:
                check_name(name)
        if days is not None and not 0 < days < 1e6:
            raise ValueError(f"days: expected a positive number, or None, got {days!r}")
        session = self.opened(make=True)
        if session is None:
            raise ValueError("these tenants have no file: there is no place for a key")
        token = f"ml-{secrets.token_hex(6)}-{secrets.token_urlsafe(32)}"
        now = self.clock()
        with session.writing() as db:
            db.execute(
                "insert into tenant values (?, ?, null, null, null, null, null, ?)"
                " on conflict do update set admin = max(admin, excluded.admin)",
                [tenant, admin, now],
            )
            if limits is not None:
                if not isinstance(limits, Limits):
                    query = "select requests, tokens, concurrent from tenant where name = ?"
                    had = Limits(*db.execute(query, [tenant]).fetchone())
                    limits = replace(had, **limits)
                db.execute(
                    "update tenant set requests = ?1, tokens = ?2, concurrent = ?3, at = ?4,"
                    " request_level = ?1, token_level = ?2 where name = ?5",
                    [*astuple(limits), now, tenant],
                )
            if adapters is not None:
                db.execute("delete from permission where tenant = ?", [tenant])
                rows = [(tenant, name) for name in sorted(set(adapters))]
                db.executemany("insert into permission values (?, ?)", rows)
            until = None if days is None else now + days * 86400
            row = [token.split("-")[1], tenant, hash_of(token), now, until, None]
            db.execute("insert into key values (?, ?, ?, ?, ?, ?)", row)
        return token

    def revoke(self, key: str) -> KeyRow:
        """End a key, by its id or the whole; requests in progress go on. Raises ``ValueError``."""
        shape = KEY.fullmatch(key)
        id, keys = shape[1] if shape else key, {row.id: row for row in self.all_keys()}
        if id not in keys:
            names = ", ".join(keys) or "none was added yet"
            raise ValueError(f"there is no key {id!r:.80}; {did_you_mean(id, list(keys), names)}")
        session = self.opened()
        assert session is not None
        with session.writing() as db:
            query = "update key set revoked = ifnull(revoked, ?) where id = ?"
            db.execute(query, [self.clock(), id])
        return next(row for row in self.all_keys() if row.id == id)

    def all_keys(self) -> list[KeyRow]:
        """All keys that were ever added, by tenant and age; no secrets."""
        session = self.opened()
        if session is None:
            return []
        with session.reading() as db:
            rows = db.execute(
                "select id, name, admin, requests, tokens, concurrent, made, expires, revoked"
                " from key join tenant on name = tenant order by name, made"
            ).fetchall()
            query = "select tenant, adapter from permission order by adapter"
            rights = db.execute(query).fetchall()
        made = []
        for id, name, admin, requests, tokens, concurrent, *times in rows:
            adapters = tuple(adapter for tenant, adapter in rights if tenant == name)
            limits = Limits(requests, tokens, concurrent)
            made.append(KeyRow(id, name, bool(admin), adapters, limits, *times))
        return made

    def begin(self, tenant: Tenant, request_id: str, tokens: int, body: str = "") -> Admission:
        """Let a request in, for at most ``tokens`` tokens; use it in ``with``, and ``settle``.

        ``body``: a hash of what is asked, which tells another try from another request. Raises
        ``Refused``: 429 with ``retry-after``, 400 for more tokens than the bucket ever holds,
        and for another request under an id, 503 when the file cannot be written.
        """
        session = self.opened() if tenant.limited else None
        asked = tenant.name, request_id, tokens, body
        run = 0 if session is None else let_in(session, self.clock, *asked)
        return Admission(session, run, tenant.name, request_id)

    def check(self, tenant: Tenant, request_id: str, tokens: int, body: str = "") -> None:
        """Raise what ``begin`` would for at least so many tokens; nothing is taken."""
        session = self.opened() if tenant.limited else None
        if session is not None:
            let_in(session, self.clock, tenant.name, request_id, tokens, body, keep=False)

    def charge(self, tenant: Tenant, request_id: str) -> None:
        """Take a request that needs no row, such as feedback. Raises ``Refused``, as ``begin``."""
        session = self.opened() if tenant.limited else None
        if session is not None:
            let_in(session, self.clock, tenant.name, request_id, 0, "", runs=False)


def hash_of(token: str | None) -> bytes:
    """What the file has of a key."""
    return hashlib.sha256((token or "").encode()).digest()
