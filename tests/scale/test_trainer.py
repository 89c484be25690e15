"""An injected model of transformers under its own Trainer, started by accelerate on two processes.

``accelerate launch --cpu --num_processes 2`` starts one process, unless MPI starts them. With
``--multi_gpu`` it is torchrun by another name, and the Trainer's ``use_cpu`` chooses gloo.
"""

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from .launch import ended, started

pytestmark = [pytest.mark.scale, pytest.mark.long]
PROGRAM = Path(__file__).with_name("trainer.py")
REPOSITORY = str(Path(__file__).parents[2])


def run(folder, *words):
    """The program, started so; the adapter of each rank."""
    pytest.importorskip("accelerate", reason="transformers' Trainer needs accelerate")
    folder.mkdir()
    with started([sys.executable, *words], folder, PYTHONPATH=REPOSITORY) as process:
        over = ended(process, folder, 300)
    assert over.code == 0, over.err[-2000:]
    files = sorted(folder.glob("rank*/adapter_model.safetensors"))
    return [load_file(file) for file in files], over.out


def test_accelerate_launch_and_trainer_train_injected_adapters_as_one_process_does(tmp_path):
    """Only A and B change, the ranks agree, and since Trainer counts tokens too
    (``average_tokens_across_devices``) two processes end where one does, up to rounding.
    """
    [alone], _ = run(tmp_path / "one", PROGRAM, tmp_path / "one", 4)
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2"]
    launch += ["--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no"]
    launch += ["--main_process_port=0"]
    (first, second), out = run(tmp_path / "two", *launch, PROGRAM, tmp_path / "two", 2)
    assert "rank 0 of 2" in out
    assert "rank 1 of 2" in out
    assert all(torch.equal(first[name], second[name]) for name in first)
    largest = max(value.abs().max() for value in alone.values())
    assert max((first[name] - alone[name]).abs().max() for name in alone) < 1e-3 * largest
