"""What a request of the fine-tuning API means to the queue: whose job it is, and which spec.

A create that comes twice is one job: a client that got no answer sends it again (openai-python
counts its tries in ``x-stainless-retry-count``; ``Idempotency-Key`` is heeded too). A tenant's jobs
and files are unknown to all others, and a job's adapter has a name that its tenant may use.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from ..hub.semver import check_name
from ..ledger.shapes import architecture
from ..model.pretrained import SHIPPED
from ..serving.refusals import Refused, unknown_model
from ..training.config import rate_for
from .api_forms import CreateJob, job_object, without_paths
from .forecast import Limits
from .preflight import check_spec
from .queue import Queue
from .spec import Spec
from .tables import Job, read_object
from .uploads import Upload, Uploads

TRIED_AGAIN = 3600.0  # seconds within which a client that got no answer sends the same once more


class FineTuning:
    """What the endpoints share."""

    def __init__(self, service: Any, queue: Queue, base: dict[str, Any], limits: Limits):
        self.service, self.queue, self.base, self.limits = service, queue, base, limits
        self.uploads = Uploads(queue.folder)

    def job(self, id: str, caller: Any) -> Job:
        """A caller's job. Raises ``Refused`` (404)."""
        try:
            return self.queue.job(id, name_of(caller))
        except (KeyError, FileNotFoundError):
            raise unknown("job", id) from None

    def upload(self, id: str, caller: Any, param: str | None = None) -> Upload:
        """A caller's file. Raises ``Refused`` (404)."""
        try:
            return self.uploads.get(id, name_of(caller))
        except KeyError:
            raise unknown("file", id, param) from None

    def change(self, verb: Callable[[str, str], Job], id: str, caller: Any) -> dict[str, Any]:
        """Cancel, pause or resume. Raises ``Refused`` (404, 400)."""
        self.job(id, caller)
        try:
            return job_object(verb(id, name_of(caller)))
        except ValueError as error:
            raise Refused(400, str(error), code="wrong_state") from error

    def specified(self, asked: CreateJob, caller: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """The spec that a request means, and the request as it is kept. Raises ``Refused``."""
        if asked.model != self.service.base_name:
            raise unknown_model(asked.model)
        name = asked.suffix or f"{asked.model}-tuned"
        try:
            check_name(name)
        except ValueError as error:
            raise Refused(400, str(error), param="suffix") from error
        if not self.service.may_use(caller, name):
            message = (
                f"this key may not make an adapter {name!r}: an admin gives the right to a name"
            )
            raise Refused(403, message, param="suffix", code="name_not_allowed")
        files = {"train": self.upload(asked.training_file, caller, "training_file")}
        if asked.validation_file is not None:
            files["valid"] = self.upload(asked.validation_file, caller, "validation_file")
        values = self.spec_of(asked, name, files)
        request = asked.model_dump(exclude={"minilora", "method"}, exclude_none=True)
        request |= {"hyperparameters": asked.settings.model_dump()}
        request |= {"files": {str(self.uploads.path(f)): f.filename for f in files.values()}}
        hub = getattr(self.service.hub, "tenant", None)
        return values, request | ({"hub_tenant": hub} if hub else {})

    def forecast(self, asked: CreateJob, caller: Any) -> dict[str, Any]:
        """What a job of this request would need, by the ledger; nothing is queued. Raises
        ``Refused``, as ``create`` would."""
        values, request = self.specified(asked, caller)
        try:
            foreseen = check_spec(Spec.parse(values, files=True), self.limits).as_dict()
        except ValueError as error:
            raise refused(error, request) from error
        return {"object": "fine_tuning.forecast", **foreseen}

    def create(self, asked: CreateJob, caller: Any, key: str, again: bool) -> Job:
        """The job of a request, checked whole before it is queued. Raises ``Refused``."""
        values, request = self.specified(asked, caller)
        since = 0.0 if key else self.queue.clock() - TRIED_AGAIN
        key = key or json.dumps([values, request], sort_keys=True)
        job = self.earlier(key, caller, since) if again else None
        if job is None:
            try:
                check_spec(Spec.parse(values, files=True), self.limits)
                job = self.queue.submit(values, tenant=name_of(caller), key=key, request=request)
            except ValueError as error:
                raise refused(error, request) from error
        if read_object(job.spec) != values:
            message = f"the idempotency key {key!r:.80} was used for another job, {job.id}"
            raise Refused(400, f"{message}: give each its own", code="idempotency_key_reused")
        return job

    def earlier(self, key: str, caller: Any, since: float) -> Job | None:
        """The newest job of the same key that is not older, ended or not."""
        mine = self.queue.jobs(name_of(caller))
        return next((job for job in mine if job.key == key and job.created >= since), None)

    def spec_of(self, asked: CreateJob, name: str, files: Mapping[str, Upload]) -> dict[str, Any]:
        """The spec that a request means. Raises ``Refused`` for paths in it."""
        more, settings = asked.minilora, asked.settings
        paths = [("replay", "source"), ("evaluation", "regression")]
        for section, field in paths:
            if (getattr(more, section) or {}).get(field, "self") != "self":
                message = f"minilora.{section}.{field}: a request names no file of the server"
                raise Refused(400, message, param=f"minilora.{section}.{field}")
        train = dict(more.train)
        train |= {"epochs": float(settings.n_epochs)} if settings.n_epochs != "auto" else {}
        train |= {"batch_size": settings.batch_size} if settings.batch_size != "auto" else {}
        if settings.learning_rate_multiplier != "auto":
            size = architecture(self.base.get("folder") or SHIPPED).parameters
            train["lr"] = rate_for(size) * settings.learning_rate_multiplier
        train |= {"seed": asked.seed} if asked.seed is not None else {}
        data = {side: str(self.uploads.path(upload)) for side, upload in files.items()}
        spec = {"name": name, "base": self.base, "data": data, "train": train}
        spec |= {"method": more.method, "evaluation": {"checkpoints": 3, **more.evaluation}}
        return spec | ({"replay": more.replay} if more.replay else {})


def refused(error: ValueError, request: Mapping[str, Any]) -> Refused:
    """What is wrong with a job, without paths of this machine."""
    message = without_paths(str(error), dict(request))
    full = str(error).startswith("the quota of")  # as tables.check_quota says it
    code = "quota_exceeded" if full else "invalid_training_job"
    return Refused(429 if full else 400, message, param="training_file", code=code)


def name_of(caller: Any) -> str:
    """Whose jobs these are."""
    return "local" if caller is None else caller.name


def unknown(what: str, id: str, param: str | None = None) -> Refused:
    """404, the same for what never was and for another tenant's."""
    return Refused(404, f"there is no {what} {id!r:.80}", param=param, code=f"{what}_not_found")
