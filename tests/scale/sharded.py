"""What each rank of tests/scale/test_fsdp.py runs: a sharded base, and adapters that stay whole."""

import json
import sys
from pathlib import Path

import torch

import minilora
from minilora.scale import join, save_together, shard_base
from minilora.training.data import naval_log

TASK = naval_log(16, 4)
SETTINGS = {"steps": 3, "batch_size": 4, "accumulate": 2, "validate_every": 3, "progress": False}


def injected():
    """The shipped base with an adapter."""
    model = minilora.load_base()
    torch.manual_seed(0)
    minilora.inject(model, minilora.LoraConfig(r=4))
    return model


def refused(action, *arguments, **more):
    """The message of the ValueError that this must raise."""
    try:
        action(*arguments, **more)
    except ValueError as error:
        return str(error)
    return ""


def main(folder):
    """Train on a sharded base, try what does not work, and write down what was seen."""
    with join() as ranks:
        model = injected()
        seen = {"shard": shard_base(model, ranks)}
        history = minilora.train(model, TASK, ranks=ranks, **SETTINGS)
        seen |= {"losses": history.losses, "validations": history.validations}
        before = model.model.layers[0].self_attn.q_proj.base.weight.full_tensor().clone()
        seen["merge"] = refused(minilora.merge, model)
        after = model.model.layers[0].self_attn.q_proj.base.weight.full_tensor()
        seen["untouched"] = torch.equal(before, after)
        seen["odd"] = refused(ranks.own, 3)
        seen["text"] = model.generate_text("Status?", "Log: Hull 90%.", max_new_tokens=4)
        save_together(model, folder / "adapter", ranks)
        (folder / f"rank{ranks.rank}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
