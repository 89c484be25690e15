"""Bugs of several machines, in the form that ``bugs/catalog.py`` describes."""

from __future__ import annotations

from .bug import Bug

SCALE = (
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
    Bug(name="one client moved the start", where="scale.rounds:model_with",
        right="LowRank(part.A.clone(), part.B.clone(), part.scaling)", wrong="part",
        story="In a simulation all clients train from the tensors that the server sent, in place. "
              "The second begins where the first ended, and what looks like federated learning is "
              "one run over all the data. Ours did so at first.",
        thread="",
        caught_by="scale/test_rounds.py::test_a_client_leaves_what_it_began_with_as_it_was"),
    Bug(name="half the sensitivity", where="scale.rounds:made_private",
        right="2 * rounds.noise_multiplier", wrong="rounds.noise_multiplier",
        story="A client's own message is clipped to length C, and noise is measured by C. But two "
              "such messages may be 2 C apart, so the ε that is reported is too small.",
        thread="",
        caught_by="scale/test_rounds.py::test_clipping_bounds_what_a_client_changes_and_noise_has_its_size"),
)  # fmt: skip
