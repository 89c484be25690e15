"""Bugs of several ranks and of clients, in the form that ``bugs/catalog.py`` describes."""

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
    Bug(name="averages of factors", where="scale.federated:stack",
        right='"cat")', wrong='"linear")',
        story="A federation averages the clients' A's and their B's. The product of averages has "
              "cross-terms that no client trained: a few percent where all began with one A, most "
              "of the update where each drew its own. Shapes fit and nothing warns. A pull request "
              "that adds federated training to a library says that its server averages A and B; "
              "there the clients begin with one state.",
        thread="onnxsim/onnxsim #1326",
        caught_by="scale/test_federated.py::test_stacking_is_the_average_update"),
    Bug(name="every client counts the same", where="scale.federated:shares",
        right="updates[name].tokens / total", wrong="1 / len(updates)",
        story="An unweighted mean: a client with ten tokens pulls as hard as one with ten "
              "thousand. Tests with clients of one size find nothing.",
        thread="",
        caught_by="scale/test_federated.py::test_a_client_with_all_the_tokens_is_the_average"),
    Bug(name="one client moved the start", where="scale.rounds:of_rank",
        right="LowRank(part.A[:r].clone(), part.B[:, :r].clone(), part.scaling)", wrong="part",
        story="In a simulation all clients train from the tensors that the server sent, in place. "
              "The second begins where the first ended, and what looks like federated learning is "
              "one run over all the data. Ours did so at first.",
        thread="",
        caught_by="scale/test_rounds.py::test_a_client_leaves_what_it_began_with_as_it_was"),
    Bug(name="the error that tells", where="scale.wire:errors_stay_here",
        right='raise RuntimeError("this client failed; its own log says why") from None',
        wrong="raise",
        story="A client's reader quotes the line that it cannot read, as a good error does. Flower "
              "sends an exception's words to the server, whose log then has a line of data that "
              "was never to leave. Every test had good files. Ours did so at first.",
        thread="",
        caught_by="scale/test_wire.py::test_of_an_error_nothing_leaves_but_that_there_was_one"),
    Bug(name="the rank that never comes back", where="scale.rounds:padded",
        right="max(0, r - len(part.A))", wrong="0",
        story="One round is answered by a client of rank 1 alone, and the best of its rank is what "
              "all begin the next one with. So the large clients train rank 1 from then on, and "
              "the error of each round, measured against what was sent, stays small. Ours did so "
              "at first.",
        thread="",
        caught_by="scale/test_rounds.py::test_after_a_round_of_small_clients_alone_the_rank_is_the_runs"),
    Bug(name="half the sensitivity", where="scale.rounds:made_private",
        right="2 * rounds.noise_multiplier", wrong="rounds.noise_multiplier",
        story="A client's own message is clipped to length C, and noise is measured by C. But two "
              "such messages may be 2 C apart, so the ε that is reported is too small.",
        thread="",
        caught_by="scale/test_rounds.py::test_clipping_bounds_what_a_client_changes_and_noise_has_its_size"),
)  # fmt: skip
