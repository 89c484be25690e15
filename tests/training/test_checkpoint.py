"""A checkpoint is one file with all that a step changes; anything else is refused."""

import pytest
import torch

from minilora.tensor_files import write_tensors
from minilora.training.checkpoint import State, load_checkpoint, save_checkpoint


def state(seed=0, steps=3):
    torch.manual_seed(seed)
    shapes = {"a": (2, 3), "b": (4,)}
    parameters = {n: torch.nn.Parameter(torch.randn(shape)) for n, shape in shapes.items()}
    made = State(parameters, torch.optim.AdamW(parameters.values()), None)
    for _ in range(steps):
        sum(p.square().sum() for p in parameters.values()).backward()
        made.optimizer.step()
        made.step += 1
    return made


def test_everything_comes_back_to_the_bit(tmp_path):
    old, new = state(), state(seed=1, steps=0)
    old.remember_best()
    save_checkpoint(tmp_path / "c", old, {"r": 8}, {"steps": [1]})
    assert load_checkpoint(tmp_path / "c", new, {"r": 8}) == {"steps": [1]}
    assert new.step == 3
    for name, p in old.parameters.items():
        assert torch.equal(new.parameters[name], p)
        assert torch.equal(new.best[name], p)
        for key, value in old.optimizer.state[p].items():
            assert torch.equal(new.optimizer.state[new.parameters[name]][key], value)
    assert [f.name for f in tmp_path.iterdir()] == ["c"]


def test_each_parameter_keeps_its_own_count_of_steps(tmp_path):
    """AdamW counts a parameter's steps that had a gradient, and corrects its moments by them."""
    old, new = state(), state(seed=1, steps=0)
    old.optimizer.zero_grad()
    old.parameters["a"].sum().backward()  # this step, b has none
    old.optimizer.step()
    old.step += 1
    save_checkpoint(tmp_path / "c", old, {}, {})
    load_checkpoint(tmp_path / "c", new, {})
    for one in (old, new):
        one.optimizer.zero_grad()
        sum(p.square().sum() for p in one.parameters.values()).backward()
        one.optimizer.step()
    assert all(torch.equal(new.parameters[name], p) for name, p in old.parameters.items())


def test_the_best_state_is_a_copy_that_comes_back():
    made = state()
    made.remember_best()
    best = made.parameters["a"].detach().clone()
    made.parameters["a"].data.zero_()
    made.restore_best()
    assert torch.equal(made.parameters["a"], best)


def test_another_file_or_the_checkpoint_of_another_model_is_refused(tmp_path):
    write_tensors(tmp_path / "plain", {"x": torch.ones(1)})
    with pytest.raises(ValueError, match="not a checkpoint of a training run"):
        load_checkpoint(tmp_path / "plain", state(), {})
    other = state()
    other.parameters = {"a": torch.nn.Parameter(torch.zeros(5))}
    save_checkpoint(tmp_path / "other", other, {}, {})
    message = "does not fit this model: parameter/a is missing or has another shape"
    with pytest.raises(ValueError, match=message):
        load_checkpoint(tmp_path / "other", state(), {})
    torn = state()
    del torn.optimizer.state[torn.parameters["b"]]["exp_avg_sq"]
    save_checkpoint(tmp_path / "torn", torn, {}, {})
    untouched = state(seed=1)
    before = untouched.parameters["a"].detach().clone()
    message = "torn is damaged: of step, exp_avg, exp_avg_sq for b it holds only some"
    with pytest.raises(ValueError, match=message):
        load_checkpoint(tmp_path / "torn", untouched, {})
    assert torch.equal(untouched.parameters["a"], before)
    assert untouched.step == 3


def test_the_optimizers_state_goes_where_its_parameter_is(tmp_path):
    """The step too: a fused AdamW counts it on the card."""
    save_checkpoint(tmp_path / "c", state(), {}, {})
    parameters = {n: torch.nn.Parameter(p.to("meta")) for n, p in state().parameters.items()}
    there = State(parameters, torch.optim.AdamW(parameters.values(), fused=False), None)
    load_checkpoint(tmp_path / "c", there, {})
    for p in parameters.values():
        assert {value.device.type for value in there.optimizer.state[p].values()} == {"meta"}
