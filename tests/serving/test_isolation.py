"""Nothing of one tenant is ever seen by another, whatever they do; and a test that would notice.

Random tenants do random things to a server, and a model of what each may see runs beside it: the
texts are those of solo runs, a cached answer comes only to who asked before, and no response holds
a name, an id or a text of somebody else. Bugs that are let loose on purpose make it fail.
"""

import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from minilora.hub import Hub
from minilora.serving import Engine, Service, answer_cache
from minilora.serving.answer_cache import AnswerCache
from minilora.serving.app import create_app
from minilora.serving.audit import Audit
from minilora.serving.refusals import unknown_model
from minilora.serving.tenants import Tenants

from .small import FOLDERS, small_bank

PEOPLE = ("acme", "zeta", "omega")
OWN = {"acme": "acme-ledger", "zeta": "zeta-claims", "omega": "omega-notes"}  # adapters' names
OWNED = (("acme", "c"), ("zeta", "d"), ("omega", "e"))  # whose is what at the beginning
SHARED = "common-naval"  # two versions in the hub; its champion moves
PROMPTS = ("Hull status?", "Fuel left?")
SETTINGS = ({}, {"stop": ["e"]}, {"max_tokens": 3}, {"logprobs": True})
ORACLE = small_bank("abcde")
DIGESTS = {letter: ORACLE.known[letter].content for letter in "abcde"}
SOLO = {}


def solo(letter, prompt, number):
    """The text of a solo run."""
    key = letter, prompt, number
    if key not in SOLO:
        more = SETTINGS[number]
        row = (letter, [{"role": "user", "content": prompt}])
        most, stop = more.get("max_tokens", 5), more.get("stop", ())
        SOLO[key] = ORACLE.generate([row], max_new_tokens=most, stop=stop)[0]
    return SOLO[key]


def make_hub():
    hub = Hub(Path(tempfile.mkdtemp(prefix="isolation_")) / "hub")
    hub.push(SHARED, FOLDERS["a"], version="1.0.0")
    hub.push(SHARED, FOLDERS["b"], version="2.0.0")
    return hub


HUB = make_hub()
VERSIONS = {"1.0.0": "a", "2.0.0": "b"}


class World:
    """A server, and what each tenant may see of it."""

    def __init__(self, folder):
        self.bank = small_bank("")
        self.tenants, self.audit = Tenants(folder / "keys"), Audit(folder / "audit")
        self.service = Service(
            Engine(self.bank, 4),
            self.bank,
            base_name="small",
            hub=HUB,
            tenants=self.tenants,
            audit=self.audit,
            answers=AnswerCache("base"),
            root=FOLDERS["a"].parent,
        )
        self.rights = {name: {SHARED, own} for name, own in OWN.items()}
        self.keys = {name: self.tenants.add(name, sorted(self.rights[name])) for name in PEOPLE}
        self.keys["boss"] = self.tenants.add("boss", admin=True)
        self.valid = dict.fromkeys(self.keys, True)
        self.loaded, self.version, self.number = {}, "1.0.0", 0
        HUB.alias(f"{SHARED}@1.0.0", "champion")
        self.said = {name: set() for name in self.keys}
        self.asked, self.entries = {name: set() for name in self.keys}, {n: [] for n in self.keys}

    def secrets_from(self, who):
        """What a tenant must never read."""
        others = [name for name in PEOPLE if name != who]
        return others + [OWN[name] for name in others] + [f"id-of-{name}" for name in others]

    def send(self, who, method, path, body=None, note=None):
        """A request of a tenant, checked for what is not its own; None with an invalid key."""
        self.number += 1
        id = f"id-of-{who}-{self.number}"
        headers = {"authorization": f"Bearer {self.keys[who]}", "x-request-id": id}
        response = self.client.request(method, path, json=body, headers=headers)
        if who != "boss":
            seen = response.text + json.dumps(dict(response.headers))
            said = (body or {}).get("model", (body or {}).get("lora_name"))
            self.said[who].add(said)
            for own in self.said[who] if "audit" in path else {said}:
                seen = seen.replace(own or "\0", "")  # it may hear what it said itself
            for secret in self.secrets_from(who):
                assert secret not in seen, f"{who} sees {secret} in {path}: {seen}"
        if not self.valid[who]:
            assert response.status_code == 401
            return None
        if note is not None:
            self.entries[who].append((id, *note, response.status_code))
        return response

    def letter_of(self, who, model):
        """Which adapter a name means to a tenant; None: 404."""
        if who != "boss" and model not in self.rights[who]:
            return None
        return VERSIONS[self.version] if model == SHARED else self.loaded.get(model)

    def ask(self, who, model, prompt, number):
        """A chat: the solo run's text, from the cache only for who asked that before."""
        body = {"model": model, "messages": [{"role": "user", "content": prompt}]}
        body |= {"temperature": 0, "max_tokens": 5, **SETTINGS[number]}
        got = self.send(who, "POST", "/v1/chat/completions", body, ("chat", model))
        if got is None:
            return
        letter = self.letter_of(who, model)
        if letter is None:
            assert got.status_code == 404
            assert got.json() == unknown_model(model).body()
            return
        assert got.status_code == 200, got.text
        answer = got.json()
        assert answer["minilora"]["digest"] == DIGESTS[letter]
        text = answer["choices"][0]["message"]["content"]
        assert text == solo(letter, prompt, number), "another's text"
        assert (answer["choices"][0]["logprobs"] is not None) == (number == 3), "another's text"
        before = (letter, prompt, number) in self.asked[who]
        cached = got.headers["x-minilora-cache"]
        assert cached == ("hit" if before else "miss"), f"{cached}: {who} asked {model} {before}"
        self.asked[who].add((letter, prompt, number))

    def look(self, who, path):
        """Lists, the log and the metrics: one's own and no more."""
        got = self.send(who, "GET", path)
        if got is None:
            return
        if path == "/metrics":
            assert got.status_code == (200 if who == "boss" else 403)
        elif path == "/v1/models":
            listed = [card["id"] for card in got.json()["data"]]
            names = {SHARED, *self.loaded}
            assert listed == ["small", *sorted(n for n in names if self.letter_of(who, n))]
        elif who == "boss":
            assert len(got.json()["data"]) == sum(map(len, self.entries.values()))
        else:
            rows = got.json()["data"]
            fields = [(r["request"], r["action"], r["model"], r["status"]) for r in rows]
            assert fields == self.entries[who]
            assert [row["id"] for row in rows] == list(range(1, len(rows) + 1))
            assert {row["tenant"] for row in rows} <= {who}

    def load(self, who, model, letter):
        """Load an adapter, if an admin asks."""
        body = {"lora_name": model, "lora_path": letter, "load_inplace": True}
        note = ("load", model) if who == "boss" else None
        got = self.send(who, "POST", "/v1/load_lora_adapter", body, note)
        if got is None or who != "boss":
            assert got is None or got.status_code == 403
        else:
            assert got.status_code == (400 if model == SHARED else 200)
            if model != SHARED:
                self.loaded[model] = letter

    def unload(self, who, model):
        """Unload one."""
        note = ("unload", model) if who == "boss" else None
        got = self.send(who, "POST", "/v1/unload_lora_adapter", {"lora_name": model}, note)
        if got is None or who != "boss":
            assert got is None or got.status_code == 403
        else:
            assert got.status_code == (200 if model in self.loaded else 404)
            self.loaded.pop(model, None)

    def move(self, version):
        """Move the champion."""
        HUB.alias(f"{SHARED}@{version}", "champion")
        self.version = version

    def revoke(self, who):
        """Revoke a key, or give a new one to who has none."""
        if self.valid[who]:
            self.tenants.revoke(self.keys[who])
        else:
            self.keys[who] = self.tenants.add(who, admin=who == "boss")
        self.valid[who] = not self.valid[who]

    def live(self, steps):
        """Do it all; then everybody looks at everything."""
        with TestClient(create_app(self.service)) as self.client, self.tenants, self.audit:
            for name, *values in steps:
                getattr(self, name)(*values)
            for who in self.keys:
                for path in ("/v1/models", "/v1/audit?limit=1000", "/metrics"):
                    self.look(who, path)


people = st.sampled_from(PEOPLE)
everybody = st.sampled_from((*PEOPLE, "boss"))
models = st.sampled_from((SHARED, SHARED, SHARED, *OWN.values()))
questions = st.sampled_from([(p, n) for p in PROMPTS for n in (0, 0, 1, 2, 3)])
askers = st.sampled_from(("acme", "acme", "zeta", "zeta", "omega", "boss"))
asks = st.builds(lambda *step: ("ask", *step[:2], *step[2]), askers, models, questions)
paths = st.sampled_from(["/v1/models", "/v1/audit?limit=1000", "/metrics"])
loads = st.tuples(st.just("load"), st.just("boss") | people, models, st.sampled_from("cde"))
others = st.one_of(
    loads,
    st.tuples(st.just("unload"), everybody, models),
    st.tuples(st.just("look"), everybody, paths),
    st.tuples(st.just("move"), st.sampled_from(sorted(VERSIONS))),
    st.tuples(st.just("revoke"), everybody),
)
beginnings = st.just([("load", "boss", OWN[name], letter) for name, letter in OWNED])
steps = st.integers(0, 9).flatmap(lambda number: others if number < 3 else asks)
lives = st.tuples(beginnings, st.lists(steps, min_size=12, max_size=40))


def check(examples, seed_phases=(Phase.generate,)):
    """Run random lives."""

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        phases=seed_phases,
        suppress_health_check=list(HealthCheck),
    )
    @given(lives)
    def nothing_is_shared(steps):
        with tempfile.TemporaryDirectory() as folder:
            World(Path(folder)).live([*steps[0], *steps[1]])

    nothing_is_shared()


def test_12_nothing_of_one_tenant_is_ever_seen_by_another():
    check(6)


@pytest.mark.long
def test_12_for_long():
    check(150, (Phase.generate, Phase.shrink))


def without_tag(tag):
    """The key without one of its parts."""
    whole = answer_cache.hash_of_parts
    return lambda parts: whole([pair for pair in parts if pair[0] != tag])


def log_of_everybody():
    """An audit log that forgets whose it is."""
    entries = Audit.entries
    return lambda audit, tenant, *page: entries(audit, None, *page)


KEYS = ("tenant", "adapter", "prompt", "most", "stop", "logprobs")
HIT = r"hit: \w+ asked .* False|another's text"
MUTANTS = {
    **{
        f"a key without its {tag}": (answer_cache, "hash_of_parts", without_tag(tag), HIT)
        for tag in KEYS
    },
    "rights that nobody asks for": (Tenants, "may_use", lambda *_: True, r"\w+ sees \w+"),
    "a log of everybody": (Audit, "entries", log_of_everybody(), r"sees \S+ in /v1/audit"),
    "a key that was revoked": (Tenants, "revoke", lambda *_: None, "== 401"),
}


QUICK = ("a key without its tenant", "a key without its adapter", "a log of everybody")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in QUICK else [pytest.mark.slow]) for n in MUTANTS]
)
def test_the_property_fails_when_a_tag_or_a_check_is_left_out(name, monkeypatch):
    *place, reason = MUTANTS[name]
    monkeypatch.setattr(*place)
    with pytest.raises(AssertionError, match=reason):
        check(30)
