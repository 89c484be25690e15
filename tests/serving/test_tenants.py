"""Keys, rights and quotas: also between processes, with a clock set back, after kill -9."""

import os
import signal
import sqlite3
import stat
import subprocess
import sys
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilora.serving.refusals import Refused
from minilora.serving.tenants import LOCAL, Limits, Tenants

from ..clock import Clock


@pytest.fixture
def clock():
    return Clock(1_000_000.0)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "keys.sqlite"


@pytest.fixture
def tenants(path, clock):
    with Tenants(path, clock) as made:
        yield made


def status_of(call, *values, **named):
    """The status of a call's refusal; 200 if there is none."""
    try:
        call(*values, **named)
    except Refused as refused:
        return refused.status
    return 200


def asked(tenants, key, request, tokens=1, used=None, body=""):
    """Begin and settle a request."""
    with tenants.begin(tenants.who(key), request, tokens, body) as admission:
        admission.settle(tokens if used is None else used)


def test_until_the_first_key_everybody_is_local_and_never_again(path, clock):
    for without in (Tenants(None), Tenants(path, clock)):
        assert without.who(None) == without.who("anything") == LOCAL
        assert without.all_keys() == []
    assert not path.exists(), "who only looks makes no file"
    with Tenants(path, clock) as serving, Tenants(path, clock) as beside:
        assert serving.who(None) == LOCAL
        key = beside.add("acme", admin=True)
        assert status_of(serving.who, None) == 401
        assert serving.who(key).admin
        beside.revoke(key)
        assert status_of(serving.who, None) == status_of(serving.who, key) == 401
        path.unlink()  # who takes the file away opens nothing in a server that runs
        assert status_of(serving.who, None) == 401


def test_a_key_that_is_unknown_revoked_or_expired_is_refused_in_the_same_words(tenants, clock):
    revoked, expired = tenants.add("acme"), tenants.add("acme", days=1)
    tenants.revoke(revoked)
    right = tenants.add("acme", days=2)
    clock.now += 86400
    unknown = right[:-1] + ("A" if right[-1] != "A" else "B")
    wrong = [revoked, expired, unknown, "ml-", "sk-1", "ключ", "\ud800", right + "\n", "x" * 10**6]
    told = set()
    for token in wrong:
        with pytest.raises(Refused) as refused:
            tenants.who(token)
        told.add((refused.value.status, refused.value.message, refused.value.code))
    assert told == {(401, "this key is unknown, revoked or expired", "invalid_api_key")}
    with pytest.raises(Refused) as refused:
        tenants.who(None)
    assert refused.value.headers == {"www-authenticate": "Bearer"}
    assert tenants.who(right).name == "acme"


@pytest.mark.parametrize("name", ["local", "default", "owner"])
def test_a_name_of_the_servers_own_is_nobodys(tenants, name):
    """Two keys would have one store of feedback, or an owner's voice."""
    with pytest.raises(ValueError, match="a name of the server's own"):
        tenants.add(name)


def test_what_needs_no_row_is_charged_and_does_not_run(tenants):
    ann = tenants.who(tenants.add("ann", limits=Limits(requests=2, concurrent=1)))
    with tenants.begin(ann, "r1", 1):
        tenants.charge(ann, "f1")  # though one runs, and no more may
        with pytest.raises(Refused, match="the quota is 2 requests a minute"):
            tenants.charge(ann, "f2")


def test_the_file_has_no_key_and_is_its_owners_alone(tenants, path):
    key = tenants.add("acme")
    everything = b"".join(file.read_bytes() for file in path.parent.iterdir())
    assert key.split("-", 2)[2].encode() not in everything
    assert b"acme" in everything
    for file in path.parent.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file


def test_hashes_are_compared_in_constant_time_for_unknown_keys_too(tenants, monkeypatch):
    import minilora.serving.tenants as module

    compared = []

    class Watched:
        @staticmethod
        def compare_digest(a, b):
            compared.append((len(a), len(b)))
            return a == b

    right = tenants.add("acme")
    monkeypatch.setattr(module, "hmac", Watched)
    for token in (right, "ml-" + "0" * 12 + "-" + "a" * 43, "x", None):
        status_of(tenants.who, token)
    assert compared == [(32, 32)] * 4


def test_rights_are_by_name_in_all_versions_and_a_new_list_replaces_the_old(tenants):
    key = tenants.add("acme", ["naval", "legal"])
    second = tenants.add("acme")
    for each in (key, second):
        acme = tenants.who(each)
        may = [tenants.may_use(acme, name) for name in ("naval", "legal@1.2.0", "nav", "*", "")]
        assert may == [True, True, False, False, False]
    tenants.add("acme", ["legal"])
    assert not tenants.may_use(tenants.who(key), "naval")
    tenants.add("all", ["*"])
    assert tenants.may_use(tenants.who(tenants.add("all")), "naval@champion")
    assert tenants.may_use(tenants.who(tenants.add("boss", admin=True)), "naval")
    assert [row.adapters for row in tenants.all_keys() if row.tenant == "acme"] == [("legal",)] * 3


BAD = {
    "a path": dict(tenant="../acme"),
    "an empty name": dict(tenant=""),
    "unicode": dict(tenant="àcme"),
    "an adapter's path": dict(tenant="acme", adapters=["a/b"]),
    "no days": dict(tenant="acme", days=0),
    "endless days": dict(tenant="acme", days=float("nan")),
}


@pytest.mark.parametrize("case", BAD)
def test_what_makes_no_sense_is_refused_and_adds_nothing(tenants, case):
    with pytest.raises(ValueError, match="expected"):
        tenants.add(**BAD[case])
    assert tenants.all_keys() == []


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf")])
def test_a_limit_is_a_positive_number(value):
    with pytest.raises(ValueError, match="tokens: expected a positive number"):
        Limits(tokens=value)


def test_a_key_that_is_not_there_cannot_be_revoked(tenants):
    key = tenants.add("acme")
    id = key.split("-")[1]
    with pytest.raises(ValueError, match="there is no key"):
        tenants.revoke("0" + id[1:] if id[0] != "0" else "1" + id[1:])
    assert tenants.revoke(id).revoked is not None
    assert tenants.revoke(key).revoked == tenants.all_keys()[0].revoked, "the first time stays"


def test_a_bucket_fills_at_its_rate_and_says_how_long(tenants, clock):
    key = tenants.add("acme", limits=Limits(tokens=600))
    asked(tenants, key, "1", 600)
    clock.now += 5  # 50 tokens
    with pytest.raises(Refused) as refused:
        asked(tenants, key, "2", 80)
    assert (refused.value.status, refused.value.headers) == (429, {"retry-after": "3"})
    clock.now += 3
    asked(tenants, key, "2", 80)
    assert status_of(asked, tenants, key, "3", 1) == 429
    assert status_of(asked, tenants, key, "4", 601) == 400, "waiting would never help"


def test_two_quotas_are_taken_together_or_not_at_all(tenants, clock):
    key = tenants.add("acme", limits=Limits(requests=2, tokens=100))
    asked(tenants, key, "1", 100)
    assert status_of(asked, tenants, key, "2", 50) == 429
    clock.now += 30
    asked(tenants, key, "3", 50)  # the refused one took no request
    clock.now += 60
    asked(tenants, key, "4", 1)
    asked(tenants, key, "5", 1)
    assert status_of(asked, tenants, key, "6", 1) == 429


def test_what_was_not_used_is_given_back(tenants):
    key = tenants.add("acme", limits=Limits(tokens=100))
    for number in range(10):
        asked(tenants, key, f"{number}", tokens=19, used=9)
    assert status_of(asked, tenants, key, "last", 11) == 429
    asked(tenants, key, "last", 10)


@pytest.mark.parametrize("step", [-1e6, -1, 0])
def test_a_clock_set_back_gives_nothing_and_stops_nothing(tenants, clock, step):
    key = tenants.add("acme", limits=Limits(tokens=60, concurrent=1))
    asked(tenants, key, "1", 60)
    clock.now += step
    assert status_of(asked, tenants, key, "2", 1) == 429
    clock.now += 10
    asked(tenants, key, "2", 10)
    assert status_of(asked, tenants, key, "3", 1) == 429


@given(
    st.lists(
        st.tuples(
            st.integers(1, 40),  # tokens reserved
            st.floats(0, 1),  # the part that is used
            st.floats(-30, 60),  # seconds that the clock moves
        ),
        max_size=30,
    )
)
def test_no_more_than_a_burst_and_the_rate_is_ever_let_through(tmp_path_factory, steps):
    clock = Clock(1_000_000.0)
    with Tenants(tmp_path_factory.mktemp("bucket") / "k", clock) as tenants:
        key = tenants.add("acme", limits=Limits(tokens=60))
        through, forward = 0.0, 0.0
        for number, (tokens, share, move) in enumerate(steps):
            used = int(tokens * share)
            if status_of(asked, tenants, key, str(number), tokens, used) == 200:
                through += used
            assert through <= 60 + forward + 1e-6
            clock.now += move
            forward += max(0, move)


def test_retries_are_charged_once_and_another_request_needs_another_id(tenants, clock):
    key = tenants.add("acme", limits=Limits(requests=2, tokens=100))
    for _ in range(3):
        asked(tenants, key, "same", 60, used=40, body="a")
    with pytest.raises(Refused) as refused:
        asked(tenants, key, "same", 1, body="b")
    assert (refused.value.status, refused.value.code) == (400, "request_id_reused")
    asked(tenants, key, "other", 60, used=60, body="b")  # 40 + 60: the quota to the token
    assert status_of(asked, tenants, key, "third", 1) == 429
    clock.now += 30
    asked(tenants, key, "same", 50, body="a")  # the fourth try is a new request
    assert status_of(asked, tenants, key, "same", 51, body="a") == 429


def test_one_id_used_forever_buys_three_tries_a_request(tenants):
    key = tenants.add("acme", limits=Limits(requests=2))
    tries = [status_of(asked, tenants, key, "same") for _ in range(7)]
    assert tries == [200] * 6 + [429]


def test_a_retry_pays_what_it_uses_more(tenants):
    key = tenants.add("acme", limits=Limits(tokens=100))
    asked(tenants, key, "1", 60, used=10)  # the client left after ten
    asked(tenants, key, "1", 60, used=60)
    assert status_of(asked, tenants, key, "2", 41) == 429
    asked(tenants, key, "2", 40)


def test_ids_of_two_tenants_have_nothing_to_do_with_each_other(tenants):
    keys = [tenants.add(name, limits=Limits(requests=1)) for name in ("acme", "zeta")]
    for key, body in zip(keys, "ab", strict=True):
        asked(tenants, key, "same-id", body=body)
        assert status_of(asked, tenants, key, "next") == 429


def test_requests_at_once_are_counted_and_leaving_the_block_ends_one(tenants):
    acme = tenants.who(tenants.add("acme", limits=Limits(concurrent=2, tokens=100)))
    with tenants.begin(acme, "1", 10), tenants.begin(acme, "2", 10):
        assert status_of(tenants.begin, acme, "3", 10) == 429
    with tenants.begin(acme, "3", 100):  # nothing was settled: all came back
        pass


def test_a_check_says_what_a_beginning_would_and_takes_nothing(tenants, clock):
    limits = Limits(requests=2, tokens=100, concurrent=1)
    acme = tenants.who(tenants.add("acme", limits=limits))
    for _ in range(5):
        tenants.check(acme, "1", 100)
    assert status_of(tenants.check, acme, "1", 101) == 400
    with tenants.begin(acme, "1", 60) as admission:
        assert status_of(tenants.check, acme, "2", 1) == 429  # one at once
        admission.settle(60)
    assert status_of(tenants.check, acme, "2", 41) == 429
    clock.now -= 3600  # set back: the bucket fills from there on
    assert status_of(tenants.check, acme, "2", 41) == 429
    clock.now += 60
    tenants.check(acme, "2", 41)


def test_a_request_is_two_changes_of_the_file_its_beginning_and_its_end(tenants):
    acme = tenants.who(tenants.add("acme", limits=Limits(requests=2, tokens=100)))
    done = []
    tenants.session.connection.set_trace_callback(done.append)
    tenants.check(acme, "1", 50)
    assert done.count("commit") == 0
    with tenants.begin(acme, "1", 60) as admission:
        assert done.count("commit") == 1
        admission.settle(60)
    assert done.count("commit") == 2
    assert status_of(tenants.check, acme, "2", 41) == 429
    assert done.count("commit") == 3, "a refusal keeps the fresh levels"


def test_threads_of_one_server_let_through_no_more_than_the_quota(tenants):
    key = tenants.add("acme", limits=Limits(requests=10))
    through = []

    def ask(thread):
        for number in range(10):
            if status_of(asked, tenants, key, f"{thread}-{number}") == 200:
                through.append(number)

    threads = [threading.Thread(target=ask, args=[number]) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(through) == 10


ASK = """
import os, signal, sys, time
from pathlib import Path
from minilora.serving.refusals import Refused
from minilora.serving.tenants import Tenants
path, key, name, kind = sys.argv[1:]
tenants = Tenants(Path(path), clock=lambda: 1_000_000.0)
acme = tenants.who(key)
if kind == "killed":
    tenants.begin(acme, name, 60)
    os.kill(os.getpid(), signal.SIGKILL)
through = 0
for number in range(40):
    try:
        with tenants.begin(acme, f"{name}-{number}", 1) as admission:
            admission.settle(1)
        through += 1
    except Refused:
        pass
print(through)
"""


def process(path, key, name, kind="asks"):
    command = [sys.executable, "-c", ASK, str(path), key, name, kind]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_two_processes_on_one_file_let_through_what_one_would(tenants, path):
    key = tenants.add("acme", limits=Limits(requests=50))
    both = [process(path, key, name) for name in ("one", "two")]
    through = [int(each.communicate(timeout=60)[0]) for each in both]
    assert sum(through) == 50


def test_kill_9_between_charge_and_settle_blocks_nobody_and_gives_nothing_away(tenants, path):
    key = tenants.add("acme", limits=Limits(requests=5, tokens=100, concurrent=1))
    killed = process(path, key, "request", "killed")
    assert killed.wait(60) == -signal.SIGKILL
    assert status_of(asked, tenants, key, "other", 41) == 429, "the charge is on the disk"
    asked(tenants, key, "other", 40)  # and its run counts no longer
    asked(tenants, key, "request", 60, used=20)  # tried again by the client: charged once
    asked(tenants, key, "last", 40)
    assert status_of(asked, tenants, key, "beyond", 1) == 429


def test_a_process_with_the_pid_of_a_dead_one_is_another(tenants, path):
    acme = tenants.who(tenants.add("acme", limits=Limits(concurrent=1)))
    tenants.begin(acme, "before", 1)
    with sqlite3.connect(path) as db:
        assert db.execute("select pid from running").fetchone() == (os.getpid(),)
        db.execute("update running set birth = 'an earlier one'")
    with tenants.begin(acme, "now", 1):
        pass


def test_a_full_disk_refuses_the_next_request_and_costs_no_answer(tenants, monkeypatch, caplog):
    acme = tenants.who(tenants.add("acme", limits=Limits(tokens=100)))
    running = tenants.begin(acme, "1", 50)
    tenants.session.connection.execute("pragma query_only = on")  # as SQLite sees a dead disk
    with pytest.raises(Refused) as refused:
        tenants.begin(acme, "2", 50)
    assert refused.value.status == 503
    assert "retry-after" in refused.value.headers
    assert str(tenants.path.parent) not in refused.value.message
    running.settle(10)
    assert "request 1: unused tokens were not given back" in caplog.text
    tenants.session.connection.execute("pragma query_only = off")
    with tenants.begin(acme, "3", 50):
        assert status_of(tenants.begin, acme, "4", 1) == 429


def test_old_charges_are_forgotten(tenants, clock):
    key = tenants.add("acme", limits=Limits(requests=1000))
    for number in range(20):
        asked(tenants, key, str(number))
        clock.now += 100
    with tenants.session.reading() as db:
        assert db.execute("select count(*) from charge").fetchone()[0] <= 7
