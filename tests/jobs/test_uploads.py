"""Uploaded files: one for the same bytes, gone with the last who has them, a tenant's own."""

import pytest

from minilora.hub import Hub
from minilora.hub.blobs import DamageError
from minilora.jobs import Queue
from minilora.jobs.uploads import Uploads

from ..hub.adapters import make_adapter


@pytest.fixture
def uploads(tmp_path):
    return Uploads(tmp_path, clock=lambda: 7.0)


def put(uploads, tenant="acme", name="a.jsonl", content=b"{}"):
    return uploads.put(tenant, name, "fine-tune", content)


def test_the_same_file_again_is_the_same_file_and_others_are_others(uploads):
    first = put(uploads)
    assert (first.bytes, first.created, first.purpose) == (2, 7.0, "fine-tune")
    assert put(uploads) == first
    others = [put(uploads, "zeta"), put(uploads, name="b.jsonl"), put(uploads, content=b"{ }")]
    assert len({first.id, *(each.id for each in others)}) == 4
    assert [each.id for each in uploads.of("acme")] == [others[2].id, others[1].id, first.id]
    assert uploads.get(first.id, "acme") == first


def test_bytes_go_with_the_last_who_has_them(uploads):
    mine, theirs = put(uploads), put(uploads, "zeta")
    assert uploads.path(mine) == uploads.path(theirs)
    uploads.delete(mine.id, "acme")
    assert uploads.content(theirs) == b"{}"
    uploads.delete(theirs.id, "zeta")
    with pytest.raises(DamageError):
        uploads.content(theirs)
    for call in (uploads.get, uploads.delete):
        with pytest.raises(KeyError, match="no file"):
            call(mine.id, "acme")


def test_a_file_whose_bytes_are_gone_can_be_forgotten(uploads):
    mine = put(uploads)
    uploads.path(mine).unlink()
    uploads.delete(mine.id, "acme")
    assert uploads.of("acme") == []


def test_a_file_whose_bytes_are_gone_is_whole_when_it_comes_again(uploads):
    mine = put(uploads)
    uploads.path(mine).unlink()
    assert put(uploads) == mine
    assert uploads.content(mine) == b"{}"


def test_a_hub_in_the_same_folder_sweeps_no_upload(uploads):
    kept = uploads.put("acme", "a.jsonl", "fine-tune", b"{}")
    hub = Hub(uploads.folder)
    hub.push("naval", make_adapter(uploads.folder / "mine"))
    hub.gc()
    assert uploads.content(kept) == b"{}"


def test_a_file_is_needed_while_its_own_tenants_job_is_open(uploads, tmp_path):
    """Of another tenant's job with the same bytes nothing is said, and they stay for it."""
    queue, mine, theirs = Queue(tmp_path), put(uploads), put(uploads, "zeta")
    spec = {"name": "naval", "data": {"train": str(uploads.path(theirs))}}
    job = queue.submit(spec, tenant="zeta")
    with pytest.raises(ValueError, match=f"is needed by {job.id}: cancel the job"):
        uploads.delete(theirs.id, "zeta")
    uploads.delete(mine.id, "acme")
    assert uploads.content(theirs) == b"{}"
    queue.cancel(job.id)
    uploads.delete(theirs.id, "zeta")
    assert uploads.of("zeta") == []


def test_a_quota_of_bytes_is_reached_and_not_passed(uploads, tmp_path):
    queue = Queue(tmp_path)
    queue.submit({"name": "naval"}, tenant="acme")
    queue.finish(queue.claim("w"), dict, seconds=5.0)
    queue.set_quota("acme", bytes=4, jobs=1, seconds=5)  # the last two are reached, no matter
    put(uploads)
    put(uploads)
    put(uploads, content=b"[]")
    with pytest.raises(ValueError, match="is 4 bytes of files, and this would make it 5"):
        put(uploads, content=b"1")
    assert len(uploads.of("acme")) == 2
