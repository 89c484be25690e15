"""A server for the gateway's tests: it speaks the API, answers by rule, and loads no model.

``python -m tests.serving.fake_worker``: prints its address as ``minilora serve`` does. The prompt
says how to behave; the answer is a function of the prompt, so it can be checked whoever gives it.
"""

import asyncio
import os
import sys

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

loaded, left = {}, []


def answer_to(prompt):
    return prompt[::-1]


async def complete(request: Request) -> Response:
    fields = await request.json()
    prompt, pid = fields["prompt"], {"x-pid": str(os.getpid())}
    await asyncio.sleep(fields.get("seconds", 0.0))
    if fields.get("refuse"):
        return JSONResponse({"error": {"code": "overloaded"}}, 503, {"retry-after": "1"})
    if not fields.get("stream"):
        name = request.headers.get("x-request-id")
        return JSONResponse({"text": answer_to(prompt), "id": name}, headers=pid)

    async def events():
        try:
            for letter in answer_to(prompt):
                yield f"data: {letter}\n\n"
                await asyncio.sleep(fields.get("pause", 0.0))
            yield "data: [DONE]\n\n"
        except (asyncio.CancelledError, GeneratorExit):
            left.append(prompt)
            raise

    return StreamingResponse(events(), media_type="text/event-stream", headers=pid)


async def load(request: Request) -> Response:
    fields = await request.json()
    loaded[fields["lora_name"]] = fields["lora_path"]
    return PlainTextResponse("loaded")


async def state(request: Request) -> Response:
    return JSONResponse({"loaded": loaded, "left": left, "pid": os.getpid()})


async def slow_post(request: Request) -> Response:
    await request.body()
    await asyncio.sleep(30)
    return JSONResponse({})


async def metrics(request: Request) -> Response:
    head = "# HELP asked_total requests\n# TYPE asked_total counter"
    text = f'{head}\nasked_total{{model="m"}} {os.getpid()}\n'
    return PlainTextResponse(text)


async def ready(request: Request) -> Response:
    return JSONResponse({"status": "ready"})


app = Starlette(
    routes=[
        Route("/v1/completions", complete, methods=["POST"]),
        Route("/v1/load_lora_adapter", load, methods=["POST"]),
        Route("/v1/fine_tuning/jobs", slow_post, methods=["POST"]),
        Route("/state", state),
        Route("/metrics", metrics),
        Route("/ready", ready),
    ]
)


class Server(uvicorn.Server):
    """Says where it listens."""

    async def startup(self, sockets=None):
        await super().startup(sockets)
        port = self.servers[0].sockets[0].getsockname()[1]
        print(f"ready at http://localhost:{port}   models: m", flush=True)


if __name__ == "__main__":
    if "--broken" in sys.argv:
        sys.exit(2)
    Server(uvicorn.Config(app, port=0, log_level="error")).run()
