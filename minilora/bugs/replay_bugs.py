"""Bugs of replay, in the form that ``bugs/catalog.py`` describes."""

from __future__ import annotations

from .bug import Bug

REPLAY = (
    Bug(name="a teacher who sits in the class", where="training.teacher:Teacher.at_work",
        right="off = disable_adapter(self.model) if switch else contextlib.nullcontext()",
        wrong="off = contextlib.nullcontext()",
        story="The adapter stays on while the teacher speaks, so teacher and model are one. The "
              "divergence is zero at every step, which looks like perfect keeping, and so is its "
              "gradient.",
        thread="",
        caught_by="training/test_teacher.py::test_at_work_the_adapter_is_off_and_afterwards_it_is_back"),
    Bug(name="the other divergence", where="training.mixture:divergence",
        right='F.kl_div(q, p, reduction="sum", log_target=True)',
        wrong='F.kl_div(p, q, reduction="sum", log_target=True)',
        story="torch's kl_div takes the model's side first, and its name says nothing of it. The "
              "other way round what the model has dropped pulls no more: its weight is the model's "
              "own probability.",
        thread="",
        caught_by="training/test_mixture.py::test_the_divergence_is_zero_at_the_teacher_and_asks_to_cover_it"),
    Bug(name="windows speak alone", where="training.mixture:MixedLoss.__call__",
        right="loss = summed_part(model, part) / tokens[part.source]",
        wrong="loss = summed_part(model, part) / sum(tokens.values())",
        story="One mean over all label tokens. A quarter of the rows are windows, and they have "
              "four fifths of the tokens: the task is hardly heard.",
        thread="",
        caught_by="training/test_mixture.py::test_the_loss_and_its_gradient_are_the_formula_by_hand"),
    Bug(name="replay in bursts", where="training.mixture:rows_until",
        right="step * task_rows * share / (1 - all_shares)",
        wrong="(step - step % 50) * task_rows * share / (1 - all_shares)",
        story="The share is right over the whole run, but comes every fifty steps at once. Between "
              "them the model is as free as without.",
        thread="",
        caught_by="training/test_mixture.py::test_a_share_is_reached_on_average_over_the_steps"),
)  # fmt: skip
