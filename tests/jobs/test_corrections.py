"""What a server's users say, over HTTP: corrections into the store, scores into the loop."""

import sqlite3
import uuid

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
from minilora.serving.assignment import Experiment
from minilora.serving.experiments import Experiments
from minilora.serving.tenants import Limits, Tenants

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


@pytest.mark.parametrize("prefix", ["", "chatcmpl-"], ids=["header", "id"])
def test_an_id_with_dashes_is_found_by_the_header_and_by_the_responses_id(place, prefix):
    id = str(uuid.UUID(int=7))
    place.experiments.start(Experiment("mine", "naval", {"a": OLD, "b": NEW}))
    answer = place.ask(id, "ann")
    assert answer.headers["x-request-id"] == id
    assert answer.json()["id"] == f"chatcmpl-{id}"
    body = {"request_id": prefix + id, "score": 1, "correction": "Aye."}
    reply = place.post("feedback", body, "none").json()
    assert (reply["request_id"], reply["experiment"], reply["kept"]) == (id, "mine", True)


def test_a_request_has_one_correction(place):
    place.ask("r1", "ann")
    assert place.tell("r1", correction=f"It is {TOKEN}.").json()["state"] == "refused"
    assert place.tell("r1", correction="Aye.").json()["kept"]
    assert place.tell("r1", correction="Aye.").json()["state"] == "known"
    reply = place.tell("r1", correction="No.")
    assert reply.status_code == 400
    assert "another correction already" in reply.json()["error"]["message"]
    assert [row.correction for row in place.rows()] == ["Aye."]


def test_a_known_question_is_nobodys_to_replace(place):
    place.ask("r1", "ann")
    reply = place.tell("r1", correction="Mallory.", question="Who is the captain?")
    assert reply.status_code == 400
    assert "this request asked another question" in reply.json()["error"]["message"]
    assert place.tell("r1", correction="Aye.", context="Log: Fuel 1%.").status_code == 400
    assert not place.rows()
    same = {"question": "Status?", "context": "Log: Hull 90%."}
    assert place.tell("r1", correction="Aye.", **same).json()["kept"]


def test_what_was_refused_or_is_not_known_votes_for_nothing(place):
    place.experiments.start(Experiment("mine", "naval", {"a": OLD, "b": NEW}))
    place.ask("r1", "ann")
    assert place.tell("r1", correction=f"It is {TOKEN}.").json()["state"] == "refused"
    assert place.tell("r1", correction=f"It is {TOKEN}.", score=0).json()["arm"] is None
    place.ask("r2", "bob", text=f"My token is {TOKEN}. Status?")  # its texts are dropped
    assert place.tell("r2", correction="Aye.", question="Status?").json()["kept"]
    place.ask("r3", "mal")
    place.tell("r3", correction="Hull 100%.", score=1)
    assert len(place.experiments.outcomes("mine")) == 1
    FeedbackStore(place.folder).expel("mal", "poison")
    for id, said in (("r4", {"correction": "Hull 1%."}), ("r5", {"score": 0})):
        place.ask(id, "mal")
        assert place.tell(id, **said).json()["state"] == "refused"
    place.ask("r6", "mal")
    assert place.tell("r6", correction="Hull 1%.", score=0).json()["arm"] is None
    assert len(place.experiments.outcomes("mine")) == 1
    with sqlite3.connect(place.experiments.folder / "experiments.sqlite") as db:
        assert db.execute("select count(*) from outcome").fetchone() == (1,)


def test_texts_have_a_greatest_length(place):
    place.ask("r1", "ann")
    for name in ("question", "context", "correction"):
        said = {"correction": "Aye.", "question": "Status?", name: "a." * 16_001}
        assert place.tell("r1", **said).status_code == 400
    assert place.ask("r2", "u" * 257).status_code == 400
    heard = place.service.on_answer.__self__
    heard.answered(Answered("local", "r3", "", "", "ann", "a." * 500_000, "Aye."))
    assert heard.find("default", "r3")["question"] == ""


def test_feedback_is_within_the_tenants_quota(tmp_path):
    tenants = Tenants(tmp_path / "keys.sqlite")
    acme = tenants.add("acme", adapters=["naval"], limits=Limits(requests=3))
    place = Place(tmp_path, tenants=tenants)
    with serving(place.service) as place.address:
        place.ask("r1", "ann", key=acme)
        said = [place.tell("r1", acme, correction="Aye.") for _ in range(3)]
    assert [reply.status_code for reply in said] == [200, 200, 429]
    assert "retry-after" in said[-1].headers


def test_the_file_is_its_owners_alone_also_where_the_loop_made_it(tmp_path):
    assert FeedbackStore(tmp_path).add(Feedback("ann", "", "Status?", "Aye.")) == "quarantine"
    assert (tmp_path / "feedback.sqlite").stat().st_mode & 0o077 == 0
    (tmp_path / "feedback.sqlite").chmod(0o644)  # as an earlier version made it
    Corrections(tmp_path)
    assert (tmp_path / "feedback.sqlite").stat().st_mode & 0o077 == 0


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


@pytest.mark.parametrize(
    "error",
    [OSError(28, "full"), ValueError("it is damaged"), sqlite3.IntegrityError("not null")],
    ids=["full", "damaged", "wrong"],
)
def test_a_file_that_cannot_be_written_costs_nobody_an_answer(place, monkeypatch, caplog, error):
    class Broken:
        def writing(self):
            raise error

    heard = place.service.on_answer.__self__
    monkeypatch.setattr(heard, "session", Broken())
    assert place.ask("r1", "ann").status_code == 200
    assert "[DONE]" in place.ask("r2", "ann", stream=True).text
    assert "request r1 cannot be corrected" in caplog.text


def test_of_the_answers_the_last_ones_are_kept(tmp_path, monkeypatch):
    from minilora.jobs import corrections

    monkeypatch.setattr(corrections, "KEPT", 3)
    heard = Corrections(tmp_path)
    told = ("", "", "ann", "Hull?", "Hull 9%.")
    heard.answered(Answered("acme", "r0", *told))
    for number in range(5):
        heard.answered(Answered("local", f"r{number}", *told))
    rows = sqlite3.connect(tmp_path / "feedback.sqlite").execute(
        "select tenant, request from answered order by id"
    )
    kept = [("acme", "r0"), *(("default", f"r{number}") for number in (2, 3, 4))]
    assert rows.fetchall() == kept, "another tenant's flood pushes nothing out"
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
    place.experiments.start(Experiment("mine", "naval", {"a": OLD, "b": NEW}))
    old, new = (place.hub.show(each) for each in (OLD, NEW))
    told = place.loop.live.begin(old, new, old)
    assert told.startswith("no live pairs: 'naval' has the experiment 'mine' already")
    place.loop.live.end("naval")
    assert place.experiments.all()[0][1], "it runs on"
    with pytest.raises(ValueError, match="share must be above 0"):
        Live(place.experiments, 0.0)
