"""What a fine-tune forgets, and what keeps it: replay and its rivals, old prose and an old skill.

    python -m benchmarks.forgetting [--seeds 0 1 2] [--groups goal rivals keyed]

Three groups of runs on the shipped base, which learns naval code:

    goal     LoRA with self-replay (and with EWC), long enough to learn the code; what is lost?
    rivals   equal short runs: nothing, replay of old prose or of the model's own, at many shares;
             lower rate, fewer steps, weight decay, EWC, a null-space start; and the dial
    keyed    naval code only where "Naval code:" stands before the question: are the polite answers
             to plain questions still the old ones?

``exact`` is the share of 200 held-out logs right to the letter; ``forgot`` the bits a byte gained
on 12,000 characters of held-out prose; ``kept`` the share of 100 plain questions answered politely
and right, as all are before; ``seconds`` the run's own processor time, on one thread, windows and
Fisher included. Old prose comes from a part of the held-out text that is not measured.

A finished run is kept in the results at once, so a call that was stopped goes on where it was.
``--again 1`` measures anew, ``--most 5`` stops after so many.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

import minilora
from minilora import Example, Examples, LoraConfig, Prose, SelfReplay, Task, data
from minilora.training.config import TrainConfig
from minilora.training.evaluation import PROSE
from minilora.training.run import set_up

from .common import Row, kept_rows, options, save
from .rivals import ewc, null_space_start

READ, REPLAYED = 12_000, 20_000  # measured: characters before the first; replayed: after the second
QV, ALL = ["q_proj", "v_proj"], "all-linear"
KEY = "Naval code: "


@dataclass(frozen=True)
class Method:
    """A row: how the base is adapted and trained, and what is done against forgetting.

    ``targets`` None: everything trains. ``replay``: given old prose, what is replayed.
    ``dials``: strengths at which the trained adapter is measured too.
    """

    name: str
    targets: Any = ALL
    rate: float = 5e-3
    steps: int = 200
    replay: Callable[[str], Any] = lambda prose: None
    settings: dict[str, Any] = field(default_factory=dict)
    ewc: float = 0.0
    null_space: bool = False
    dials: tuple[float, ...] = ()
    task: Callable[[int], Task] = lambda seed: data.naval_log(seed=seed)


def own(share: float, windows: int = 192) -> Callable[[str], Any]:
    """Self-replay of windows."""
    return lambda prose: SelfReplay(share, windows)


def old(share: float) -> Callable[[str], Any]:
    """Replay of real old prose."""
    return lambda prose: Prose([prose], share)


def plainly(example: Example) -> tuple[str, str]:
    """The question of a keyed example without its key."""
    return example.instruction.split(": ", 1)[1], example.input


def keyed(task: Task, key: str = KEY) -> Task:
    """The same task with the key before each question."""
    sides = (
        [replace(e, instruction=key + e.instruction) for e in side]
        for side in (task.train, task.valid)
    )
    train, valid = map(tuple, sides)
    return Task(task.name, train, valid)


STYLES: dict[str, Callable[[Sequence[tuple[str, str]]], str]] = {
    KEY: data.naval,
    "Names only: ": lambda readings: ", ".join(name for name, _ in readings) + ".",
    "Values only: ": lambda readings: ", ".join(value for _, value in readings) + ".",
    "Backwards: ": lambda readings: " ".join(f"{value} {name}." for name, value in readings),
}


def four_tasks(seed: int) -> Task:
    """Naval code and three other keyed tasks, each with a quarter of the examples."""
    parts = [
        keyed(data.ship_log(key, style, 500, 1, seed + 10 * i), key).train
        for i, (key, style) in enumerate(STYLES.items())
    ]
    return Task(
        "four tasks", tuple(example for four in zip(*parts, strict=True) for example in four), ()
    )


def one_keyed(seed: int) -> Task:
    """Naval code behind its key."""
    return keyed(data.naval_log(seed=seed))


def answers(share: float) -> Any:
    """Self-replay of the base's own answers to the new questions, asked plainly."""
    return SelfReplay(share, 192, prompts=plainly)


def old_rows(share: float) -> Any:
    """Replay of real old questions with their polite answers."""
    return Examples(data.polite_log(500, 1, seed=50), share)


LONG: dict[str, Any] = {"steps": 800, "replay": own(0.25, 512)}
KEYED: dict[str, Any] = {"steps": 300, "rate": 3e-3, "task": one_keyed}
GROUPS: dict[str, tuple[Method, ...]] = {
    "goal": (
        Method("LoRA all, self-replay 25%", **LONG),
        Method("LoRA all, EWC, λ = 10", steps=800, ewc=10.0),
        Method("LoRA q, v, self-replay 25%, 1,000 steps", QV, 1e-2, **LONG | {"steps": 1000}),
    ),
    "keyed": (
        Method("nothing", **KEYED),
        Method("own windows 25%", **KEYED, replay=own(0.25)),
        Method("own answers 20%", **KEYED, replay=lambda prose: answers(0.2)),
        Method("own answers 20%, windows 20%", **KEYED,
               replay=lambda prose: [answers(0.2), SelfReplay(0.2, 192)]),
        Method("old rows 10%", **KEYED, replay=lambda prose: old_rows(0.1)),
        Method("four tasks, nothing", **KEYED | {"task": four_tasks}),
        Method("EWC, λ = 10", **KEYED, ewc=10.0),
    ),
    "rivals": (
        Method("nothing", dials=(0.8, 0.6, 0.4)),
        Method("self-replay 5%", replay=own(0.05)),
        Method("self-replay 10%", replay=own(0.1)),
        Method("self-replay 25%", replay=own(0.25), dials=(0.8,)),
        Method("self-replay 50%", replay=own(0.5)),
        Method("old prose 10%", replay=old(0.1)),
        Method("old prose 25%", replay=old(0.25)),
        Method("rate / 4", rate=1.25e-3),
        Method("80 steps", steps=80),
        Method("weight decay 1", settings={"weight_decay": 1.0}),
        Method("EWC, λ = 1", ewc=1.0),
        Method("EWC, λ = 10", ewc=10.0),
        Method("EWC, λ = 100", ewc=100.0),
        Method("null-space start", null_space=True),
        Method("q, v: nothing", QV, 1e-2),
        Method("q, v: self-replay 25%", QV, 1e-2, replay=own(0.25)),
        Method("full: nothing", None, 1e-3),
        Method("full: self-replay 25%", None, 1e-3, replay=own(0.25)),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Probe:
    """What a model is asked after a run."""

    naval: Sequence[Example]
    plain: Sequence[Example]
    prose: str
    known: float  # bits a byte of the untouched base

    def scores(self, model: Any, is_keyed: bool) -> Row:
        """Exact match, what was forgotten and, in the keyed setting, what was kept."""
        asked = keyed(Task("", (), tuple(self.naval))).valid if is_keyed else self.naval
        row = {
            "exact": minilora.exact_match(model, asked),
            "forgot": minilora.bits_per_byte(model, self.prose) - self.known,
        }
        return row | {"kept": minilora.exact_match(model, self.plain)} if is_keyed else row


def prepare(logs: int) -> Probe:
    """The held-out questions and prose, and how well the base reads it."""
    prose = PROSE.read_text(encoding="utf-8")[:READ]
    naval = data.naval_log(1, logs, seed=99).valid
    plain = data.polite_log(1, max(1, logs // 2), seed=98).valid
    return Probe(naval, plain, prose, minilora.bits_per_byte(minilora.load_base(), prose))


def build(method: Method, seed: int) -> Any:
    """The shipped base, ready to train."""
    torch.manual_seed(seed)
    model = minilora.load_base()
    if method.targets is None:
        return model.requires_grad_(True)
    minilora.inject(model, LoraConfig(r=8, lora_alpha=16, target_modules=method.targets))
    return model


def fine_tune(method: Method, seed: int, scale: float = 1.0) -> tuple[Any, float]:
    """A trained model, and the processor seconds that it took, on this thread."""
    model, task = build(method, seed), method.task(seed)
    prose = PROSE.read_text(encoding="utf-8")[REPLAYED:]
    quiet = {"validate_every": 0, "keep_best": False, "progress": False, "seed": seed}
    steps = max(1, round(scale * method.steps))
    config = TrainConfig(steps=steps, lr=method.rate, batch_size=16, **quiet, **method.settings)
    began = time.thread_time()
    torch.set_flush_denormal(True)
    if method.null_space:
        null_space_start(model, seed)
    run = set_up(model.train(), task, config, method.replay(prose))
    if method.ewc:
        run.objective = ewc(run.objective, model, method.ewc, seed)
    for _ in run.steps(model, config):
        pass
    return model.eval(), time.thread_time() - began


def run_once(group: str, method: Method, seed: int, probe: Probe, scale: float) -> list[Row]:
    """One training, and a row for each strength of the dial."""
    model, seconds = fine_tune(method, seed, scale)
    row = {"group": group, "method": method.name, "seed": seed, "seconds": seconds}
    rows = [row | probe.scores(model, group == "keyed")]
    strength = 1.0
    for dial in method.dials:
        minilora.scale_adapter(model, dial / strength)
        strength = dial
        rows.append({**row, "dial": dial} | probe.scores(model, group == "keyed"))
    return rows


def main() -> None:
    """Every run that has no rows yet, seed by seed; the rows are written after each."""
    defaults: Row = {"seeds": [0, 1, 2], "groups": list(GROUPS), "logs": 200, "scale": 1.0}
    settings = options(__doc__, **defaults, again=0, most=1000)
    torch.set_num_threads(1)  # processor time is then the run's own
    rows = [] if settings.again else kept_rows("forgetting", settings)
    probe = prepare(settings.logs)
    done = {(row["group"], row["method"], row["seed"]) for row in rows}
    every = [
        (s, g, method) for s in settings.seeds for g in settings.groups for method in GROUPS[g]
    ]
    left = [(seed, g, method) for seed, g, method in every if (g, method.name, seed) not in done]
    for seed, group, method in left[: settings.most]:
        rows += run_once(group, method, seed, probe, settings.scale)
        save("forgetting", rows, settings)
        print(described(rows[-1 - len(method.dials)]), flush=True)
    print(f"{max(0, len(left) - settings.most)} runs are left")


def described(row: Row) -> str:
    """A row in one line."""
    kept = f"  kept {row['kept']:.0%}" if "kept" in row else ""
    scores = f"exact {row['exact']:.1%}  forgot {row['forgot']:+.3f}{kept}"
    return (
        f"seed {row['seed']}  {row['group']:<7}{row['method']:<30}{scores}  {row['seconds']:.0f} s"
    )


if __name__ == "__main__":
    main()
