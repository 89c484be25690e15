"""Bugs of experiments, failover and gateways, in the form that ``bugs/catalog.py`` describes."""

from __future__ import annotations

from .bug import Bug

TRAFFIC = (
    Bug(name="a ramp that reshuffles", where="serving.assignment:Experiment.arm",
        right="if v < end", wrong="if u / self.ramp < end",
        story="One number of a user decides both whether they take part and which arm they get. "
              "When the ramp grows, users change arms, and each arm's outcomes are a mixture.",
        thread="",
        caught_by="serving/test_assignment.py::test_a_ramp_keeps_its_users"),
    Bug(name="two beginnings", where="serving.generation:Generation.attempts",
        right="if begun or not fault or self.service.failover is None:",
        wrong="if not fault or self.service.failover is None:",
        story="A stream fails in the middle, and the request is tried again from its start. The "
              "client puts the pieces together: the beginning of one answer, and another whole.",
        thread="endolith/open-interpreter #291",
        caught_by="serving/test_traffic.py::test_after_the_first_byte_nobody_steps_in"),
    Bug(name="one success is enough", where="serving.failover:Breaker.report",
        right="elif self.successes >= self.limits.successes:", wrong="elif ok:",
        story="One answer that succeeds lets everybody back in to a server that fails half of the "
              "time. It opens again at once, and so on. The report asks for several in a row.",
        thread="rubyist/circuitbreaker #63",
        caught_by="serving/test_failover.py::test_the_first_threshold_opens_and_the_second_closes"),
    Bug(name="a late answer counts", where="serving.failover:Breaker.report",
        right="if ticket != self.round:", wrong="if False:",
        story="A slow request that began before the breaker opened ends now, and counts as if it "
              "were the probe. The thread weighs whether a breaker should care about those.",
        thread="App-vNext/Polly #217",
        caught_by="serving/test_failover.py::test_a_late_answer_of_before_the_opening_counts_nothing"),
    Bug(name="a hash modulo n", where="serving.upstreams:ranked",
        right="return sorted(names, key=draw, reverse=True)",
        wrong='order = sorted(names); k = draw("")[0] % len(order); return order[k:] + order[:k]',
        story="A hash modulo the number of servers says where an adapter lives. When one of five "
              "servers goes, four of five adapters move, and every server reads from its disk.",
        thread="",
        caught_by="serving/test_gateway.py::test_only_what_a_lost_server_had_moves"),
)  # fmt: skip
