"""What the fine-tuning API takes and gives, field by field, as the ``openai`` client knows it.

    model              the server's base
    hyperparameters    n_epochs, batch_size, learning_rate_multiplier × the rate for this base
    suffix             the adapter's name in the hub
    minilora           more, in a spec's sections: method, train, replay, evaluation

What this server cannot do (preferences, reinforcement, integrations) is refused, and so is a path
in a request.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from .tables import Event, Job
from .uploads import Upload

Auto = Literal["auto"]


class Strict(BaseModel):
    """Fields are those listed; a value has its field's type."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Hyperparameters(Strict):
    """``auto``: what suits the base."""

    n_epochs: Annotated[int, Field(ge=1, le=1000)] | Auto = "auto"
    batch_size: Annotated[int, Field(ge=1, le=4096)] | Auto = "auto"
    learning_rate_multiplier: Annotated[float, Field(gt=0, le=1000)] | Auto = "auto"


class Supervised(Strict):
    """Of the method."""

    hyperparameters: Hyperparameters = Hyperparameters()


class Method(Strict):
    """Only the supervised one."""

    type: Literal["supervised"]
    supervised: Supervised = Supervised()


class Sections(Strict):
    """Sections of a spec.toml, without paths."""

    method: dict[str, Any] = {}
    train: dict[str, Any] = {}
    replay: dict[str, Any] | None = None
    evaluation: dict[str, Any] = {}


class CreateJob(Strict):
    """The body of ``POST /v1/fine_tuning/jobs``."""

    model: str
    training_file: str
    validation_file: str | None = None
    hyperparameters: Hyperparameters | None = None
    method: Method | None = None
    suffix: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**32)] | None = None
    metadata: Annotated[dict[str, str], Field(max_length=16)] | None = None
    integrations: Annotated[list[Any], Field(max_length=0)] | None = None
    minilora: Sections = Sections()

    @property
    def settings(self) -> Hyperparameters:
        """The newer place first."""
        if self.method is not None:
            return self.method.supervised.hyperparameters
        return self.hyperparameters or Hyperparameters()


def file_object(upload: Upload) -> dict[str, Any]:
    """A file, as the API shows it."""
    return {
        "id": upload.id,
        "object": "file",
        "bytes": upload.bytes,
        "created_at": int(upload.created),
        "filename": upload.filename,
        "purpose": upload.purpose,
        "status": "processed",
    }


def job_object(job: Job) -> dict[str, Any]:
    """A job, as the API shows it; ``progress``, ``forecast``, ``scores``, ``seconds`` are ours."""
    asked, result = job.request, job.result
    validating = job.status == "running" and job.step == "prepare"
    finish = job.progress.get("finish") if job.status == "running" else None
    error = {"code": "job_failed", "message": without_paths(job.error, asked), "param": None}
    settings = asked.get("hyperparameters", {})
    return {
        "id": job.id,
        "object": "fine_tuning.job",
        "created_at": int(job.created),
        "finished_at": whole(job.ended),
        "estimated_finish": whole(finish),
        "model": asked.get("model", ""),
        "fine_tuned_model": result.get("version"),
        "organization_id": job.tenant,
        "status": "validating_files" if validating else job.status,
        "hyperparameters": settings,
        "method": {"type": "supervised", "supervised": {"hyperparameters": settings}},
        "training_file": asked.get("training_file", ""),
        "validation_file": asked.get("validation_file"),
        "result_files": [],
        "trained_tokens": result.get("training", {}).get("tokens"),
        "error": error if job.status == "failed" else None,
        "seed": asked.get("seed", 0),
        "metadata": asked.get("metadata"),
        "integrations": [],
        "progress": job.progress,
        "forecast": result.get("forecast"),
        "scores": result.get("scores"),
        "seconds": round(job.seconds, 1),
    }


def event_object(event: Event, job: Job) -> dict[str, Any]:
    """An event, as the API shows it."""
    return {
        "id": f"ftevent-{event.number}",
        "object": "fine_tuning.job.event",
        "created_at": int(event.at),
        "level": event.level,
        "type": event.type,
        "message": without_paths(event.message, job.request),
        "data": event.data,
    }


def checkpoint_objects(job: Job) -> list[dict[str, Any]]:
    """What a job made, the last first: the adapter, and those of earlier validations. Each is a
    model that can be asked by its name.
    """
    training = job.result.get("training", {})
    last = {"version": job.result["version"], "step": training.get("steps", 0)}
    last |= {"train_loss": training.get("loss"), "valid_loss": training.get("valid_loss")}
    return [
        {
            "id": f"ftckpt-{job.id.removeprefix('ftjob-')}-{made['step']}",
            "object": "fine_tuning.job.checkpoint",
            "created_at": whole(job.ended),
            "fine_tuned_model_checkpoint": made["version"],
            "fine_tuning_job_id": job.id,
            "metrics": {k: made[k] for k in ("step", "train_loss", "valid_loss") if k in made},
            "step_number": made["step"],
        }
        for made in [last, *job.result.get("checkpoints", [])]
    ]


def whole(seconds: float | None) -> int | None:
    """A time in whole seconds."""
    return None if seconds is None else int(seconds)


def without_paths(text: str, asked: Mapping[str, Any]) -> str:
    """A message for whoever asked: with the names of their files, and no folder of the server.

    >>> without_paths("/x/blobs/2c/2cf2: 3 rows", {"files": {"/x/blobs/2c/2cf2": "my.jsonl"}})
    'my.jsonl: 3 rows'
    """
    for path, filename in asked.get("files", {}).items():
        text = text.replace(path, filename)
    return re.sub(r"(?<![\w.])/(?:[\w.@+-]+/)+", "…/", text)
