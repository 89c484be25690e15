"""Live pairs: the aliases rule over the experiment; neither time nor strangers decide."""

import logging

import numpy as np
import pytest

from minilora.jobs.gate import FAIL, PASS, Rules, better
from minilora.jobs.live import Live, in_twos
from minilora.jobs.pairs import Pairs
from minilora.serving.experiments import Experiments
from minilora.serving.tenants import Tenants
from minilora.serving.traffic import check_arms

from ..serving.live import serving
from .test_corrections import NEW, OLD, Place


@pytest.fixture
def place(tmp_path):
    made = Place(tmp_path)
    with serving(made.service) as made.address:
        yield made


def arms(place, begin=0, count=16):
    """Who answers these users now."""
    place.experiments.read_at = 0.0  # a server looks once a second
    ids = [f"a{begin + number}" for number in range(count)]
    return {place.ask(id, f"guest {id}").json()["minilora"]["adapter"] for id in ids}


def program_saw(place, right, count):
    """Pairs of the owner's own, in which only one adapter is right."""
    contents = [place.hub.show(each).manifest.content for each in (OLD, NEW)]
    for _ in range(count):
        place.loop.store.outcome(*contents, right == OLD, right == NEW)


def promoted(place):
    """NEW was promoted, and half of the users still get OLD."""
    loop = place.loop
    place.hub.alias(NEW, "challenger")
    place.exam_was_won()
    program_saw(place, NEW, 4)
    assert loop.settle() == "promote"
    assert arms(place) == {OLD, NEW}


def test_an_alias_that_was_moved_by_hand_overrules_the_experiment(place):
    promoted(place)
    place.hub.alias(OLD, "champion")
    assert arms(place, 100) == {OLD}, "at once, and before the loop looks"
    assert place.loop.watch() == ""
    assert place.loop.live.running("naval") is None
    assert place.loop.watch() == ""
    assert place.loop.live.running("naval") is None, "nothing is begun again"


def test_the_watch_does_not_end_one_pair_before_harm_is_shown(place):
    """Seven lost refute a gain of two points, and only eight show harm."""
    promoted(place)
    live, seen = place.loop.live, Pairs((True,) * 7, (False,) * 7)
    live.pairs = lambda old, new: seen
    assert place.loop.watch() == ""
    assert live.running("naval") is not None
    seen += Pairs((True,), (False,))
    assert place.loop.watch() == OLD


def test_a_rollback_by_the_owners_program_ends_the_experiment(place):
    promoted(place)
    program_saw(place, OLD, 12)
    assert place.loop.watch() == OLD
    assert place.loop.live.running("naval") is None
    assert arms(place, 100) == {OLD}


def test_a_kill_between_alias_and_experiment_is_mended_at_the_next_look(place, monkeypatch):
    loop = place.loop
    place.hub.alias(NEW, "challenger")
    place.exam_was_won()
    assert loop.settle() == "wait"
    program_saw(place, NEW, 4)

    def killed(*versions):
        if versions[2].spec == NEW:
            raise KeyboardInterrupt
        return []

    monkeypatch.setattr(loop, "on_users", killed)
    with pytest.raises(KeyboardInterrupt):
        loop.settle()
    assert (loop.version("champion").spec, loop.version("previous").spec) == (NEW, OLD)
    assert arms(place) == {NEW}, "the challenger's experiment says nothing any more"
    assert loop.watch() == ""
    running = loop.live.running("naval")
    assert (running.champion, running.shares["old"]) == (NEW, loop.live.share)
    assert arms(place, 100) == {OLD, NEW}, "the one before is compared again"


def test_who_was_overtaken_leaves_the_aliases_as_they_are(place):
    loop, hub = place.loop, place.hub
    old, new = (hub.show(each) for each in (OLD, NEW))
    verdict = type("V", (), {"word": "promote", "reason": "all is well"})()
    hub.alias(NEW, "champion")
    assert loop.settled(new, old, verdict, []) == "overtaken"
    assert loop.version("previous") is None
    assert loop.version("champion").spec == NEW


def test_an_arm_that_was_pruned_stops_nobody(place, caplog):
    promoted(place)
    show = place.hub.show

    def pruned(spec):
        if spec == OLD:
            raise ValueError(f"there is no {OLD}")
        return show(spec)

    place.hub.show = pruned
    with caplog.at_level(logging.WARNING, "minilora.serving"):
        assert arms(place, 100) == {NEW}
        check_arms(place.service)  # as minilora serve does when it starts
    assert any("naval answers" in line and OLD in line for line in caplog.messages)
    assert any("its users get naval" in line for line in caplog.messages)


def test_only_the_users_of_the_loops_tenant_take_part(tmp_path):
    tenants = Tenants(tmp_path / "keys.sqlite")
    acme, rival = (tenants.add(name, adapters=["naval"]) for name in ("acme", "rival"))
    place = Place(tmp_path, tenants=tenants)
    loop, place.experiments.read_at = place.loop, 0.0
    loop.live = Live(Experiments(place.state), share=0.5, tenant="acme")
    place.hub.alias(NEW, "challenger")
    place.exam_was_won()
    assert loop.settle() == "wait"
    with serving(place.service) as place.address:
        for key, names in ((rival, {OLD}), (acme, {OLD, NEW})):
            seen = set()
            for number in range(16):
                id = f"r{number}"
                adapter = place.ask(id, f"user {number}", key=key).json()["minilora"]["adapter"]
                place.tell(id, key, score=float(adapter == NEW))
                seen.add(adapter)
            assert seen == names
            name = loop.live.running("naval").name
            assert len(place.experiments.outcomes(name)) == 16 * (key == acme)


def test_two_loops_on_one_name_leave_each_other_alone(place):
    old, new = (place.hub.show(each) for each in (OLD, NEW))
    acme, rival = (Live(place.experiments, tenant=name) for name in ("acme", "rival"))
    assert acme.begin(old, new, old).startswith("20% of the users")
    assert rival.begin(old, new, old).startswith("no live pairs: 'naval' has the experiment")
    rival.end("naval")
    rival.reconcile(old, None, None)
    assert acme.running("naval") is not None
    acme.reconcile(old, None, None)
    assert acme.running("naval") is None


@pytest.mark.parametrize(("first", "last"), [(0.6, 0.9), (0.9, 0.6), (0.75, 0.75)])
def test_two_equal_adapters_stay_equal_while_questions_grow_easier_or_harder(first, last):
    """800 users, of whom a fifth has the other adapter: α = 5% holds, whichever way time goes."""
    draws, rules, runs = np.random.default_rng(5), Rules(), 400
    said = {PASS: 0, FAIL: 0}
    for _ in range(runs):
        right = draws.random(800) < np.linspace(first, last, 800)
        new = draws.random(800) < 0.2
        arms = np.where(new, "new", "old").tolist()
        pairs = in_twos(list(zip(arms, right.astype(float).tolist(), strict=True)))
        said = sooner_or_later(pairs, rules, said)
    assert said[PASS] <= 0.05 * runs
    assert said[FAIL] <= 0.05 * runs


def sooner_or_later(pairs, rules, said):
    """Count what the gate said of ever more pairs first; a gain that is too small is no error."""
    for count in range(8, len(pairs) + 1, 8):
        check = better(type(pairs)(pairs.old[:count], pairs.new[:count]), rules)
        if check.state == PASS or check.harm:
            return said | {check.state: said[check.state] + 1}
    return said


@pytest.mark.parametrize("share", [0.0, 1.0, 1.5, -0.1, float("nan")])
def test_a_share_of_none_or_all_is_refused(tmp_path, share):
    with pytest.raises(ValueError, match="share must be above 0 and below 1"):
        Live(Experiments(tmp_path), share)


class Told:
    """A version as far as the experiments look at it."""

    def __init__(self, version, parent=""):
        self.name, self.version, self.spec = "naval", version, f"naval@{version}"
        self.manifest = type("Manifest", (), {"parent": parent})


def test_the_one_that_is_not_the_champion_gets_the_share(tmp_path):
    live, old, new = Live(Experiments(tmp_path)), Told("1.0.0"), Told("2.0.0")
    for champion, shares in ((old, {"old": 0.8, "new": 0.2}), (new, {"old": 0.2, "new": 0.8})):
        told = live.begin(old, new, champion)
        other = new if champion is old else old
        assert told.startswith(f"20% of the users get {other.spec}")
        assert dict(live.running("naval").shares) == shares


def test_only_an_experiment_that_a_kill_left_out_is_begun(tmp_path):
    old, new = Told("1.0.0"), Told("2.0.0", parent="naval@1.0.0")
    live = Live(Experiments(tmp_path))
    live.reconcile(Told("2.0.0", parent="naval@0.1.0"), old, None)
    assert live.begun("naval") == [], "it did not follow the one before: it was put there by hand"
    live.reconcile(new, old, None)
    assert live.running("naval").champion == new.spec
    live.end("naval")  # enough is known
    live.reconcile(new, old, None)
    assert live.running("naval") is None


def test_the_running_experiment_gives_its_outcomes_in_twos_to_its_own_pair_only(tmp_path):
    old, new, other = Told("1.0.0"), Told("2.0.0"), Told("3.0.0")
    live = Live(Experiments(tmp_path))
    assert live.pairs(old, new) == Pairs(), "none runs"
    live.begin(old, new, old)
    came = [("old", 1.0), ("new", 0.0), ("new", 1.0), ("new", 1.0), ("new", 0.5), ("old", 0.2)]
    live.experiments.outcomes = lambda name: came if name == live.running("naval").name else []
    assert live.pairs(old, new) == Pairs((True, False), (False, True))
    assert live.pairs(old, other) == live.pairs(new, old) == Pairs()
