"""The loop that adapts: what users corrected becomes the next adapter, if the gate lets it in.

    due?       after N new examples, or when the time has come
    train      from the *base*, on the old examples and the accepted new ones, with self-replay
    gate       held-out and live pairs, regression, prose, canaries (gate.py)
    blame      rejected? train without each source in turn; whose absence heals is expelled
    promote    ``champion`` moves by compare-and-set: whoever moved it meanwhile wins
    watch      live pairs against the one before; E ≥ 1/α that the new one is worse: roll back

Training goes out from the base each time, not from the last adapter: what was learnt wrongly, and
is expelled, is then not learnt at all, and a hundred rounds drift no further than one. A candidate
that is neither better nor worse *yet* stays in the hub as ``challenger``; ``settle`` asks the gate
again when live pairs have come.

Left out: the norm of ΔW against its history, as an alarm; a choice among several candidates a round
(``candidates`` in gate.py says what that costs).
"""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..formats.save_and_load import load_adapter, save_adapter
from ..hub.manifest import data_hash
from ..hub.registry import Version
from ..hub.store import Hub
from ..lora.injection import inject
from ..model.pretrained import load_base
from ..training.examples import Learnt, question_text
from ..training.loop import train
from .correction import Slice
from .feedback import FeedbackStore
from .gate import Measured, Pairs, Verdict, culprit, decide
from .recipe import Recipe, compared, marks, right

CHAMPION, CHALLENGER = "champion", "challenger"


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
    """Keeps ``hub``'s ``<name>@champion`` good from what ``store`` holds; ``base()`` makes a fresh
    base.

    Any number of processes may run one: a promotion is a compare-and-set, and the second is told
    that it was overtaken.

    >>> import tempfile, minilora
    >>> from minilora import TrainConfig
    >>> task = minilora.data.naval_log(8, 4)
    >>> recipe = Recipe("naval", task.train, task.valid, train=TrainConfig(steps=1, progress=False))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     loop = Loop(Hub(folder), FeedbackStore(folder), recipe)
    ...     loop.begin().spec, loop.due()
    ('naval@1.0.0', '')
    """

    def __init__(
        self, hub: Hub, store: FeedbackStore, recipe: Recipe, base: Callable[[], Any] = load_base
    ):
        self.hub, self.store, self.recipe, self.base = hub, store, recipe, base

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
        version = self.push(self.fit(self.recipe.old), self.recipe.old, {})
        self.hub.alias(version.spec, CHAMPION, expected=None)
        self.store.note_round(self.recipe.name, "begin", 0, [f"{version.spec} is the first"])
        return version

    # When

    def due(self, now: float | None = None) -> str:
        """Why a round is due now; empty when none is."""
        rounds = self.store.rounds(self.recipe.name)
        at, learnt = (rounds[-1][0], rounds[-1][2]) if rounds else (0.0, 0)
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
        champion, recipe = self.begin(), self.recipe
        slices, told = self.store.slices(), []
        judges = self.store.heldout(recipe.judged)
        told += [f"failing: {s.topic or '-'} by {s.source}, {s.failed} of {s.count}"
                 for s in slices[:5] if s.failed]  # fmt: skip
        before = marks(self.pulled(champion), recipe)
        tried: dict[str, Any] = {}

        def candidate(without: str = "") -> Verdict:
            """The verdict on an adapter without one source, in the training and in the exam."""
            learnt = [each.example for each in self.store.accepted({without})]
            model = self.fit([*recipe.old, *learnt])
            exam = [each for each in judges if each.source != without]
            held = [each.example for each in exam]
            pairs = Pairs(right(self.pulled(champion), held), right(model, held))
            verdict = decide(compared(before, marks(model, recipe), pairs), recipe.rules)
            tried[without] = model, [*recipe.old, *learnt], verdict
            told.append(f"{f'without {without}' if without else 'candidate'}: {verdict.word}")
            return verdict

        rejected, guilty = candidate(), ""
        if rejected.word == "reject":
            told.append(f"rejected: {rejected.reason}")
            failed: Counter[str] = Counter()
            for each in slices:
                failed[each.source] += each.failed
            suspects = [source for source, _ in failed.most_common(recipe.suspects)]
            guilty = culprit(suspects if len(failed) > 1 else (), candidate)
        if guilty:
            gone = self.store.expel(guilty, rejected.reason)
            told.append(f"expelled {guilty}: {gone} examples; without them nothing fails")
        model, examples, verdict = tried[guilty]
        expelled = (guilty,) if guilty else ()
        version = self.push(model, examples, {"verdict": verdict.word}, champion)
        word = self.settled(version, champion, verdict, told)
        self.store.note_round(recipe.name, word, len(self.store.accepted()), told)
        return Round(word, version.spec, verdict, expelled, tuple(slices), tuple(told))

    def settled(
        self, version: Version, champion: Version, verdict: Verdict, told: list[str]
    ) -> str:
        """Move the aliases by the verdict; returns the word, which may be "overtaken"."""
        told.append(f"{version.spec}: {verdict.word}, {verdict.reason}")
        if verdict.word != "promote":
            if verdict.word == "wait":
                self.hub.alias(version.spec, CHALLENGER)
            return verdict.word
        try:
            self.hub.alias(version.spec, CHAMPION, expected=champion.version)
        except ValueError as error:
            told.append(str(error))
            return "overtaken"
        self.hub.alias(champion.spec, "previous")
        told.append(f"champion {champion.version} -> {version.version}")
        return "promote"

    def settle(self) -> str:
        """Ask the gate again about the challenger, now with its live pairs; returns the word."""
        champion, challenger = self.begin(), self.version(CHALLENGER)
        if challenger is None or challenger.version == champion.version:
            return ""
        recipe = self.recipe
        live = self.store.live(champion.manifest.content, challenger.manifest.content)
        before, after = marks(self.pulled(champion), recipe), marks(self.pulled(challenger), recipe)
        told: list[str] = []
        verdict = decide(compared(before, after, live), recipe.rules)
        word = self.settled(challenger, champion, verdict, told)
        if word != "wait":
            self.hub.drop_alias(self.recipe.name, CHALLENGER)
        self.store.note_round(self.recipe.name, word, len(self.store.accepted()), told)
        return word

    # Afterwards

    def watch(self) -> str:
        """Roll back if the live pairs since the promotion show that the champion is worse than the
        one before; returns the version that serves again, or nothing.
        """
        champion, previous = self.version(CHAMPION), self.version("previous")
        if champion is None or previous is None or champion.version == previous.version:
            return ""
        rounds = self.store.rounds(self.recipe.name)
        since = max((at for at, word, *_ in rounds if word == "promote"), default=0.0)
        pairs = self.store.live(previous.manifest.content, champion.manifest.content, since)
        check = decide(Measured(pairs, Pairs()), self.recipe.rules).check("better")
        if check.state != "fail":
            return ""
        self.hub.alias(previous.spec, CHAMPION, expected=champion.version)
        self.hub.drop_alias(self.recipe.name, "previous")
        told = [f"rolled back {champion.version} -> {previous.version}: {check}"]
        self.store.note_round(self.recipe.name, "roll back", len(self.store.accepted()), told)
        return previous.spec

    # The model

    def fit(self, examples: Sequence[Learnt]) -> Any:
        """A fresh base with an adapter that learnt these examples; the same bits each time."""
        torch.manual_seed(self.recipe.train.seed)
        model = self.base()
        inject(model, self.recipe.config)
        train(model, list(examples), self.recipe.train, replay=self.recipe.replay)
        return model.eval()

    def pulled(self, version: Version) -> Any:
        """A fresh base with a version's adapter."""
        return load_adapter(self.base(), self.hub.pull(version.spec)).eval()

    def push(
        self,
        model: Any,
        examples: Sequence[Learnt],
        recipe: Mapping[str, Any],
        parent: Version | None = None,
    ) -> Version:
        """Store a model's adapter with its lineage; its examples teach the router."""
        facts: dict[str, Any] = {"data_sha": data_hash(examples), "seed": self.recipe.train.seed}
        facts["recipe"] = {"examples": len(examples), **recipe}
        facts |= {"parent": parent.spec} if parent else {}
        with tempfile.TemporaryDirectory() as folder:
            saved = save_adapter(model, folder)
            texts = [question_text(example) for example in examples]
            return self.hub.push(self.recipe.name, saved, metadata=facts, examples=texts)
