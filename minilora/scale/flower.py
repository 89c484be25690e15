"""The rounds of ``rounds.py`` between real machines: Flower carries them (flwr 1.42).

    flower-superlink     one, where the server is; clients connect to it, never it to them
    flower-supernode     one a client, beside its data: ``--node-config 'data="logs.jsonl" r=2'``
    flwr run app/ link   starts a run: the link starts ``server_app``, each node ``client_app``

Flower brings connections, retries, heartbeats, TLS and who may join. Ours are the three calls: what
a client trains, what it sends, how many become one. What leaves a client is A and B (``frozen_a``:
B alone), how many answer tokens it has and how many examples: no text, no loss, no name. The counts
are exact: where even they are a secret, round them. Flower sends the words of a client's error too,
and an error about data quotes data: ``quiet_errors`` keeps them in the node's own log.

A node's own ``r``, where it has one, is a smaller rank than the run's, for a machine with less
memory (``stack`` and ``svd``).

``flwr`` wants other versions of rich and uvicorn than ours, so it lives in an environment of its
own (docs/scale.md), and this is the only module that imports it.

A client that dies answers no more: Flower tells the server, the round is made of the others, and a
node that comes back takes part in the next. A server that dies goes on after its last whole round,
from the file in ``out``. A reply that does not fit, or holds NaN, is left out, and the log says so.
A round of too few replies keeps its number and is not made again; a run without any round fails.

``flower-epsilon`` puts Flower's own ``LocalDpMod`` around the client; privacy.py says what its ε
comes to. The mod compares what came with what goes out, so it cannot take ``stack``, whose first
round begins with nothing. Left out: secure aggregation (1.42 has SecAgg+ only for the older kind
of app), evaluation on clients (a loss is one more thing that leaves).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import LocalDpMod
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from torch import Tensor

from ..checks import check_positive
from ..files import write_text
from ..formats.save_and_load import save_adapter
from ..lora.combining import LowRank
from ..model.pretrained import load_base
from ..training.examples import load_jsonl
from .federated import Update, check_updates
from .privacy import check_delta
from .rounds import client_update, final_model, first_parts, made_one, next_parts
from .settings import ANY_RANK, Rounds
from .wire import A, B, Parts, errors_stay_here, read_round, received, sent, write_round

LOG = logging.getLogger("flwr")
OWN = {"out": "federated", "timeout": 600, "flower-epsilon": 0.0, "flower-sensitivity": 0.0,
       "flower-delta": 1e-5}  # fmt: skip
client_app, server_app = ClientApp(), ServerApp()


def rounds_of(config: Mapping[str, Any]) -> Rounds:
    """A run's config, with dashes for the underscores of ``Rounds``, as settings.

    Raises ``ValueError`` for a setting that is unknown, or that would fail in every client.

    >>> rounds_of({"how": "svd", "batch-size": 4, "out": "x"}).batch_size
    4
    """
    known = {field.name for field in fields(Rounds)}
    own = {key.replace("-", "_"): value for key, value in config.items() if key not in OWN}
    if unknown := sorted(own.keys() - known):
        raise ValueError(f"no setting {unknown[0]!r}; known are {', '.join(sorted(known))}")
    rounds = Rounds(**own)
    check_own(rounds, {**OWN, **config})
    return rounds


def check_own(rounds: Rounds, own: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` unless this module's own settings go together with the rounds'."""
    check_positive("timeout", own["timeout"])
    check_delta(own["flower-delta"])
    if not own["flower-epsilon"]:
        return
    check_positive("flower-epsilon", own["flower-epsilon"])
    if rounds.how == "stack":
        raise ValueError("flower-epsilon cannot go with how='stack': take 'svd' or 'frozen_a'")
    if not rounds.clipping_norm:
        raise ValueError("flower-epsilon without a clipping-norm promises nothing: give both")
    if rounds.noise_multiplier:
        raise ValueError("expected flower-epsilon or noise-multiplier, got both: leave one out")
    sensitivity, least = own["flower-sensitivity"], 2 * rounds.clipping_norm
    if sensitivity and not least <= sensitivity < float("inf"):
        raise ValueError(
            f"flower-sensitivity must be at least {least}, twice the clipping-norm: two clipped "
            f"changes may be that far apart; got {sensitivity}. Leave it out to get just that"
        )


def packed(tensors: Mapping[str, Tensor]) -> ArrayRecord:
    """Tensors as Flower's record; each is numpy's own format, never a pickle."""
    return ArrayRecord({name: Array(tensor.numpy()) for name, tensor in tensors.items()})


def unpacked(record: ArrayRecord) -> dict[str, Tensor]:
    """Flower's record as tensors."""
    return {name: torch.from_numpy(array.numpy().copy()) for name, array in record.items()}


def begins_with(tensors: Mapping[str, Tensor], rounds: Rounds) -> Parts:
    """What the server sent, as factors; a stack has the scaling 1 and any rank."""
    if rounds.how != "stack":
        return received(tensors, first_parts(load_base, rounds))
    paths = [name.removesuffix(f".{A}") for name in tensors if name.endswith(A)]
    return {path: LowRank(tensors[f"{path}.{A}"], tensors[f"{path}.{B}"], 1.0) for path in paths}


def quiet_errors(message: Message, context: Context, call_next: Any) -> Message:
    """Flower sends the server an exception's type and words (its run_clientapp.py): not ours."""
    with errors_stay_here(LOG):
        return call_next(message, context)


def local_privacy(message: Message, context: Context, call_next: Any) -> Message:
    """Flower's ``LocalDpMod`` with the run's settings; nothing where ``flower-epsilon`` is 0."""
    config = {**OWN, **context.run_config}
    if not config["flower-epsilon"]:
        return call_next(message, context)
    clipping_norm = rounds_of(context.run_config).clipping_norm
    guard = LocalDpMod(
        clipping_norm,
        config["flower-sensitivity"] or 2 * clipping_norm,  # two clipped changes are 2 C apart
        config["flower-epsilon"],
        config["flower-delta"],
    )
    return guard(message, context, call_next)


@client_app.train(mods=[quiet_errors, local_privacy])
def client_round(message: Message, context: Context) -> Message:
    """A client's part of a round: train on its own file, send A and B and two counts."""
    rounds, r = rounds_of(context.run_config), context.node_config.get("r")
    if {**OWN, **context.run_config}["flower-epsilon"]:
        rounds = replace(rounds, clipping_norm=0.0, noise_multiplier=0.0)  # Flower's mod does it
        if r not in (None, rounds.r):
            raise ValueError(
                f"flower-epsilon compares shapes: expected r={rounds.r} of this node, got {r}"
            )
    examples = load_jsonl(str(context.node_config["data"]))
    parts = begins_with(unpacked(message.content["arrays"]), rounds)
    number = int(message.content["config"]["server-round"])
    own = rounds.of_rank(r)
    update = client_update(load_base, examples, parts, own, number, str(context.node_id))
    counts = MetricRecord({"tokens": update.tokens, "examples": len(examples)})
    content = RecordDict({"arrays": packed(sent(update.parts, rounds)), "counts": counts})
    return Message(content, reply_to=message)


class LoraRounds(FedAvg):
    """FedAvg with an aggregate that knows what A and B are, and a file for each whole round."""

    def __init__(self, rounds: Rounds, parts: Parts, done: int, file: Path):
        super().__init__(
            fraction_evaluate=0.0,
            min_train_nodes=rounds.fewest,
            min_available_nodes=rounds.fewest,
            weighted_by_key="tokens",
        )
        self.rounds, self.parts, self.done, self.file = rounds, parts, done, file
        self.known = first_parts(load_base, replace(rounds, how="svd"))
        if rounds.how == "frozen_a":
            self.known = first_parts(load_base, rounds)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Everybody that is online trains; rounds are counted over restarts of the server."""
        return super().configure_train(self.done + server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The replies that fit as one adapter, kept; nothing where they are too few."""
        updates = {}
        for message in replies:
            name = str(message.metadata.src_node_id)
            try:
                updates[name] = self.update_of(name, message)
            except Exception as error:  # a reply is a stranger's bytes: it can fail in any way
                LOG.warning("left out: client %s: %s", name, error)
        if len(updates) < self.rounds.fewest:
            LOG.warning("no round of %d clients, fewest=%d", len(updates), self.rounds.fewest)
            return None, None
        number = self.done + server_round
        self.parts = next_parts(self.parts, made_one(updates, self.rounds, number), self.rounds)
        write_round(self.file, self.parts, number, self.rounds)
        tokens = sum(update.tokens for update in updates.values())
        counts = MetricRecord({"clients": len(updates), "tokens": tokens})
        return packed(sent(self.parts, self.rounds)), counts

    def update_of(self, name: str, message: Message) -> Update:
        """One reply as an update; an error of any kind where it does not fit."""
        if message.has_error():
            raise ValueError(message.error.reason)
        tensors, expected = unpacked(message.content["arrays"]), sent(self.known, self.rounds)
        if other := sorted(tensors.keys() ^ expected.keys()):
            raise ValueError(f"what came does not fit this run: {other[0]} is missing or unknown")
        for key, known in expected.items():
            own, shape, rank = tensors[key], [*known.shape], 0 if key.endswith(A) else 1
            if self.rounds.how in ANY_RANK and own.dim() == 2:
                shape[rank] = min(max(1, own.shape[rank]), shape[rank])  # its own, or the most
            if ([*own.shape], own.dtype) != (shape, known.dtype):
                raise ValueError(
                    f"{key} is {own.dtype} {tuple(own.shape)}, expected this run's "
                    f"{known.dtype} {tuple(shape)}"
                )
        update = Update(received(tensors, self.known), message.content["counts"]["tokens"])
        check_updates({name: update})
        return update


@server_app.main()
def serve_rounds(grid: Grid, context: Context) -> None:
    """All rounds that are left, and the adapter's folder after them."""
    rounds, own = rounds_of(context.run_config), {**OWN, **context.run_config}
    file = Path(own["out"], "rounds.safetensors")
    parts, done = (read_round(file, rounds) if file.exists()
                   else (first_parts(load_base, rounds), 0))  # fmt: skip
    if done:
        LOG.info("goes on after round %d", done)
    strategy = LoraRounds(rounds, parts, done, file)
    start = packed(sent(parts, rounds))
    left = rounds.rounds - done
    strategy.start(grid, start, num_rounds=left, timeout=float(own["timeout"]))
    if not file.exists():
        raise RuntimeError(
            f"no round was made in {left}: the log says why replies were left out; expected at "
            f"least fewest={rounds.fewest} clients that answer within timeout={own['timeout']} s"
        )
    save_adapter(final_model(load_base, strategy.parts, rounds), file.parent / "adapter")


APP = """[project]
name = "minilora-federated"
version = "0.1.0"
description = "LoRA in federated rounds"
license = "Apache-2.0"
dependencies = ["flwr==1.42.0"]

[tool.flwr.app]
publisher = "minilora"

[tool.flwr.app.components]
serverapp = "app:server_app"
clientapp = "app:client_app"

[tool.flwr.app.config]
"""


def write_app(folder: str | Path, config: Mapping[str, str | int | float]) -> Path:
    """The folder that ``flwr run`` takes: two files, which name this module and hold the settings.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     sorted(file.name for file in write_app(folder, {"rounds": 2}).iterdir())
    ['app.py', 'pyproject.toml']
    """
    rounds_of(config)
    settings = {**OWN, **config}  # a string, number or bool of JSON is one of TOML
    lines = [f"{key} = {json.dumps(settings[key], ensure_ascii=False)}" for key in settings]
    write_text(Path(folder, "pyproject.toml"), APP + "\n".join(lines) + "\n")
    module = '"""The two apps."""\n\nfrom minilora.scale.flower import client_app, server_app\n'
    write_text(Path(folder, "app.py"), f'{module}\n__all__ = ["client_app", "server_app"]\n')
    return Path(folder)
