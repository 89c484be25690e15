"""Bugs of several ranks, in the form that ``bugs/catalog.py`` describes."""

from __future__ import annotations

from .bug import Bug

SCALE = (
    Bug(name="the mean of the ranks' means", where="training.objective:mean_over_answers",
        right="sum(part.answer_tokens for part in parts)",
        wrong="sum(parts[n].answer_tokens for n in ranks.own(len(parts))) * ranks.world",
        story="Each rank divides by its own answer tokens, and the ranks are averaged. A rank with "
              "one answer token then weighs as much as one with a hundred. The thread asks that "
              "transformers' Trainer count the tokens of all devices unless told otherwise.",
        thread="huggingface/transformers #39392",
        caught_by="scale/test_distributed.py::test_ranks_with_few_and_many_answer_tokens_give_the_gradient_of_the_whole_batch"),
    Bug(name="the rank that stops alone", where="scale.distributed:Ranks.stopped",
        right="return self.stopping", wrong="return self.interrupted.is_set()",
        story="A rank is told to stop, sees its own flag and leaves. The others wait for it in the "
              "next sum, until a timeout of half an hour.",
        thread="",
        caught_by="scale/test_distributed.py::test_a_rank_that_is_told_to_stop_stops_all_after_the_same_step"),
    Bug(name="a gradient of zeros", where="scale.distributed:Ranks.add_up",
        right="if some:", wrong="if True:",
        story="A parameter that no rank has a gradient for gets zeros from the flat sum. AdamW "
              "counts a step for it and decays it, which one process would not have done.",
        thread="",
        caught_by="scale/test_distributed.py::test_a_parameter_without_a_gradient_anywhere_keeps_none"),
    Bug(name="every rank draws the same mask", where="training.ranks:seed_part",
        right="torch.manual_seed(seeds[part])", wrong="torch.manual_seed(seeds[0])",
        story="All ranks have the run's seed, and so every part of a batch gets the same dropout. "
              "Nothing fails; a batch of four parts is regularized as one of a quarter its size.",
        thread="",
        caught_by="scale/test_distributed.py::test_dropout_is_seeded_by_part_and_not_by_rank"),
)  # fmt: skip
