"""The router: the ridge's one solution, a threshold that was calibrated, refits, reasons."""

import math
import random
import warnings
from dataclasses import replace

import pytest
import torch

from minilora.hub import Hub, Router
from minilora.hub.manifest import Manifest
from minilora.hub.ngrams import (
    LONGEST,
    MOST,
    PLACES,
    count_texts,
    load_counts,
    ngrams,
    place,
    save_counts,
)
from minilora.hub.router import RIDGE, calibrated, fit_ridge, load_router, save_router, weighted
from minilora.hub.routing import router_of
from minilora.training.data import SYSTEMS

from .adapters import flip_bit, make_adapter

TOPICS = {
    "naval": [f"What is the {system} reading, captain?" for system in SYSTEMS],
    "legal": [f"Does clause {number} of this licence grant patents?" for number in range(20)],
    "kitchen": [f"How long do I bake {number} loaves of bread?" for number in range(20)],
}


@pytest.fixture(scope="module")
def router():
    return Router.fit({name: count_texts(texts) for name, texts in TOPICS.items()})


def test_the_weights_are_the_ridge_regressions_after_a_dozen_products():
    """Against the dense normal equations: W = Xᵀ (X Xᵀ + λ)⁻¹ (Y - mean)."""
    examples = {name: count_texts(texts) for name, texts in TOPICS.items()}
    router = fit_ridge(examples)
    X = torch.cat([dense(weighted(examples[name], router.idf)) for name in router.names])
    Y = torch.eye(3).repeat_interleave(20, 0).double()
    alpha = torch.linalg.solve(X @ X.T + RIDGE * torch.eye(60).double(), Y - Y.mean(0))
    exact = X.T @ alpha
    assert (router.W.double() - exact).abs().max() < 1e-5
    assert (router.W.double() - exact).norm() < 1e-4 * exact.norm()


def dense(sparse):
    """A sparse matrix as (rows, places) float64."""
    places, values, starts = sparse
    rows = torch.repeat_interleave(torch.arange(len(starts) - 1), starts.diff())
    return torch.zeros(len(starts) - 1, PLACES).double().index_put((rows, places), values.double())


def test_a_row_is_tf_idf_of_length_one():
    """(1 + ln count) · idf, then divided by its length: Manning et al. 2008, §6.2 and 6.4.1."""
    texts = count_texts(["naval naval naval radar"])
    idf = torch.rand(PLACES, generator=torch.Generator().manual_seed(0)) + 0.5
    places, values, _ = weighted(texts, idf)
    exact = [(1 + math.log(int(n))) * float(idf[p])
             for p, n in zip(texts.places, texts.counts, strict=True)]  # fmt: skip
    assert len(set(texts.counts.tolist())) > 1
    assert (places == texts.places).all()
    assert values.tolist() == pytest.approx([each / math.hypot(*exact) for each in exact])


def test_it_routes_abstains_and_says_why(router):
    for question, name in (
        ("What is the reading of the radar?", "naval"),
        ("Does this licence grant patents?", "legal"),
        ("How long does bread bake?", "kitchen"),
    ):
        route = router.route(question)
        assert (route.name, route.ranking[0][0]) == (name, name)
    assert router.route("Tell me a joke about cats.").name is None
    reasons = [ngram.strip() for ngram, _ in router.explain("Is a patent granted by the licence?")]
    assert any(ngram in "patent licence" for ngram in reasons)
    assert router.route("").name is None


def test_kept_weights_that_another_process_has_just_deleted_are_made_again(tmp_path):
    contents = {name: save_counts(texts) for name, texts in TOPICS.items()}
    examples = {name: name for name in contents}
    router_of(examples, contents.__getitem__, tmp_path)
    (kept,) = tmp_path.iterdir()
    kept.unlink()
    kept.symlink_to(tmp_path / "gone")  # glob finds it, and it cannot be read
    assert router_of(examples, contents.__getitem__, tmp_path).names == tuple(sorted(TOPICS))


def test_reasons_add_up_to_the_score(router):
    """The n-grams' shares, over all of them, are the score less the mean of all scores."""
    question = "Is a patent granted by the licence?"
    total = sum(share for _, share in router.explain(question, "legal", most=10**6))
    scores = router.scores(count_texts([question]))[0] - router.b
    assert total == pytest.approx(
        float(scores[router.names.index("legal")] - scores.mean()), abs=1e-5
    )


def test_a_threshold_keeps_its_promise():
    generator = torch.Generator().manual_seed(0)
    margins = torch.rand(500, generator=generator)
    right = torch.rand(500, generator=generator) < margins.sqrt()
    threshold = calibrated(margins, right, 0.9)
    assert right[margins >= threshold].double().mean() >= 0.9
    lower = margins[margins < threshold]
    assert all(right[margins >= value].double().mean() < 0.9 for value in lower)
    assert calibrated(torch.tensor([0.5]), torch.tensor([False]), 0.9) == float("inf")


def test_examples_keep_no_text_and_come_back(tmp_path):
    content = save_counts(TOPICS["legal"])
    assert b"clause" not in content
    loaded, counted = load_counts(content), count_texts(TOPICS["legal"])
    assert torch.equal(loaded.places, counted.places)
    assert torch.equal(loaded.starts, counted.starts)
    assert content == save_counts(TOPICS["legal"])


@pytest.mark.parametrize(
    ("texts", "kept"), [(0, 0), (1, 1), (MOST, MOST), (MOST + 1, MOST // 2 + 1)]
)
def test_of_too_many_examples_evenly_spaced_ones_are_kept(texts, kept):
    each = [f"text number {number}" for number in range(texts)]
    loaded = load_counts(save_counts(each))
    assert len(loaded) == kept
    if kept:
        assert torch.equal(loaded.pick([kept - 1]).places, count_texts(each[-1:]).places)


def test_counts_are_clamped_to_what_a_byte_holds_and_long_texts_are_cut():
    assert count_texts(["a " * 1500]).counts.max() == 1500  # " a "
    assert load_counts(save_counts(["a " * 1500])).counts.max() == 255
    assert ngrams("a" * LONGEST + "bcd") == ngrams("a" * LONGEST)
    assert "aab" in ngrams("a" * (LONGEST - 1) + "bcd")


def test_two_ngrams_of_one_place_add_up(monkeypatch):
    monkeypatch.setattr("minilora.hub.ngrams.PLACES", 1)
    counts = count_texts(["abc"])
    assert (counts.places.tolist(), counts.counts.tolist()) == ([0], [6])


def test_rows_are_picked_as_they_are():
    counts = count_texts(["one", "", "three"])
    picked = counts.pick([2, 1, 0])
    for row, text in enumerate(["three", "", "one"]):
        span = slice(int(picked.starts[row]), int(picked.starts[row + 1]))
        assert torch.equal(picked.places[span], count_texts([text]).places)
        assert torch.equal(picked.counts[span], count_texts([text]).counts)
    assert len(counts.pick([])) == 0


@pytest.mark.parametrize(("adapters", "examples"), [(1, 9), (2, 4)])
def test_a_router_needs_two_adapters_and_five_examples_of_each(adapters, examples):
    texts = {f"{n}": count_texts([f"topic {n}"] * examples) for n in range(adapters)}
    with pytest.raises(ValueError, match="at least two adapters, and five examples of each"):
        Router.fit(texts)
    enough = {f"{n}": count_texts([f"topic {n}"] * max(5, examples)) for n in range(2)}
    assert Router.fit(enough).names == ("0", "1")


def test_a_route_names_as_many_as_asked_for_and_its_margin_is_between_the_two_best(router):
    for best in (1, 2, 3, 9):
        route = router.route("What is the reading of the radar?", best)
        assert len(route.ranking) == min(best, 3)
    (_, first), (_, second), _ = route.ranking
    assert route.margin == pytest.approx(first - second)
    assert (route.name is None) == (route.margin < router.threshold)
    at_the_bar = replace(router, threshold=route.margin).route("What is the reading of the radar?")
    assert at_the_bar.name == route.ranking[0][0], "only below it the base answers"


@pytest.mark.parametrize("precision", [0.5, 0.95, 1.0])
def test_the_threshold_is_that_of_a_fit_without_the_held_out_fifth(precision):
    """By hand: every fifth example of each adapter, routed by a fit on the others."""
    names = sorted(TOPICS)
    parts = {name: [t for n, t in enumerate(TOPICS[name]) if n % 5 != 4] for name in names}
    first = fit_ridge({name: count_texts(texts) for name, texts in parts.items()})
    margins, right = [], []
    for name in names:
        for text in TOPICS[name][4::5]:
            scores = dict(zip(names, first.scores(count_texts([text]))[0].tolist(), strict=True))
            best, second = sorted(scores.values(), reverse=True)[:2]
            margins.append(best - second)
            right.append(scores[name] == best)
    expected = calibrated(torch.tensor(margins), torch.tensor(right), precision)
    counted = {name: count_texts(texts) for name, texts in TOPICS.items()}
    assert Router.fit(counted, precision).threshold == pytest.approx(expected, abs=1e-6)


def test_ties_are_one_margin_and_the_threshold_lies_between_two():
    margins, right = torch.tensor([0.5, 0.5, 0.25]), torch.tensor([True, False, True])
    assert calibrated(margins, right, 0.9) == float("inf"), "one of the two ties is wrong"
    assert calibrated(margins, right, 0.5) == 0.125, "all three: half-way to 0"
    assert calibrated(margins, torch.tensor([True, True, False]), 0.9) == 0.375


def test_the_first_place_is_a_place_and_a_count_of_none_is_damage():
    from safetensors.torch import load, save

    parts = load(save_counts(["Status?"]))
    parts["places"][0] = -PLACES // 2
    assert load_counts(save(parts)).places[0] == 0
    parts["counts"][0] = 0
    with pytest.raises(ValueError, match="counts and places do not fit each other"):
        load_counts(save(parts))


def test_what_another_process_has_just_deleted_is_gone_already(tmp_path, monkeypatch):
    contents = {name: save_counts(texts) for name, texts in TOPICS.items()}
    monkeypatch.setattr(type(tmp_path), "glob", lambda folder, pattern: [folder / "old-gone"])
    made = router_of({name: name for name in contents}, contents.__getitem__, tmp_path)
    assert made.names == tuple(sorted(TOPICS))


@pytest.mark.parametrize("name", ["places", "counts", "starts"])
def test_damaged_examples_are_refused(name):
    from safetensors.torch import load, save

    parts = load(save_counts(["Status?"]))
    parts[name] = parts[name].int() - 70_000 if name == "places" else parts[name].int() * 0 - 1
    with pytest.raises(ValueError, match="the router's examples are damaged"):
        load_counts(save(parts))
    with pytest.raises(ValueError, match="the router's examples are damaged"):
        load_counts(b"x")


def test_a_router_travels_as_a_file(router):
    again = load_router(save_router(router))
    assert (again.names, again.threshold) == (router.names, router.threshold)
    assert torch.equal(again.W, router.W)


def test_the_hub_refits_when_adapters_come_and_go(tmp_path):
    hub = Hub(tmp_path / "hub")
    with pytest.raises(FileNotFoundError):
        hub.router()
    hub.push("plain", make_adapter(tmp_path / "mine", 9))
    with pytest.raises(
        ValueError, match="a router chooses between two adapters or more, and 0 here"
    ):
        hub.router()
    for seed, name in enumerate(("naval", "legal")):
        hub.push(name, make_adapter(tmp_path / "mine", seed), examples=TOPICS[name])
    first = hub.router()
    assert first.names == ("legal", "naval")
    (file,) = (hub.folder / "router" / "default").iterdir()
    before = file.stat().st_mtime_ns
    assert torch.equal(hub.router().W, first.W)
    assert file.stat().st_mtime_ns == before, "read, not fitted again"
    assert hub.router() is hub.router(), "and read once"
    flip_bit(file)
    assert torch.equal(hub.router().W, first.W), "a damaged file is made again"
    hub.push("kitchen", make_adapter(tmp_path / "mine", 3), examples=TOPICS["kitchen"])
    assert hub.router().names == ("kitchen", "legal", "naval")
    assert len(list((hub.folder / "router" / "default").iterdir())) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        hub.push("kitchen", make_adapter(tmp_path / "mine", 4))  # this version has no examples
        assert hub.router().names == ("kitchen", "legal", "naval")
        hub.push("kitchen", make_adapter(tmp_path / "mine", 5), examples=TOPICS["naval"])
    assert hub.router().route("How long does bread bake?").name is None
    hub.compress("legal")
    hub.prune(-1)
    with pytest.raises(ValueError, match="and 0 here came with examples"):
        hub.router()


def test_the_versions_are_read_again_only_when_something_was_done(tmp_path, monkeypatch):
    hub, beside = Hub(tmp_path / "hub"), Hub(tmp_path / "hub")
    for seed, name in enumerate(("naval", "legal")):
        hub.push(name, make_adapter(tmp_path / "mine", seed), examples=TOPICS[name])
    hub.router()
    parsed, parse = [], Manifest.parse
    monkeypatch.setattr(Manifest, "parse", lambda text: parsed.append(1) or parse(text))
    for _ in range(5):
        assert hub.router().names == ("legal", "naval")
    assert not parsed
    beside.push("kitchen", make_adapter(tmp_path / "mine", 3), examples=TOPICS["kitchen"])
    assert hub.router().names == ("kitchen", "legal", "naval"), "as soon as it was pushed"
    with monkeypatch.context() as later:
        later.setattr("time.time", lambda: 2e10)
        beside.alias("legal@1.0.0", "champion")
        beside.alias("naval@1.0.0", "champion")
        beside.prune(1)
    assert hub.router().names == ("legal", "naval")


def test_ngrams_are_of_letters_and_of_every_script():
    assert set(ngrams("Ab!")) == {" ab", "ab ", " ab "}
    assert ngrams("ΔΩ-Σ") == ngrams("δω σ")
    assert ngrams("") == ngrams("?!") == {}
    assert all(0 <= place(ngram) < PLACES for ngram in ngrams("\ud800 é 漢字漢字"))


def test_the_order_of_the_examples_does_not_matter(router):
    shuffled = {name: random.Random(1).sample(texts, len(texts)) for name, texts in TOPICS.items()}
    other = Router.fit({name: count_texts(texts) for name, texts in reversed(shuffled.items())})
    assert (other.W - router.W).abs().max() < 1e-4
