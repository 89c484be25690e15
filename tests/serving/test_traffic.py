"""Experiments and failover over HTTP: who answers, what the response says, what counts."""

import json
import math
import threading
from concurrent.futures import Future

import httpx
import pytest
from starlette.testclient import TestClient

from minilora.hub import Hub
from minilora.serving.app import create_app
from minilora.serving.assignment import Experiment
from minilora.serving.experiments import Experiments
from minilora.serving.failover import Failover, Limits
from minilora.serving.refusals import Refused
from minilora.serving.tenants import Tenants
from minilora.serving.traffic import Turns, check_arms
from minilora.serving.traffic_routes import finite

from .live import serving, small_service
from .small import FOLDERS, small_bank

ASKED = [{"role": "user", "content": "Hull status?"}]
OLD, NEW = "naval@1.0.0", "naval@2.0.0"


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """``naval`` in two versions, the older one the champion; ``lone`` without a champion."""
    made = Hub(tmp_path_factory.mktemp("hub"))
    made.push("naval", FOLDERS["a"], version="1.0.0")
    made.push("naval", FOLDERS["b"], version="2.0.0")
    made.push("lone", FOLDERS["c"], version="1.0.0")
    made.alias("naval@1.0.0", "champion")
    return made


@pytest.fixture(scope="module")
def solo():
    bank = small_bank()
    names = {OLD: "a", NEW: "b", "lone@1.0.0": "c", None: None}
    return {
        spec: bank.generate([(name, ASKED)], max_new_tokens=8)[0] for spec, name in names.items()
    }


def ask(address, model, *, key="", fallback="", id="", **fields):
    headers = {"x-minilora-fallback": fallback, "authorization": f"Bearer {key or 'none'}"}
    headers |= {"x-request-id": id} if id else {}
    body = {"model": model, "messages": ASKED, "temperature": 0, "max_tokens": 8, **fields}
    return httpx.post(f"{address}/v1/chat/completions", json=body, headers=headers, timeout=30)


def told(answer):
    """(text, adapter, why) of an answer."""
    body = answer.json()
    origin = body["minilora"]
    return body["choices"][0]["message"]["content"], origin["adapter"], origin["why"]


def break_adapter(service, spec):
    """The adapter cannot be read from now on, as from a damaged disk."""
    fetch = service.bank.fetch

    def fetched(chosen, tenant=""):
        if any(name == spec for name, _, _ in chosen):
            failed = Future()
            failed.set_exception(OSError("the disk is gone"))
            return failed
        return fetch(chosen, tenant)

    service.bank.fetch = fetched
    return lambda: setattr(service.bank, "fetch", fetch)


def test_users_get_their_arm_and_feedback_counts_for_it(hub, solo, tmp_path):
    experiments = Experiments(tmp_path)
    plan = Experiment("greeting", "naval", {"old": OLD, "new": NEW})
    service = small_service(hub=hub, experiments=experiments)
    with serving(service) as address:
        fields = {"name": plan.name, "model": plan.model, "arms": dict(plan.arms)}
        assert httpx.post(f"{address}/v1/experiments", json=fields).status_code == 200
        for number in range(12):
            user = f"user-{number}"
            arm = plan.arm(plan.unit(user))
            text, adapter, why = told(ask(address, "naval", user=user, id=f"r{number}"))
            assert (text, adapter) == (solo[plan.arms[arm]], plan.arms[arm])
            assert why == f"the experiment greeting drew its arm {arm}"
            score = {"request_id": f"chatcmpl-r{number}", "score": float(arm == "new")}
            reply = httpx.post(f"{address}/v1/feedback", json=score).json()
            assert (reply["experiment"], reply["arm"]) == ("greeting", arm)
        assert told(ask(address, "naval"))[1] == OLD  # nobody's: the champion
        assert told(ask(address, NEW, user="user-0"))[1] == NEW  # a version was asked for

        found = httpx.get(f"{address}/v1/experiments/greeting?points=5").json()
        (comparison,) = found["comparisons"]
        assert found["running"]
        assert comparison["wins"] == comparison["now"]["pairs"] == min(comparison["users"])
        assert comparison["verdict"].startswith("undecided")
        ended = httpx.post(f"{address}/v1/experiments/greeting/end").json()
        assert not ended["running"]
        assert told(ask(address, "naval", user="user-0"))[1] == OLD


def test_what_feedback_and_experiments_refuse(hub, tmp_path):
    with serving(small_service(hub=hub, experiments=Experiments(tmp_path))) as address:
        arms = {"old": OLD, "new": NEW}
        good = {"name": "greeting", "model": "naval", "arms": arms}

        def status(path, **fields):
            answer = httpx.post(f"{address}/v1/{path}", json=fields)
            assert answer.status_code < 400 or answer.json()["error"]["message"]
            return answer.status_code

        assert status("experiments", **good, ramp=2.0) == 400
        assert status("experiments", **{**good, "arms": {"old": OLD, "new": "naval@9.9.9"}}) == 404
        assert status("experiments", **{**good, "arms": {"old": OLD}}) == 400
        assert status("experiments/none/end") == 404
        assert httpx.get(f"{address}/v1/experiments/none").status_code == 404
        assert status("feedback", request_id="r1", score=1.5) == 400
        assert status("feedback", request_id="r1", score=True) == 400
        assert status("feedback", request_id="r1", score=1, correction="x") == 400  # learns nothing
        assert status("feedback", request_id="unknown", score=1) == 200  # counted for nothing
        assert status("experiments", **good) == 200
        assert status("experiments", **good, ramp=0.9) == 200
        assert status("experiments", **good, alpha=0.01) == 409
        ask(address, "naval", user="ann", id="r1")
        assert status("feedback", request_id="r1", score=1) == 200
        assert status("feedback", request_id="r1", score=1) == 200
        assert status("feedback", request_id="r1", score=0) == 409


def test_feedback_on_another_tenants_request_counts_nothing(hub, tmp_path):
    tenants = Tenants(tmp_path / "keys.sqlite")
    admin = tenants.add("boss", admin=True)
    one, other = (tenants.add(name, adapters=["naval"]) for name in ("one", "other"))
    lone = tenants.add("lone", adapters=["lone"])
    experiments = Experiments(tmp_path)
    experiments.start(Experiment("greeting", "naval", {"old": OLD, "new": "lone@1.0.0"}))
    experiments.start(Experiment("plain", "naval@champion", {"old": OLD, "new": NEW}))
    service = small_service(hub=hub, experiments=experiments, tenants=tenants)
    with serving(service) as address:
        why = [told(ask(address, "naval", key=one, user=f"u{n}"))[1] for n in range(8)]
        assert set(why) == {OLD}  # no right to one of the arms: no part in the experiment
        ask(address, "naval@champion", key=one, user="u", id="r1")
        for key, arm in (
            (other, None),
            (one, experiments.assign("naval@champion", "u", "one").arm),
        ):
            answer = httpx.post(
                f"{address}/v1/feedback",
                json={"request_id": "r1", "score": 1},
                headers={"authorization": f"Bearer {key}"},
            )
            assert answer.json()["arm"] == arm
        for key, status in ((one, 403), (lone, 403), (admin, 200), ("", 401)):
            headers = {"authorization": f"Bearer {key or 'none'}"}
            assert httpx.get(f"{address}/v1/experiments", headers=headers).status_code == status


def test_a_failing_adapter_is_answered_for_by_its_champion_and_comes_back(hub, solo):
    clock = [0.0]
    failover = Failover(Limits(failures=3, window=6, successes=2), clock=lambda: clock[0])
    service = small_service(hub=hub, failover=failover)
    with serving(service) as address:
        assert told(ask(address, NEW))[:2] == (solo[NEW], NEW)
        mend = break_adapter(service, NEW)
        for number in range(5):
            text, adapter, why = told(ask(address, NEW))
            assert (text, adapter) == (solo[OLD], OLD)
            reason = "it failed just now" if number < 3 else "3 of its last 4 answers failed"
            assert why == f"{OLD} answers for {NEW}: {reason}"
        assert failover.states() == {NEW: "3 of its last 4 answers failed"}
        mend()
        assert told(ask(address, NEW))[1] == OLD  # the cool-down
        clock[0] = 6.0
        for _ in range(3):
            assert told(ask(address, NEW))[:2] == (solo[NEW], NEW)
        assert failover.states() == {}


def test_the_base_steps_in_only_where_the_caller_allowed_it(hub, solo):
    service = small_service(hub=hub, failover=Failover(Limits(failures=2, window=4)))
    with serving(service) as address:
        break_adapter(service, "lone@1.0.0")
        assert ask(address, "lone").status_code == 500  # the failure itself
        text, adapter, why = told(ask(address, "lone", fallback="base"))
        assert (text, adapter) == (solo[None], None)
        assert why == "the base answers for lone@1.0.0: it failed just now"
        refused = ask(address, "lone")
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
        assert refused.json()["error"]["code"] == "failing"
        assert ask(address, "lone", fallback="base").headers["x-minilora-adapter"] == "small"
        assert ask(address, "lone", fallback="anything").status_code == 400


def test_an_adapter_that_is_damaged_in_the_hub_is_answered_for(hub, solo):
    service = small_service(hub=hub, failover=Failover(Limits(failures=2, window=4)))
    load = service.bank.load

    def damaged(name, folder, **settings):
        if name == NEW:
            raise ValueError("a tensor is not finite")
        return load(name, folder, **settings)

    service.bank.load = damaged
    with serving(service) as address:
        for _ in range(3):
            assert told(ask(address, NEW))[:2] == (solo[OLD], OLD)


def test_after_the_first_byte_nobody_steps_in(hub, solo):
    service = small_service(hub=hub, failover=Failover())
    take, begun = service.engine.batch.take, threading.Event()

    def spoiled(first, logits):
        for slot, row in zip(service.engine.batch.running[first:], logits, strict=False):
            if len(slot.answer.ids) >= 3 and slot.answer.request.adapter[0][0] == NEW:
                assert begun.wait(20)  # until the client has some of the text
                row.fill_(float("nan"))
        take(first, logits)

    service.engine.batch.take = spoiled
    body = {"model": NEW, "messages": ASKED, "temperature": 0, "max_tokens": 8, "stream": True}
    said, events, ended = "", [], False
    with serving(service) as address:
        url = f"{address}/v1/chat/completions"
        with httpx.stream("POST", url, json=body, timeout=30) as response:
            for line in response.iter_lines():
                ended = ended or line == "data: [DONE]"
                if line.startswith("data: {"):
                    events.append(json.loads(line[6:]))
                    for choice in events[-1].get("choices", ()):
                        said += choice["delta"].get("content") or ""
                    if said:
                        begun.set()
    assert said
    assert solo[NEW].startswith(said)
    assert events[-1]["error"]["code"] == "adapter_failed"
    assert not ended


def test_an_arm_that_is_shown_to_be_worse_is_answered_for_by_the_champion(hub, solo, tmp_path):
    experiments = Experiments(tmp_path)
    experiments.start(Experiment("greeting", "naval", {"old": OLD, "new": NEW}))
    failover = Failover(worse=experiments.worse)
    with serving(small_service(hub=hub, experiments=experiments, failover=failover)) as address:
        for number in range(40):
            drawn = experiments.assign("naval", str(number))
            experiments.record(drawn, f"r{number}")
            experiments.outcome(f"r{number}", float(drawn.arm == "old"))
        experiments.read_at = -1e9
        text, adapter, why = told(ask(address, NEW))
        assert (text, adapter) == (solo[OLD], OLD)
        assert "did worse in the experiment greeting (E = " in why
        experiments.end("greeting")
        assert told(ask(address, NEW))[1] == NEW


@pytest.mark.parametrize("wrong", ["400", "503"])
def test_what_is_the_callers_fault_or_the_queues_opens_nothing(hub, wrong):
    failover = Failover(Limits(failures=1, window=1))
    service = small_service(hub=hub, failover=failover)
    with serving(service) as address:
        if wrong == "400":
            answer = ask(address, NEW, max_tokens=0)
        else:
            service.engine.most_waiting = 0
            answer = ask(address, NEW)
    assert answer.status_code == int(wrong)
    assert failover.states() == {}


def own_hub(tmp_path):
    """``naval`` in two versions, the older one the champion; ``lone`` without a champion."""
    made = Hub(tmp_path / "hub")
    for number, letter in enumerate("ab", 1):
        made.push("naval", FOLDERS[letter], version=f"{number}.0.0")
    made.push("lone", FOLDERS["c"], version="1.0.0")
    made.alias(OLD, "champion")
    return made


def drawn(service, user):
    """(the adapter, the arm) that a user's request would get."""
    turns = Turns(service, None, "naval", "Hull?", user, "")
    return turns.next().adapter, turns.arm and turns.arm.arm


USERS = [f"user {number}" for number in range(12)]


def test_an_experiment_beside_a_champion_draws_only_while_the_alias_means_it(tmp_path, caplog):
    hub, experiments = own_hub(tmp_path), Experiments(tmp_path)
    plan = Experiment("live", "naval", {"old": OLD, "new": NEW}, champion=OLD)
    experiments.start(plan)
    service = small_service("", hub=hub, experiments=experiments)
    arms = {user: plan.arm(plan.unit(user)) for user in USERS}
    assert set(arms.values()) == {"old", "new"}
    for user in USERS:
        assert drawn(service, user) == (plan.arms[arms[user]], arms[user])
    show, gone = hub.show, [NEW]

    def pruned(spec):
        if spec in gone:
            raise ValueError(f"there is no {spec}")
        return show(spec)

    hub.show = pruned
    with caplog.at_level("WARNING", "minilora.serving"):
        for user in USERS:
            assert drawn(service, user) == (OLD, arms[user] if arms[user] == "old" else None)
    assert all(NEW[:5] in line and "naval answers" in line for line in caplog.messages)
    gone.clear()
    hub.alias(NEW, "champion")
    assert [drawn(service, user) for user in USERS] == [(NEW, None)] * 12


def test_the_first_failure_is_the_answer_where_nobody_can_step_in(tmp_path):
    service = small_service("", hub=own_hub(tmp_path), failover=Failover())
    load = service.bank.load

    def damaged(name, folder, **settings):
        if name == "lone@1.0.0":
            raise ValueError("a tensor is not finite")
        return load(name, folder, **settings)

    service.bank.load = damaged
    with pytest.raises(Refused) as refused:
        Turns(service, None, "lone", "Hull?", None, "").next()
    assert (refused.value.status, refused.value.code) == (400, "adapter_unavailable")


@pytest.mark.parametrize("keys", [False, True], ids=["open", "with keys"])
def test_a_file_names_arms_that_can_be_answered_and_a_programs_experiment_is_warned_of(
    tmp_path, caplog, keys
):
    toml = tmp_path / "experiments.toml"
    tenants = Tenants(tmp_path / "keys.sqlite") if keys else None
    service = small_service("", hub=own_hub(tmp_path), tenants=tenants)
    check_arms(service)

    def check(toml_text):
        toml.write_text(toml_text)
        service.experiments = Experiments(tmp_path, toml)
        check_arms(service)

    def named(name, new):
        return f'[{name}]\nmodel = "naval"\narms = {{old = "{OLD}", new = "{new}"}}\n'

    check(named("sound", NEW))
    with pytest.raises(ValueError, match="experiment 'broken': the model 'naval@9.9.9'"):
        check(named("broken", "naval@9.9.9"))
    check("")  # both have ended
    plan = Experiment("by a program", "naval", {"old": OLD, "new": "naval@9.9.9"})
    service.experiments.start(plan)
    with caplog.at_level("WARNING", "minilora.serving"):
        check_arms(service)
    (line,) = caplog.messages
    assert line.startswith("experiment 'by a program'")
    assert line.endswith("its users get naval")


def test_what_becomes_of_a_correction_and_of_its_score(hub, tmp_path):
    experiments = Experiments(tmp_path)
    experiments.start(Experiment("greeting", "naval", {"old": OLD, "new": NEW}))
    assignment = experiments.assign("naval", "ann")
    experiments.record(assignment, "r1")
    service = small_service("", hub=hub, experiments=experiments)

    def learner(tenant, request, asked):
        if asked.correction == "":
            raise ValueError("the correction is empty")
        return state

    with TestClient(create_app(service)) as http:

        def feedback(**fields):
            got = http.post("/v1/feedback", json={"request_id": "r1", **fields})
            return got.status_code, got.json()

        service.on_feedback, state = learner, "refused"
        status, reply = feedback(score=1, correction="")
        assert (status, reply["error"]["param"]) == (400, "correction")
        assert feedback(score=1)[1]["arm"] is None, "an expelled user's counts for nothing"
        state = "quarantine"
        status, reply = feedback(correction="90 percent")
        assert (status, reply["kept"], reply["arm"]) == (200, True, None), "no score, no outcome"
        assert experiments.outcomes("greeting") == []
        state = "known"
        assert feedback(score=1)[1]["arm"] == assignment.arm
        assert len(experiments.outcomes("greeting")) == 1
        service.on_feedback = service.experiments = None
        status, reply = feedback(score=1)
        assert (status, reply["arm"], reply["state"]) == (200, None, None)
        assert http.get("/v1/experiments").status_code == 404
        paths = http.app.openapi()["paths"]
    for path in ("/v1/feedback", "/v1/experiments", "/v1/adapters/{name}/champion"):
        assert "409" in paths[path]["post"]["responses"]


def test_numbers_that_json_has_not_are_made_finite_and_the_others_stay():
    assert finite([-math.inf, -2.5, 0.5, 7.0, math.inf]) == [-1e300, -2.5, 0.5, 7.0, 1e300]
    assert finite({"a": (math.nan, "b", None, True)}) == {"a": [None, "b", None, True]}
