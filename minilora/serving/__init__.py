"""Many adapters on one base, each request with its own, answered together.

In reading order:

    layer.py          a Linear whose rows have adapters of their own, and the rows of a model
    adapter_cache.py  adapters in memory, by content, the least recently used ones dropped
    adapter_files.py  an adapter's folder, held against the base
    fairness.py       who comes next: deficit round robin among tenants
    disk_readers.py   threads that read adapters: tenants take turns
    adapter_store.py  adapters by name, in memory or on disk
    growing_text.py   the text of an answer while its tokens arrive
    requests.py       what is asked, checked; the answer as it comes
    waiting.py        who waits, for a turn or for an adapter
    exactness.py      whether this machine's kernels make a row independent of its neighbours
    row_batch.py      the rows: prompts go in, a token comes out for each, ended rows make room
    engine.py         ``Engine``: submit, stream, cancel; one thread that owns the model
    bank.py           ``AdapterBank``: a base, its adapters, and answers
    refusals.py       ``Refused``: what a request is told that cannot be done
    tenants.py        ``Tenants``: who asks, with which key, for which adapters
    quotas.py         how much a tenant may ask; charges that count once
    audit.py          ``Audit``: who asked what of whom, by request id
    answer_cache.py   greedy answers that a tenant had before
    evidence.py       which of two arms is better: evidence that looking does not spoil
    assignment.py     who gets which adapter in an experiment: a hash, so it can be replayed
    comparison.py     two arms side by side, and how the evidence came to be
    experiments.py    the log: who was shown what, and what came of it
    failover.py       when an adapter fails: who answers instead, and when it is tried again
    metrics.py        what is counted, for Prometheus
    answered.py       what a server tells whoever learns from it
    service.py        ``Service``: the parts of a server, and what a model's name means
    protocol.py       what may be asked over HTTP, field by field
    prompts.py        prompts as token ids, and what bounds their number
    replies.py        what is answered, field by field
    streams.py        from the engine's thread into an event loop; clients that leave
    traffic.py        who answers a request: an experiment's arm, or who steps in for it
    generation.py     one request for text, from its arrival to its end
    events.py         server-sent events
    reply_forms.py    how an answer is written down: whole, or in chunks
    access.py         who asks, and whether the JSON is sound
    completions.py    /v1/chat/completions and /v1/completions
    traffic_routes.py /v1/feedback, /v1/experiments
    page_routes.py    the page at /; versions of an adapter, and its champion
    model_routes.py   /v1/models, /v1/load_lora_adapter, /v1/unload_lora_adapter
    audit_routes.py   /v1/audit: a tenant's own part of the log
    health.py         /health, /ready, /metrics
    slow_clients.py   connections whose request does not arrive
    app.py            ``create_app``: endpoints, errors, request ids
    bodies.py         a body that is passed on: read whole, and looked into
    upstreams.py      several servers: which are well, and which has an adapter: rendezvous hashing
    relay.py          one request to one of them and back; another only before the first byte
    gateway.py        ``Gateway``: one address before all of them
    workers.py        worker processes: started, watched, started again

Imports ``hub`` and the library.
"""

from typing import TYPE_CHECKING

from ..lazy import lazy_imports

if TYPE_CHECKING:
    from .bank import AdapterBank
    from .engine import Engine
    from .service import Service

__all__ = ["AdapterBank", "Engine", "Service"]
if not TYPE_CHECKING:  # or a type checker would take every name for there
    __getattr__, __dir__ = lazy_imports(__name__)
