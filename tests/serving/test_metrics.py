"""Labels are bounded, latencies are of what came, gauges are of now."""

from contextlib import nullcontext
from types import SimpleNamespace

from minilora.serving.metrics import MOST, Metrics

ONE = {"prompt": 8, "generated": 4, "waited": 0.02, "took": 0.1}


def lines(metrics):
    """Value by series."""
    text = metrics.text().decode()
    pairs = (line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    return {series: float(value) for series, value in pairs}


def test_models_beyond_the_most_are_one_label_and_versions_are_one_model():
    metrics = Metrics()
    for number in range(MOST):
        metrics.answered(f"m{number}@1.0.0", 200, **ONE)
    for name in ("beyond", "m0@2.0.0", "more"):
        metrics.answered(name, 200, **ONE)
    told = lines(metrics)
    assert told['minilora_requests_total{model="other",status="200"}'] == 2
    assert told['minilora_requests_total{model="m0",status="200"}'] == 2
    assert told[f'minilora_requests_total{{model="m{MOST - 1}",status="200"}}'] == 1
    assert not any("beyond" in series for series in told)


def test_tokens_and_times_are_added_up_and_what_had_no_token_has_no_first():
    metrics = Metrics()
    metrics.answered("a", 200, **ONE)
    metrics.answered("a", 500, prompt=1, generated=0, waited=None, took=2.0)
    told = lines(metrics)
    assert told['minilora_tokens_total{kind="prompt",model="a"}'] == 9
    assert told['minilora_tokens_total{kind="generated",model="a"}'] == 4
    assert told['minilora_first_token_seconds_count{model="a"}'] == 1
    assert told['minilora_first_token_seconds_sum{model="a"}'] == 0.02
    assert told['minilora_request_seconds_count{model="a"}'] == 2
    assert told['minilora_request_seconds_bucket{le="0.1",model="a"}'] == 1
    assert told['minilora_requests_total{model="a",status="500"}'] == 1


def test_an_engine_is_read_at_each_scrape():
    cache = SimpleNamespace(lock=nullcontext(), residents=[1], nbytes=64)
    batch = SimpleNamespace(slots=4, in_use=[1, 2])
    bank = SimpleNamespace(cache=cache)
    engine = SimpleNamespace(bank=bank, batch=batch, waiting=[1, 2], arrivals=[1])
    metrics = Metrics()
    metrics.watch(engine)
    told = lines(metrics)
    assert [told[f"minilora_{name}"] for name in ("rows", "rows_running", "waiting")] == [4, 2, 3]
    assert (told["minilora_adapters"], told["minilora_adapter_bytes"]) == (1, 64)
    batch.in_use = []
    assert lines(metrics)["minilora_rows_running"] == 0
