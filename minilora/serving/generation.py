"""One request for text from its arrival to its end, whoever it is for and however it is sent.

    prompt     → token ids, in a thread: a long text must not hold up the others' streams
    target     → which adapter, by name, by the router, by an experiment
    admission  → the tenant's quotas, charged once however many answers it is
    answers    → the engine; the first event comes before anything is sent

Everything that can fail before the first token is an HTTP status. Only after it the response
begins, so until then the failover may try another adapter, and never later: two halves of two
models are no answer.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import nullcontext
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from .protocol import ChatRequest, CompletionRequest
from .refusals import Refused, wait_first
from .requests import Answer, Busy, RequestFailed
from .service import Service, Target
from .streams import Part, cancelled_when_gone, parts_of

MOST_ANSWERS = 64


class Generation:
    """A request for text; ``parts`` does it. ``target`` and the counts are known as they come."""

    def __init__(
        self,
        service: Service,
        request: Request,
        tenant: Any,
        asked: ChatRequest | CompletionRequest,
    ):
        self.service, self.request, self.tenant, self.asked = service, request, tenant, asked
        self.id: str = request.state.request_id
        self.created, self.began = int(time.time()), time.monotonic()
        self.target: Target | None = None
        self.prompt_tokens = 0
        self.answers: list[Answer] = []

    @property
    def generated(self) -> int:
        """Tokens of all answers so far."""
        return sum(len(answer.ids) for answer in self.answers)

    async def parts(self) -> AsyncIterator[Part]:
        """Do it. Raises ``Refused``, before the first part or, when the engine fails, later."""
        if self.service.draining:
            raise wait_first(5, "this server is stopping: ask again", 503, "draining")
        prompts = await run_in_threadpool(self.checked_prompts)
        self.target = await run_in_threadpool(self.find_target)
        answers = len(prompts) * (self.asked.n or 1)
        most = (self.prompt_tokens + self.limit) * (self.asked.n or 1)
        status = 500
        with self.admission(most if answers else 0) as admission:
            try:
                async for part in self.answered(prompts):
                    yield part
                status = 200
            except Refused as refused:
                status = refused.status
                raise
            finally:
                if admission is not None:
                    admission.settle(self.prompt_tokens + self.generated)
                self.count(status)

    def admission(self, tokens: int) -> Any:
        """The tenant's quotas, for the time of the request."""
        if self.service.tenants is None:
            return nullcontext()
        return self.service.tenants.begin(self.tenant, self.id, tokens)

    @property
    def limit(self) -> int:
        """The most new tokens of one answer."""
        return self.asked.limit(self.service.usual_tokens)

    def checked_prompts(self) -> list[list[int]]:
        """The prompts' ids. Raises ``Refused``."""
        param = "messages" if isinstance(self.asked, ChatRequest) else "prompt"
        model: Any = self.service.engine.model
        try:
            prompts = self.asked.prompts(model.tokenizer)
        except ValueError as error:  # a template that refuses these messages
            raise Refused(400, str(error), param=param) from error
        answers, positions = (
            len(prompts) * (self.asked.n or 1),
            model.config.max_position_embeddings,
        )
        if answers > MOST_ANSWERS:
            raise Refused(400, f"expected at most {MOST_ANSWERS} answers, got {answers}", param="n")
        if (longest := max(map(len, prompts))) >= positions:
            message = f"this model has {positions} positions, and the prompt takes {longest}"
            raise Refused(400, message, param=param, code="context_length_exceeded")
        self.prompt_tokens = sum(map(len, prompts))
        return prompts

    def find_target(self) -> Target:
        """Who is to answer. Raises ``Refused``."""
        return self.service.find(self.asked.model, self.tenant, self.asked.question)

    async def answered(self, prompts: Sequence[list[int]]) -> AsyncIterator[Part]:
        """The answers' parts. Raises ``Refused``."""
        rung = asyncio.Event()
        with cancelled_when_gone(self.request, self.answers):
            self.submit(prompts, self.request.app.state.bell.button(rung))
            try:
                async for part in parts_of(self.answers, rung):
                    yield part
            except RequestFailed as error:
                if isinstance(error.__cause__, Busy):
                    raise overloaded(str(error)) from error
                raise Refused(500, str(error), code="adapter_failed") from error

    def submit(self, prompts: Sequence[list[int]], notify: Any) -> None:
        """Queue every answer. Raises ``Refused``."""
        asked, target = self.asked, self.target
        temperature = 1.0 if asked.temperature is None else asked.temperature
        seed = secrets.randbits(62) if asked.seed is None else asked.seed
        settings: dict[str, Any] = {
            "tenant": "" if self.tenant is None else self.tenant.name,
            "stop": asked.stop or (),
            "max_new_tokens": self.limit,
            "temperature": temperature if temperature >= 1e-6 else 0.0,  # in the limit it is greedy
            "top_k": asked.top_k,
            "top_p": asked.top_p,
            "logprobs": asked.top_logprobs_wanted,
            "notify": notify,
        }
        try:
            for prompt in prompts:
                for number in range(asked.n or 1):
                    choice = None if target is None else target.adapter
                    wrapped = (seed + number + 2**63) % 2**64 - 2**63
                    answer = self.service.engine.submit(prompt, choice, seed=wrapped, **settings)
                    self.answers.append(answer)
        except Busy as error:
            raise overloaded(str(error)) from error
        except ValueError as error:
            raise Refused(400, str(error)) from error

    def count(self, status: int) -> None:
        """Tell the metrics."""
        firsts = [each.first_token for each in self.answers if each.first_token is not None]
        self.service.metrics.answered(
            self.service.base_name if self.target is None else self.target.model,
            status,
            prompt=self.prompt_tokens,
            generated=self.generated,
            waited=min(firsts) - self.began if firsts else None,
            took=time.monotonic() - self.began,
        )


def overloaded(message: str) -> Refused:
    """503: too many requests are waiting."""
    return wait_first(1, message, 503, "overloaded")
