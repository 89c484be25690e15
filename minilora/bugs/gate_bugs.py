"""Bugs of the loop that adapts and of its gate, in the form that ``bugs/catalog.py`` describes."""

from __future__ import annotations

from .bug import Bug

GATE = (
    Bug(name="the score as evidence", where="jobs.gate:better",
        right="PASS if gain >= bar else", wrong="PASS if pairs.wins >= pairs.losses else",
        story="The new adapter is promoted once it is not behind. An equal one is, at some look, "
              "nearly always, and so a worse one gets in too.",
        thread="",
        caught_by="jobs/test_gate.py::test_the_promise_holds_with_a_look_after_each_pair"),
    Bug(name="the exam is taught", where="jobs.feedback:FeedbackStore.review",
        right="heldout = is_heldout(question)", wrong="heldout = False",
        story="Every correction is learnt, and the adapter is judged on corrections. "
              "It has seen the answers, and wins whatever it has unlearnt.",
        thread="",
        caught_by="jobs/test_feedback.py::test_one_in_five_questions_is_held_out_and_never_learnt"),
    Bug(name="the average canary", where="jobs.gate:canaries_sing",
        right="pairs.losses > rules.canary_share * right",
        wrong="sum(each.losses for each in canaries.values()) "
              "> rules.canary_share * sum(len(each) for each in canaries.values())",
        story="All topics are counted together. A source that poisons one of them stays below the "
              "average that is allowed.",
        thread="", caught_by="jobs/test_gate.py::test_one_lost_topic_is_enough"),
    Bug(name="the last one wins", where="jobs.adapt:Loop.settled",
        right="expected=champion.version", wrong="expected=...",
        story="The champion is moved without a look at what it is by now. While a candidate "
              "trained, somebody rolled back by hand. The loop undoes that.",
        thread="",
        caught_by="jobs/test_adapt.py::test_whoever_moved_the_champion_meanwhile_wins"),
    Bug(name="the poisoner's vote", where="jobs.gate:decide",
        right="**measured.without}", wrong="}",
        story="A source's own held-out questions judge the adapter that learnt from it, and it "
              "answers them as the source wishes. On the shipped base a poisoned adapter was "
              "promoted so, by 17 questions to 4.",
        thread="", caught_by="jobs/test_gate.py::test_a_source_does_not_vote_for_what_it_taught"),
    Bug(name="guilty by luck", where="jobs.blame:proved",
        right="return trial.evidence >= bar and not trial.verdict.harmful",
        wrong="return not trial.verdict.harmful",
        story="A source is expelled because no check fails in a training without it. Near a bar "
              "that happens by luck: our own example expelled an honest editor, and kept the one "
              "who taught wrong.",
        thread="", caught_by="jobs/test_blame.py::test_luck_expels_nobody"),
    Bug(name="complaints first", where="jobs.feedback_tables:in_turn",
        right="places += [((place + 0.5) / len(pool), side, row[0])",
        wrong="places += [(place + 0.5 + len(rows) * side, side, row[0])",
        story="The exam asks what users complained of before what the owner reserved, and stops "
              "when it knows enough. There the champion was wrong, so any other adapter wins, "
              "eight to nothing in the first block; the real mix is never asked. Ours did so.",
        thread="", caught_by="jobs/test_exam.py::test_each_block_has_the_reserves_share"),
    Bug(name="the exam counted twice", where="jobs.feedback:FeedbackStore.outcomes",
        right="[(each.digest, each.source) for each in asked]",
        wrong="[(\"\", each.source) for each in asked]",
        story="A round that is run again, as after a kill, asks the same questions of the same two "
              "adapters, and its answers are added to the first ones. 18 won and 8 lost is E = 4; "
              "the same twice is E = 21, and a candidate is promoted on nothing new.",
        thread="",
        caught_by="jobs/test_adapt.py::test_a_round_that_runs_twice_counts_its_exam_once"),
    Bug(name="the lucky seed", where="jobs.judge:Judge.again",
        right="self.candidate(without, candidates, seed=1)",
        wrong="self.candidate(without, candidates)",
        story="A source is expelled because the adapter without it beats the one with it, each "
              "trained once. On the shipped base, leaving an honest source out moved 68 of 720 "
              "answers. The check by another seed must train both anew, not one.",
        thread="",
        caught_by="jobs/test_adapt.py::test_an_expulsion_is_checked_by_two_trainings_of_another_seed"),
)  # fmt: skip
