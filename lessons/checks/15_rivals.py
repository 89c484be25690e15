"""Checkers of lesson 15, against plain loops over rows and tokens."""

import numpy as np
import torch
from hypothesis import strategies as st

from minilora.learn import Wrong, cases, close


@cases(
    first={"k": 3, "d": 3, "lengths": [5, 3], "left": False, "seed": 0},
    k=st.integers(1, 4),
    d=st.integers(1, 3),
    lengths=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    left=st.booleans(),
    seed=st.integers(0, 999),
)
def check_with_prompt(answer, k, d, lengths, left, seed):
    """Every row's tokens at k, k + 1 …, whatever its padding."""
    random = torch.Generator().manual_seed(seed)
    time = max(lengths)
    P = torch.randn(k, d, generator=random)
    x = torch.randn(len(lengths), time, d, generator=random)
    mask = torch.zeros(len(lengths), time, dtype=torch.long)
    for row, length in enumerate(lengths):
        mask[row, time - length if left else 0 :][:length] = 1
    side = "left" if left else "right"
    case = f"k={k}, rows of {lengths} tokens padded on the {side}"
    right_inputs = np.stack([np.concatenate([P.numpy(), row]) for row in x.numpy()])
    right_mask = np.concatenate([np.ones((len(lengths), k)), mask], axis=1)
    held = [k + np.flatnonzero(row) for row in mask.numpy()]  # where the tokens of each row are
    given = answer(P, x, mask)
    if not isinstance(given, tuple | list) or len(given) != 3:
        raise Wrong(f"expected inputs, mask and positions for {case}, got {type(given).__name__}")
    inputs, longer, positions = given
    close(inputs, right_inputs, what="inputs", case=case)
    close(np.asarray(longer) * 1.0, right_mask, what="mask", case=case)
    if tuple(positions.shape) != tuple(longer.shape):
        raise Wrong(f"positions have shape {tuple(positions.shape)} for {case}, as the mask has")
    for row in range(len(lengths)):
        own = positions[row, [*range(k), *held[row]]]
        expected = torch.arange(k + lengths[row])
        close(own, expected, what=f"positions of P and the tokens of row {row}", case=case)


@cases(
    first={"leading": [2, 3], "d": 5, "k": 3, "seed": 0},
    leading=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    d=st.integers(1, 5),
    k=st.integers(1, 4),
    seed=st.integers(0, 999),
)
def check_bottleneck(answer, leading, d, k, seed):
    """The sum, entry by entry, in NumPy."""
    random = torch.Generator().manual_seed(seed)
    h = torch.randn(*leading, d, generator=random)
    down, b = torch.randn(k, d, generator=random), torch.randn(k, generator=random)
    up, c = torch.randn(d, k, generator=random), torch.randn(d, generator=random)
    inside = np.maximum(np.einsum("...d,kd->...k", h.numpy(), down.numpy()) + b.numpy(), 0)
    right = h.numpy() + np.einsum("...k,dk->...d", inside, up.numpy()) + c.numpy()
    case = f"h {tuple(h.shape)} and a width of {k} inside"
    close(answer(h, down, b, up, c), right, what="the output", case=case)


def prompt_answer(count):
    """A right answer but for its positions."""

    def answer(P, x, mask):
        inputs = torch.cat([P.expand(len(x), -1, -1), x], dim=1)
        longer = torch.cat([mask.new_ones(len(x), len(P)), mask], dim=1)
        return inputs, longer, count(len(P), mask, longer)

    return answer


def behind(P, x, mask):
    """The prompt after the text."""
    longer = torch.cat([mask, mask.new_ones(len(x), len(P))], dim=1)
    return torch.cat([x, P.expand(len(x), -1, -1)], dim=1), longer, longer.cumsum(1) - 1


def hidden(P, x, mask):
    """The mask hides the prompt."""
    right = prompt_answer(lambda k, mask, longer: longer.cumsum(1) - 1)
    inputs, longer, positions = right(P, x, mask)
    return inputs, longer * (torch.arange(longer.shape[1]) >= len(P)), positions


WRONG = {
    "with_prompt": {
        "from the left edge": prompt_answer(
            lambda k, mask, longer: torch.arange(longer.shape[1]).expand(longer.shape)
        ),
        "from one": prompt_answer(lambda k, mask, longer: longer.cumsum(1)),
        "the text begins at zero": prompt_answer(
            lambda k, mask, longer: torch.cat(
                [torch.arange(k).expand(len(mask), -1), mask.cumsum(1) - 1], dim=1
            )
        ),
        "behind the text": behind,
        "hidden": hidden,
    },
    "bottleneck": {
        "no residual": lambda h, down, b, up, c: torch.relu(h @ down.T + b) @ up.T + c,
        "no nonlinearity": lambda h, down, b, up, c: h + (h @ down.T + b) @ up.T + c,
        "relu at the end": lambda h, down, b, up, c: torch.relu(h + (h @ down.T + b) @ up.T + c),
        "no bias inside": lambda h, down, b, up, c: h + torch.relu(h @ down.T) @ up.T + c,
        "the last bias in relu": lambda h, down, b, up, c: (
            h + torch.relu(torch.relu(h @ down.T + b) @ up.T + c)
        ),
    },
}
