"""The draw: replayable, even, steady under ramps, independent between experiments."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilora.serving.assignment import Experiment, read_experiments

ARMS = {"old": "naval@1.0.0", "new": "naval@1.1.0"}
USERS = [f"user-{number}" for number in range(4000)]


def drawn(experiment, users=USERS):
    return {user: experiment.arm(experiment.unit(user)) for user in users}


@given(st.text(min_size=1), st.floats(0, 1), st.floats(0, 1))
def test_a_ramp_keeps_its_users(user, a, b):
    narrow, wide = (Experiment("e", "m", ARMS, ramp=ramp) for ramp in sorted((a, b)))
    before = drawn(narrow, [user])[user]
    if before is not None:
        assert drawn(wide, [user])[user] == before


def test_the_shares_and_the_ramp_are_as_planned():
    shares = {"a": 0.5, "b": 0.3, "c": 0.2}
    experiment = Experiment("e", "m", dict.fromkeys(shares, "x"), shares, ramp=0.7)
    arms = [arm for arm in drawn(experiment).values() if arm is not None]
    deviation = math.sqrt(0.25 * len(USERS))  # of a count, at most
    assert abs(len(arms) - 0.7 * len(USERS)) < 4 * deviation
    for arm, share in shares.items():
        assert abs(arms.count(arm) - share * len(arms)) < 4 * deviation


def test_the_last_arm_has_what_rounding_leaves_of_the_shares():
    """The largest v is 1.0 in float64, and no end of a share is above it."""
    experiment = Experiment("e", "m", dict.fromkeys("abc", "x"))
    assert experiment.arm("0" * 16 + "f" * 16) == "c"
    assert experiment.arm("0" * 32) == "a"


def test_an_experiment_is_its_fields():
    experiment = Experiment("e", "m", ARMS, ramp=0.5, salt="s")
    assert Experiment.of("e", experiment.fields) == experiment
    assert "name" not in experiment.fields
    assert not {"tenant", "champion"} & experiment.fields.keys()
    whose = Experiment("e", "m", ARMS, tenant="acme", champion="naval@1.0.0")
    assert Experiment.of("e", whose.fields) == whose


def test_two_experiments_draw_independently_and_one_alike():
    first, second = drawn(Experiment("e1", "m", ARMS)), drawn(Experiment("e2", "m", ARMS))
    alike = sum(first[user] == second[user] for user in USERS)
    assert abs(alike - len(USERS) / 2) < 4 * math.sqrt(0.25 * len(USERS))
    assert drawn(Experiment("e1", "m", ARMS)) == first
    salted = [drawn(Experiment(name, "m", ARMS, salt="s")) for name in ("e1", "e2")]
    assert salted[0] == salted[1] != first


def test_users_of_two_tenants_are_two_users_and_no_name_runs_into_another():
    experiment = Experiment("e", "m", ARMS)
    pairs = [("a", "bc"), ("ab", "c"), ("", "abc"), ('a", "b', "c"), ("a", 'b", "c')]
    assert len({experiment.unit(user, tenant) for tenant, user in pairs}) == len(pairs)


WRONG = {
    "one arm": ({"arms": {"a": "x"}}, "two arms or more"),
    "no model": ({"model": None}, "needs model"),
    "shares": ({"shares": {"old": 0.9, "new": 0.2}}, "sum to 1"),
    "other names": ({"shares": {"old": 0.5, "neu": 0.5}}, "share above 0 for each arm"),
    "zero": ({"shares": {"old": 1.0, "new": 0.0}}, "share above 0"),
    "ramp": ({"ramp": 1.5}, "from 0 to 1"),
    "a text": ({"ramp": "all"}, "from 0 to 1"),
    "typo": ({"ramps": 0.5}, "did you mean 'ramp'"),
    "adapter": ({"arms": {"old": "x", "new": 3}}, "name = adapter"),
    "alpha": ({"alpha": 0.0}, "0 < alpha"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_with_the_settings_is_said(case):
    changed, message = WRONG[case]
    fields = {"model": "naval", "arms": ARMS, **changed}
    fields = {name: value for name, value in fields.items() if value is not None}
    with pytest.raises(ValueError, match=message):
        Experiment.of("greeting", fields)


def test_a_file_is_read_and_a_wrong_one_refused(tmp_path):
    file = tmp_path / "experiments.toml"
    file.write_text(
        '[greeting]\nmodel = "naval"\nramp = 0.2\n'
        'arms = { old = "naval@1.0.0", new = "naval@1.1.0" }\n',
        encoding="utf-8",
    )
    assert read_experiments(file) == [Experiment("greeting", "naval", ARMS, ramp=0.2)]
    for text, message in (("[greeting", "Expected"), ("ramp = 1", "a table for each")):
        file.write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=message):
            read_experiments(file)
