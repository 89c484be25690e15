"""Flower's own privacy mod with the accountant's number beside the score, in one process.

    .venv-flower/bin/python -m benchmarks.flower_grid     (make test-flower makes that)

Flower's ``ClientApp`` and ``ServerApp`` as they are, ``LocalDpMod`` around the client; only the
messages are carried by ``OneProcess``, a ``Grid`` of twenty lines, instead of by connections. The
logs, the deal and the scores are those of ``benchmarks/federated.py``, one seed, ``frozen_a``.
tests/scale/test_flower.py reads every message that ``OneProcess`` has carried.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Context, Error, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from minilora import data, load_adapter, load_base
from minilora.scale import split_among
from minilora.scale.flower import client_app, server_app
from minilora.scale.privacy import flower_epsilon

from .common import Row, options, save
from .federated import CLIPPING, DELTA, HELD, LOGS, LR_B, SPLITS, STEPS, scores
from .flower_loopback import write_logs

NODES = (11, 22)
ROUNDS = 3
ASKED = (500.0, 5.0)  # LocalDpMod's ε


class OneProcess(Grid):
    """A Grid that calls the client app itself and keeps every message, both ways."""

    def __init__(
        self,
        files: Sequence[Path],
        config: Mapping[str, Any],
        broken: Sequence[int] = (),
        ranks: Sequence[int | None] = (None, None),
    ):
        self.contexts = {}
        for node, file, r in zip(NODES, files, ranks, strict=True):
            own: dict[str, Any] = {"data": str(file)} | ({} if r is None else {"r": r})
            self.contexts[node] = Context(1, node, own, RecordDict(), dict(config))
        self.broken, self.numbers = broken, itertools.count()
        self.messages: list[tuple[Message, Message]] = []
        TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1  # Flower's own, 1.42

    run = None
    set_run = create_message = push_messages = pull_messages = None

    def get_node_ids(self) -> list[int]:
        """Everybody."""
        return list(NODES)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterator[Message]:
        """Each message to its client, and the reply back."""
        for message in messages:
            node = message.metadata.dst_node_id
            if node in self.broken:
                reply = Message(Error(code=1, reason="node is gone"), reply_to=message)
            else:
                reply = client_app(message, self.contexts[node])
            self.messages.append((message, reply))
            yield reply


OneProcess.__abstractmethods__ = frozenset()


def serve(grid: OneProcess, config: Mapping[str, Any], out: Path) -> None:
    """The server app, to its end."""
    server_app(grid, Context(1, 1, {}, RecordDict(), {**config, "out": str(out)}))


def run(asked: float, folder: Path) -> Row:
    """All rounds with ``LocalDpMod`` of this ε, and what its adapter scores."""
    task = data.naval_log(LOGS, HELD, seed=0)
    dealt = split_among(task.train, len(NODES), concentration=SPLITS["taste"], seed=0)
    about = {"how": "frozen_a", "rounds": ROUNDS, "steps": STEPS[2], "lr": LR_B}
    config = {
        **about, "batch-size": 8, "r": 4, "targets": "all-linear", "fewest": 2,
        "clipping-norm": CLIPPING, "flower-epsilon": asked, "flower-delta": DELTA,
    }  # fmt: skip
    np.random.seed(0)  # the mod draws from it
    serve(OneProcess(write_logs(folder, dealt), config), config, folder / "out")
    model = load_adapter(load_base(), folder / "out" / "adapter").eval()
    spent = flower_epsilon(CLIPPING, 2 * CLIPPING, asked, DELTA, ROUNDS)
    row = {"clients": 2, **about, "clipping_norm": CLIPPING, "flower_epsilon": asked}
    return {**row, "epsilon": spent, **scores(model, task.valid)}


def main() -> None:
    """Every ε."""
    settings, rows = options(__doc__), list[Row]()
    for asked in ASKED:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(run(asked, Path(folder)))
        print(save("flower", rows, settings, "flwr"), rows[-1], flush=True)


if __name__ == "__main__":
    main()
