"""``/v1/models``, and vLLM's way of loading adapters into a server that runs.

Loading is for admins, and only from under one folder or from the hub: servers that loaded whatever
path a request named have given away files and run pickles (sgl-project/sglang #26789, #27315;
predibase/lorax #798).
"""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse
from starlette.concurrency import run_in_threadpool

from .access import Admin, Caller, StrictRoute
from .audit import noted
from .protocol import LoadRequest, UnloadRequest
from .refusals import unknown_model
from .replies import ERRORS, PLAIN, ModelCard, ModelList
from .service import Service

router = APIRouter(route_class=StrictRoute, tags=["models"], responses=ERRORS)


def card(service: Service, name: str) -> ModelCard:
    """What the list says of a model."""
    parent = None if name == service.base_name else service.base_name
    return ModelCard(id=name, created=service.started, root=name, parent=parent)


@router.get("/v1/models")
async def models(request: Request, caller: Caller) -> ModelList:
    """The base, then the adapters that this key may use."""
    service: Service = request.app.state.service
    names = await run_in_threadpool(service.names, caller)
    return ModelList(data=[card(service, name) for name in names])


@router.get("/v1/models/{model}")
async def model(model: str, request: Request, caller: Caller) -> ModelCard:
    """One model."""
    service: Service = request.app.state.service
    if model not in await run_in_threadpool(service.names, caller):
        raise unknown_model(model)
    return card(service, model)


@router.post("/v1/load_lora_adapter", response_class=Response, responses=PLAIN)
async def load(asked: LoadRequest, request: Request, admin: Admin) -> PlainTextResponse:
    """Load an adapter under a name, from a folder below the server's root or from its hub."""
    service: Service = request.app.state.service
    name, path, replace = asked.lora_name, asked.lora_path, asked.load_inplace
    with noted(service.audit, admin, request.state.request_id, "load", name):
        digest = await run_in_threadpool(service.load, name, path, replace)
    done = f"Success: LoRA adapter '{name}' added successfully. Content {digest}"
    return PlainTextResponse(done)


@router.post("/v1/unload_lora_adapter", response_class=Response, responses=PLAIN)
async def unload(asked: UnloadRequest, request: Request, admin: Admin) -> PlainTextResponse:
    """Forget a loaded name; requests in progress keep what they have."""
    service: Service = request.app.state.service
    with noted(service.audit, admin, request.state.request_id, "unload", asked.lora_name):
        await run_in_threadpool(service.unload, asked.lora_name)
    return PlainTextResponse(f"Success: LoRA adapter '{asked.lora_name}' removed successfully.")
