"""What the optimizer is given."""

import pytest
import torch


@pytest.fixture
def optimizer_steps(monkeypatch):
    """(the gradient as one vector, rates of the groups) that AdamW is given, step by step."""
    seen, step = [], torch.optim.AdamW.step

    def watched(self, *args, **more):
        parameters = [p for group in self.param_groups for p in group["params"]]
        gradient = torch.cat([p.grad.flatten() for p in parameters])
        seen.append((gradient, [group["lr"] for group in self.param_groups]))
        return step(self, *args, **more)

    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    return seen
