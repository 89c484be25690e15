# %% [markdown]
# # 94 · Repair: an audit that two random layers pass
#
# Know first: lesson 07 · Difficulty ●●○ · 4 minutes to read · 5 seconds to run
#
# "The relative norm of the delta is above 1e-5, so the fine-tuning worked." The notebook says
# PASSED, in green.


# %% [exercise] fine_tuning_worked
import torch


def fine_tuning_worked(base, tuned, x, y):
    """Whether tuned answers better than base, as far as these examples can tell.

    base and tuned are nn.Linear layers; x (n, in) and y (n, out) are examples that were not trained
    on. An example's error is the mean over its outputs of (layer(x) - y)². Let d be the n
    differences, base's error minus tuned's. True when their mean is above twice its standard error,
    the standard deviation of d (over n - 1) divided by √n.
    """
    delta = tuned.weight - base.weight
    return bool(delta.norm() / base.weight.norm() > 1e-5)


# %% [markdown]
# Two layers that have nothing to do with each other, or with the examples:

# %%
from minilora.learn import check

torch.manual_seed(0)
base, stranger = torch.nn.Linear(8, 4), torch.nn.Linear(8, 4)
x, y = torch.randn(50, 8), torch.randn(50, 4)
print("two random layers:", "PASSED" if fine_tuning_worked(base, stranger, x, y) else "failed")
assert fine_tuning_worked(base, stranger, x, y)

# %% [hints] fine_tuning_worked
# 1. Which of the arguments does the function never look at?
# 2. `(layer(x) - y).square().mean(dim=1)` is one error an example, (n,). Take the difference of the
#    two layers example by example, before any mean: an example that is hard is hard for both.
# 3. `d.mean() > 2 * d.std() / len(d) ** 0.5`, as a bool; torch's std divides by n - 1.

# %%
check(fine_tuning_worked)

# %% [markdown]
# The norm still has its use: a delta of zero has learned nothing. But it cannot say that what
# changed is what was wanted. Lesson 22 asks the same question of whole models, many times a day.
