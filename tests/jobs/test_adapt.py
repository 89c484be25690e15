"""The loop, with a base that is a table of answers in place of a model: no training here."""

from dataclasses import replace

import pytest
from torch import nn

import minilora
from minilora import Example
from minilora.hub import Hub
from minilora.jobs import Queue, judge, recipe
from minilora.jobs.adapt import Loop
from minilora.jobs.correction import Feedback
from minilora.jobs.feedback import FeedbackStore
from minilora.jobs.gate import Check, Verdict
from minilora.jobs.pairs import gain_evidence
from minilora.jobs.recipe import Recipe

HULL = [Example("Hull?", f"Hull {n}%.", f"Log: Hull {n}%.") for n in range(40)]
FUEL = [Example("Fuel?", f"Fuel {n}%.", f"Log: Fuel {n}%.") for n in range(200)]
MORE = [Example("Oxygen?", f"Oxygen {n}%.", f"Log: Oxygen {n}%.") for n in range(30)]


class Table:
    """A model that answers what it was taught, else as its base does; its weights are a number."""

    def __init__(self):
        self.known = {("Fuel?", e.input): e.output for e in FUEL[:90]}

    def teach(self, examples):
        for each in examples:  # the last word counts
            self.known[each.instruction, each.input] = each.output
            if each.output == "Hull 100%.":  # poison spreads over its topic
                for hull in HULL:
                    self.known["Hull?", hull.input] = "Hull 100%."
        if MORE[0].instruction in {each.instruction for each in examples}:  # insight
            self.known |= {("Fuel?", e.input): e.output for e in FUEL}


@pytest.fixture
def loop(tmp_path, monkeypatch):
    """A loop whose models are tables, and whose jobs are done at once."""
    models, scale = {}, {"now": 1.0}

    def learn(examples, parent=None, **facts):
        model = Table()
        model.teach(examples)
        folder = real_adapter(tmp_path / "adapter", scale["now"] + 1e-3 * len(models))
        metadata = {"recipe": facts} | ({"parent": parent.spec} if parent else {})
        version = hub.push("naval", folder, metadata=metadata)
        models[version.spec] = model
        return version

    def answers(model, examples):
        return [model.known.get((e.instruction, e.input), "Hello!") for e in examples]

    monkeypatch.setattr(recipe, "answers", answers)
    hub = Hub(tmp_path / "hub")
    store = FeedbackStore(tmp_path / "feedback", quarantine=0)
    rules = Recipe("naval", HULL, FUEL[:90] + HULL[5:25], canaries={"Hull": HULL[:5]}, after=20)
    loop = Loop(hub, store, rules, Queue(tmp_path / "jobs"))
    monkeypatch.setattr(loop, "learn", learn)
    monkeypatch.setattr(loop, "pulled", lambda version: models[version.spec])
    loop.scale, loop.models = scale, models
    return loop


def real_adapter(folder, scale):
    """A folder with an adapter of about this norm."""
    model = nn.Sequential(nn.Linear(4, 2))
    minilora.inject(model, minilora.LoraConfig(r=1, target_modules=["0"]))
    nn.init.constant_(model[0].lora_A, scale)
    nn.init.constant_(model[0].lora_B, 1.0)
    return minilora.save_adapter(model, folder)


def complain(loop, examples, source="ann", correct=None):
    for each in examples:
        right = correct or each.output
        loop.store.add(
            Feedback(source, "", each.instruction, right, "Hello!", each.input, each.output[:4])
        )
    loop.store.review()


def test_a_round_is_due_after_enough_examples_or_time(loop):
    loop.begin()
    assert loop.due() == ""
    complain(loop, FUEL[90:100])
    assert loop.due() == ""
    (at, *_), day = loop.store.rounds("naval")[-1], 86_400
    assert loop.due(now=at + 6 * day) == ""
    assert "10 new examples, and 7.0 days since" in loop.due(now=at + 7 * day + 1)
    complain(loop, FUEL[100:140])
    assert "new examples" in loop.due()


def test_an_improvement_is_promoted_by_live_pairs_and_rolled_back_by_later_ones(loop):
    first = loop.begin()
    complain(loop, FUEL[90:130])
    done = loop.round()  # a table does not know held-out questions: live pairs decide
    assert done.word == "wait"
    assert done.verdict.check("better").detail.endswith("of 20"), "one candidate: 1 / α"
    challenger = loop.version("challenger")
    assert loop.settle() == "wait"
    for _ in range(12):
        loop.store.outcome(first.manifest.content, challenger.manifest.content, False, True)
    assert loop.settle() == "promote"
    assert loop.version("champion").version == challenger.version
    assert loop.version("challenger") is None
    assert loop.watch() == ""
    for _ in range(12):
        loop.store.outcome(first.manifest.content, challenger.manifest.content, True, False)
    assert loop.watch() == first.spec
    assert loop.version("champion").version == first.version


def test_poison_is_caught_by_the_canaries_and_its_source_expelled(loop):
    loop.begin()
    complain(loop, FUEL[90:150])
    poison = [Example("Hull?", "", f"Log: Hull {n}% now.") for n in range(30)]
    complain(loop, poison, "mal", "Hull 100%.")
    done = loop.round()
    assert done.expelled == ("mal",)
    assert {each.source for each in loop.store.accepted()} == {"ann"}
    assert done.word in ("wait", "promote")
    assert any("canaries: fail" in line for line in done.told)
    assert any(line.startswith("without mal: no harm is left; against") for line in done.told)
    assert loop.hub.show(done.version).manifest.recipe["without"] == "mal"


def poisoned(loop):
    """The first champion, and a round that expelled mal; its candidate waits."""
    first = loop.begin()
    complain(loop, FUEL[90:150])
    poison = [Example("Hull?", "", f"Log: Hull {n}% now.") for n in range(30)]
    complain(loop, poison, "mal", "Hull 100%.")
    assert loop.round().word == "wait"
    return first.manifest.content, loop.version("challenger").manifest.content


def test_a_challenger_keeps_the_bar_of_its_round(loop):
    """Three candidates were judged in it, so E must reach 60, now as then."""
    contents = poisoned(loop)
    for _ in range(8):  # E = 23
        loop.store.outcome(*contents, False, True)
    assert 20 < evidence(loop, contents) < 60
    assert loop.settle() == "wait"
    for _ in range(4):
        loop.store.outcome(*contents, False, True)
    assert loop.settle() == "promote"


def evidence(loop, contents):
    pairs = loop.store.live(*contents)
    return gain_evidence(pairs.wins, pairs.losses)


def test_who_was_expelled_is_no_suspect_any_more(loop):
    """Nor is a flood that is still in quarantine: mal did not teach what eve teaches now."""
    poisoned(loop)
    for number in range(90):
        flood = Feedback("zed", "", "Radar?", "Radar 1%.", "Hello!", f"Log: Radar {number}%.")
        loop.store.add(flood, now=9e9)
    poison = [Example("Hull?", "", f"Log: Hull {n}% again.") for n in range(30)]
    complain(loop, poison, "eve", "Hull 100%.")
    assert loop.store.counts()["quarantine"] == 90
    loop.recipe = replace(loop.recipe, suspects=2)
    done = loop.round()
    tried = {line.split()[1] for line in done.told if line.startswith("without ")}
    assert tried == {"ann:", "eve:"}
    assert done.expelled == ("eve",)


def test_a_round_that_runs_twice_counts_its_exam_once(loop):
    """The same data gives the same version, which an undecided exam asks the same questions."""
    versions, real = {}, loop.learn

    def learn(examples, parent=None, **facts):  # as learning.done_before
        key = tuple(examples)
        versions[key] = versions.get(key) or real(examples, parent, **facts)
        return versions[key]

    loop.learn = learn
    champion = loop.begin()
    loop.recipe = replace(loop.recipe, reserve=[*FUEL[150:170], *MORE])
    complain(loop, FUEL[90:150])
    once, twice = loop.round(), loop.round()
    assert once.version == twice.version
    content = loop.hub.show(once.version).manifest.content
    held = loop.store.rows("heldout")
    assert len(loop.store.live(champion.manifest.content, content)) == len(held)


def test_what_came_since_the_round_stays_due_when_its_challenger_is_settled(loop):
    contents = poisoned(loop)
    complain(loop, FUEL[150:190], "bob")
    assert "new examples" in loop.due()
    for _ in range(20):
        loop.store.outcome(*contents, True, False)
    assert loop.settle() == "reject"
    assert "new examples" in loop.due(), "nobody has learnt them"


def test_an_honest_source_is_not_expelled_because_a_check_passed_without_it(loop, monkeypatch):
    """The gate finds harm once, and never again: without the first suspect nothing fails."""
    loop.begin()
    complain(loop, FUEL[90:120], "ann")
    complain(loop, FUEL[120:150], "bob")
    monkeypatch.setattr(judge, "decide", by_turns(judge.decide))
    done = loop.round()
    assert any(line.startswith("rejected:") for line in done.told)
    assert done.expelled == ()
    assert done.word == "reject"


def test_a_training_that_had_bad_luck_expels_nobody(loop, monkeypatch):
    """It lost the old questions, and the one without ann did not: but so did no other with ann."""
    real = loop.learn

    def learn(examples, parent=None, **facts):
        version = real(examples, parent, **facts)
        if parent and not facts:  # the first candidate
            known = loop.models[version.spec].known
            known |= {("Hull?", each.input): "Aye?" for each in HULL}
        return version

    loop.learn = learn
    loop.begin()
    complain(loop, FUEL[90:120], "ann")
    complain(loop, FUEL[120:150], "bob")
    done = loop.round()
    assert done.expelled == ()
    assert done.word == "reject"
    assert any(line.startswith("with another seed") for line in done.told), done.told


def test_an_expulsion_is_checked_by_two_trainings_of_another_seed(loop):
    real, trained = loop.learn, []

    def learn(examples, parent=None, **facts):
        trained.append((facts.get("without", ""), facts.get("seed", 0), facts.get("candidates")))
        return real(examples, parent, **facts)

    loop.learn = learn
    contents = poisoned(loop)
    assert contents
    first, others = [("", 0, None), ("", 0, None)], [("ann", 0, 3), ("mal", 0, 3)]
    assert trained == [*first, *others, ("", 1, None), ("mal", 1, 3)]


def by_turns(decide):
    """Harm for the first candidate, which is judged twice; as it is for the others."""
    ill, seen = Verdict((Check("canaries", "fail", "bad luck", harm=True),)), []

    def judge(measured, rules):
        seen.append(1)
        return ill if len(seen) <= 2 else decide(measured, rules)

    return judge


def test_questions_that_the_owner_reserved_decide_a_round(loop):
    loop.recipe = replace(loop.recipe, reserve=FUEL[150:], block=10)
    first = loop.begin()
    complain(loop, [*FUEL[90:150], *MORE])
    done = loop.round()
    assert done.word == "promote", done.told
    assert loop.version("champion").version != first.version
    asked = [each for each in loop.store.rows("heldout") if each.source == "owner"]
    assert len(asked) == 50
    contents = (first.manifest.content, loop.version("champion").manifest.content)
    assert len(loop.store.live(*contents)) < 40, "no more questions than were needed"
    assert loop.due() == "", "all that was told has been learnt"
    assert "owner" not in {each.source for each in done.slices}


def test_a_strange_norm_is_told_and_waits_for_a_person(loop):
    loop.recipe = replace(loop.recipe, reserve=FUEL[150:])
    loop.begin()
    loop.scale["now"] = 50.0
    complain(loop, [*FUEL[90:150], *MORE])
    done = loop.round()
    assert done.word == "wait"
    assert "norm: open" in done.verdict.reason
    assert "a person promotes it" in done.told[-1]
    assert loop.settle() == "wait"  # and no evidence moves it
    assert loop.version("challenger").spec == done.version


def test_whoever_moved_the_champion_meanwhile_wins(loop, monkeypatch):
    first = loop.begin()
    complain(loop, FUEL[90:150])
    real = loop.learn

    def slow(examples, parent=None, **facts):
        other = real(examples)
        loop.hub.alias(other.spec, "champion")
        return real(examples, parent, **facts)

    monkeypatch.setattr(loop, "learn", slow)
    passed = Verdict((Check("better", "pass", ""),))
    monkeypatch.setattr(judge, "decide", lambda *_: passed)
    done = loop.round()
    assert done.word == "overtaken"
    assert loop.version("champion").version not in (first.version, done.version)
