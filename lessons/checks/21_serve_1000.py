"""Checkers of lesson 21: rows one by one in float64; slots as Python lists."""

import torch
from hypothesis import strategies as st

from minilora.learn import Wrong, cases, close, forbid


@cases(
    first={"rows": 5, "time": 3, "size_in": 5, "size_out": 6, "r": 3, "seed": 0},
    rows=st.integers(1, 5),
    time=st.integers(1, 4),
    size_in=st.integers(1, 6),
    size_out=st.integers(1, 6),
    r=st.integers(1, 4),
    seed=st.integers(0, 999),
)
def check_mixed_rows(answer, rows, time, size_in, size_out, r, seed):
    """Each row against its own Linear; without a loop."""
    forbid(answer, loops=True)
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, time, size_in, generator=random)
    W = torch.randn(size_out, size_in, generator=random)
    A = torch.randn(rows, r, size_in, generator=random)
    B = torch.randn(rows, size_out, r, generator=random)
    scaling = torch.rand(rows, generator=random) * 4
    scaling[0] = 0  # a row without an adapter
    right = torch.stack([
        x[i].double() @ (W.double() + scaling[i].double() * B[i].double() @ A[i].double()).T
        for i in range(rows)
    ])  # fmt: skip
    case = f"x {(rows, time, size_in)}, W {(size_out, size_in)}, A {tuple(A.shape)}"
    got = answer(x.clone(), W.clone(), A.clone(), B.clone(), scaling.clone())
    close(got, right.float(), what="y", case=case, tolerance=1e-3)


@cases(
    rows=st.integers(1, 4),
    capacity=st.integers(2, 6),
    size=st.integers(1, 3),
    seed=st.integers(0, 999),
)
def check_slot_step(answer, rows, capacity, size, seed):
    """Two steps, against lists."""
    random = torch.Generator().manual_seed(seed)
    lengths = torch.randint(capacity - 1, (rows,), generator=random)
    keys = torch.randn(rows, capacity, size, generator=random)  # what is behind the end is garbage
    lists = [keys[i, : lengths[i]].tolist() for i in range(rows)]
    for step in range(2):
        if int(lengths.max()) >= capacity:
            return
        case = f"step {step + 1}, keys {(rows, capacity, size)}, lengths {lengths.tolist()}"
        new = torch.randn(rows, size, generator=random)
        lists = [[*own, key] for own, key in zip(lists, new.tolist(), strict=True)]
        wanted = [len(own) for own in lists]
        mask = answer(keys, lengths, new.clone())
        if lengths.tolist() != wanted:
            raise Wrong(f"{case}: afterwards lengths is {lengths.tolist()}, right is {wanted}")
        for i, own in enumerate(lists):
            if keys[i, : len(own)].tolist() != own:
                raise Wrong(f"{case}: row {i} does not hold its {len(own)} keys in order")
        right = torch.tensor([[place < n for place in range(capacity)] for n in wanted])
        if not isinstance(mask, torch.Tensor) or mask.shape != right.shape:
            shape = tuple(getattr(mask, "shape", ()))
            raise Wrong(f"{case}: the mask has shape {shape}, right is {tuple(right.shape)}")
        if not torch.equal(mask.bool(), right):
            i = int((mask.bool() != right).any(dim=1).nonzero()[0])
            raise Wrong(
                f"{case}: row {i} may look at {mask[i].int().tolist()}, right is "
                f"{right[i].int().tolist()}: its {wanted[i]} own places and no other"
            )


def row_by_row(x, W, A, B, scaling):
    """Right, and one product a row."""
    y = x @ W.T
    for i in range(len(x)):
        y[i] += scaling[i] * (x[i] @ A[i].T) @ B[i].T
    return y


def one_scale(x, W, A, B, scaling):
    """The first row's scale for all."""
    return x @ W.T + scaling[0] * torch.bmm(torch.bmm(x, A.mT), B.mT)


def first_adapter(x, W, A, B, scaling):
    """Everybody gets the first row's factors."""
    return x @ W.T + scaling[:, None, None] * ((x @ A[0].T) @ B[0].T)


def scaled_base(x, W, A, B, scaling):
    """The base is scaled too."""
    return scaling[:, None, None] * (x @ W.T + torch.bmm(torch.bmm(x, A.mT), B.mT))


def unscaled(x, W, A, B, scaling):
    """No scale."""
    return x @ W.T + torch.bmm(torch.bmm(x, A.mT), B.mT)


def at_the_longest(keys, lengths, new):
    """All rows write at the same place."""
    end = int(lengths.max())
    keys[:, end] = new
    lengths[:] = end + 1
    return torch.arange(keys.shape[1]) < lengths[:, None]


def without_the_new(keys, lengths, new):
    """A token that does not see itself."""
    keys[torch.arange(len(keys)), lengths] = new
    mask = torch.arange(keys.shape[1]) < lengths[:, None]
    lengths += 1
    return mask


def sees_the_neighbours_padding(keys, lengths, new):
    """Every row sees as far as the longest."""
    keys[torch.arange(len(keys)), lengths] = new
    lengths += 1
    return (torch.arange(keys.shape[1]) < lengths.max()).expand(len(keys), -1)


def counts_a_copy(keys, lengths, new):
    """The caller's lengths stay as they were."""
    keys[torch.arange(len(keys)), lengths] = new
    lengths = lengths + 1
    return torch.arange(keys.shape[1]) < lengths[:, None]


WRONG = {
    "mixed_rows": {
        "one scale": one_scale,
        "row by row": row_by_row,
        "the first adapter": first_adapter,
        "the base is scaled": scaled_base,
        "unscaled": unscaled,
    },
    "slot_step": {
        "at the longest": at_the_longest,
        "without the new": without_the_new,
        "the neighbour's padding": sees_the_neighbours_padding,
        "counts a copy": counts_a_copy,
    },
}
