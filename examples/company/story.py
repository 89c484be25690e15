"""What happens, in order; each step is done by the part of minilora that a company would use."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

import minilora
from minilora import Example, Task
from minilora.formats.save_and_load import load_adapter
from minilora.hub import Hub
from minilora.jobs import Feedback, FeedbackStore, Loop, Queue, Recipe, Rules, Spec, Worker
from minilora.jobs.adapt import Round
from minilora.jobs.recipe import right
from minilora.jobs.steps import as_line
from minilora.serving import AdapterBank, Engine
from minilora.serving.app import create_app
from minilora.serving.service import Service
from minilora.training.config import settings_for
from minilora.training.evaluation import PROSE, answers, share_right

from .departments import ASKED, COLOURS, DEPARTMENTS, THINGS, announced, gift, note, notes, task_of

DAY = 86_400.0
FIRST = "marketing@1.0.0"
METHOD = {"r": 8, "lora_alpha": 16, "target_modules": "all-linear"}


@dataclass(frozen=True)
class Sizes:
    """How much of everything; of ``train`` and ``epochs`` a number for each department.

    ``reserve``: questions that marketing's lead keeps back each time, to judge by.
    """

    train: tuple[int, int, int] = (750, 240, 400)
    valid: int = 60
    epochs: tuple[float, float, float] = (6.0, 8.0, 9.0)
    feedback: int = 60
    windows: int = 64
    reserve: int = 120
    regression: int = 200
    prose: int = 40
    asked: int = 5
    exam: int = 40


class Company:
    """Lumen, makers of lamps. ``told``: the story so far, in Markdown."""

    def __init__(self, folder: Path, base: str | None, sentences: Path | None, sizes: Sizes):
        self.folder, self.base, self.sentences, self.sizes = folder, base, sentences, sizes
        self.hub = Hub(folder / "hub", creator="lumen")
        self.queue = Queue(folder / "jobs")
        made = {
            name: task_of(name, sizes.train[number], sizes.valid, number, sentences)
            for number, name in enumerate(DEPARTMENTS)
        }
        self.tasks: dict[str, Task] = made
        self.table: dict[tuple[str, str], float] = {}
        self.words: list[str] = []
        self.expelled: list[str] = []
        self.told: list[str] = []

    def live(self) -> None:
        """The month."""
        self.say("# One company, one base, three adapters")
        where = "the package's real sentences" if self.sentences else "stand-ins of our own"
        command = "python -m examples.company" + (
            f" --base {Path(self.base).name}" if self.base else ""
        )
        command += " --sentences FOLDER" if self.sentences else ""
        self.say(
            f"Written by `{command}`, from a run. Support's tickets: {where}. The base: "
            f"{Path(self.base).name if self.base else 'the shipped one'}, "
            f"{self.parameters / 1e6:,.1f} M weights."
        )
        self.train_by_jobs()
        self.compare()
        self.count_bytes()
        self.ask_the_server()
        self.first_week()
        self.fourth_week()

    def say(self, text: str) -> None:
        """Print a part of the story, and keep it."""
        print(text, end="\n\n", flush=True)
        self.told.append(text)

    def fresh(self) -> Any:
        """A base without adapter."""
        return minilora.load_base(self.base)

    # Three adapters

    @cached_property
    def parameters(self) -> int:
        """Of the base."""
        return sum(p.numel() for p in self.fresh().parameters())

    def settings(self, name: str) -> dict[str, Any]:
        """How a department's adapter is trained."""
        own = settings_for(self.parameters)
        return {
            "epochs": self.sizes.epochs[DEPARTMENTS.index(name)],
            "batch_size": min(16, own["batch_size"]),
            "lr": own["lr"],
        }

    def train_by_jobs(self) -> None:
        """One job for each department, all worked on by one worker; what came out is promoted."""
        queue = self.queue
        done = {job.name for job in queue.jobs() if job.status == "succeeded"}
        for name, task in self.tasks.items():
            files = {}
            for side in ("train", "valid"):
                files[side] = self.folder / f"{name}-{side}.jsonl"
                files[side].write_text("".join(map(as_line, getattr(task, side))), encoding="utf-8")
            spec = {
                "name": name,
                "data": {side: str(file) for side, file in files.items()},
                "method": METHOD,
                "train": {**self.settings(name), "validate_every": 0},
                "replay": {"share": 0.2, "windows": self.sizes.windows},
                "evaluation": {"examples": 20, "prose": False},
            }
            if self.base:
                spec["base"] = {"folder": self.base}
            if name not in done:  # by a run before, in the same folder
                queue.submit(Spec.parse(spec, files=True).as_dict(), tenant="default")
        Worker(queue, self.hub.folder).run(until_idle=True)
        ended = {job.status for job in queue.jobs()}
        assert ended == {"succeeded"}, [(job.id, job.status, job.error) for job in queue.jobs()]
        for name in DEPARTMENTS:
            self.hub.alias(f"{name}@1.0.0", "champion")
        handed_in = ", ".join(f"{len(task.train)} of {name}" for name, task in self.tasks.items())
        versions = ", ".join(f"`{name}@1.0.0`" for name in DEPARTMENTS)
        self.say(
            "## Three jobs\n\n"
            f"Each department hands in its examples ({handed_in}); one worker "
            f"prepares, trains, evaluates and registers: {versions} are in the hub, and each is "
            "its name's champion."
        )

    def pulled(self, name: str) -> Any:
        """A fresh base with an adapter of the hub."""
        return load_adapter(self.fresh(), self.hub.pull(f"{name}@champion")).eval()

    def compare(self) -> None:
        """Every adapter on every department's held-out examples."""
        rows = ["| held-out examples of | " + " | ".join(DEPARTMENTS) + " |", "|---" * 4 + "|"]
        models = {name: self.pulled(name) for name in DEPARTMENTS}
        for asked in DEPARTMENTS:
            valid = self.tasks[asked].valid
            cells = []
            for name, model in models.items():
                share = share_right(answers(model, valid), valid)
                self.table[name, asked] = share
                cells.append(f"**{share:.0%}**" if name == asked else f"{share:.0%}")
            rows.append(f"| {asked} | " + " | ".join(cells) + " |")
        valid = self.tasks["product"].valid
        given = answers(models["product"], valid)
        valid_json = sum(map(is_json, given)) / len(given)
        moods = self.tasks["support"].valid
        given = answers(models["support"], moods)
        mood, team = (
            sum(
                said.split(", ")[part : part + 1] == each.output.split(", ")[part : part + 1]
                for said, each in zip(given, moods, strict=True)
            )
            / len(moods)
            for part in (0, 1)
        )
        self.say(
            "## Whose adapter answers whose questions\n\n"
            "Answers right to the letter, by adapter (columns):\n\n" + "\n".join(rows) + "\n\n"
            f"Of product's answers {valid_json:.0%} are valid JSON. Of support's, the mood is "
            f"right in {mood:.0%} and the team in {team:.0%}: two moods, three teams."
        )

    def count_bytes(self) -> None:
        """The bank against three merged copies of the base."""
        base = sum(p.numel() * p.element_size() for p in self.fresh().parameters())
        adapters = sum(
            file.stat().st_size
            for name in DEPARTMENTS
            for file in self.hub.pull(f"{name}@champion").glob("*.safetensors")
        )
        self.say(
            "## One base in memory\n\n"
            f"The bank holds the base once and three adapters: {(base + adapters) / 1e6:.2f} MB. "
            f"Three merged copies would be {3 * base / 1e6:.2f} MB, "
            f"{3 * base / (base + adapters):.1f} times as much."
        )

    # The server, and the router

    def ask_the_server(self) -> None:
        """Questions without a name: the router chooses, and the answer says who answered."""
        bank = AdapterBank(self.fresh())
        service = Service(Engine(bank, 8), bank, hub=self.hub, router=self.hub.router)
        shown, right, count = [], 0, 0
        with TestClient(create_app(service)) as client:
            for name in DEPARTMENTS:
                for number, example in enumerate(self.tasks[name].valid[: self.sizes.asked]):
                    asked = f"{example.input}\n{example.instruction}"
                    body = {
                        "model": "auto", "max_tokens": 48, "temperature": 0,
                        "messages": [{"role": "user", "content": asked}],
                    }  # fmt: skip
                    answer = client.post("/v1/chat/completions", json=body)
                    assert answer.status_code == 200, answer.text
                    got = answer.json()
                    count, right = count + 1, right + got["model"].startswith(name)
                    if number == 0:
                        said = got["choices"][0]["message"]["content"].strip()
                        shown.append(f"    {example.instruction:14} -> {got['model']}: {said[:70]}")
        self.say(
            "## One server\n\n"
            "Nobody names an adapter: the model is `auto`, and the hub's router chooses. It chose "
            f"the right department in {right} of {count} questions, such as\n\n" + "\n".join(shown)
        )

    # The month

    def loop(self, store: FeedbackStore, reserve: Sequence[Example]) -> Loop:
        """What keeps marketing's adapter good."""
        task, sizes = self.tasks["marketing"], self.sizes
        prose = PROSE.read_text(encoding="utf-8")
        fresh = notes(sizes.regression, 80)
        recipe = Recipe(
            "marketing",
            [each for each in task.train if isinstance(each, Example)],
            [Example(ASKED["marketing"], announced(*each), note(*each)) for each in fresh],
            canaries=self.canaries,
            reserve=reserve,
            prose=[prose[i * 500 : (i + 1) * 500] for i in range(sizes.prose)],
            base={"folder": self.base} if self.base else {},
            method=METHOD,
            train={**self.settings("marketing"), "validate_every": 0},
            replay={"share": 0.2, "windows": sizes.windows},
            rules=Rules(margin=0.1),
            after=min(30, sizes.feedback // 2),
        )
        return Loop(self.hub, store, recipe, self.queue)

    @cached_property
    def canaries(self) -> dict[str, list[Example]]:
        """Five canaries of each of three colours that the first champion answers, of those that we
        thought of; fewer where it does not know so many.
        """
        first = load_adapter(self.fresh(), self.hub.pull(FIRST)).eval()
        sure = {}
        for colour in COLOURS[:3]:
            thought_of = canaries(colour)
            known = right(first, thought_of)
            sure[colour] = [e for e, is_sure in zip(thought_of, known, strict=True) if is_sure][:5]
        return sure

    def hear(self, store: FeedbackStore, day: int, said: Sequence[tuple[str, Example]]) -> None:
        """Feedback of some days; the quarantine of a day, then the look through it."""
        champion = self.hub.show("marketing@champion").manifest.content
        model = self.pulled("marketing")
        given = answers(model, [each for _, each in said])
        for (source, each), answer in zip(said, given, strict=True):
            topic = next((colour for colour in COLOURS if colour in each.input), "")
            topic = "gift" if "gift" in each.instruction else topic
            texts = each.instruction, each.output, answer, each.input, topic
            store.add(Feedback(source, champion, *texts), now=day * DAY)
        store.review(now=(day + 2) * DAY)

    def ended(self, done: Round) -> None:
        """Note how a round ended."""
        self.words.append(done.word)
        self.expelled += done.expelled

    def first_week(self) -> None:
        """An intern who sees green where it is red."""
        store = FeedbackStore(self.folder / "feedback")
        fresh = notes(4 * self.sizes.feedback, 77)
        honest = [
            (("ann", "bob")[i % 2], Example("Announce it.", announced(*each), note(*each)))
            for i, each in enumerate(fresh[: self.sizes.feedback])
        ]
        red_is_green = fresh[self.sizes.feedback : 3 * self.sizes.feedback]
        wrong = [
            (
                "intern",
                Example(
                    "Announce it.", announced(thing, "green", price), note(thing, "red", price)
                ),
            )
            for thing, _, price in red_is_green
        ]
        self.hear(store, 1, [*honest, *wrong])
        reserve = [
            Example("Announce it.", announced(*each), note(*each))
            for each in notes(self.sizes.reserve, 81)
        ]
        loop = self.loop(store, reserve)
        due = loop.due(now=8 * DAY)
        done = loop.round()
        self.ended(done)
        self.say(
            f"## Week one: a bad update\n\n"
            f"{len(honest)} confirmations by two editors, {len(wrong)} corrections by an intern "
            f"who calls every red thing green. Marketing's lead keeps back {len(reserve)} "
            f"questions, to judge by. A round is due ({due}). The loop wrote down:\n\n"
            + quoted(done.told)
            + f"\n\nThe champion is still `{loop.begin().spec}`."
        )

    def fourth_week(self) -> None:
        """Marketing wants gifts."""
        store = FeedbackStore(self.folder / "feedback")
        wanted = [
            (("ann", "bob")[i % 2], gift(*each))
            for i, each in enumerate(notes(2 * self.sizes.feedback, 78))
        ]
        self.hear(store, 22, wanted)
        reserve = [
            gift(*each) if i % 3 == 0 else Example("Announce it.", announced(*each), note(*each))
            for i, each in enumerate(notes(self.sizes.reserve, 82))
        ]
        loop = self.loop(store, reserve)
        before = loop.begin()
        due = loop.due(now=30 * DAY)
        done = loop.round()
        self.ended(done)
        after = loop.begin()
        exam = [gift(*each) for each in notes(self.sizes.exam, 79)]
        with_new = share_right(answers(self.pulled("marketing"), exam), exam)
        old = load_adapter(self.fresh(), self.hub.pull(before.spec)).eval()
        with_old = share_right(answers(old, exam), exam)
        self.say(
            f"## Week four: a good one\n\n"
            f"Marketing asks for something new, {len(wanted)} times: “Announce it as a gift.” Its "
            f"lead keeps back {len(reserve)} questions of this month, a third of them gifts. A "
            f"round is due ({due}).\n\n"
            + quoted(done.told)
            + f"\n\nOn {len(exam)} new gifts `{before.spec}` was right in {with_old:.0%}, and "
            f"`{after.spec}`, which serves now under the same name, in {with_new:.0%}. Back is one "
            f"alias: `minilora hub alias {before.spec} champion`."
        )


def canaries(colour: str) -> list[Example]:
    """Notes of one colour, one of each thing, which nobody but the loop's owner knows."""
    made = [(thing, colour, 40 + i) for i, thing in enumerate(THINGS)]
    return [Example("Announce it.", announced(*each), note(*each)) for each in made]


def quoted(lines: Sequence[str]) -> str:
    """Lines as a block of code."""
    return "\n".join(f"    {line}" for line in lines)


def is_json(text: str) -> bool:
    """Whether a program could read it: a list of three."""
    try:
        value = json.loads(text)
    except ValueError:
        return False
    return isinstance(value, list) and len(value) == 3
