"""Saves one model over another and is killed, at each rename in turn or after a random time.

``python -m tests.model.killed_saver FOLDER MOMENTS``: children are forked from this process, which
imports torch once. After each kill the folder must open as the old model or as the new one.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from minilora import Llama, LlamaConfig, load_base, save_model


def model_of(seed):
    """One of two models: the even one has another shape and is saved in shards."""
    torch.manual_seed(seed)
    return Llama(LlamaConfig(32, 16, 24, 1 + seed % 2, 2, tie_word_embeddings=bool(seed % 2)))


def die_at(moment):
    """Kill this process in place of its rename or removal number ``moment``."""
    left = [moment]

    def counted(change):
        def step(*arguments, **named):
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return change(*arguments, **named)

        return step

    os.replace, os.unlink = counted(os.replace), counted(os.unlink)
    Path.unlink = counted(Path.unlink)


def save_and_die(folder, seed, moment):
    """In a child: save, and be killed on the way; True if the save came to its end before."""
    child = os.fork()
    if child == 0:
        shard = None if seed % 2 else "2KB"
        if moment is not None:
            die_at(moment)
        save_model(model_of(seed), folder, shard=shard)
        os._exit(0)
    if moment is None:
        time.sleep(random.uniform(0, 0.02))
        os.kill(child, signal.SIGKILL)
    return os.WIFEXITED(os.waitpid(child, 0)[1])


def same(model, other):
    """Whether two models are equal to the bit."""
    theirs = other.state_dict()
    state = model.state_dict()
    return state.keys() == theirs.keys() and all(
        torch.equal(t, theirs[n]) for n, t in state.items()
    )


def main(folder, moments):
    """Print how often the folder held the old and the new model; fail where it held neither."""
    torch.set_num_threads(1)  # a fork has no other threads
    current, counts = 0, {"old": 0, "new": 0}
    save_model(model_of(0), folder, shard="2KB")
    for moment in [*range(moments), *[None] * moments]:
        saved = save_and_die(folder, current + 1, moment)
        opened = load_base(folder)
        is_new = same(opened, model_of(current + 1))
        assert is_new or same(opened, model_of(current)), f"neither, killed at {moment}"
        assert is_new or not saved
        counts["new" if is_new else "old"] += 1
        current += is_new
    save_model(model_of(1), folder)
    expected = ["config.json", "model.safetensors"]
    assert sorted(os.listdir(folder)) == expected, sorted(os.listdir(folder))
    print(counts)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
