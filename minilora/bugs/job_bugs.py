"""Bugs of jobs that are killed, in the form that ``bugs/catalog.py`` describes."""

from __future__ import annotations

from .bug import Bug

JOBS = (
    Bug(name="lost with its worker", where="jobs.claims:Claims.claim",
        right="if self.is_over(job):", wrong="if False:",
        story="A job is taken off the queue and its worker is killed: nothing is pending, nothing "
              "runs, and nobody ever takes it up again. The author of a queue says of his that a "
              "task killed while it runs is lost, and does not promise more.",
        thread="coleifer/huey #559",
        caught_by="jobs/test_queue.py::test_a_clock_that_jumps_back_keeps_nobody_waiting"),
    Bug(name="the worker that woke up", where="jobs.claims:Claims.mine",
        right='if job.status != "running" or job.fence != claim.fence:',
        wrong='if job.status != "running":',
        story="A worker stalls, its lease runs out, another takes the job. The first wakes up, "
              "sees a job that runs, and renews a lease that is not its own. Now both write.",
        thread="brendanlong/lion-reader #917",
        caught_by="jobs/test_queue.py::test_a_lease_that_runs_out_fences_the_old_worker"),
    Bug(name="registered twice", where="jobs.steps:register",
        right='if each.manifest.recipe.get("job") == job.id', wrong="if False",
        story="The adapter was pushed, and the kill came before the queue noted it. The step is "
              "done again, and the hub has two versions of one job.",
        thread="",
        caught_by="jobs/test_steps.py::test_a_step_is_done_again_when_the_kill_came_between_its_rename_and_its_commit"),
)  # fmt: skip
