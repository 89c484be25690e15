"""Each bug of the zoo is released, and the test that its entry names must fail; without it, pass.

The named test runs through pytest itself, in this process, with 50 cases of a property, always the
same ones, and without shrinking: only its failure counts. So the suite is shown to be able to fail,
bug by bug.
"""

import pytest
from hypothesis import Phase, settings

from minilora.bugs.bug import Bug
from minilora.bugs.catalog import BUGS
from minilora.bugs.release import describe, describe_all, find_bug, home, release, wrong_code
from minilora.commands.cli import main

QUICK = settings(
    settings(), max_examples=50, derandomize=True, database=None, phases=[Phase.generate]
)
# that they pass without a bug in every case, the rest of the suite checks
QUICKER = settings(QUICK, max_examples=5)
CAUGHT_BY = sorted({bug.caught_by for bug in BUGS})


class Outcome:
    """A plugin for the inner run: makes properties quick, and counts passed and failed cases."""

    def __init__(self, quick):
        self.quick, self.passed, self.failed = quick, 0, 0
        self.before = []

    def pytest_collection_modifyitems(self, items):
        for item in items:
            function = getattr(getattr(item, "obj", None), "__func__", getattr(item, "obj", None))
            # hypothesis keeps a property's settings under this name
            if hasattr(function, "hypothesis"):
                self.before.append((function, function._hypothesis_internal_use_settings))
                function._hypothesis_internal_use_settings = self.quick

    def pytest_runtest_logreport(self, report):
        self.failed += report.failed
        self.passed += report.when == "call" and report.passed

    def pytest_unconfigure(self):
        for function, before in self.before:
            function._hypothesis_internal_use_settings = before


def run(test, quick):
    """Run one test by its name; returns how many of its cases passed and failed."""
    outcome = Outcome(quick)
    alone = [f"-pno:{plugin}" for plugin in ("cacheprovider", "xdist", "pytest_cov")]
    quiet = ["--no-summary", "--tb=no", "-W", "ignore"]
    pytest.main(["-x", *quiet, *alone, f"tests/{test}"], plugins=[outcome])
    return outcome


@pytest.mark.slow
@pytest.mark.parametrize("test", CAUGHT_BY)
def test_without_a_bug_the_property_passes(test):
    outcome = run(test, QUICKER)
    assert outcome.passed
    assert not outcome.failed


@pytest.mark.slow
@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_the_bug_is_caught_by_the_property_that_it_names(bug):
    with release(bug):
        outcome = run(bug.caught_by, QUICK)
    assert outcome.failed, f"{bug.caught_by} does not notice {bug.name!r}"


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_every_entry_is_whole(bug):
    """Its right line stands in the source, its story has two sentences, its thread has a number."""
    module, function = home(bug)
    assert wrong_code(bug, module, function) != function.__code__
    assert bug.story.count(". ") >= 1
    assert bug.story.endswith((".", "!"))
    assert not bug.thread or (
        bug.thread.count("/") == 1 and bug.thread.rpartition(" #")[2].isdigit()
    )
    assert bug.caught_by in describe(bug)
    assert bug.name in describe_all()


def test_names_are_unique_and_there_are_enough():
    assert len({bug.name for bug in BUGS}) == len(BUGS) >= 25


def test_an_unknown_bug_is_named_with_the_nearest():
    message = r"no bug is named 'merge twise'; did you mean 'merge twice'\?"
    with pytest.raises(ValueError, match=message):
        find_bug("merge twise")
    with pytest.raises(ValueError, match="minilora zoo lists them"):
        find_bug("§")


def test_a_bug_whose_line_is_gone_says_so():
    where, right = "lora.config:scaling_of", "return nothing"
    gone = Bug("gone", where, right, wrong="", story="", thread="", caught_by="")
    message = f"gone: expected its right line once in {where}, found it 0 times"
    with pytest.raises(ValueError, match=message):
        release(gone).__enter__()


def test_the_command_lists_them_all_and_shows_one(capsys):
    assert main(["zoo"]) == 0
    listed = capsys.readouterr().out
    assert all(bug.name in listed and bug.thread in listed for bug in BUGS)
    assert main(["zoo", "half a merge"]) == 0
    shown = capsys.readouterr().out
    assert "huggingface/peft #3710" in shown
    assert "wrong  for path, layer in layers:\n           layer.put(" in shown
    assert main(["zoo", "half a marge"]) == 2
    assert "did you mean 'half a merge'?" in capsys.readouterr().err
