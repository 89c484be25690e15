"""The loop that adapts: what users corrected becomes the next adapter, if the gate lets it in.

    due?       after N new examples, or when the time has come
    train      from the *base*, on the old examples and the accepted new ones, with self-replay: a
               job in the queue (learning.py)
    gate       held-out questions until enough is known (exam.py); regression, prose, canaries, norm
    blame      harm was shown? train without each suspect; whoever is proved to have done it is
               expelled
    promote    ``champion`` moves by compare-and-set: whoever moved it meanwhile wins
    watch      live pairs against the one before; E ≥ 1/α that the new one is worse: roll back

Training starts from the base each time, not from the last adapter: what was learnt wrongly, and
is expelled, is then not learnt at all, and a hundred rounds drift no further than one. A candidate
that is neither better nor worse *yet* stays in the hub as ``challenger``; ``settle`` asks the gate
again when live pairs have come (live.py), at the bar of its round, and rejects it when there are
enough. Pairs that the owner's program gave to ``FeedbackStore.outcome`` count as the owner's.

Left out: a choice among several candidates a round (``candidates`` in gate.py says what that
costs). Where sources are left out in turn, those candidates share one more α.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..formats.save_and_load import load_adapter
from ..hub.registry import Version
from ..hub.store import Hub
from ..model.pretrained import load_base
from ..training.examples import Learnt
from .blame import culprit, proved
from .correction import OWNER, Slice
from .exam import fair
from .feedback import FeedbackStore
from .gate import Verdict, better, decide
from .judge import Candidate, Judge
from .learning import learn
from .live import Live, no_worse
from .norms import module_norms
from .pairs import Pairs
from .queue import Queue
from .recipe import Marks, Recipe, compared, marks

CHAMPION, CHALLENGER = "champion", "challenger"
HISTORY = 5  # champions whose norms are looked at
FEW = 1000  # reserved questions, below which a round asks for more


@dataclass(frozen=True)
class Round:
    """How a round ended: "promote", "reject", "wait" or "overtaken" (somebody moved the alias).

    ``version``: the candidate's; ``expelled``: sources that were to blame; ``told``: the story.
    """

    word: str
    version: str
    verdict: Verdict
    expelled: tuple[str, ...]
    slices: tuple[Slice, ...]
    told: tuple[str, ...]


class Loop:
    """Keeps ``hub``'s ``<name>@champion`` good from what ``store`` holds; ``queue`` does the
    training.

    Any number of processes may run one: a promotion is a compare-and-set, and the second is told
    that it was overtaken. ``live``: where a server's users compare; ``stop``: set, it ends a
    training after its step, which a later round goes on with.

    >>> import tempfile, minilora
    >>> task, short = minilora.data.naval_log(8, 4), {"steps": 1, "batch_size": 4}
    >>> recipe = Recipe("naval", task.train, task.valid, train=short, replay=None)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     loop = Loop(Hub(folder), FeedbackStore(folder), recipe, Queue(folder))
    ...     loop.begin().spec, loop.due()
    ('naval@1.0.0', '')
    """

    def __init__(
        self, hub: Hub, store: FeedbackStore, recipe: Recipe, queue: Queue, live: Live | None = None
    ):
        self.hub, self.store, self.recipe, self.queue = hub, store, recipe, queue
        self.live, self.stop = live, threading.Event()
        self.judged: tuple[str, str, int] | None = None  # by settle, with so many pairs
        self.seen: dict[str, Marks] = {}  # what does not change, of those two versions

    # Who serves

    def version(self, alias: str) -> Version | None:
        """The version that an alias of this adapter means; None without one."""
        try:
            versions = self.hub.list(self.recipe.name)
        except FileNotFoundError:  # the first push makes the hub
            return None
        return next((each for each in versions if alias in each.aliases), None)

    def begin(self) -> Version:
        """The champion; the first is trained on the old examples alone, as nothing is there to
        compare it with.
        """
        if champion := self.version(CHAMPION):
            return champion
        version = self.learn(self.recipe.old)
        self.hub.alias(version.spec, CHAMPION, expected=None)
        self.note("begin", [f"{version.spec} is the first"], learnt=0)
        return version

    # When

    def due(self, now: float | None = None) -> str:
        """Why a round is due now; empty when none is."""
        rounds = self.store.rounds(self.recipe.name)
        at, _, learnt, _ = rounds[-1] if rounds else (0.0, "", 0, "")
        new = len(self.store.accepted()) - learnt
        if new >= self.recipe.after:
            return f"{new} new examples"
        waited = (time.time() if now is None else now) - at
        if new > 0 and waited >= self.recipe.every:
            return f"{new} new examples, and {waited / 86_400:.1f} days since the last round"
        return ""

    # One round

    def round(self) -> Round:
        """Train a candidate, ask the gate, promote or not; the caller asked ``due`` before."""
        champion, slices = self.begin(), self.store.slices()
        told = [f"failing: {s.topic or '-'} by {s.source}, {s.failed} of {s.count}"
                for s in slices[:5] if s.failed]  # fmt: skip
        self.store.retire()
        self.store.reserve(self.recipe.reserve)
        left = sum(each.source == OWNER for each in self.store.rows("heldout"))
        if left < FEW:
            told.append(f"{left} reserved questions are left to judge by, and a gain of 3 points "
                        f"takes about {FEW:,}: reserve new ones")  # fmt: skip
        judge = Judge(self, champion)
        first = judge.candidate()
        told.append(f"candidate: {first.verdict.word}")
        chosen, guilty = first, ""
        if first.verdict.harmful:
            told.append(f"rejected: {first.verdict.reason}")
            chosen, guilty = self.blame(judge, first, told)
        version, verdict = chosen.version, chosen.verdict
        contents = champion.manifest.content, version.manifest.content
        exam, answers = judge.exam, chosen.answers
        self.store.outcomes(*contents, exam.pairs(answers), exam.asked(answers))  # for settle()
        word = self.settled(version, champion, verdict, told)
        self.note(word, told, chosen.learnt)
        expelled = (guilty,) if guilty else ()
        return Round(word, version.spec, verdict, expelled, tuple(slices), tuple(told))

    def blame(self, judge: Judge, first: Candidate, told: list[str]) -> tuple[Candidate, str]:
        """Leave each suspect out in turn, and expel who is proved to have done harm; returns the
        candidate that stands then, and the source or nothing.
        """
        taught = [each for each in self.store.accepted() if each.source != OWNER]
        if len({each.source for each in taught}) < 2:  # without the only one there is nothing new
            return first, ""
        failed = Counter(each.source for each in taught if each.failed)
        suspects = [source for source, _ in failed.most_common(self.recipe.suspects)]
        without = {each: judge.candidate(each, 1 + len(suspects)) for each in suspects}
        trials = {each: judge.trial(first, other) for each, other in without.items()}
        told += [f"without {source}: {trial}" for source, trial in trials.items()]
        if not (guilty := culprit(trials, self.recipe.rules)):
            return first, ""
        again = judge.again(guilty, 1 + len(suspects))
        told.append(f"with another seed, without {guilty}: {again}")
        if not proved(again, len(trials), self.recipe.rules):
            return first, ""
        gone = self.store.expel(guilty, first.verdict.reason)
        told.append(f"expelled {guilty}: {gone} examples; no evidence against others is stronger")
        return without[guilty], guilty

    def settled(
        self, version: Version, champion: Version, verdict: Verdict, told: list[str]
    ) -> str:
        """Move the aliases by the verdict; returns the word, which may be "overtaken"."""
        told.append(f"{version.spec}: {verdict.word}, {verdict.reason}")
        if verdict.word != "promote":
            if verdict.word == "wait":
                self.hub.alias(version.spec, CHALLENGER)
                told += self.on_users(champion, version, champion)
            return verdict.word
        before = self.version("previous")
        self.hub.alias(champion.spec, "previous")  # first: a kill must not lose the way back
        try:
            self.hub.alias(version.spec, CHAMPION, expected=champion.version)
        except ValueError as error:
            self.hub.drop_alias(version.name, "previous")
            if before:
                self.hub.alias(before.spec, "previous")
            told.append(str(error))
            return "overtaken"
        told.append(f"champion {champion.version} -> {version.version}")
        told += self.on_users(champion, version, version)
        return "promote"

    def on_users(self, old: Version, new: Version, champion: Version) -> list[str]:
        """Have a share of the server's users try the other one; what to tell of it."""
        begun = self.live.begin(old, new, champion) if self.live else ""
        return [begun] if begun else []

    def live_pairs(self, old: Version, new: Version) -> Pairs:
        """What the server's users say of two adapters."""
        return self.live.pairs(old, new) if self.live else Pairs()

    def settle(self) -> str:
        """Ask the gate again about the challenger, with the pairs of its round and the live ones
        since; returns the word. Without new pairs nothing is asked.
        """
        champion, challenger = self.begin(), self.version(CHALLENGER)
        if challenger is None or challenger.version == champion.version:
            return ""
        recipe, told = self.recipe, self.on_users(champion, challenger, champion)
        sources, pairs = self.store.answered(champion.manifest.content, challenger.manifest.content)
        live = self.live_pairs(champion, challenger)
        judged = champion.spec, challenger.spec, len(pairs + live)
        if judged == self.judged:
            return "wait"
        before, after = self.marks_of(champion), self.marks_of(challenger)
        more = self.norms(challenger, champion) | {"without": fair(sources, pairs), "live": live}
        more["candidates"] = challenger.manifest.recipe.get("candidates", 1)  # of its round
        verdict = decide(compared(before, after, pairs, **more), recipe.rules)
        word = self.settled(challenger, champion, verdict, told)
        self.judged, self.seen = judged, {champion.spec: before, challenger.spec: after}
        if word != "wait":
            self.hub.drop_alias(recipe.name, CHALLENGER)
            if self.live and word != "promote":
                self.live.end(recipe.name)
            self.note(word, told)
        return word

    def marks_of(self, version: Version) -> Marks:
        """A version's answers to what does not change, asked once."""
        return self.seen.get(version.spec) or marks(self.pulled(version), self.recipe)

    # Afterwards

    def watch(self) -> str:
        """Roll back if the live pairs since the promotion show that the champion is worse than the
        one before; returns the version that serves again, or nothing.
        """
        champion, previous = self.version(CHAMPION), self.version("previous")
        if self.live:
            self.live.reconcile(champion, previous, self.version(CHALLENGER))
        if champion is None or previous is None or champion.version == previous.version:
            return ""
        rounds = self.store.rounds(self.recipe.name)
        since = max((at for at, word, *_ in rounds if word == "promote"), default=0.0)
        pairs = self.store.live(previous.manifest.content, champion.manifest.content, since)
        live, rules = self.live_pairs(previous, champion), self.recipe.rules
        check = better(pairs + live, rules)
        if self.live and (check.harm or (live and no_worse(pairs + live, rules))):
            self.live.end(self.recipe.name)  # enough is known: all users get the champion
        if not check.harm:
            return ""
        self.hub.alias(previous.spec, CHAMPION, expected=champion.version)
        self.hub.drop_alias(self.recipe.name, "previous")
        self.note("roll back", [f"rolled back {champion.version} -> {previous.version}: {check}"])
        return previous.spec

    def note(self, word: str, told: Sequence[str], learnt: int | None = None) -> None:
        """Write down how a round ended; ``learnt``: of how many examples, else as in the last."""
        if learnt is None:
            learnt = next((each[2] for each in self.store.rounds(self.recipe.name)[::-1]), 0)
        self.store.note_round(self.recipe.name, word, learnt, told)

    # The model

    def learn(
        self, examples: Sequence[Learnt], parent: Version | None = None, seed: int = 0, **facts: Any
    ) -> Version:
        """The version that learnt these examples from the base, through the queue.

        ``seed``: added to the recipe's.
        """
        after = {"parent": parent.spec} if parent else {}
        recipe = self.recipe.seeded(seed)
        return learn(self.queue, self.hub, recipe, examples, facts=facts, stop=self.stop, **after)

    def pulled(self, version: Version) -> Any:
        """A fresh base with a version's adapter."""
        base = self.recipe.spec(self.queue.folder).base
        quantize = "nf4" if base.four_bits else None
        model = load_base(base.folder, device=base.device, quantize=quantize)
        return load_adapter(model, self.hub.pull(version.spec)).eval()

    def norms(self, version: Version, champion: Version) -> dict[str, Any]:
        """‖ΔW‖ of a version, and of the champions so far: each is the parent of the next."""
        before = self.hub.lineage(champion.spec)[:HISTORY]
        return {
            "norms": module_norms(self.hub.read(version.spec)),
            "norms_before": [module_norms(self.hub.read(each.spec)) for each in before],
        }
