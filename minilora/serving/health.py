"""``/health``: the process is well. ``/ready``: send it requests. ``/metrics``: what it has done.

Two questions, two answers: a server that is stopping is well but not ready, and whoever restarts
what is unhealthy must not kill it for that (kubernetes.io, liveness and readiness probes).
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse

from .access import Admin
from .refusals import wait_first
from .replies import ERRORS, PLAIN, Status
from .service import Service

router = APIRouter(tags=["operation"])
SICK: dict[int | str, dict[str, Any]] = {503: ERRORS[503]}


@router.get("/health", responses=SICK)
async def health(request: Request) -> Status:
    """503 when the engine's thread has ended."""
    service: Service = request.app.state.service
    if service.engine.closed:
        raise wait_first(5, "the engine has stopped", 503, "engine_stopped")
    return Status(status="ok")


@router.get("/ready", responses=SICK)
async def ready(request: Request) -> Status:
    """503 while it stops, too."""
    service: Service = request.app.state.service
    if service.draining:
        raise wait_first(5, "this server is stopping", 503, "draining")
    await health(request)
    return Status(status="ready")


@router.get("/metrics", response_class=Response, responses={**PLAIN, **ERRORS})
async def metrics(request: Request, admin: Admin) -> PlainTextResponse:
    """Prometheus' text format."""
    service: Service = request.app.state.service
    kind = "text/plain; version=0.0.4; charset=utf-8"
    return PlainTextResponse(service.metrics.text(), media_type=kind)
