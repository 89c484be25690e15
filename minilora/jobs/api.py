"""OpenAI's fine-tuning API over the queue: ``/v1/files`` and ``/v1/fine_tuning/jobs``.

    client.files.create(file=…, purpose="fine-tune")
    client.fine_tuning.jobs.create(model="minilora-base", training_file=file.id, suffix="naval")
    … retrieve, list, list_events, checkpoints.list, cancel, pause, resume

The server only takes orders: a worker, a process of its own, does them (``minilora jobs worker``).

A list says ``has_more`` and heeds ``after``: the client asks for page after page, forever if
neither is right.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, File, Form, Query, Request, UploadFile
from fastapi.responses import Response

from ..serving.access import Caller, StrictRoute, body_of_at_most
from ..serving.audit import noted
from ..serving.refusals import Refused
from ..serving.replies import ERRORS
from .api_forms import CreateJob, checkpoint_objects, event_object, file_object, job_object
from .fine_tuning import FineTuning, name_of
from .forecast import Limits
from .queue import Queue

MOST_BYTES = 100_000_000  # of a file that is uploaded, with its form
PURPOSES = ("fine-tune",)
Limit = Annotated[int, Query(ge=1, le=10_000)]


def fine_tuning_router(
    service: Any,
    queue: Queue,
    *,
    base: Mapping[str, Any] | None = None,
    limits: Limits | None = None,
) -> APIRouter:
    """The endpoints, for ``create_app(service, routers=[…])``.

    ``base``: the spec's section of the base that the server serves; ``limits``: what a job may use.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     router = fine_tuning_router(None, Queue(folder))
    >>> sorted({route.path for route in router.routes})[:2]
    ['/v1/files', '/v1/files/{id}']
    """
    tuning = FineTuning(service, queue, dict(base or {}), limits or Limits())
    router = APIRouter(route_class=StrictRoute, tags=["fine-tuning"], responses=ERRORS)
    add_files(router, tuning)
    add_jobs(router, tuning)
    add_one_job(router, tuning)
    return router


def add_files(router: APIRouter, tuning: FineTuning) -> None:
    """``/v1/files``."""

    @router.post("/v1/files")
    @body_of_at_most(MOST_BYTES)
    def create(
        caller: Caller, file: Annotated[UploadFile, File()], purpose: Annotated[str, Form()]
    ) -> dict[str, Any]:
        """Store a file of JSON lines."""
        if purpose not in PURPOSES:
            raise Refused(
                400, f"purpose must be {PURPOSES[0]}, got {purpose!r:.40}", param="purpose"
            )
        name = (file.filename or "file")[:200]
        try:
            stored = tuning.uploads.put(name_of(caller), name, purpose, file.file.read())
        except ValueError as error:
            raise Refused(429, str(error), param="file", code="quota_exceeded") from error
        return file_object(stored)

    @router.get("/v1/files")
    def list_files(
        caller: Caller,
        after: str | None = None,
        limit: Limit = 10_000,
        order: str = "desc",
        purpose: str | None = None,
    ) -> dict[str, Any]:
        """A tenant's files."""
        files = [f for f in tuning.uploads.of(name_of(caller)) if purpose in (None, f.purpose)]
        ordered = files if order == "desc" else files[::-1]
        return page(list(map(file_object, ordered)), after, limit)

    @router.get("/v1/files/{id}")
    def retrieve(id: str, caller: Caller) -> dict[str, Any]:
        """One file."""
        return file_object(tuning.upload(id, caller))

    @router.get("/v1/files/{id}/content")
    def content(id: str, caller: Caller) -> Response:
        """Its bytes."""
        return Response(tuning.uploads.content(tuning.upload(id, caller)), media_type="text/plain")

    @router.delete("/v1/files/{id}")
    def delete(id: str, caller: Caller) -> dict[str, Any]:
        """Forget it."""
        tuning.upload(id, caller)
        try:
            tuning.uploads.delete(id, name_of(caller))
        except ValueError as error:
            raise Refused(409, str(error), code="file_in_use") from error
        return {"id": id, "object": "file", "deleted": True}


def add_jobs(router: APIRouter, tuning: FineTuning) -> None:
    """``/v1/fine_tuning/jobs``."""
    root = "/v1/fine_tuning/jobs"

    @router.post(root)
    def create(asked: CreateJob, request: Request, caller: Caller) -> dict[str, Any]:
        """Queue a job."""
        key = request.headers.get("idempotency-key", "")[:200]
        is_retry = bool(key) or request.headers.get("x-stainless-retry-count", "0") != "0"
        name = asked.suffix or asked.model
        with noted(tuning.service.audit, caller, request.state.request_id, "fine-tune", name):
            return job_object(tuning.create(asked, caller, key, is_retry))

    @router.post("/v1/fine_tuning/forecast")
    def forecast(asked: CreateJob, caller: Caller) -> dict[str, Any]:
        """What such a job would need; nothing is queued. Ours, not OpenAI's."""
        return tuning.forecast(asked, caller)

    @router.get(root)
    def list_jobs(
        request: Request, caller: Caller, after: str | None = None, limit: Limit = 20
    ) -> dict[str, Any]:
        """A tenant's jobs, the newest first; ``metadata[key]=value`` filters."""
        metadata = {
            key[len("metadata[") : -1]: value
            for key, value in request.query_params.multi_items()
            if key.startswith("metadata[") and key.endswith("]")
        }
        jobs = [
            job_object(job)
            for job in tuning.queue.jobs(name_of(caller))
            if metadata.items() <= (job.request.get("metadata") or {}).items()
        ]
        return page(jobs, after, limit)


def add_one_job(router: APIRouter, tuning: FineTuning) -> None:
    """``/v1/fine_tuning/jobs/{id}``."""
    path = "/v1/fine_tuning/jobs/{id}"

    @router.get(path)
    def retrieve(id: str, caller: Caller) -> dict[str, Any]:
        """One job."""
        return job_object(tuning.job(id, caller))

    @router.get(path + "/events")
    def events(
        id: str, caller: Caller, after: str | None = None, limit: Limit = 20
    ) -> dict[str, Any]:
        """What happened, the newest first."""
        own_job = tuning.job(id, caller)
        newest_first = [event_object(event, own_job) for event in reversed(tuning.queue.events(id))]
        return page(newest_first, after, limit)

    @router.get(path + "/checkpoints")
    def checkpoints(
        id: str, caller: Caller, after: str | None = None, limit: Limit = 10
    ) -> dict[str, Any]:
        """What can be asked of what it made."""
        own_job = tuning.job(id, caller)
        objects = checkpoint_objects(own_job) if own_job.status == "succeeded" else []
        return page(objects, after, limit)

    @router.post(path + "/cancel")
    def cancel(id: str, caller: Caller) -> dict[str, Any]:
        """End it."""
        return tuning.change(tuning.queue.cancel, id, caller)

    @router.post(path + "/pause")
    def pause(id: str, caller: Caller) -> dict[str, Any]:
        """Stop it for a while."""
        return tuning.change(tuning.queue.pause, id, caller)

    @router.post(path + "/resume")
    def resume(id: str, caller: Caller) -> dict[str, Any]:
        """Let it go on."""
        return tuning.change(tuning.queue.resume, id, caller)


def page(items: Sequence[dict[str, Any]], after: str | None, limit: int) -> dict[str, Any]:
    """One page of a list, behind the item whose id is ``after``. Raises ``Refused``.

    >>> ids = page([{"id": "a"}, {"id": "b"}, {"id": "c"}], "a", 1)
    >>> ids["data"], ids["has_more"]
    ([{'id': 'b'}], True)
    >>> page([{"id": "a"}, {"id": "b"}, {"id": "c"}], "a", 2)["has_more"]
    False
    """
    start = 0
    if after is not None:
        places = [place for place, item in enumerate(items) if item["id"] == after]
        if not places:
            raise Refused(400, f"after: nothing here has the id {after!r:.80}", param="after")
        start = places[0] + 1
    shown = list(items[start : start + limit])
    ends = {"first_id": shown[0]["id"], "last_id": shown[-1]["id"]} if shown else {}
    return {"object": "list", "data": shown, "has_more": start + limit < len(items), **ends}
