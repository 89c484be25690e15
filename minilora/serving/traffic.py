"""Who answers a request: what an experiment draws, and who steps in when that one cannot.

    model ──an experiment's arm, if the user takes part──▶ adapter ──find──▶ target
      the adapter  →  its champion  →  the base, if the caller wrote x-minilora-fallback: base

One ``Turns`` is one request: ``next`` gives a target, ``report`` says how it went, and after a
failure before the first byte ``next`` gives another. Adapters that could not be read count as
failures too. An arm is drawn only for a tenant that may use all arms. Of an experiment that names
its champion (jobs/live.py) none is drawn once the alias has moved, or the arm's version is gone:
the model that was asked for answers. An owner's users see that their arm is gone, and count.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

from .assignment import Assignment
from .failover import Choice
from .refusals import Refused
from .service import AUTO, CHAMPION, Service, Target
from .tenants import LOCAL

logger = logging.getLogger("minilora.serving")
FAULTS = ("adapter_failed", "adapter_unavailable")  # codes that speak against an adapter
HEADER, ALLOWED = "x-minilora-fallback", "base"


class Turns:
    """The targets of one request, in turn. Its methods read files: call them in a thread."""

    def __init__(
        self, service: Service, tenant: Any, model: str, question: str, user: str | None,
        fallback: str,
    ):  # fmt: skip
        if fallback not in ("", ALLOWED):
            raise Refused(400, f"expected {HEADER}: {ALLOWED}, got {fallback!r:.40}", param=HEADER)
        self.service, self.tenant, self.question = service, tenant, question
        self.base_allowed, self.failed = fallback == ALLOWED, list[str | None]()
        self.arm: Assignment | None = None
        self.model, self.why = self.drawn(model, user)
        self.choice: Choice | None = None
        self.error: Refused | None = None

    @property
    def tenant_name(self) -> str:
        """Who asks."""
        return LOCAL.name if self.tenant is None else self.tenant.name

    def drawn(self, model: str, user: str | None) -> tuple[str, str]:
        """The adapter of the user's arm and why; the model that was asked for without one."""
        experiments = self.service.experiments
        arm = None
        if experiments is not None:
            arm = experiments.assign(model, user, self.tenant_name)
        if experiments is None or arm is None:
            return model, ""
        experiment = experiments.running.get(model)
        if experiment is None:  # it ended just now
            return model, ""
        if not all(self.service.may_use(self.tenant, each) for each in experiment.arms.values()):
            return model, ""
        if experiment.champion:  # one that may be drawn only beside it
            if self.champion(model) != experiment.champion:
                return model, ""
            if (gone := self.gone(arm.adapter)) is not None:
                logger.warning("experiment %r: %s; %s answers", experiment.name, gone, model)
                return model, ""
        self.arm = arm
        return arm.adapter, f"the experiment {arm.experiment} drew its arm {arm.arm}"

    def champion(self, model: str) -> str:
        """The version that the alias means now; nothing without one."""
        with suppress(Refused):
            return self.service.version(f"{model}@{CHAMPION}").spec
        return ""

    def gone(self, adapter: str) -> Refused | None:
        """Why there is no such adapter any more, if so: a version can be pruned."""
        loaded = "@" not in adapter and adapter in self.service.bank.known
        if loaded or adapter in (self.service.base_name, AUTO):
            return None
        try:
            self.service.version(adapter)
        except Refused as refused:
            return refused
        return None

    def record(self, request: str) -> None:
        """Log the arm that was drawn for a request that will be answered."""
        if self.service.experiments is not None and self.arm is not None:
            self.service.experiments.record(self.arm, request, self.tenant_name)

    def next(self) -> Target:
        """Who is to answer now. Raises ``Refused``; the first failure when nobody can step in."""
        first, name = self.asked_for()
        if self.service.failover is None:
            assert first is not None
            return first
        while True:
            try:
                choice = self.service.failover.choose(name, self.others(name), self.failed)
            except Refused as refused:
                raise self.error or refused from refused
            self.choice = choice
            try:
                target = first if choice.adapter == name else self.find(choice.adapter)
            except Refused as refused:
                self.report(False if refused.code in FAULTS else None, error=refused)
                continue
            if target is not None:
                return replace(target, why=choice.why or target.why)
            self.report(False, error=self.error)

    def asked_for(self) -> tuple[Target | None, str | None]:
        """The target of the model asked for, None if it cannot be read, and its adapter."""
        try:
            target = self.service.find(self.model, self.tenant, self.question)
        except Refused as refused:
            if refused.code not in FAULTS or self.service.failover is None:
                raise
            self.error = self.error or refused
            return None, self.service.version(self.model).spec
        return replace(target, why=self.why or target.why), target.adapter

    def others(self, name: str | None) -> Iterator[str | None]:
        """Who may step in for an adapter."""
        if name is not None and "@" in name:
            with suppress(Refused):  # there is no champion
                yield self.service.version(f"{name.partition('@')[0]}@{CHAMPION}").spec
        if name is not None and self.base_allowed:
            yield None

    def find(self, adapter: str | None) -> Target:
        """A target by its adapter. Raises ``Refused``."""
        return self.service.find(adapter or self.service.base_name, self.tenant)

    def report(self, ok: bool | None, seconds: float = 0.0, error: Refused | None = None) -> None:
        """How the last one went, once; None says nothing about it."""
        choice, failover, self.choice = self.choice, self.service.failover, None
        if choice is None or failover is None:
            return
        failover.report(choice, ok, seconds)
        if not ok:
            self.failed.append(choice.adapter)
            self.error = self.error or error


def check_arms(service: Service) -> None:
    """Raise ``ValueError`` where an arm of the experiments' file cannot be answered.

    Of an experiment that a program began it is only logged: its users get what they ask for.
    """
    experiments = service.experiments
    for experiment, runs in experiments.all() if experiments is not None else []:
        for adapter in experiment.arms.values() if runs else []:
            try:
                service.find(adapter, None if service.tenants is None else LOCAL)
            except Refused as refused:
                told = f"experiment {experiment.name!r}: {refused}"
                if experiments is not None and experiment.name in experiments.in_file:
                    raise ValueError(told) from refused
                logger.warning("%s; its users get %s", told, experiment.model)
