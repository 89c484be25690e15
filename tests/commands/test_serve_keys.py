"""``minilora serve keys``: a key is shown once, and a server that runs hears of it at once."""

import httpx
import pytest

from minilora.commands.cli import main
from minilora.commands.serve_keys import warning_of
from minilora.serving.tenants import Tenants
from tests.serving.live import serving, small_service


@pytest.fixture
def keys(tmp_path, capsys):
    """Run the command; what it prints."""

    def run(*words):
        status = main(["serve", "keys", *words, "--state", str(tmp_path)])
        out = capsys.readouterr()
        assert status == (2 if out.err else 0)
        return out.out or out.err

    return run


def test_a_server_that_others_reach_warns_until_there_is_a_key(keys, tmp_path):
    assert warning_of("localhost", tmp_path) == ""
    assert "whoever reaches 0.0.0.0 may do everything" in warning_of("0.0.0.0", tmp_path)
    keys("add", "me", "--admin")
    assert warning_of("0.0.0.0", tmp_path) == ""


def test_a_key_is_shown_once_then_listed_without_its_secret(keys):
    assert "No key yet: everybody is the tenant local" in keys("list")
    out = keys("add", "acme", "--adapter", "naval", "--requests", "60", "--concurrent", "4")
    key = out.splitlines()[0]
    assert "the key of acme: the base, naval; 60 requests a minute; 4 at once" in out
    assert "answers nobody without a key" in out
    assert "Nobody may load adapters" in out
    assert "answers nobody" not in keys("add", "me", "--admin", "--days", "30")
    listed = keys("list")
    assert key.split("-", 2)[2] not in listed
    rows = listed.splitlines()
    assert [row.split()[1] for row in rows] == ["acme", "me"]
    assert "everything, as an admin; until 20" in rows[1]
    assert rows[0].split()[0] == key.split("-")[1]
    assert "revoked" in keys("revoke", key)
    assert "; revoked 20" in keys("list").splitlines()[0]


def test_a_mistake_is_one_line_and_adds_nothing(keys):
    assert "expected a tenant's name" in keys("add", "../acme")
    assert "tokens: expected a positive number" in keys("add", "acme", "--tokens", "-1")
    assert "there is no key '123'" in keys("revoke", "123")
    assert "No key yet" in keys("list")


def test_a_second_key_keeps_the_limits_that_it_does_not_name(keys):
    words = ("--requests", "30", "--tokens", "20000", "--concurrent", "4")
    keys("add", "acme", "--adapter", "naval", *words)
    out = keys("add", "acme", "--requests", "10")
    assert "the base, naval; 10 requests a minute; 20000 tokens a minute; 4 at once" in out
    assert "the tenant's: its 2 keys share them" in out
    assert "20000 tokens a minute; 4 at once" in keys("add", "acme", "--requests", "any")
    assert "requests a minute" not in keys("list")
    assert "expected a whole number, got 1.5" in keys("add", "acme", "--concurrent", "1.5")


def test_of_two_commands_at_once_neither_loses_its_limit(keys, monkeypatch):
    keys("add", "acme", "--requests", "30")
    read = Tenants.all_keys

    def read_just_before_another(tenants):
        rows = read(tenants)
        patched.undo()
        keys("add", "acme", "--tokens", "20000")
        return rows

    with monkeypatch.context() as patched:
        patched.setattr(Tenants, "all_keys", read_just_before_another)
        out = keys("add", "acme", "--concurrent", "4")
    assert "the base; 30 requests a minute; 20000 tokens a minute; 4 at once" in out


def test_keys_come_and_go_while_it_serves(keys, tmp_path):
    service = small_service(tenants=Tenants(tmp_path / "keys.sqlite"))
    with serving(service) as address, httpx.Client(base_url=address) as client:

        def seen(key):
            response = client.get("/v1/models", headers={"authorization": f"Bearer {key}"})
            if response.status_code != 200:
                return response.status_code
            return [each["id"] for each in response.json()["data"]]

        assert seen("any") == ["small", "a", "b", "c"]
        key = keys("add", "acme", "--adapter", "a").splitlines()[0]
        assert seen("any") == 401
        assert seen(key) == ["small", "a"]
        keys("add", "acme", "--adapter", "b")
        assert seen(key) == ["small", "b"]
        keys("revoke", key)
        assert seen(key) == 401
