"""What a server counts, in Prometheus' text: requests, tokens, latencies by model; the queue now.

Each server has a registry of its own, so two in one process do not count together.

**Labels are bounded.** A label's every new value is a new series that lives as long as the process
(prometheus.io/docs/practices/naming: "do not use labels to store dimensions with high
cardinality"). Here a model is its name without version, only ones that answered, at most ``MOST``
of them, then ``other``; tenants, users and request ids are no labels at all. Names of adapters are
their tenants' own business, so ``/metrics`` wants an admin's key where there are keys.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily

MOST = 200  # models by name
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """Counters and histograms; ``watch`` adds what an engine has to say at each reading.

    >>> metrics = Metrics()
    >>> metrics.answered("naval@1.2.0", 200, prompt=8, generated=4, waited=0.02, took=0.1)
    >>> b'minilora_tokens_total{kind="generated",model="naval"} 4.0' in metrics.text()
    True
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.models: set[str] = set()
        kept: dict[str, Any] = {"registry": self.registry}
        timed = {"buckets": SECONDS, **kept}
        self.requests = Counter(
            "minilora_requests", "generations by outcome", ["model", "status"], **kept
        )
        self.tokens = Counter("minilora_tokens", "tokens", ["model", "kind"], **kept)
        self.first = Histogram(
            "minilora_first_token_seconds", "from arrival to the first token", ["model"], **timed
        )
        self.whole = Histogram(
            "minilora_request_seconds", "from arrival to the end", ["model"], **timed
        )

    def label(self, model: str) -> str:
        """A model's label."""
        name = model.partition("@")[0]
        if len(self.models) < MOST:
            self.models.add(name)
        return name if name in self.models else "other"

    def answered(
        self,
        model: str,
        status: int,
        *,
        prompt: int,
        generated: int,
        waited: float | None,
        took: float,
    ) -> None:
        """Count one generation; ``waited`` and ``took`` in seconds."""
        name = self.label(model)
        self.requests.labels(name, str(status)).inc()
        self.tokens.labels(name, "prompt").inc(prompt)
        self.tokens.labels(name, "generated").inc(generated)
        self.whole.labels(name).observe(took)
        if waited is not None:
            self.first.labels(name).observe(waited)

    def watch(self, engine: Any) -> None:
        """Read an engine's state at every scrape."""
        self.registry.register(EngineState(engine))

    def text(self) -> bytes:
        """Prometheus' text format."""
        return generate_latest(self.registry)


class EngineState:
    """Gauges of an engine, read when they are asked for."""

    def __init__(self, engine: Any):
        self.engine = engine

    def now(self) -> dict[str, tuple[str, float]]:
        """Name -> (what it is, its value)."""
        engine = self.engine
        cache = engine.bank.cache
        with cache.lock:
            adapters, nbytes = len(cache.residents), cache.nbytes
        return {
            "minilora_rows": ("rows of the batch", engine.batch.slots),
            "minilora_rows_running": ("rows in use", len(engine.batch.in_use)),
            "minilora_waiting": (
                "requests without a row",
                len(engine.waiting) + len(engine.arrivals),
            ),
            "minilora_adapter_bytes": ("adapters in memory, in bytes", nbytes),
            "minilora_adapters": ("adapters in memory", adapters),
        }

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Prometheus' side."""
        for name, (purpose, value) in self.now().items():
            yield GaugeMetricFamily(name, purpose, value)
