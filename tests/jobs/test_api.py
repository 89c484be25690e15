"""The fine-tuning API, asked by the official client over a real socket."""

import json
import threading
import time
from types import SimpleNamespace

import httpx
import openai
import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

import minilora
from minilora.hub import Hub
from minilora.jobs import Queue, Worker, api
from minilora.jobs.api import fine_tuning_router
from minilora.jobs.fine_tuning import TRIED_AGAIN, refused
from minilora.serving import AdapterBank, Engine, Service
from minilora.serving.tenants import Tenants

from ..serving.live import serving

SMALL = {"train": {"steps": 4, "batch_size": 4, "validate_every": 2}, "method": {"r": 2}}
SMALL["evaluation"] = {"examples": 2, "prose": False}


def lines(count=40):
    rows = [
        {"messages": example.as_messages()} for example in minilora.data.naval_log(count, 1).train
    ]
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A server with two tenants, its queue, its hub, and their keys."""
    folder = tmp_path_factory.mktemp("server")
    bank = AdapterBank(minilora.load_base())
    tenants = Tenants(folder / "keys.sqlite")
    keys = {name: tenants.add(name, [f"{name}-naval", "naval"]) for name in ("acme", "rival")}
    hub = Hub(folder / "hub")
    service = Service(Engine(bank), bank, hub=hub, tenants=tenants)
    queue = Queue(folder / "jobs")
    with serving(service, routers=[fine_tuning_router(service, queue)]) as address:
        yield address, queue, hub, keys


@pytest.fixture
def acme(place):
    address, _, _, keys = place
    with openai.OpenAI(base_url=f"{address}/v1", api_key=keys["acme"], max_retries=0) as client:
        yield client


@pytest.fixture
def rival(place):
    address, _, _, keys = place
    with openai.OpenAI(base_url=f"{address}/v1", api_key=keys["rival"], max_retries=0) as client:
        yield client


def upload(client, content=None, name="naval.jsonl"):
    return client.files.create(file=(name, content or lines()), purpose="fine-tune")


def create(client, file, **more):
    body = {"suffix": "acme-naval", "extra_body": {"minilora": SMALL}, **more}
    return client.fine_tuning.jobs.create(model="minilora-base", training_file=file.id, **body)


def test_an_upload_that_is_too_long_is_a_413_that_says_the_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(api, "MOST_BYTES", 2000)
    app = FastAPI()
    app.state.service = SimpleNamespace(tenants=None)
    app.include_router(fine_tuning_router(app.state.service, Queue(tmp_path)))
    client = TestClient(app)

    def status(size):
        file = ("naval.jsonl", b"x" * size)
        return client.post("/v1/files", files={"file": file}, data={"purpose": "fine-tune"})

    assert status(1000).json()["bytes"] == 1000
    refused = status(3000)
    assert (refused.status_code, "at most 2,000 bytes" in refused.text) == (413, True)


@pytest.mark.slow
def test_the_official_client_tunes_naval_code_and_asks_what_came_out(place, acme):
    """1,000 rows, 80 steps of 16: enough that it answers in naval code."""
    _, queue, hub, _ = place
    file = upload(acme, lines(1000))
    train = {"steps": 80, "batch_size": 16, "validate_every": 40, "valid_examples": 16}
    more = {"minilora": {"train": train, "evaluation": {"examples": 2, "prose": False}}}
    job = create(acme, file, seed=3, extra_body=more, metadata={"team": "bridge"})
    assert (job.status, job.model, job.seed) == ("queued", "minilora-base", 3)
    worker = Worker(queue, hub.folder)
    thread = threading.Thread(target=worker.run, kwargs={"until_idle": True})
    thread.start()
    thread.join()
    job = acme.fine_tuning.jobs.retrieve(job.id)
    assert job.status == "succeeded", job.error
    assert job.fine_tuned_model == "acme-naval@1.0.0"
    assert job.finished_at >= job.created_at
    assert job.trained_tokens > 1000
    assert job.forecast["seconds"] > 0
    assert job.metadata == {"team": "bridge"}
    asked = [{"role": "user", "content": "Log: Hull 90%, Fuel 12%.\nHull status?"}]
    answer = acme.chat.completions.create(model=job.fine_tuned_model, messages=asked, temperature=0)
    assert answer.choices[0].message.content.strip() == "Hull 90%."
    last, earlier = acme.fine_tuning.jobs.checkpoints.list(job.id, limit=1)  # page after page
    assert (last.fine_tuned_model_checkpoint, last.step_number) == (job.fine_tuned_model, 80)
    assert earlier.fine_tuned_model_checkpoint == "acme-naval@1.0.0-step.40"
    assert earlier.metrics.valid_loss > last.metrics.valid_loss > 0
    model = earlier.fine_tuned_model_checkpoint
    assert acme.chat.completions.create(model=model, messages=asked, max_tokens=2).model == model
    events = list(acme.fine_tuning.jobs.list_events(job.id, limit=7))  # page after page
    assert len({event.id for event in events}) == len(events) > 80
    assert events[-1].message == "the job waits for a worker"
    curve = [
        event.data["loss"] for event in events if event.type == "metrics" and "loss" in event.data
    ]
    assert curve[0] < curve[-1], "the newest first"
    assert not [event for event in events if str(hub.folder.parent) in event.message]


def test_lists_page_with_after_and_end(acme):
    file = upload(acme)
    jobs = [create(acme, file, seed=seed).id for seed in range(5)]
    first = acme.fine_tuning.jobs.list(limit=2)
    assert [job.id for job in first.data] == jobs[:-3:-1]
    assert first.has_more
    listed = [job.id for job in acme.fine_tuning.jobs.list(limit=2)]  # the client pages on
    assert listed[:5] == jobs[::-1]
    assert len(set(listed)) == len(listed)
    with pytest.raises(openai.BadRequestError, match="nothing here has the id"):
        acme.fine_tuning.jobs.list(after="ftjob-unknown")
    for job in jobs:
        assert acme.fine_tuning.jobs.cancel(job).status == "cancelled"


def test_a_create_that_comes_twice_is_one_job(acme, place, monkeypatch):
    """openai-python sends it again when no answer came, with its count of tries."""
    file = upload(acme)
    job = create(acme, file, seed=11)
    assert create(acme, file, seed=11).id == job.id, "while it is unfinished"
    acme.fine_tuning.jobs.cancel(job.id)
    again = {"x-stainless-retry-count": "1"}
    assert create(acme, file, seed=11, extra_headers=again).id == job.id, "a late second try"
    with monkeypatch.context() as later:
        later.setattr(place[1], "clock", lambda: time.time() + 2 * TRIED_AGAIN)
        other = create(acme, file, seed=11, extra_headers=again)
        assert other.id != job.id, "the first try never came, and an old job is no answer"
        acme.fine_tuning.jobs.cancel(other.id)
    other = create(acme, file, seed=11)
    assert other.id != job.id, "a new wish"
    acme.fine_tuning.jobs.cancel(other.id)
    named = {"idempotency-key": "order 7"}
    one, two = (create(acme, file, seed=12, extra_headers=named).id for _ in range(2))
    assert one == two
    for _ in range(2):
        with pytest.raises(openai.BadRequestError, match="was used for another job"):
            create(acme, file, seed=13, extra_headers=named)
        if acme.fine_tuning.jobs.retrieve(one).status == "queued":
            acme.fine_tuning.jobs.cancel(one)  # nor when that one has ended


def test_another_tenants_jobs_and_files_are_unknown(acme, rival, place):
    file = upload(acme)
    job = create(acme, file, seed=20)
    tuning = rival.fine_tuning.jobs
    asks = [tuning.retrieve, tuning.cancel, tuning.pause, tuning.resume, tuning.list_events]
    asks += [tuning.checkpoints.list]
    told = set()
    for ask in asks:
        for id in (job.id, "ftjob-0"):
            with pytest.raises(openai.NotFoundError) as refused:
                ask(id)
            told.add(str(refused.value).replace(id, "…"))
    assert len(told) == 1, "foreign and missing are the same"
    for ask in (rival.files.retrieve, rival.files.delete, rival.files.content):
        with pytest.raises(openai.NotFoundError):
            ask(file.id)
    with pytest.raises(openai.NotFoundError):
        create(rival, file, suffix="naval")
    with pytest.raises(openai.PermissionDeniedError):
        create(rival, upload(rival), suffix="acme-naval")
    assert list(rival.fine_tuning.jobs.list()) == []
    with pytest.raises(openai.ConflictError, match=job.id):
        acme.files.delete(file.id)
    acme.fine_tuning.jobs.cancel(job.id)


def test_pause_resume_and_wrong_states(acme):
    job = create(acme, upload(acme), seed=30)
    assert acme.fine_tuning.jobs.pause(job.id).status == "paused"
    with pytest.raises(
        openai.BadRequestError, match="is paused: expected a job that is queued, run"
    ):
        acme.fine_tuning.jobs.pause(job.id)
    assert acme.fine_tuning.jobs.resume(job.id).status == "queued"
    acme.fine_tuning.jobs.cancel(job.id)
    with pytest.raises(openai.BadRequestError, match="is cancelled"):
        acme.fine_tuning.jobs.cancel(job.id)


def test_files_come_back_and_go(acme):
    file = upload(acme, name="mine.jsonl", content=lines(3))
    assert acme.files.retrieve(file.id).bytes == len(lines(3))
    assert acme.files.content(file.id).read() == lines(3)
    assert upload(acme, name="mine.jsonl", content=lines(3)).id == file.id
    assert file.id in {each.id for each in acme.files.list(limit=1)}
    assert acme.files.delete(file.id).deleted
    with pytest.raises(openai.NotFoundError):
        acme.files.retrieve(file.id)


WRONG = {
    "another base": ({"model": "gpt-4o"}, 404, "does not exist"),
    "a file that is not there": ({"training_file": "file-0"}, 404, "no file"),
    "a setting": ({"minilora": {"train": {"lr": -1}}}, 400, "lr must be positive"),
    "a method": ({"minilora": {"method": {"kind": "lorra"}}}, 400, "did you mean 'lora'"),
    "a path": ({"minilora": {"evaluation": {"regression": "/etc/passwd"}}}, 400, "names no file"),
    "a folder": ({"minilora": {"base": {"folder": "/"}}}, 400, "unknown field"),
    "preferences": ({"method": {"type": "dpo"}}, 400, "supervised"),
    "a bad name": ({"suffix": "../x"}, 400, "an adapter's name"),
    "an integration": ({"integrations": [{"type": "wandb"}]}, 400, "at most 0"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_done_is_refused_before_it_is_queued(case, place, acme):
    address, queue, _, keys = place
    change, status, words = WRONG[case]
    before = len(queue.jobs())
    body = {"model": "minilora-base", "training_file": upload(acme).id, "suffix": "acme-naval"}
    url, headers = f"{address}/v1/fine_tuning/jobs", {"authorization": f"Bearer {keys['acme']}"}
    reply = httpx.post(url, json=body | change, headers=headers)
    assert reply.status_code == status, reply.text
    assert words in reply.json()["error"]["message"]
    assert len(queue.jobs()) == before


def test_a_poisoned_row_is_named_with_the_users_own_file_name(acme, place):
    bad = upload(acme, lines(3) + b'{"messages": []}\n', "bad.jsonl")
    with pytest.raises(
        openai.BadRequestError, match=r"bad\.jsonl, line 4: 'messages' is empty"
    ) as no:
        create(acme, bad)
    assert no.value.param == "training_file"
    assert "blobs" not in str(no.value)


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        ("the quota of 'acme' is 1 unfinished jobs", 429, "quota_exceeded"),
        ("/srv/blobs/2c/2cf2, line 4: 'messages' is empty", 400, "invalid_training_job"),
    ],
    ids=["quota", "rows"],
)
def test_a_file_that_is_called_quota_is_no_full_quota(error, status, code):
    """A client sends again what was answered with 429."""
    no = refused(ValueError(error), {"files": {"/srv/blobs/2c/2cf2": "quota.jsonl"}})
    assert (no.status, no.code) == (status, code)
    assert "/srv" not in no.message


def test_quotas_of_a_tenant(place, rival):
    _, queue, _, _ = place
    file = upload(rival)
    queue.set_quota("rival", jobs=1, bytes=file.bytes + 10)
    try:
        job = create(rival, file, suffix="rival-naval", seed=1)
        with pytest.raises(openai.RateLimitError, match="quota of 'rival' is 1 unfinished jobs"):
            create(rival, file, suffix="rival-naval", seed=2)
        with pytest.raises(openai.RateLimitError, match="bytes of files"):
            upload(rival, lines(2), "more.jsonl")
        rival.fine_tuning.jobs.cancel(job.id)
    finally:
        queue.set_quota("rival")


def test_a_forecast_says_what_a_job_would_need_and_queues_nothing(place, acme):
    address, queue, _, keys = place
    before, file = len(queue.jobs("acme")), upload(acme)
    body = {"model": "minilora-base", "training_file": file.id, "suffix": "acme-naval"}
    head = {"authorization": f"Bearer {keys['acme']}"}
    url = f"{address}/v1/fine_tuning/forecast"
    found = httpx.post(url, json={**body, "hyperparameters": {"n_epochs": 2}}, headers=head).json()
    assert (found["examples"], len(queue.jobs("acme"))) == (40, before)
    assert found["steps"] == -(-2 * 40 // 32)
    assert found["planned_bytes"] > 5e6
    assert found["message"].startswith("40 examples, the longest of ")
    broken = upload(acme, b'{"messages": []}\n').id
    refused = httpx.post(url, json={**body, "training_file": broken}, headers=head)
    assert refused.status_code == 400
    assert refused.json()["error"]["code"] == "invalid_training_job"


def test_a_file_for_another_purpose_is_refused(acme):
    with pytest.raises(openai.BadRequestError, match="purpose must be fine-tune, got 'batch'"):
        acme.files.create(file=("x.jsonl", lines(3)), purpose="batch")


def test_files_are_listed_in_either_order(acme):
    ids = [upload(acme, lines(count), f"{count}.jsonl").id for count in (4, 5, 6)]
    newest = [file.id for file in acme.files.list() if file.id in ids]
    oldest = [file.id for file in acme.files.list(order="asc") if file.id in ids]
    assert (newest, oldest) == (ids[::-1], ids)


def test_jobs_are_found_by_their_metadata(acme):
    file = upload(acme)
    marked = [{"team": "helm", "ship": "one"}, {"team": "helm"}, {"team": "galley"}, None]
    ids = [create(acme, file, seed=40 + n, metadata=m).id for n, m in enumerate(marked)]
    for wanted, found in (
        ({"metadata[team]": "helm"}, ids[1::-1]),
        ({"metadata[team]": "helm", "metadata[ship]": "one"}, ids[:1]),
        ({"metadata[team]": "hel"}, []),
    ):
        listed = acme.fine_tuning.jobs.list(extra_query=wanted)
        assert [job.id for job in listed.data] == found
    for id in ids:
        acme.fine_tuning.jobs.cancel(id)
