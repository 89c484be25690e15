"""The loop's training goes through the queue like anybody's: a job with a spec.

So it is seen in ``minilora jobs list``, any worker may do it, and after a kill it goes on from its
last checkpoint. The examples lie in a file named by their hash, and a job is known by its spec: a
round that is begun again after a kill finds its earlier jobs, done or not, and does nothing twice.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from ..files import write_text
from ..hub.manifest import data_hash
from ..hub.registry import Version
from ..hub.store import Hub
from ..training.examples import Learnt
from .queue import Queue
from .recipe import Recipe
from .steps import as_line
from .tables import Job
from .worker import Worker


class Unfinished(ValueError):
    """A training job ended without a version: it failed, or somebody cancelled or paused it."""


def learn(
    queue: Queue,
    hub: Hub,
    recipe: Recipe,
    examples: Sequence[Learnt],
    *,
    parent: str = "",
    facts: Mapping[str, Any] | None = None,
    stop: threading.Event | None = None,
) -> Version:
    """The version that learnt these examples, from the base; works on its job until that has ended.

    ``parent``: the champion that it is to follow; ``facts``: more of its recipe, for the lineage;
    ``stop``: set, by whoever wants it to end or by Ctrl-C, it gives the job back to the queue.
    Raises ``Unfinished``.
    """
    file = (queue.folder / "examples" / f"{data_hash(examples)}.jsonl").absolute()
    if not file.exists():
        write_text(file, "".join(map(as_line, examples)))
    spec = recipe.spec(file).as_dict()
    request = {"recipe": {"examples": len(examples), **(facts or {})}, "hub_tenant": hub.tenant}
    request |= {"parent": parent} if parent else {}
    key = json.dumps([spec, request], sort_keys=True)
    job = done_before(queue, hub, key) or queue.submit(
        spec, tenant=hub.tenant, key=key, request=request
    )
    if job.is_open:
        Worker(queue, hub.folder, stop=stop).run(job.id)
        job = queue.job(job.id)
    if job.status != "succeeded":
        raise Unfinished(f"{job.id} is {job.status}{': ' * bool(job.error)}{job.error}")
    return hub.show(job.result["version"])


def done_before(queue: Queue, hub: Hub, key: str) -> Job | None:
    """The job of the same key whose version is in the hub."""
    for job in queue.jobs(hub.tenant):
        if job.key == key and job.status == "succeeded":
            there = {version.spec for version in hub.list(job.name)}
            return job if job.result["version"] in there else None
    return None
