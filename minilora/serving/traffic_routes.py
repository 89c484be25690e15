"""``/v1/feedback``: how an answer was. ``/v1/experiments``: begin, look at, end.

Only the tenant who asked may give feedback on a request. Another tenant's request gets the same
answer as one that never existed. Experiments are an admin's. Looking at the evidence does not spoil
it (evidence.py).
"""

from __future__ import annotations

import re
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool

from .access import Admin, Caller, StrictRoute
from .assignment import Experiment
from .experiments import Experiments
from .protocol import Asked, Text
from .refusals import Refused
from .replies import ERRORS
from .tenants import LOCAL

router = APIRouter(route_class=StrictRoute, tags=["traffic"], responses=ERRORS)
CONFLICT: dict[int | str, dict[str, Any]] = {409: ERRORS[400]}
PREFIX = re.compile("^(?:chat)?cmpl-")  # of a response's id, before the request's own
Share = Annotated[float, Field(ge=0, le=1)]
Said = Annotated[str, Field(max_length=32_000)]


class FeedbackRequest(Asked):
    """``POST /v1/feedback``. ``request_id``: the response's ``x-request-id``, or its ``id``.

    ``score``: 0 bad to 1 good. ``correction``: what the answer should have been, for a server that
    learns from it (``--feedback``), and by ``topic``, which is the caller's word. ``question`` and
    ``context`` say what was asked where the request was more than one message, and only there.
    """

    request_id: Text = Field(max_length=80)
    score: Share | None = None
    question: Said | None = None
    context: Said | None = None
    correction: Said | None = None
    topic: str | None = Field(None, max_length=80)


class FeedbackReply(BaseModel):
    """Which arm the score counts for, if the request was in an experiment; and what became of the
    correction: ``quarantine`` (it is kept), ``known``, ``refused`` or ``unknown`` (the request).
    A score of a user who was expelled is ``refused`` too, and counts for nothing.
    """

    request_id: str
    experiment: str | None
    arm: str | None
    kept: bool
    state: str | None


class ExperimentRequest(Asked):
    """``POST /v1/experiments``: the fields of experiments.toml; the first arm is the control."""

    name: Text = Field(max_length=64)
    model: Text
    arms: Annotated[dict[Text, Text], Field(min_length=2)]
    shares: dict[Text, Share] = Field(default_factory=dict)
    ramp: Share = 1.0
    alpha: float = Field(0.05, gt=0, lt=1)
    salt: str = ""


def of(request: Request) -> Experiments:
    """The server's. Raises ``Refused``."""
    experiments = request.app.state.service.experiments
    if experiments is None:
        raise Refused(404, "this server keeps no experiments: minilora serve does")
    return experiments


@router.post("/v1/feedback", responses=CONFLICT)
async def feedback(asked: FeedbackRequest, request: Request, caller: Caller) -> FeedbackReply:
    """How an answer was, and what it should have been. It counts as a request of the tenant's."""
    service, name = request.app.state.service, PREFIX.sub("", asked.request_id)
    tenant = LOCAL if caller is None else caller
    if service.tenants is not None:
        await run_in_threadpool(service.tenants.charge, tenant, request.state.request_id)
    shown = state = None
    if service.on_feedback is not None:
        try:
            state = await run_in_threadpool(service.on_feedback, tenant, name, asked)
        except ValueError as error:
            raise Refused(400, str(error), param="correction") from error
    elif asked.correction is not None:
        reason = "this server does not learn from corrections: leave correction out"
        raise Refused(400, reason, param="correction", code="unsupported_parameter")
    if asked.score is not None and service.experiments is not None and state != "refused":
        try:
            outcome = service.experiments.outcome
            shown = await run_in_threadpool(outcome, name, asked.score, tenant.name)
        except ValueError as error:
            raise Refused(409, str(error), param="score", code="conflict") from error
    experiment, arm = shown or (None, None)
    kept = state == "quarantine"
    return FeedbackReply(request_id=name, experiment=experiment, arm=arm, kept=kept, state=state)


@router.get("/v1/experiments")
async def experiments(request: Request, admin: Admin) -> dict[str, Any]:
    """All, the newest first, each with its evidence now."""
    found = await run_in_threadpool(of(request).all)
    data = [await described(request, each, runs) for each, runs in found]
    return {"object": "list", "data": data}


@router.get("/v1/experiments/{name}")
async def experiment(
    name: str, request: Request, admin: Admin, points: Annotated[int, Query(ge=0, le=500)] = 0
) -> dict[str, Any]:
    """One; ``points``: so many steps of how its evidence came to be."""
    for each, runs in await run_in_threadpool(of(request).all):
        if each.name == name:
            return await described(request, each, runs, points)
    raise Refused(404, f"there is no experiment {name!r:.80}")


@router.post("/v1/experiments", responses=CONFLICT)
async def start(asked: ExperimentRequest, request: Request, admin: Admin) -> dict[str, Any]:
    """Begin one, or change the ramp of one that runs."""
    fields = asked.model_dump()
    running, service = of(request), request.app.state.service
    try:
        made = Experiment.of(fields.pop("name"), fields)
    except ValueError as error:
        raise Refused(400, str(error)) from error
    for adapter in made.arms.values():
        await run_in_threadpool(service.find, adapter, admin)
    try:
        await run_in_threadpool(running.start, made)
    except ValueError as error:
        raise Refused(409, str(error), code="conflict") from error
    return await described(request, made, True)


@router.post("/v1/experiments/{name}/end")
async def end(name: str, request: Request, admin: Admin) -> dict[str, Any]:
    """Stop assigning; the log and the evidence stay."""
    try:
        await run_in_threadpool(of(request).end, name)
    except ValueError as error:
        raise Refused(404, str(error)) from error
    return await experiment(name, request, admin)


async def described(
    request: Request, experiment: Experiment, runs: bool, points: int = 0
) -> dict[str, Any]:
    """An experiment with its evidence, as JSON: no infinity and no NaN, which JSON has not."""
    found = await run_in_threadpool(of(request).evidence, experiment.name, points)
    comparisons = [{**asdict(each), "verdict": each.verdict} for each in found]
    settings = {"name": experiment.name, **experiment.fields, "running": runs}
    return finite({**settings, "comparisons": comparisons})


def finite(value: Any) -> Any:
    """Infinite evidence as 1e300, what is unknown as null.

    >>> finite({"e": float("inf"), "difference": float("nan"), "pairs": (3,)})
    {'e': 1e+300, 'difference': None, 'pairs': [3]}
    """
    if isinstance(value, dict):
        return {key: finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite(each) for each in value]
    if isinstance(value, float):
        return None if value != value else max(-1e300, min(value, 1e300))
    return value
