"""One request for text from its arrival to its end, whoever it is for and however it is sent.

    size       → what is too long for the model or the tenant's quota goes no further
    target     → which adapter, by name, by the router, by an experiment
    prompt     → token ids, in a thread: a long text must not hold up the others' streams
    admission  → the tenant's quotas, charged once however many answers it is
    answers    → the engine; the first event comes before anything is sent

Everything that can fail before the first token is an HTTP status. Only after it the response
begins, so until then the failover may try another adapter, and never later: two halves of two
models are no answer.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import secrets
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import replace
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from .answered import answered
from .prompts import checked_prompts, least_prompts, most_tokens
from .protocol import ChatRequest, CompletionRequest
from .quotas import Admission
from .refusals import Refused, unknown_model, wait_first
from .requests import Answer, Busy, Finished, RequestFailed
from .service import Service, Target
from .streams import Part, cancelled_when_gone, parts_of
from .tenants import LOCAL
from .traffic import FAULTS, HEADER, Turns

logger = logging.getLogger("minilora.serving")


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
        self.turns: Turns | None = None
        self.admission = Admission(None, 0, "", self.id)
        self.row: int | None = None  # of the audit log
        self.prompt_tokens = 0
        self.answers: list[Answer] = []
        self.ends: list[Finished] = []

    @property
    def generated(self) -> int:
        """Tokens of all answers so far."""
        return sum(len(answer.ids) for answer in self.answers)

    @property
    def replayed(self) -> bool:
        """Whether nothing had to be computed."""
        return bool(self.answers) and all(answer.replayed for answer in self.answers)

    async def parts(self) -> AsyncIterator[Part]:
        """Do it. Raises ``Refused``, before the first part or, when the engine fails, later."""
        if self.service.draining:
            raise wait_first(5, "this server is stopping: ask again", 503, "draining")
        status = 499  # the client has left, unless it turns out otherwise
        try:
            prompts = await run_in_threadpool(self.let_in)
            async for part in self.attempts(prompts):
                yield part
            if self.completed:
                status = 200
        except Refused as refused:
            status = refused.status
            raise
        except Exception:
            status = 500
            raise
        finally:
            self.count("other" if self.target is None else self.target.model, status)
            if self.writes:
                await run_in_threadpool(self.close, status)
            else:
                self.close(status)

    def let_in(self) -> list[list[int]]:
        """Everything before the first token, in a thread; the prompts. Raises ``Refused``.

        The quota is asked with the fewest tokens that the prompts can have, before the router
        reads them and before they are tokenized: a text that is refused costs nothing, and is no
        part of an experiment. An arm whose adapter fails is: its failure counts.
        """
        service, asked, fallback = self.service, self.asked, self.request.headers.get(HEADER, "")
        self.row = self.written_down()
        model: Any = service.engine.model
        least, body = least_prompts(asked, model), ""
        if service.tenants is not None:
            body = hashlib.sha256(asked.model_dump_json().encode()).hexdigest()
            service.tenants.check(self.tenant, self.id, self.most(least), body)
        asking = asked.model, asked.question, asked.user, fallback
        self.turns = Turns(service, self.tenant, *asking)
        try:
            self.target = self.turns.next()
        except Refused:
            self.turns.record(self.id)
            raise
        prompts = checked_prompts(asked, model)
        if service.tenants is not None:
            most = self.most(map(len, prompts))
            self.admission = service.tenants.begin(self.tenant, self.id, most, body)
        self.turns.record(self.id)
        self.prompt_tokens = sum(map(len, prompts))
        return prompts

    def most(self, lengths: Iterable[int]) -> int:
        """The most tokens that it can take with prompts of these lengths."""
        positions = self.service.engine.model.config.max_position_embeddings
        return most_tokens(self.asked, lengths, self.service.usual_tokens, positions)

    @property
    def writes(self) -> bool:
        """Whether its end is written into a file."""
        service = self.service
        return bool(service.audit or service.on_answer or self.admission.session)

    def close(self, status: int) -> None:
        """Give back what was not used, and write down how it ended."""
        if self.turns is not None:
            self.turns.report(None)  # unless it was reported: the client has left
        self.admission.settle(self.prompt_tokens + self.generated)
        if self.row is not None:
            self.write_down_end(self.row, status)
        if self.service.on_answer is not None and status == 200:
            told = self.tenant_name, self.id, self.asked, self.target, self.ends
            try:
                self.service.on_answer(answered(*told))
            except Exception:  # whoever listens: the answer is there, and goes out
                logger.exception("request %s cannot be corrected: it was not kept", self.id)

    @property
    def tenant_name(self) -> str:
        """Whose request it is."""
        return LOCAL.name if self.tenant is None else self.tenant.name

    def written_down(self) -> int | None:
        """The beginning in the audit log, if there is one. Raises ``Refused``."""
        audit, chat = self.service.audit, isinstance(self.asked, ChatRequest)
        if audit is None:
            return None
        text = self.asked.model_dump_json(include={"messages", "prompt"}) if audit.texts else None
        action = "chat" if chat else "completion"
        return audit.begin(self.tenant_name, self.id, action, self.asked.model, text)

    def write_down_end(self, row: int, status: int) -> None:
        """The end in the audit log."""
        target, audit, first = self.target, self.service.audit, self.first_token
        if audit is None:
            return
        audit.end(
            row,
            self.id,
            status,
            adapter=None if target is None else target.adapter,
            digest=None if target is None else target.digest,
            prompt_tokens=self.prompt_tokens,
            generated_tokens=self.generated,
            waited=None if first is None else first - self.began,
            took=time.monotonic() - self.began,
            answer="\n".join(end.text for end in self.ends),
        )

    @property
    def first_token(self) -> float | None:
        """When the first token came."""
        firsts = [each.first_token for each in self.answers if each.first_token is not None]
        return min(firsts, default=None)

    async def attempts(self, prompts: Sequence[list[int]]) -> AsyncIterator[Part]:
        """The parts of the first target that answers: another one only before the first part.

        Raises ``Refused``.
        """
        turns = self.turns
        assert turns is not None
        while True:
            begun, began = False, time.monotonic()
            try:
                async for part in self.answered(prompts):
                    begun = True
                    yield part
            except Refused as refused:
                fault = refused.code in FAULTS
                turns.report(False if fault else None, error=refused)
                if begun or not fault or self.service.failover is None:
                    raise
            else:
                first = self.first_token
                turns.report(True if self.completed else None, first - began if first else 0.0)
                return
            self.target = await run_in_threadpool(turns.next)
            self.answers = []

    @property
    def completed(self) -> bool:
        """Whether every answer came to its end, and the client did not leave."""
        return bool(self.ends) and all(end.reason != "cancelled" for end in self.ends)

    async def answered(self, prompts: Sequence[list[int]]) -> AsyncIterator[Part]:
        """The answers' parts. Raises ``Refused``."""
        rung = asyncio.Event()
        with cancelled_when_gone(self.request, self.answers):
            self.submit(prompts, rung)
            try:
                async for part in parts_of(self.answers, rung):
                    if part.end is not None:
                        self.end(self.answers[part.index], part.end)
                    yield part
            except RequestFailed as error:
                if isinstance(error.__cause__, Busy):
                    raise overloaded(str(error)) from error
                raise self.failed(error) from error

    def failed(self, error: Exception) -> Refused:
        """500; the reason may name the server's folders, so it stands in the server's log alone."""
        logger.error("request %s failed", self.id, exc_info=error)
        message = f"this model could not answer; request {self.id} in the server's log says why"
        return Refused(500, message, code="adapter_failed")

    def end(self, answer: Answer, finished: Finished) -> None:
        """An answer came to its end."""
        self.ends.append(finished)
        if self.service.answers is not None and not answer.replayed:
            self.service.answers.keep(answer, finished)

    def submit(self, prompts: Sequence[list[int]], rung: asyncio.Event) -> None:
        """Queue every answer. Raises ``Refused``."""
        asked, target = self.asked, self.target
        temperature = 1.0 if asked.temperature is None else asked.temperature
        seed = secrets.randbits(62) if asked.seed is None else asked.seed
        settings: dict[str, Any] = {
            "tenant": self.tenant_name,
            "find_answer": self.service.answers and self.service.answers.find,
            "stop": asked.stop or (),
            "max_new_tokens": asked.limit(self.service.usual_tokens),
            "temperature": temperature if temperature >= 1e-6 else 0.0,  # in the limit it is greedy
            "top_k": asked.top_k,
            "top_p": asked.top_p,
            "logprobs": asked.top_logprobs_wanted,
            "raw": isinstance(asked, CompletionRequest),
        }
        bells, stream = self.request.app.state.bells, bool(asked.stream)
        try:
            for prompt in prompts:
                for number in range(asked.n or 1):
                    choice = None if target is None else target.adapter
                    wrapped = (seed + number + 2**63) % 2**64 - 2**63
                    own = {"seed": wrapped, "notify": bells.button(rung, stream)}
                    answer = self.service.engine.submit(prompt, choice, **own, **settings)
                    self.answers.append(answer)
                    if target is not None and (chosen := answer.request.adapter):
                        self.target = replace(target, digest=chosen[0][1].content)  # the truth
        except Busy as error:
            raise overloaded(str(error)) from error
        except ValueError as error:
            if target is not None and target.adapter not in (None, *self.service.bank.names()):
                raise unknown_model(asked.model) from error  # unloaded just now
            raise Refused(400, str(error)) from error

    def count(self, model: str, status: int) -> None:
        """Tell the metrics."""
        first = self.first_token
        self.service.metrics.answered(
            model,
            status,
            prompt=self.prompt_tokens,
            generated=self.generated,
            waited=None if first is None else first - self.began,
            took=time.monotonic() - self.began,
        )


def overloaded(message: str) -> Refused:
    """503: too many requests are waiting."""
    return wait_first(1, message, 503, "overloaded")
