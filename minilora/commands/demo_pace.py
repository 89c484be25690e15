"""How much the demo trains: a task, the prose that shows what is forgotten, settings, replay."""

from __future__ import annotations

from typing import Any, NamedTuple

from ..lora.injection import trainable_parameters
from ..training import data
from ..training.config import BIG, TrainConfig
from ..training.evaluation import PROSE
from ..training.replay import SelfReplay

REPLAY = 0.15  # of the rows: the base's own text


class Pace(NamedTuple):
    """The task, the prose that shows what is forgotten, and settings that end within minutes."""

    task: data.Task
    prose: str
    settings: TrainConfig
    replay: SelfReplay | None = None


def pace_for(model: Any, steps: int | None, seed: int, replay: float | None = None) -> Pace:
    """A big model can read a log before it is taught: fewer steps do, and each costs more."""
    prose = PROSE.read_text(encoding="utf-8")
    if trainable_parameters(model)[1] > BIG:
        steps = 150 if steps is None else steps
        settings = TrainConfig(
            steps=steps, lr=2e-3, batch_size=8, seed=seed, validate_every=75, valid_answers=10
        )
        own = SelfReplay(replay) if replay else None
        return Pace(data.naval_log(n_valid=50, seed=seed), prose[:12_000], settings, own)
    steps = 500 if steps is None else steps
    settings = TrainConfig(steps=steps, seed=seed, validate_every=100, valid_answers=50)
    share = REPLAY if replay is None else replay
    return Pace(data.naval_log(seed=seed), prose, settings, SelfReplay(share) if share else None)
