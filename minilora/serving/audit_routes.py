"""``/v1/audit``: a tenant reads its own part of the audit log, an admin all of it."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

from .access import Caller, StrictRoute
from .refusals import Refused
from .replies import ERRORS
from .service import Service

router = APIRouter(route_class=StrictRoute, tags=["operation"], responses=ERRORS)


class Entry(BaseModel):
    """A request; a status of None: it runs, or its end could not be written down."""

    id: int
    at: float
    tenant: str
    request: str
    action: str
    model: str
    status: int | None
    adapter: str | None
    digest: str | None
    prompt_tokens: int | None
    generated_tokens: int | None
    waited: float | None
    took: float | None
    question: str | None
    answer: str | None


class EntryList(BaseModel):
    """Entries, the oldest first; ``has_more``: ask again with ``after`` the last one's id."""

    object: str = "list"
    data: list[Entry]
    has_more: bool


@router.get("/v1/audit")
async def entries(
    request: Request,
    caller: Caller,
    after: Annotated[int, Query(ge=0, lt=2**63)] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> Any:
    """Who asked what of whom. 404 where no log is kept."""
    service: Service = request.app.state.service
    if service.audit is None:
        raise Refused(404, "this server keeps no audit log: start it with --audit")
    tenant = None if caller is None or caller.admin else caller.name
    found = await run_in_threadpool(service.audit.entries, tenant, after, limit + 1)
    data = [Entry(**entry) for entry in found[:limit]]
    return EntryList(data=data, has_more=len(found) > limit)
