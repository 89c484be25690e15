"""The log: exposures before answers, outcomes once, evidence as often as one likes."""

import random
import sqlite3

import pytest

from minilora.serving.assignment import Experiment
from minilora.serving.comparison import compare
from minilora.serving.evidence import e_value
from minilora.serving.experiments import DATABASE, Experiments

ARMS = {"old": "naval@1.0.0", "new": "naval@1.1.0"}


@pytest.fixture
def running(tmp_path):
    experiments = Experiments(tmp_path)
    experiments.start(Experiment("greeting", "naval", ARMS))
    return experiments


def play(running, users, chances, seed=0):
    """Each user asks once and is content with the chance of the arm."""
    dice = random.Random(seed)
    for user in users:
        drawn = running.assign("naval", user)
        running.record(drawn, f"r-{user}")
        running.outcome(f"r-{user}", float(dice.random() < chances[drawn.arm]))


def test_without_a_log_or_a_user_or_an_experiment_nothing_is_drawn(tmp_path, running):
    assert Experiments(tmp_path / "none").assign("naval", "ann") is None
    assert running.assign("naval", None) is None
    assert running.assign("naval", "") is None
    assert running.assign("legal", "ann") is None


def test_the_log_replays_every_draw(running, tmp_path):
    play(running, [f"u{n}" for n in range(30)], {"old": 0.5, "new": 0.5})
    with DATABASE.reading(tmp_path) as db:
        rows = db.execute("select unit, arm from exposure").fetchall()
        assert all("u1" not in str(row) for row in db.execute("select unit from exposure"))
    experiment = running.all()[0][0]
    assert len(rows) == 30
    assert all(experiment.arm(unit) == arm for unit, arm in rows)


def test_pairs_are_the_first_outcomes_of_users_in_order(running):
    old, new = ([u for u in map(str, range(40)) if running.assign("naval", u).arm == arm][:4]
                for arm in ARMS)  # fmt: skip
    order = [
        (old[0], 0.0),
        (new[0], 1.0),
        (new[1], 0.5),
        (old[1], 1.0),
        (old[2], 1.0),
        (new[2], 1.0),
    ]
    for number, (user, score) in enumerate(order):
        running.record(running.assign("naval", user), f"r{number}")
        running.outcome(f"r{number}", score)
    running.record(running.assign("naval", new[0]), "again")
    running.outcome("again", 0.0)  # the user's second: it changes nothing
    (found,) = running.evidence("greeting")
    assert (found.wins, found.losses, found.pairs, found.users) == (1, 1, 3, (3, 3))
    assert found.now.e == pytest.approx(e_value(1, 1))


def test_a_score_stands_and_is_given_once(running):
    running.record(running.assign("naval", "ann"), "r1", tenant="a")
    assert running.outcome("r1", 1.0, tenant="b") is None  # another tenant's request: as unknown
    first = running.outcome("r1", 1.0, tenant="a")
    assert first == running.outcome("r1", 1.0, tenant="a") == ("greeting", "old")
    with pytest.raises(ValueError, match="has the score 1 already, got 0"):
        running.outcome("r1", 0.0, tenant="a")
    for score in (1.5, -0.1, float("nan")):
        with pytest.raises(ValueError, match="from 0"):
            running.outcome("r1", score, tenant="a")


def test_an_arm_that_is_worse_is_found_and_told_to_every_process(running, tmp_path):
    other = Experiments(tmp_path)
    assert other.worse("naval@1.1.0") is None
    play(running, map(str, range(60)), {"old": 0.95, "new": 0.2})
    other.read_at = -1e9  # a second later
    assert "naval@1.1.0 did worse in the experiment greeting" in other.worse("naval@1.1.0")
    assert other.worse("naval@1.0.0") is None
    assert running.evidence("greeting")[0].verdict.startswith("new is worse than old")
    running.end("greeting")
    assert running.worse("naval@1.1.0") is None  # the operator decides from here on
    assert running.assign("naval", "ann") is None


def test_what_comes_for_an_arm_out_of_service_does_not_count(running):
    play(running, map(str, range(60)), {"old": 1.0, "new": 0.0})
    shown = [arm for arm, _ in running.outcomes("greeting")]
    running.read_at = -1e9  # a second later
    assert running.worse("naval@1.1.0") is not None
    assert shown.count("new") < sum(running.assign("naval", str(n)).arm == "new" for n in range(60))
    play(running, [f"later-{n}" for n in range(60)], {"old": 1.0, "new": 1.0})  # by the champion
    assert [arm for arm, _ in running.outcomes("greeting")].count("new") == shown.count("new")
    (found,) = running.evidence("greeting")
    assert (found.wins, found.losses, found.pairs) == (0, shown.count("new"), shown.count("new"))
    assert found.worse == pytest.approx(e_value(7, 0, one_sided=True))  # 2⁸/8; of six it is 18
    assert sum(found.users) == 120


def test_an_arm_ahead_of_the_control_gains_no_pairs_after_its_verdict(running):
    """Its 25 outcomes went on being paired as the control's came."""
    arm = {n: running.assign("naval", n).arm for n in map(str, range(80))}
    new, old = ([n for n in arm if arm[n] == name][:25] for name in ("new", "old"))
    play(running, [*new, *old[:7]], {"old": 1.0, "new": 0.0})
    running.read_at = -1e9  # a second later
    assert running.worse("naval@1.1.0") is not None
    (before,) = running.evidence("greeting")
    play(running, old[7:], {"old": 1.0, "new": 0.0})
    (after,) = running.evidence("greeting")
    assert (after.wins, after.losses, after.pairs) == (0, before.losses, before.pairs) == (0, 7, 7)


def test_an_arm_out_of_service_is_named_where_both_sides_are_undecided():
    both = Experiment("greeting", "naval", ARMS)
    outcomes = [("old", 1.0), ("new", 0.0)] * 7
    (found,) = compare(both, {"old": 7, "new": 7}, outcomes, worse={"new": 31.9})
    assert found.now.e == pytest.approx(16)
    assert found.verdict == (
        "new is worse than old: one-sided E = 31.9; "
        "while the experiment runs, its champion answers instead, if it can"
    )


def test_a_loop_s_experiment_has_no_verdict(tmp_path):
    experiments = Experiments(tmp_path)
    experiments.start(Experiment("loop", "naval", ARMS, champion="naval@1.0.0"))
    play(experiments, map(str, range(60)), {"old": 1.0, "new": 0.0})
    assert experiments.worse("naval@1.1.0") is None
    assert len(experiments.outcomes("loop")) == 60


def test_the_control_that_is_worse_is_no_reason_to_fail_over(running):
    play(running, map(str, range(60)), {"old": 0.2, "new": 0.95})
    assert running.worse("naval@1.0.0") is running.worse("naval@1.1.0") is None
    assert running.evidence("greeting")[0].verdict.startswith("new is better than old")


def test_users_who_are_lost_from_one_arm_are_noticed():
    both = Experiment("greeting", "naval", ARMS)
    found = compare(both, {"old": 600, "new": 400}, [])[0]
    assert found.verdict.startswith("users do not come in the planned shares")
    assert compare(both, {"old": 510, "new": 490}, [])[0].verdict.startswith("undecided")


def test_the_history_ends_in_what_is_now():
    both = Experiment("greeting", "naval", ARMS)
    outcomes = [("old", float(n % 3 > 1)) for n in range(90)] + [("new", 1.0)] * 100
    (found,) = compare(both, {}, outcomes, points=7)
    assert len(found.points) == 7
    assert found.points[0].pairs == 1
    assert found.points[-1] == found.now == compare(both, {}, outcomes)[0].now
    assert found.now.low < found.now.difference < found.now.high
    assert found.now.msprt > 20


def test_only_the_ramp_of_a_running_one_changes(running):
    running.start(Experiment("greeting", "naval", ARMS, ramp=0.5))
    assert running.all()[0][0].ramp == 0.5
    with pytest.raises(ValueError, match="only its ramp may change"):
        running.start(Experiment("greeting", "naval", {**ARMS, "third": "x"}))
    with pytest.raises(ValueError, match="has the experiment 'greeting' already"):
        running.start(Experiment("another", "naval", ARMS))
    running.end("greeting")
    with pytest.raises(ValueError, match="another name"):
        running.start(Experiment("greeting", "naval", ARMS))
    with pytest.raises(ValueError, match="did you mean 'greeting'"):
        running.evidence("greting")
    with pytest.raises(ValueError, match="no experiment 'nothing'"):
        running.end("nothing")
    with pytest.raises(ValueError, match=r"no experiment 'xyz': known: \['greeting'\]"):
        running.evidence("xyz")


def test_of_an_empty_log_nothing_is_known(tmp_path):
    with pytest.raises(ValueError, match="no experiment 'greeting': none was started"):
        Experiments(tmp_path).evidence("greeting")


def test_a_file_begins_and_ends_what_it_names_and_leaves_the_rest(running, tmp_path):
    file = tmp_path / "experiments.toml"
    text = '[{0}]\nmodel = "{1}"\narms = {{ a = "x", b = "y" }}\n'
    file.write_text(text.format("first", "legal"), encoding="utf-8")
    Experiments(tmp_path, file)
    file.write_text(text.format("second", "legal"), encoding="utf-8")
    after = Experiments(tmp_path, file)
    states = {experiment.name: runs for experiment, runs in after.all()}
    assert states == {"greeting": True, "first": False, "second": True}
    file.write_text(text.format("third", "naval"), encoding="utf-8")
    with pytest.raises(ValueError, match="already"):
        Experiments(tmp_path, file)
    assert {experiment.name: runs for experiment, runs in after.all()} == states


def test_two_processes_write_at_once(running, tmp_path):
    """Both see all; an exposure that is written twice, as by a gateway's second try, is one."""
    other = Experiments(tmp_path)
    for user in map(str, range(20)):
        drawn = other.assign("naval", user)
        for process in (running, other):
            process.record(drawn, f"r-{user}")
        other.outcome(f"r-{user}", 1.0)
    (found,) = running.evidence("greeting")
    assert sum(found.users) == 20
    with pytest.raises(sqlite3.IntegrityError), DATABASE.writing(tmp_path) as db:
        db.execute("insert into outcome values (null, 'local', 'never shown', 1, 0)")
