"""``/``: the page, one file that asks this server only. ``/v1/adapters``: versions, the champion.

The page has no rights of its own: it does what the API lets the typed-in key do. The browser is
told to load nothing from elsewhere, and to frame it nowhere (Content-Security-Policy, W3C, level
3); the key stays in the tab's memory.
"""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse
from pydantic import Field
from starlette.concurrency import run_in_threadpool

from ..hub.registry import Version
from .access import Admin, Caller, StrictRoute
from .audit import noted
from .protocol import Asked, Text
from .refusals import Refused, unknown_model
from .replies import ERRORS, ErrorReply
from .service import CHAMPION, Service

PAGE = Path(__file__).parent / "page.html"
router = APIRouter(route_class=StrictRoute, tags=["page"], responses=ERRORS)


@cache
def page() -> tuple[str, str]:
    """The page, and the policy that lets only its own script and style run.

    >>> "script-src 'sha256-" in page()[1]
    True
    """
    text = PAGE.read_text(encoding="utf-8")
    script, style = (
        base64.b64encode(hashlib.sha256(inner.encode()).digest()).decode()
        for tag in ("script", "style")
        for inner in re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
    )
    policy = (
        f"default-src 'none'; script-src 'sha256-{script}'; style-src 'sha256-{style}'; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )
    return text, policy


@router.get("/", response_class=HTMLResponse, include_in_schema=False)
async def home() -> HTMLResponse:
    """The page."""
    text, policy = page()
    safe = {"x-content-type-options": "nosniff", "referrer-policy": "no-referrer"}
    return HTMLResponse(text, headers={"content-security-policy": policy, **safe})


class ChampionRequest(Asked):
    """``POST /v1/adapters/{name}/champion``. ``expected``: the version that it has now, or null."""

    version: Text = Field(max_length=80)
    expected: str | None = None


@router.get("/v1/adapters/{name}")
async def versions(name: str, request: Request, caller: Caller) -> dict[str, Any]:
    """An adapter's versions in the hub, the newest first, each with its card."""
    service: Service = request.app.state.service
    if not service.may_use(caller, name):
        raise unknown_model(name)
    every = await run_in_threadpool(service.hub_versions)
    found = sorted((each for each in every if each.name == name), key=lambda each: -each.pushed)
    if not found:
        known = service.bank.known.get(name)
        if known is None:
            raise unknown_model(name)
        loaded = {"version": None, "digest": known.content, "ranks": dict(known.ranks)}
        return {"object": "list", "data": [{**loaded, "bytes": known.nbytes, "aliases": []}]}
    return {"object": "list", "data": [card(each) for each in found]}


def card(version: Version) -> dict[str, Any]:
    """What is known of a version: where it comes from, how good it is."""
    manifest = version.manifest
    return {
        "version": version.version,
        "aliases": list(version.aliases),
        "digest": manifest.content,
        "bytes": manifest.bytes,
        "created": manifest.created,
        "parent": manifest.parent,
        "data_sha": manifest.data_sha,
        "description": manifest.description,
        "metrics": dict(manifest.metrics),
        "recipe": dict(manifest.recipe),
    }


@router.post("/v1/adapters/{name}/champion", responses={409: {"model": ErrorReply}})
async def promote(
    name: str, asked: ChampionRequest, request: Request, admin: Admin
) -> dict[str, Any]:
    """Let ``name`` mean another version: new requests get it, running ones keep theirs."""
    service: Service = request.app.state.service
    hub = service.hub
    if hub is None:
        raise Refused(404, "this server has no hub: start it with --hub")
    spec = f"{name}@{asked.version}"
    with noted(service.audit, admin, request.state.request_id, "promote", spec):
        try:
            await run_in_threadpool(service.find, spec, admin)  # it can be served here
            before = await run_in_threadpool(hub.alias, spec, CHAMPION, asked.expected)
        except ValueError as error:
            raise Refused(409, str(error), code="conflict") from error
    return {"name": name, "champion": asked.version, "before": before}
