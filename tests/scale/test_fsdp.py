"""A base sharded over two processes: the run is that of one process, and each rank holds half."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import minilora
from minilora.scale import shard_base
from minilora.scale.fsdp import blocks_of
from minilora.training.ranks import Alone

from .launch import torchrun
from .sharded import SETTINGS, TASK, injected

pytestmark = pytest.mark.scale


def test_a_sharded_run_is_the_run_of_one_process(tmp_path):
    """Within rounding: gathered weights are the same, but lie elsewhere in memory, and a matrix
    product may add up in another order there. Some sizes of batch come out the same to the bit.
    """
    model = injected()
    whole = shard_base(model, Alone())
    history = minilora.train(model, TASK, **SETTINGS)
    minilora.save_adapter(model, tmp_path / "alone")
    program = Path(__file__).with_name("sharded.py")
    repository = str(Path(__file__).parents[2])
    run = torchrun(2, program, tmp_path, folder=tmp_path / "run", PYTHONPATH=repository)
    assert run.code == 0, run.err[-2000:]
    seen = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2)]
    files = [tmp_path / name / "adapter_model.safetensors" for name in ("alone", "adapter")]
    alone, sharded = map(load_file, files)
    largest = max(value.abs().max() for value in alone.values())
    assert max((alone[name] - sharded[name]).abs().max() for name in alone) < 1e-4 * largest
    configs = [json.loads(f.with_name("adapter_config.json").read_text()) for f in files]
    assert configs[0] == configs[1]  # the base's fingerprint too
    for each in seen:
        assert each["losses"] == seen[0]["losses"] == pytest.approx(history.losses, rel=1e-5)
        [*_, last] = each["validations"]
        assert last["valid_loss"] == pytest.approx(history.validations[-1]["valid_loss"], rel=1e-5)
        assert each["merge"].startswith("model.layers.0.self_attn.q_proj: its base is sharded")
        assert each["untouched"]
        assert "expected a multiple of 2 parts a step, got 3" in each["odd"]
        assert each["text"] == model.generate_text("Status?", "Log: Hull 90%.", max_new_tokens=4)
    adapters = 4 * sum(p.numel() for p in model.parameters() if p.requires_grad)
    halves = [each["shard"] - adapters for each in seen]
    assert sum(halves) == whole - adapters
    assert max(halves) < 0.51 * (whole - adapters)


def test_what_cannot_be_sharded_is_refused():
    whole = minilora.load_base()
    with pytest.raises(ValueError, match="only adapters may train"):
        shard_base(whole, Alone())
    four_bits = minilora.load_base(quantize="nf4")
    minilora.inject(four_bits)
    with pytest.raises(ValueError, match="four bits cannot be sharded"):
        shard_base(four_bits, Alone())
    norms = minilora.load_base()
    minilora.inject(norms, minilora.LoraConfig(modules_to_save=("norm",)))
    with pytest.raises(ValueError, match="only adapters may train"):
        shard_base(norms, Alone())
    merged = minilora.merge(injected())
    with pytest.raises(ValueError, match="is merged"):
        shard_base(merged, Alone())


def test_blocks_are_the_longest_list():
    assert [type(block).__name__ for block in blocks_of(injected())] == ["Block"] * 6
    assert blocks_of(torch.nn.Linear(2, 2)) == []
