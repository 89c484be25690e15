"""What a server's users say, over HTTP: corrections into the store, scores into the loop."""

import sqlite3

import httpx
import pytest

from minilora import Example
from minilora.hub import Hub
from minilora.jobs import FeedbackStore, Loop, Queue, Recipe
from minilora.jobs.correction import OWNER, Feedback
from minilora.jobs.corrections import Corrections
from minilora.jobs.live import Live
from minilora.jobs.pairs import Pairs
from minilora.jobs.recipe import Marks
from minilora.serving.answered import Answered
from minilora.serving.experiments import Experiments
from minilora.serving.tenants import Tenants

from ..serving.live import serving, small_service
from ..serving.small import FOLDERS

OLD, NEW = "naval@1.0.0", "naval@2.0.0"
CLIENT = httpx.Client(timeout=30)
TOKEN = "ghp_" + "a1" * 18


class Place:
    """A server whose hub has ``naval`` twice, the folder of its feedback, and its loop."""

    def __init__(self, folder, **settings):
        self.hub, self.state, self.folder = Hub(folder / "hub"), folder / "state", folder / "heard"
        self.hub.push("naval", FOLDERS["a"], version="1.0.0")
        self.hub.alias(OLD, "champion")
        self.hub.push("naval", FOLDERS["b"], version="2.0.0", metadata={"parent": OLD})
        self.experiments = Experiments(self.state)
        heard = Corrections(self.folder, self.experiments)
        self.service = small_service(
            hub=self.hub,
            experiments=self.experiments,
            on_answer=heard.answered,
            on_feedback=heard.corrected,
            **settings,
        )
        recipe = Recipe("naval", [Example("Hull?", "Hull 9%.")], [Example("Hull?", "Hull 9%.")])
        live = Live(Experiments(self.state), share=0.5)  # as of another process
        self.loop = Loop(self.hub, FeedbackStore(self.folder), recipe, Queue(folder / "q"), live)
        self.loop.marks_of = lambda version: Marks((True,) * 200, {}, ())

    def ask(self, id, user=None, text="Log: Hull 90%.\nStatus?", key="none", **fields):
        body = {"model": "naval", "temperature": 0, "max_tokens": 4, "user": user, **fields}
        body.setdefault("messages", [{"role": "user", "content": text}])
        return self.post("chat/completions", body, key, {"x-request-id": id})

    def tell(self, id, key="none", **fields):
        return self.post("feedback", {"request_id": f"chatcmpl-{id}", **fields}, key)

    def post(self, path, body, key, headers=()):
        headers = {"authorization": f"Bearer {key}", **dict(headers)}
        return CLIENT.post(f"{self.address}/v1/{path}", json=body, headers=headers)

    def exam_was_won(self):
        """Five of the owner's questions: E = 5.7, which is half of the evidence."""
        contents = [self.hub.show(each).manifest.content for each in (OLD, NEW)]
        questions = [Feedback(OWNER, "", f"Hull {n}?", "Aye.") for n in range(5)]
        self.loop.store.outcomes(*contents, Pairs((False,) * 5, (True,) * 5), questions)

    def rows(self, tenant="default"):
        return FeedbackStore(self.folder, tenant).rows("quarantine")


@pytest.fixture
def place(tmp_path):
    made = Place(tmp_path)
    with serving(made.service) as made.address:
        yield made


def test_a_correction_knows_its_question_and_the_adapter_that_answered(place):
    answer = place.ask("r1", "ann").json()
    place.hub.alias(NEW, "champion")  # meanwhile
    reply = place.tell("r1", correction="Hull 90%.", topic="Hull").json()
    assert (reply["kept"], reply["state"]) == (True, "quarantine")
    (row,) = place.rows()
    assert (row.source, row.request, row.context) == ("ann", "Status?", "Log: Hull 90%.")
    assert row.adapter == place.hub.show(OLD).manifest.content
    assert row.answer == answer["choices"][0]["message"]["content"]
    assert (row.correction, row.topic) == ("Hull 90%.", "Hull")
    assert place.tell("r1", correction="Hull 90%.").json()["state"] == "known"
    assert place.tell("r1", correction=f"It is {TOKEN}.").json()["state"] == "refused"


def test_what_cannot_be_learnt_is_said(place):
    talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Aye"}]
    place.ask("r1", "ann", messages=[*talk, {"role": "user", "content": "And now?"}])
    reply = place.tell("r1", correction="Aye, sir.")
    assert reply.status_code == 400
    assert "more than one message" in reply.json()["error"]["message"]
    assert place.tell("r1", correction="Aye, sir.", question="And now?").json()["kept"]
    assert place.tell("r0", correction="Aye.").json()["state"] == "unknown"
    place.ask("r2", "owner")
    reply = place.tell("r2", correction="Aye.")
    assert reply.status_code == 400
    assert "give the user another name" in reply.json()["error"]["message"]


def test_a_streamed_answer_can_be_corrected_too(place):
    assert "[DONE]" in place.ask("r1", "ann", stream=True).text
    assert place.tell("r1", correction="Aye.").json()["kept"]


def test_a_secret_that_was_asked_is_nowhere_on_the_disk(place):
    place.ask("r1", "ann", text=f"My token is {TOKEN}. Status?")
    assert place.tell("r1", correction="Aye.").status_code == 400
    for file in place.folder.iterdir():
        assert TOKEN.encode() not in file.read_bytes()


def test_another_tenants_request_is_as_unknown_as_none(tmp_path):
    tenants = Tenants(tmp_path / "keys.sqlite")
    acme, rival = (tenants.add(name, adapters=["naval"]) for name in ("acme", "rival"))
    place = Place(tmp_path, tenants=tenants)
    with serving(place.service) as place.address:
        place.ask("r1", "ann", key=acme)
        theirs = place.tell("r1", rival, correction="Aye.").json()
        none = place.tell("r2", rival, correction="Aye.").json()
        assert theirs | {"request_id": "r2"} == none
        assert none["state"] == "unknown"
        assert place.tell("r1", acme, correction="Aye.").json()["kept"]
    assert [len(place.rows(name)) for name in ("acme", "rival", "default")] == [1, 0, 0]


def test_a_full_disk_costs_nobody_an_answer(place, monkeypatch):
    class Full:
        def writing(self):
            raise OSError(28, "the disk is full")

    heard = place.service.on_answer.__self__
    monkeypatch.setattr(heard, "session", Full())
    assert place.ask("r1", "ann").status_code == 200


def test_of_the_answers_the_last_ones_are_kept(tmp_path, monkeypatch):
    from minilora.jobs import corrections

    monkeypatch.setattr(corrections, "KEPT", 3)
    heard = Corrections(tmp_path)
    for number in range(5):
        heard.answered(Answered("local", f"r{number}", "", "", "ann", "Hull?", "Hull 9%."))
    kept = sqlite3.connect(tmp_path / "feedback.sqlite").execute("select request from answered")
    assert [name for (name,) in kept] == ["r2", "r3", "r4"]
    assert (tmp_path / "feedback.sqlite").stat().st_mode & 0o077 == 0


def month(place, likes, begin, count=40):
    """Users ask, and like what one adapter answers; one corrects where he dislikes it."""
    answered = set()
    for number in range(begin, begin + count):
        id = f"m{number}"
        adapter = place.ask(id, f"user {number}").json()["minilora"]["adapter"]
        answered.add(adapter)
        if adapter == likes:
            place.tell(id, score=1)
        elif number % 2:
            place.tell(id, score=0)
        else:
            place.tell(id, correction="Aye, Hull 90%.")  # which says as much
    return answered


def test_users_decide_over_a_challenger_and_roll_it_back(place):
    loop, hub = place.loop, place.hub
    hub.alias(NEW, "challenger")
    assert place.ask("r0", "user 0").json()["minilora"]["adapter"] == OLD
    assert loop.settle() == "wait"  # and users compare from now on
    place.experiments.read_at = 0.0  # a server looks once a second
    assert month(place, NEW, 0) == {OLD, NEW}
    assert loop.settle() == "wait", "users alone promote nothing"
    place.exam_was_won()
    assert loop.settle() == "promote"
    assert loop.version("champion").spec == NEW
    assert loop.version("previous").spec == OLD
    assert loop.watch() == "", "what promoted it does not watch over it"

    place.experiments.read_at = 0.0
    months = iter(range(100, 400, 20))
    while not (back := loop.watch()):
        month(place, OLD, next(months), 20)
    assert back == OLD
    assert loop.version("champion").spec == OLD
    place.experiments.read_at = 0.0
    assert month(place, OLD, 200, 4) == {OLD}, "nobody compares any more"
    assert [word for _, word, *_ in loop.store.rounds("naval")] == ["promote", "roll back"]


def test_the_gate_is_asked_again_when_a_pair_has_come_and_not_before(place):
    """Every look would load two bases, and answer all that must stay right, for nothing."""
    asked, loop = [], place.loop
    loop.marks_of = lambda version: asked.append(version.spec) or Marks((True,) * 200, {}, ())
    place.hub.alias(NEW, "challenger")
    assert [loop.settle() for _ in range(3)] == ["wait"] * 3
    assert asked == [OLD, NEW]
    contents = [place.hub.show(each).manifest.content for each in (OLD, NEW)]
    loop.store.outcome(*contents, False, True)
    assert loop.settle() == "wait"
    assert len(asked) == 4


def test_an_experiment_of_the_owner_is_left_alone(place):
    from minilora.serving.assignment import Experiment

    place.experiments.start(Experiment("mine", "naval", {"a": OLD, "b": NEW}))
    old, new = (place.hub.show(each) for each in (OLD, NEW))
    told = place.loop.live.begin(old, new, old)
    assert told.startswith("no live pairs: 'naval' has the experiment 'mine' already")
    place.loop.live.end("naval")
    assert place.experiments.all()[0][1], "it runs on"
    with pytest.raises(ValueError, match="share must be above 0"):
        Live(place.experiments, 0.0)
