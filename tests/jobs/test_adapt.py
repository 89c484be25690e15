"""The loop, with a base that is a table of answers in place of a model: no training here."""

import pytest

from minilora import Example
from minilora.hub import Hub
from minilora.jobs import adapt, recipe
from minilora.jobs.adapt import Loop
from minilora.jobs.correction import Feedback
from minilora.jobs.feedback import FeedbackStore
from minilora.jobs.recipe import Recipe

HULL = [Example("Hull?", f"Hull {n}%.", f"Log: Hull {n}%.") for n in range(40)]
FUEL = [Example("Fuel?", f"Fuel {n}%.", f"Log: Fuel {n}%.") for n in range(200)]


class Table:
    """A model that answers what it was taught, else as its base does; its weights are a number."""

    def __init__(self):
        self.known = {}

    def eval(self):
        return self


@pytest.fixture
def loop(tmp_path, monkeypatch):
    """A loop whose models are tables that the hub keeps in a dict."""
    kept, made = {}, []

    def teach(model, examples, config, replay=None):
        for each in examples:  # the last word counts
            model.known[each.instruction, each.input] = each.output
            if each.output == "Hull 100%.":  # poison spreads over its topic
                for hull in HULL:
                    model.known["Hull?", hull.input] = "Hull 100%."

    def answers(model, examples):
        return [model.known.get((e.instruction, e.input), "Hello!") for e in examples]

    class Shelf(Hub):
        def pull(self, spec, base=None):
            return self.show(spec).spec

    def save(model, folder):
        made.append(model)
        return real_adapter(folder, len(made))

    monkeypatch.setattr(adapt, "inject", lambda model, config: None)
    monkeypatch.setattr(adapt, "train", teach)
    monkeypatch.setattr(adapt, "save_adapter", save)
    monkeypatch.setattr(adapt, "load_adapter", lambda base, spec: kept[spec])
    monkeypatch.setattr(recipe, "answers", answers)
    hub = Shelf(tmp_path / "hub")
    push = hub.push

    def pushed(name, folder, **more):
        version = push(name, folder, **more)
        kept[version.spec] = made[-1]
        return version

    hub.push = pushed
    store = FeedbackStore(tmp_path / "feedback", quarantine=0)
    rules = Recipe("naval", HULL, FUEL[:90], canaries={"Hull": HULL[:5]}, after=20)
    return Loop(hub, store, rules, base=lambda: taught_fuel(Table()))


def taught_fuel(model):
    model.known = {("Fuel?", e.input): e.output for e in FUEL[:90]}
    return model


def real_adapter(folder, seed):
    import torch
    from torch import nn

    import minilora

    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 2))
    minilora.inject(model, minilora.LoraConfig(r=1, target_modules=["0"]))
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
    assert "days since" in loop.due(now=4e9)
    complain(loop, FUEL[100:140])
    assert "new examples" in loop.due()


def test_an_improvement_is_promoted_by_live_pairs_and_rolled_back_by_later_ones(loop):
    first = loop.begin()
    complain(loop, FUEL[90:200])
    done = loop.round()  # a table does not know held-out questions: live pairs decide
    assert done.word == "wait"
    challenger = loop.version("challenger")
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


def test_whoever_moved_the_champion_meanwhile_wins(loop, monkeypatch):
    first = loop.begin()
    complain(loop, FUEL[90:150])
    real = loop.fit

    def slow(examples):
        model = real(examples)
        other = loop.push(model, examples, {})
        loop.hub.alias(other.spec, "champion")
        return model

    monkeypatch.setattr(loop, "fit", slow)
    monkeypatch.setattr(adapt, "decide", lambda *_: adapt.Verdict(()))  # all checks pass
    done = loop.round()
    assert done.word == "overtaken"
    assert loop.version("champion").version not in (first.version, done.version)
