"""The hub's SQLite file: its tables.

    version   name, version, the manifest, the identity of the content
    blob      stored bytes by their hash;  file: which of them a version has, under which path
    alias     names that move: champion -> 1.2.0
    event     who did what, when;  quota: how many versions and bytes a tenant may have

minilora/database.py says how it is opened and what a transaction promises.
"""

from __future__ import annotations

from ..database import Database

FILE = "hub.sqlite"
# Step n brings a database from schema n to n + 1; a released step never changes.
MIGRATIONS = (
    """
    create table blob (sha text primary key, bytes integer not null) without rowid;
    create table version (
        tenant text not null, name text not null, version text not null,
        content text not null, digest text not null references blob (sha), manifest text not null,
        bytes integer not null, pushed real not null, used real not null,
        primary key (tenant, name, version)
    ) without rowid;
    create table file (
        tenant text not null, name text not null, version text not null, path text not null,
        sha text not null references blob (sha),
        primary key (tenant, name, version, path),
        foreign key (tenant, name, version) references version on delete cascade
    ) without rowid;
    create index file_by_sha on file (sha);
    create table alias (
        tenant text not null, name text not null, alias text not null, version text not null,
        primary key (tenant, name, alias),
        foreign key (tenant, name, version) references version on delete restrict
    ) without rowid;
    create table quota (
        tenant text primary key, adapters integer, bytes integer
    ) without rowid;
    create table event (
        id integer primary key, at real not null, tenant text not null, who text not null,
        name text not null, what text not null
    );
    """,
)
HUB = Database(FILE, "hub", "push an adapter to it", MIGRATIONS)
reading, writing = HUB.reading, HUB.writing
