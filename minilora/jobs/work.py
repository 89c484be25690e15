"""What a step of a job has in hand, and how its output comes into place."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..model.pretrained import load_base
from ..training.examples import Task
from ..training.readers import read_examples
from .forecast import Limits
from .pulse import Pulse
from .spec import Spec
from .tables import Job, read_object

Place = Callable[[], dict[str, Any]]  # puts an output in place and says what it is


@dataclass
class Work:
    """What a step needs: the job, its folder, the hub to push to, and the pulse to check."""

    job: Job
    folder: Path
    hub: Path
    pulse: Pulse
    limits: Limits

    @cached_property
    def spec(self) -> Spec:
        """What is wanted. Raises ``ValueError`` for a damaged row."""
        return Spec.parse(read_object(self.job.spec), f"the spec of {self.job.id}")

    @property
    def output(self) -> Path:
        """The step's own folder, which no other claim has."""
        return self.folder / f"{self.job.step}-{self.job.fence}"

    def placed(self, **result: Any) -> Place:
        """Renames the step's folder into place, and says what came of it."""
        step, output = self.job.step, self.output

        def place() -> dict[str, Any]:
            final = self.folder / step
            if final.exists():  # a kill came between this rename and the commit
                shutil.rmtree(final)
            os.replace(output, final)
            for left in self.folder.glob(f"{step}-*"):  # of claims that died
                shutil.rmtree(left, ignore_errors=True)
            return result

        return place

    def base(self) -> Any:
        """The base, as the spec wants it."""
        base = self.spec.base
        quantize = "nf4" if base.four_bits else None
        return load_base(base.folder, device=base.device, quantize=quantize)

    def task(self) -> Task:
        """The examples that ``prepare`` wrote down."""
        folder = self.folder / "prepare"
        train, held = (folder / f"{side}.jsonl" for side in ("train", "valid"))
        valid = read_examples(held).examples if held.exists() else ()
        return Task(self.spec.name, read_examples(train).examples, valid)
