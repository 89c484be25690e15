"""What a server is made of, and what a model's name means to it.

    model              answered by
    the base's name    the base, without adapter
    a loaded name      the adapter that was given at the start or by /v1/load_lora_adapter
    naval              the hub's naval@champion; its newest version where there is no champion
    naval@1.2.0        that version; so for naval@1.2 and any alias
    auto               whichever the hub's router chooses for the question, or the base

A name is looked up once, when the request arrives, and becomes a content: whoever moves
``champion`` afterwards changes nothing for it (vllm-project/vllm #47724 is about a server that
mixed them up). Nobody is answered by the base because a name is unknown: that is a 404, the same
one as for an adapter that this key may not use.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..hub.registry import Version
from ..hub.router import Route, Router
from ..hub.semver import check_name
from ..hub.store import Hub
from .adapter_store import AdapterStore
from .answer_cache import AnswerCache
from .answered import Answered
from .audit import Audit
from .engine import Engine
from .experiments import Experiments
from .failover import Failover
from .metrics import Metrics
from .refusals import Refused, unknown_model
from .tenants import Tenants

logger = logging.getLogger("minilora.serving")
AUTO, CHAMPION = "auto", "champion"


@dataclass(frozen=True)
class Target:
    """Who answers: ``model`` as the response names it, ``adapter`` as the bank knows it."""

    model: str
    adapter: str | None
    digest: str | None
    why: str


@dataclass
class Service:
    """The parts of a server. ``root``: the only folder from which adapters may be loaded by path.

    ``usual_tokens``: the most new tokens of a request that names no limit.

    >>> from minilora import load_base
    >>> from minilora.serving import AdapterBank, Engine
    >>> bank = AdapterBank(load_base())
    >>> service = Service(Engine(bank), bank)
    >>> service.names(None), service.find("minilora-base", None).why
    (['minilora-base'], 'the base was asked for')
    """

    engine: Engine
    bank: AdapterStore
    base_name: str = "minilora-base"
    hub: Hub | None = None
    router: Callable[[], Router] | None = None
    tenants: Tenants | None = None
    experiments: Experiments | None = None
    failover: Failover | None = None
    on_answer: Callable[[Answered], None] | None = None
    on_feedback: Callable[[Any, str, Any], str | None] | None = None  # (tenant, request, all of it)
    audit: Audit | None = None
    answers: AnswerCache | None = None
    metrics: Metrics = field(default_factory=Metrics)
    root: Path | None = None
    usual_tokens: int = 256
    draining: bool = False
    started: int = field(default_factory=lambda: int(time.time()))
    changing: threading.Lock = field(default_factory=threading.Lock)  # of loaded names

    def may_use(self, tenant: Any, name: str) -> bool:
        """Whether a tenant may use an adapter; a right is to a name, in all its versions."""
        return self.tenants is None or self.tenants.may_use(tenant, name.partition("@")[0])

    def names(self, tenant: Any) -> list[str]:
        """The models that a tenant may use: the base, then adapters, sorted."""
        loaded = {name for name in self.bank.names() if "@" not in name}
        names = sorted(loaded | ({each.name for each in self.hub_versions()}))
        return [self.base_name, *(name for name in names if self.may_use(tenant, name))]

    def hub_versions(self) -> tuple[Version, ...]:
        """What the hub has for this base."""
        if self.hub is None:
            return ()
        try:
            return self.hub.search(base=self.bank.fingerprint.architecture)
        except FileNotFoundError:  # nothing was pushed yet
            return ()

    def find(self, model: str, tenant: Any, question: str = "") -> Target:
        """What a model's name means now, ready to answer. Raises ``Refused``."""
        if model == AUTO:
            return self.route(question, tenant)
        if model == self.base_name:
            return Target(model, None, None, "the base was asked for")
        if not self.may_use(tenant, model):
            raise unknown_model(model)
        known = self.bank.known.get(model)
        if known is not None and "@" not in model:
            return Target(model, model, known.content, "asked for by name")
        version = self.version(model)
        try:
            self.fetch(version)
        except (ValueError, OSError) as error:
            status = 500 if isinstance(error, OSError) else 400
            logger.exception("%s cannot be served", version.spec)  # it may name folders
            reason = f"{version.spec} cannot be served; the server's log says why"
            raise Refused(status, reason, param="model", code="adapter_unavailable") from error
        content = version.manifest.content
        return Target(model, version.spec, content, f"{model} is {version.spec} of the hub")

    def version(self, model: str) -> Version:
        """The hub's version that a name means. Raises ``Refused``."""
        if self.hub is None:
            raise unknown_model(model)
        for spec in [model] if "@" in model else [f"{model}@{CHAMPION}", model]:
            try:
                return self.hub.show(spec)
            except (ValueError, FileNotFoundError):
                continue
        raise unknown_model(model)

    def fetch(self, version: Version) -> None:
        """Have a version in the bank; it is read and checked the first time, and again where the
        number has other content by now, as in a hub that was made anew.
        """
        known = self.bank.known.get(version.spec)
        if self.hub is None or (known and known.content == version.manifest.content):
            return
        self.bank.load(version.spec, self.hub.pull(version.spec), replace=True)

    def route(self, question: str, tenant: Any) -> Target:
        """Let the router choose among the adapters that a tenant may use. Raises ``Refused``."""
        if self.router is None:
            raise Refused(
                400, "there is no router: name a model, or start with --hub", param="model"
            )
        try:
            router = self.router()
        except (ValueError, OSError) as error:
            raise Refused(400, f"auto: {error}", param="model") from error
        ranking = router.route(question, best=len(router.names)).ranking
        allowed = [pair for pair in ranking if self.may_use(tenant, pair[0])]
        name, why = chosen(Route(None, 0.0, tuple(allowed)), router.threshold)
        target = self.find(name or self.base_name, tenant)
        return Target(target.model, target.adapter, target.digest, why)

    def load(self, name: str, path: str, replace: bool = False) -> str:
        """Load an adapter under a name; returns its digest. Raises ``Refused``.

        ``path``: a folder under ``root``, with every symlink followed first, or a name of the hub.
        """
        with self.changing:
            check_name(name)
            if name in (self.base_name, AUTO) or name in {v.name for v in self.hub_versions()}:
                raise Refused(400, f"{name!r} is taken: choose another name", param="lora_name")
            try:
                folder = self.folder(path)
            except (ValueError, OSError) as error:
                message = f"{path[:80]!r}: {error}"
                raise Refused(404, message, param="lora_path", code="adapter_not_found") from error
            try:
                return self.bank.load(name, folder, replace=replace)
            except (ValueError, OSError) as error:
                reason = str(error).replace(str(folder), path)
                raise Refused(400, f"{name}: {reason}", param="lora_path") from error

    def folder(self, path: str) -> Path:
        """The folder of a path that came in a request. Raises ``Refused``, ``ValueError``."""
        if self.root is not None:
            root = self.root.resolve()
            folder = (root / path).resolve()  # an absolute path replaces the root: checked below
            if folder.is_relative_to(root) and folder.is_dir():
                return folder
        if self.hub is not None and "/" not in path and "\\" not in path:
            return self.hub.pull(path)
        places = ["a folder under the server's --root"] * bool(self.root)
        places += ["a name of the hub"] * bool(self.hub)
        message = f"expected {' or '.join(places) or 'none: there is no hub'}, got {path!r:.80}"
        message += "" if self.root else "; folders can be loaded from a server with --root"
        raise Refused(404, message, param="lora_path", code="adapter_not_found")

    def unload(self, name: str) -> None:
        """Forget a loaded name. Raises ``Refused``."""
        with self.changing:
            if name not in self.bank.known or "@" in name:
                raise unknown_model(name)
            self.bank.unload(name)


def chosen(route: Route, threshold: float) -> tuple[str | None, str]:
    """The first of a ranking if it stands out, and a sentence that says why or why not.

    >>> chosen(Route(None, 0.0, (("naval", 0.9), ("legal", 0.2))), threshold=0.5)
    ('naval', 'the router chose naval: 0.70 above legal, at least 0.50 is needed')
    """
    if not route.ranking:
        return None, "the router knows no adapter that this key may use: the base"
    (name, best), *others = route.ranking
    second, score = others[0] if others else ("the next", best)
    margin = best - score
    above = f"{margin:.2f} above {second}, at least {threshold:.2f} is needed"
    if margin < threshold:
        return None, f"the router chose the base: {name} is {above}"
    return name, f"the router chose {name}: {above}"
