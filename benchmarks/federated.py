"""What does it cost that data may not move? Federated rounds beside training on the pooled logs.

    python -m benchmarks.federated [--seeds 0 1 2]

The shipped base learns naval code from 800 logs that lie with 2 or 8 clients, dealt ``alike`` or by
``taste`` (Dirichlet with c = 0.3 over the system that is asked for: most of a system lies with one
client, and clients differ in size). r = 4 beside every Linear, three rounds of 30 steps (2 clients)
or 15 (8 clients) of eight examples a client. ``pooled`` takes as many steps on all logs in one
place as one client takes in all rounds, with a batch of eight examples a client; ``alone`` is the
first client's adapter without the others. Every score is on 100 held-out logs: nats an answer
token, and the share answered to the letter.

The rate is 0.005, or 0.02 for ``frozen_a``, whose A never learns (both with 2 clients). ``private``
is the ladder of clipping (C = 3) and noise with ``frozen_a`` and two clients: what is left at which
ε of a client's own messages (δ = 1e-5). ``ranks`` has a client of rank 1 beside one of rank 4.

A finished run is kept at once, so a call that was stopped goes on where it was. docs/scale.md shows
the results (``python -m benchmarks.report``).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

import minilora
from minilora import data
from minilora.scale import Rounds, epsilon, federate, final_model, split_among
from minilora.training.batches import IGNORE, encode_all, pad
from minilora.training.evaluation import exact_match

from .common import Row, kept_rows, options, save

SETTINGS = (  # clients, split, ways: what is asked first comes first
    (2, "taste", ("pooled", "stack", "svd", "factors")),
    (8, "taste", ("pooled", "stack")),
    (2, "taste", ("frozen_a", "alone")),
    (8, "taste", ("svd", "factors")),
    (2, "alike", ("pooled", "stack", "factors")),
)
STEPS = {2: 30, 8: 15}  # of a client in a round
SPLITS = {"alike": float("inf"), "taste": 0.3}
LADDER = (0.0, 0.01, 1.0)  # noise multipliers; at 0 only clipping
LOGS, HELD, DELTA, CLIPPING = 800, 100, 1e-5, 3.0
LR, LR_B = 5e-3, 2e-2  # of A and B, and where B learns alone


@dataclass(frozen=True)
class Setting:
    """One run; ``r``: of the last client, where it is not that of the others."""

    how: str
    clients: int
    split: str
    seed: int
    lr: float = LR
    clipping_norm: float = 0.0
    noise_multiplier: float = 0.0
    r: int = 4


def settings_of(seed: int) -> Iterator[Setting]:
    """Every run with one seed."""
    ways = [Setting(how, n, split, seed) for n, split, hows in SETTINGS for how in hows]
    yield from ways[:4]
    yield Setting("frozen_a", 2, "taste", seed, LR_B)
    for noise in LADDER:
        yield Setting("frozen_a", 2, "taste", seed, LR_B, CLIPPING, noise)
    yield Setting("svd", 2, "taste", seed, r=1)
    yield from ways[4:6]
    yield Setting("frozen_a", 8, "taste", seed, LR_B)
    yield from ways[6:]


def rounds_of(setting: Setting) -> Rounds:
    """The federation that a setting names; pooled and alone are federations of one."""
    pooled, single = setting.how == "pooled", setting.how in ("pooled", "alone")
    return Rounds(
        how="svd" if single else setting.how,
        rounds=3,
        steps=STEPS[setting.clients],
        lr=setting.lr,
        batch_size=8 * (setting.clients if pooled else 1),
        r=4,
        targets="all-linear",
        seed=setting.seed,
        clipping_norm=setting.clipping_norm,
        noise_multiplier=setting.noise_multiplier,
    )


def run(setting: Setting) -> Row:
    """One run's scores."""
    task, rounds = data.naval_log(LOGS, HELD, seed=setting.seed), rounds_of(setting)
    dealt = split_among(
        task.train, setting.clients, concentration=SPLITS[setting.split], seed=setting.seed
    )
    if setting.how == "pooled":
        dealt = {"everybody": task.train}
    elif setting.how == "alone":
        dealt = {"client 0": dealt["client 0"]}
    began = time.thread_time()
    ranks = {} if setting.r == rounds.r else {max(dealt): setting.r}
    parts, history = federate(dealt, rounds, noise_seed=setting.seed, ranks=ranks)
    model = final_model(minilora.load_base, parts, rounds).eval()
    z = rounds.noise_multiplier
    return {
        **vars(setting),
        **scores(model, task.valid),
        "error": [record.error for record in history],
        "bytes_up": history[-1].bytes_up,
        "bytes_down": history[-1].bytes_down,
        "epsilon": epsilon(z, rounds.rounds, DELTA) if z else None,
        "seconds": time.thread_time() - began,
    }


def scores(model: Any, examples: Any) -> dict[str, float]:
    """Of an adapter, on logs that nobody trained on."""
    return {"loss": loss(model, examples), "exact": exact_match(model, examples)}


@torch.no_grad()
def loss(model: Any, examples: Any) -> float:
    """Nats an answer token."""
    batch = pad(encode_all(model.tokenizer, examples, 512))
    logits, labels = model(batch.ids)[:, :-1], batch.labels[:, 1:]
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORE).item()


def main() -> None:
    """Every run that is not kept yet."""
    settings = options(__doc__, seeds=[0, 1, 2])
    rows = kept_rows("federated", settings)
    kept = [Setting(**{name: row[name] for name in vars(Setting("", 0, "", 0))}) for row in rows]
    for seed in settings.seeds:
        for setting in settings_of(seed):
            if setting not in kept:
                rows.append(run(setting))
                save("federated", rows, settings)
                print({k: v for k, v in rows[-1].items() if k != "error"}, flush=True)


if __name__ == "__main__":
    main()
